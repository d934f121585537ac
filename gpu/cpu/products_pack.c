/* Operands to BF16 (to nearest, ties to even; what is below 2^-126 becomes zero) and into tiles. */

#if defined(__x86_64__)
#include "gpu/cpu/products_internal.h"

#define TARGET __attribute__((target(PRODUCTS_AVX512)))
#define PACK_INLINE static inline TARGET __attribute__((always_inline))

/* 32 elements, those from `count` on zero. */
PACK_INLINE __m512i pack_load(enum dtype dtype, const void *x, int64_t at, int64_t count)
{
    __mmask32 mask = count >= 32 ? 0xffffffffu : (__mmask32)((1u << count) - 1);

    if (dtype == DTYPE_BF16) {
        return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)x + at);
    }
    __m512 low, high;
    if (dtype == DTYPE_F16) {
        __m512i halves = _mm512_maskz_loadu_epi16(mask, (const uint16_t *)x + at);
        low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
    } else {
        low = _mm512_maskz_loadu_ps((__mmask16)mask, (const float *)x + at);
        high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), (const float *)x + at + 16);
    }
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* 16 x 16 words. */
PACK_INLINE void pack_transpose(__m512i r[16])
{
    __m512i t[16];

    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* r[4 g + i]: column i of each lane, of rows 4 g .. 4 g + 3 */
        __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) {
        r[i] = t[i];
    }
}

PACK_INLINE void pack_store(uint16_t *to, __m512i r[16], bool turn)
{
    if (turn) {
        pack_transpose(r);
    }
    for (int i = 0; i < 16; i++) {
        _mm512_store_si512(to + i * PRODUCTS_SUM, r[i]);
    }
}

PACK_INLINE void pack_rows_as(enum dtype dtype, enum products_side side, uint16_t *to, const void *x, int64_t ld,
                              int64_t rows, int64_t count)
{
    for (int64_t k = 0; k < count; k += PRODUCTS_SUM) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) {
            r[i] = i < rows ? pack_load(dtype, x, i * ld + k, count - k) : _mm512_setzero_si512();
        }
        pack_store(to + k * PRODUCTS_ROWS, r, side == PRODUCTS_RIGHT);
    }
}

TARGET void products_pack_rows(enum products_side side, uint16_t *to, enum dtype dtype, const void *x, int64_t ld,
                               int64_t rows, int64_t count)
{
    if (dtype == DTYPE_F32) {
        pack_rows_as(DTYPE_F32, side, to, x, ld, rows, count);
    } else if (dtype == DTYPE_F16) {
        pack_rows_as(DTYPE_F16, side, to, x, ld, rows, count);
    } else {
        pack_rows_as(DTYPE_BF16, side, to, x, ld, rows, count);
    }
}

/* Neighbours in the sum of 16 columns: rows k and k + 1 of x, zero from row `count` on. */
PACK_INLINE __m512i pack_pair(const float *x, int64_t ld, __mmask16 mask, int64_t k, int64_t count)
{
    __m512 first = k < count ? _mm512_maskz_loadu_ps(mask, x + k * ld) : _mm512_setzero_ps();
    __m512 second = k + 1 < count ? _mm512_maskz_loadu_ps(mask, x + (k + 1) * ld) : _mm512_setzero_ps();
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));

    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

TARGET void products_pack_columns(enum products_side side, uint16_t *to, const float *x, int64_t ld, int64_t rows,
                                  int64_t count)
{
    __mmask16 mask = (__mmask16)((1u << rows) - 1);

    for (int64_t k = 0; k < count; k += PRODUCTS_SUM) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) {
            r[i] = pack_pair(x, ld, mask, k + 2 * i, count);
        }
        pack_store(to + k * PRODUCTS_ROWS, r, side == PRODUCTS_LEFT);
    }
}
#endif
