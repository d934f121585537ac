#pragma once
/* Artifacts read by the letter of their documentation, one bit at a time: nothing here is shared with what packs them.
 */

#include "models/qtensor.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

/* The tensors of one module as they lie in a file. */
struct stored {
    struct {
        const char *suffix;
        enum dtype dtype;
        int rank;
        int64_t shape[TENSOR_RANK_MAX];
        void *data;
    } items[8];
    int count;
};

static inline int stored_find(const struct stored *stored, const char *suffix)
{
    for (int i = 0; i < stored->count; i++) {
        if (strcmp(stored->items[i].suffix, suffix) == 0) {
            return i;
        }
    }
    return -1;
}

/* Item with this suffix, dtype and two dimensions (b = -1: one dimension). */
static inline const void *stored_data(const struct stored *stored, const char *suffix, enum dtype dtype, int64_t a,
                                      int64_t b)
{
    int i = stored_find(stored, suffix);
    ck_assert_msg(i >= 0, "no tensor %s", suffix);
    ck_assert_int_eq(stored->items[i].dtype, dtype);
    ck_assert_int_eq(stored->items[i].rank, b < 0 ? 1 : 2);
    ck_assert_int_eq(stored->items[i].shape[0], a);
    ck_assert(b < 0 || stored->items[i].shape[1] == b);
    return stored->items[i].data;
}

/* bits from bit `at` of words that lie `stride` apart. */
static inline unsigned decode_code(const uint32_t *words, int64_t stride, int64_t at, int bits)
{
    unsigned code = 0;
    for (int i = 0; i < bits; i++) {
        code |= (words[(at + i) / 32 * stride] >> ((at + i) % 32) & 1u) << i;
    }
    return code;
}

static inline float decode_scale(const void *data, enum dtype dtype, int64_t i)
{
    return dtype == DTYPE_F32   ? ((const float *)data)[i]
           : dtype == DTYPE_F16 ? dtype_f16_to_f32(((const uint16_t *)data)[i])
                                : dtype_bf16_to_f32(((const uint16_t *)data)[i]);
}

/* compressed-tensors pack-quantized: rows along K, zero points along N, both signed and offset by 2^(b-1). */
static inline void decode_compressed_tensors(const struct stored *stored, const struct qscheme *scheme, int64_t n,
                                             int64_t k, float *out)
{
    int bits = scheme->bits, half = 1 << (bits - 1);
    int64_t groups = scheme->per_channel ? 1 : k / scheme->group_size, words = (k * bits + 31) / 32;
    const uint32_t *packed = stored_data(stored, ".weight_packed", DTYPE_I32, n, words);
    const void *scales = stored_data(stored, ".weight_scale", scheme->scale_dtype, n, groups);
    const int64_t *shape = stored_data(stored, ".weight_shape", DTYPE_I64, 2, -1);
    const uint32_t *zeros = NULL;

    ck_assert_int_eq(shape[0], n);
    ck_assert_int_eq(shape[1], k);
    ck_assert_int_eq(stored->count, scheme->sym ? 3 : 4);
    if (!scheme->sym) {
        zeros = stored_data(stored, ".weight_zero_point", DTYPE_I32, (n * bits + 31) / 32, groups);
    }
    for (int64_t row = 0; row < n; row++) {
        for (int64_t col = 0; col < k; col++) {
            int64_t g = col / (k / groups);
            int q = (int)decode_code(packed + row * words, 1, col * bits, bits) - half;
            int z = zeros == NULL ? 0 : (int)decode_code(zeros + g, groups, row * bits, bits) - half;
            out[row * k + col] = decode_scale(scales, scheme->scale_dtype, row * groups + g) * (float)(q - z);
        }
    }
}

/* gptq: packed down K, zero points along N; version 1 stores z - 1. */
static inline void decode_gptq(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                               int version, float *out)
{
    int bits = scheme->bits;
    int64_t groups = k / scheme->group_size, zero_words = n * bits / 32;
    const uint32_t *qweight = stored_data(stored, ".qweight", DTYPE_I32, k * bits / 32, n);
    const uint32_t *qzeros = stored_data(stored, ".qzeros", DTYPE_I32, groups, zero_words);
    const uint16_t *scales = stored_data(stored, ".scales", DTYPE_F16, groups, n);
    const int32_t *g_idx = stored_data(stored, ".g_idx", DTYPE_I32, k, -1);

    ck_assert_int_eq(stored->count, 4);
    for (int64_t col = 0; col < k; col++) {
        if (g_idx[col] != col / scheme->group_size) {
            ck_abort_msg("g_idx of input %lld is %d", (long long)col, g_idx[col]);
        }
        for (int64_t row = 0; row < n; row++) {
            int64_t g = g_idx[col];
            int u = (int)decode_code(qweight + row, n, col * bits, bits);
            int z = (int)decode_code(qzeros + g * zero_words, 1, row * bits, bits) + (version == 1 ? 1 : 0);
            out[row * k + col] = dtype_f16_to_f32(scales[g * n + row]) * (float)(u - z);
        }
    }
}

static inline void decode_gptq_v1(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                  float *out)
{
    decode_gptq(stored, scheme, n, k, 1, out);
}

static inline void decode_gptq_v2(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                  float *out)
{
    decode_gptq(stored, scheme, n, k, 2, out);
}

/* awq gemm: eight outputs in a word, output j of them in nibble place[j]; zero points as they are. */
static inline void decode_awq(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                              float *out)
{
    static const int place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    int64_t groups = k / scheme->group_size, words = n / 8;
    const uint32_t *qweight = stored_data(stored, ".qweight", DTYPE_I32, k, words);
    const uint32_t *qzeros = stored_data(stored, ".qzeros", DTYPE_I32, groups, words);
    const uint16_t *scales = stored_data(stored, ".scales", DTYPE_F16, groups, n);

    ck_assert_int_eq(stored->count, 3);
    for (int64_t col = 0; col < k; col++) {
        for (int64_t row = 0; row < n; row++) {
            int64_t g = col / scheme->group_size;
            int shift = 4 * place[row % 8];
            int u = (int)(qweight[col * words + row / 8] >> shift & 15u);
            int z = (int)(qzeros[g * words + row / 8] >> shift & 15u);
            out[row * k + col] = dtype_f16_to_f32(scales[g * n + row]) * (float)(u - z);
        }
    }
}

typedef void (*decoder)(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k, float *out);

/* A format without a row here fails the tests that ask for one: every format is read back. */
static inline decoder decoder_of(const char *format)
{
    static const struct {
        const char *format;
        decoder decode;
    } rows[] = {
        {"compressed-tensors", decode_compressed_tensors}, {"gptq", decode_gptq_v1}, {"gptq_v2", decode_gptq_v2}, {"awq", decode_awq}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (strcmp(rows[i].format, format) == 0) {
            return rows[i].decode;
        }
    }
    ck_abort_msg("no independent decoder for format %s", format);
}

/* Any codes, and scales that the scheme's type holds. */
static inline void qtensor_random(const char *name, const struct qscheme *scheme, int64_t n, int64_t k, uint32_t seed,
                                  struct qtensor *q)
{
    ck_assert_rc_ok(qtensor_new(name, scheme, n, k, q));
    for (int64_t i = 0; i < n * k; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->codes[i] = (uint8_t)(seed >> 24 & ((1u << scheme->bits) - 1));
    }
    for (int64_t i = 0; i < n * q->groups; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->scales[i] = dtype_round(0.001f + (float)(seed >> 16) / 65536.0f, scheme->scale_dtype);
        q->zeros[i] = (uint8_t)(scheme->sym ? 1u << (scheme->bits - 1) : seed & ((1u << scheme->bits) - 1));
    }
}

static inline void assert_same_weights(const float *got, const struct qtensor *q)
{
    float *wanted = malloc((size_t)(q->rows * q->cols) * sizeof(float));
    qtensor_dequantize(q, wanted);
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        if (got[i] != wanted[i]) { /* asserted once only: libcheck notes every assertion in a file */
            ck_abort_msg("%s: weight %lld is %g and not %g", q->name, (long long)i, (double)got[i], (double)wanted[i]);
        }
    }
    free(wanted);
}
