/* The kernel table for AVX2 with F16C. FMA stays off: contraction would give other bits than the generic table. */

#if defined(__x86_64__)
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#define TARGET __attribute__((target("avx2,f16c")))
#define LEVEL_F16C
#define LEVEL_AVX2

#include "gpu/cpu/kernels.inc"
#endif
