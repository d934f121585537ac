#pragma once
/* The instruction sets of products.h on x86-64, each in a file of its own. */

#if defined(__x86_64__)
#include "gpu/cpu/products.h"

#include <immintrin.h>

#define PRODUCTS_AVX512 "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"

extern const struct products products_amx, products_avx512;
#endif
