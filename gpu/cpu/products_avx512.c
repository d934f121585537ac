/* Blocks by VDPBF16PS: 8 rows by 32 columns of sums in registers, four times. */

#if defined(__x86_64__)
#include "gpu/cpu/products_internal.h"

#define TARGET __attribute__((target(PRODUCTS_AVX512)))
#define AVX512_INLINE static inline TARGET __attribute__((always_inline))
#define ROWS 8

static void nothing(void)
{
}

/* Rows of c from the half of a block of the left operand that begins at a. */
AVX512_INLINE void avx512_rows(int64_t tiles, const uint16_t *a, const uint16_t *b0, const uint16_t *b1, float *c,
                               int64_t ld, bool add)
{
    __m512 s[ROWS][2];

#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        s[r][0] = add ? _mm512_loadu_ps(c + r * ld) : _mm512_setzero_ps();
        s[r][1] = add ? _mm512_loadu_ps(c + r * ld + PRODUCTS_ROWS) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < tiles; k++) {
        for (int p = 0; p < PRODUCTS_SUM / 2; p++) {
            __m512bh v0 = (__m512bh)_mm512_load_si512(b0 + p * PRODUCTS_SUM);
            __m512bh v1 = (__m512bh)_mm512_load_si512(b1 + p * PRODUCTS_SUM);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                int32_t word;
                __builtin_memcpy(&word, a + r * PRODUCTS_SUM + 2 * p, sizeof(word));
                __m512bh both = (__m512bh)_mm512_set1_epi32(word);
                s[r][0] = _mm512_dpbf16_ps(s[r][0], both, v0);
                s[r][1] = _mm512_dpbf16_ps(s[r][1], both, v1);
            }
        }
        a += PRODUCTS_TILE;
        b0 += PRODUCTS_TILE;
        b1 += PRODUCTS_TILE;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        _mm512_storeu_ps(c + r * ld, s[r][0]);
        _mm512_storeu_ps(c + r * ld + PRODUCTS_ROWS, s[r][1]);
    }
}

static TARGET void avx512_block(int64_t tiles, const uint16_t *const a[2], const uint16_t *const b[2], float *c,
                                int64_t ld, bool add)
{
    for (int i = 0; i < PRODUCTS_BLOCK; i += ROWS) {
        const uint16_t *rows = a[i / PRODUCTS_ROWS] + i % PRODUCTS_ROWS * PRODUCTS_SUM;
        avx512_rows(tiles, rows, b[0], b[1], c + i * ld, ld, add);
    }
}

const struct products products_avx512 = {"avx512_bf16", nothing, nothing, avx512_block};
#endif
