/* The kernel table for AVX-512 F, BW, DQ and VL. */

#if defined(__x86_64__)
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#define TARGET __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define LEVEL_F16C
#define LEVEL_AVX512

#include "gpu/cpu/kernels.inc"
#endif
