#pragma once
/* Artifacts read by the letter of their documentation, one bit at a time: nothing here is shared with what packs them.
 */

#include "models/qtensor.h"
#include "tests/unit/formats/decode_gguf.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
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

/* bits from bit `at` of words at a distance of `stride`. */
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
static inline void decode_packed(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                 float *out)
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

/* The one scale of a static input is there, or there is none. */
static inline void check_input_scale(const struct stored *stored, const struct qscheme *scheme)
{
    bool expected = scheme->input.element != DTYPE_F32 && !scheme->input.dynamic;
    ck_assert_int_eq(stored->count, expected ? 3 : 2);
    if (expected) {
        const void *scale = stored_data(stored, ".input_scale", scheme->scale_dtype, 1, -1);
        ck_assert(decode_scale(scale, scheme->scale_dtype, 0) == 0.125f);
    }
}

/* int-quantized: signed bytes. */
static inline void decode_signed(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                 float *out)
{
    const int8_t *codes = stored_data(stored, ".weight", DTYPE_I8, n, k);
    const void *scales = stored_data(stored, ".weight_scale", scheme->scale_dtype, n, 1);
    for (int64_t i = 0; i < n * k; i++) {
        out[i] = decode_scale(scales, scheme->scale_dtype, i / k) * (float)codes[i];
    }
    check_input_scale(stored, scheme);
}

/* E4M3 by its definition: bias 7, no infinities. */
static inline float decode_e4m3(uint8_t bits)
{
    int exponent = bits >> 3 & 15, fraction = bits & 7;
    float value = exponent == 0 ? ldexpf((float)fraction, -9) : ldexpf((float)(8 + fraction), exponent - 10);
    return bits & 0x80 ? -value : value;
}

/* float-quantized and naive-quantized. */
static inline void decode_float8(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                 float *out)
{
    const uint8_t *codes = stored_data(stored, ".weight", DTYPE_F8_E4M3, n, k);
    bool per_tensor = scheme->per_channel && scheme->group_rows > 1;
    int64_t side = scheme->per_channel ? 1 : scheme->group_size,
            across = scheme->per_channel ? 1 : (k + side - 1) / side;
    const void *scales = stored_data(stored, ".weight_scale", scheme->scale_dtype,
                                     per_tensor ? 1 : (n + side - 1) / side, per_tensor ? -1 : across);
    for (int64_t i = 0; i < n * k; i++) {
        int64_t at = per_tensor ? 0 : scheme->per_channel ? i / k : i / k / side * across + i % k / side;
        out[i] = decode_scale(scales, scheme->scale_dtype, at) * decode_e4m3(codes[i]);
    }
    check_input_scale(stored, scheme);
}

static inline void decode_compressed_tensors(const struct stored *stored, const struct qscheme *scheme, int64_t n,
                                             int64_t k, float *out)
{
    if (stored_find(stored, ".weight_packed") >= 0) {
        decode_packed(stored, scheme, n, k, out);
    } else if (scheme->kind == QTENSOR_FLOAT8) {
        decode_float8(stored, scheme, n, k, out);
    } else {
        decode_signed(stored, scheme, n, k, out);
    }
}

/* bitsandbytes: everything it takes to decode is in the file. */
static inline void decode_nf4(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                              float *out)
{
    const uint8_t *codes = stored_data(stored, ".weight", DTYPE_U8, (n * k + 1) / 2, 1);
    const float *map = stored_data(stored, ".weight.quant_map", DTYPE_F32, 16, -1);
    const char *state = stored->items[stored_find(stored, ".weight.quant_state.bitsandbytes__nf4")].data;
    int64_t size = scheme->group_size, blocks = (n * k + size - 1) / size;
    const void *absmax = stored_data(stored, ".weight.absmax", scheme->nested ? DTYPE_U8 : DTYPE_F32, blocks, -1);
    const float *nested = NULL, *levels = NULL;
    float offset = 0;

    ck_assert_int_eq(stored->count, scheme->nested ? 6 : 4);
    ck_assert_int_eq(atoi(strstr(state, "\"blocksize\": ") + 13), (int)size);
    if (scheme->nested) {
        nested = stored_data(stored, ".weight.nested_absmax", DTYPE_F32, (blocks + 255) / 256, -1);
        levels = stored_data(stored, ".weight.nested_quant_map", DTYPE_F32, 256, -1);
        offset = strtof(strstr(state, "\"nested_offset\": ") + 17, NULL);
    }
    for (int64_t i = 0; i < n * k; i++) {
        int64_t b = i / size;
        float scale = scheme->nested ? levels[((const uint8_t *)absmax)[b]] * nested[b / 256] + offset
                                     : ((const float *)absmax)[b];
        out[i] = scale * map[i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15];
    }
}

static inline void decode_bitsandbytes(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                       float *out)
{
    if (scheme->kind == QTENSOR_NF4) {
        decode_nf4(stored, scheme, n, k, out);
        return;
    }
    const int8_t *codes = stored_data(stored, ".weight", DTYPE_I8, n, k);
    const float *ranges = stored_data(stored, ".SCB", DTYPE_F32, n, -1);
    int layout = stored_find(stored, ".weight_format");
    ck_assert_int_eq(stored->count, 3);
    ck_assert(layout >= 0 && stored->items[layout].rank == 0 && *(const uint8_t *)stored->items[layout].data == 0);
    for (int64_t i = 0; i < n * k; i++) {
        out[i] = (float)codes[i] * (ranges[i / k] / 127.0f);
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

/* dense: the weight in its own type. */
static inline void decode_dense(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                                float *out)
{
    const void *weight = stored_data(stored, ".weight", scheme->scale_dtype, n, k);
    ck_assert_int_eq(stored->count, 1);
    for (int64_t i = 0; i < n * k; i++) {
        out[i] = decode_scale(weight, scheme->scale_dtype, i);
    }
}

/* gguf: blocks, and integers that are the blocks they look like. */
static inline void decode_gguf(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                               float *out)
{
    int type = scheme->kind == QTENSOR_BLOCKS ? scheme->block_type : scheme->bits == 8 ? 8 : 2;
    int at = gguf_block_at(type);
    int64_t bytes = k / gguf_blocks[at].elements * gguf_blocks[at].bytes;

    ck_assert_int_eq(stored->count, 1);
    gguf_decode(type, stored_data(stored, ".weight", DTYPE_U8, n, bytes), n * k, out);
}

/* aqlm: w = scale * sum of one vector of each codebook; entries are stored modulo their container. */
static inline void decode_aqlm(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k,
                               float *out)
{
    int codes = stored_find(stored, ".codes"), books = stored_find(stored, ".codebooks");
    int scales = stored_find(stored, ".scales");
    ck_assert(stored->count == 3 && codes >= 0 && books >= 0 && scales >= 0);
    const int64_t *shape = stored->items[codes].shape, *book = stored->items[books].shape;
    const uint16_t *table = stored->items[books].data, *scale = stored->items[scales].data;
    bool narrow = scheme->bits <= 8;

    ck_assert_int_eq(stored->items[codes].dtype, narrow ? DTYPE_I8 : DTYPE_I16);
    ck_assert(stored->items[codes].rank == 3 && stored->items[books].rank == 4 && stored->items[scales].rank == 4);
    ck_assert(shape[0] * book[2] == n && shape[1] * book[3] == k && shape[2] == book[0]);
    for (int64_t i = 0; i < n * k; i++) {
        int64_t row = i / k, col = i % k;
        const int64_t at = (row / book[2] * shape[1] + col / book[3]) * shape[2];
        float sum = 0;
        for (int64_t m = 0; m < book[0]; m++) {
            int code = narrow ? ((const int8_t *)stored->items[codes].data)[at + m]
                              : ((const int16_t *)stored->items[codes].data)[at + m];
            int64_t entry = m * book[1] + (code + 0x10000) % book[1];
            sum += dtype_f16_to_f32(table[(entry * book[2] + row % book[2]) * book[3] + col % book[3]]);
        }
        out[i] = sum * dtype_f16_to_f32(scale[row / book[2]]);
    }
}

typedef void (*decoder)(const struct stored *stored, const struct qscheme *scheme, int64_t n, int64_t k, float *out);

/* A format without a row here fails the tests that ask for one: every format is read back. */
static inline decoder decoder_of(const char *format)
{
    static const struct {
        const char *format;
        decoder decode;
    } rows[] = {{"compressed-tensors", decode_compressed_tensors},
                {"bitsandbytes", decode_bitsandbytes},
                {"dense", decode_dense},
                {"gguf", decode_gguf},
                {"aqlm", decode_aqlm},
                {"gptq", decode_gptq_v1},
                {"gptq_v2", decode_gptq_v2},
                {"awq", decode_awq}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (strcmp(rows[i].format, format) == 0) {
            return rows[i].decode;
        }
    }
    ck_abort_msg("no independent decoder for format %s", format);
}

/* Numbers of nested scales, and the scales that they make. */
static inline void random_nested(struct qtensor *q, uint32_t seed)
{
    int64_t blocks = (q->groups + QTENSOR_NESTED_BLOCK - 1) / QTENSOR_NESTED_BLOCK;
    float levels[256];

    qtensor_nested_levels(levels);
    for (int64_t b = 0; b <= blocks; b++) {
        seed = seed * 1664525u + 1013904223u;
        q->tables[b] = 0.01f + (float)(seed >> 16) / 1e6f;
    }
    for (int64_t i = 0; i < q->groups; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->zeros[i] = (uint8_t)(seed >> 24);
        q->scales[i] = levels[q->zeros[i]] * q->tables[i / QTENSOR_NESTED_BLOCK] + q->tables[blocks];
    }
}

/* Any codes (but the NaNs of FP8), and scales that the scheme's type holds. */
static inline void qtensor_random(const char *name, const struct qscheme *scheme, int64_t n, int64_t k, uint32_t seed,
                                  struct qtensor *q)
{
    ck_assert_rc_ok(qtensor_new(name, scheme, n, k, q));
    if (scheme->kind == QTENSOR_BLOCKS) {
        gguf_random(seed, q);
        return;
    }
    q->input_scale = scheme->input.element != DTYPE_F32 && !scheme->input.dynamic ? 0.125f : 0;
    for (int64_t i = 0; scheme->kind == QTENSOR_CODEBOOKS && i < q->row_groups * q->groups * scheme->codebooks; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->entries[i] = (uint16_t)(seed >> 16 & ((1u << scheme->bits) - 1));
    }
    for (int64_t i = 0; q->codes != NULL && i < n * k; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->codes[i] = (uint8_t)(seed >> 24 & ((1u << scheme->bits) - 1));
        if (scheme->kind == QTENSOR_FLOAT8 && (q->codes[i] & 0x7c) == 0x7c) { /* E5M2 has four of them a sign */
            q->codes[i] = 0x7b;
        }
    }
    for (int64_t i = 0; scheme->kind == QTENSOR_CODEBOOKS &&
                        i < (scheme->codebooks * scheme->group_rows * scheme->group_size) << scheme->bits;
         i++) {
        seed = seed * 1664525u + 1013904223u;
        q->tables[i] = dtype_round((float)(seed >> 16) / 32768.0f - 1.0f, DTYPE_F16);
    }
    for (int64_t i = 0; i < q->row_groups * (scheme->kind == QTENSOR_CODEBOOKS ? 1 : q->groups); i++) {
        seed = seed * 1664525u + 1013904223u;
        q->scales[i] = dtype_round(0.001f + (float)(seed >> 16) / 65536.0f, scheme->scale_dtype);
        if (scheme->kind == QTENSOR_INT) {
            q->zeros[i] = (uint8_t)(scheme->sym ? 1u << (scheme->bits - 1) : seed & ((1u << scheme->bits) - 1));
        }
    }
    if (scheme->nested) {
        random_nested(q, seed);
    }
}

static inline void assert_same_weights(const float *actual, const struct qtensor *q)
{
    float *expected = malloc((size_t)(q->rows * q->cols) * sizeof(float));
    qtensor_dequantize(q, expected);
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        if (actual[i] != expected[i]) { /* asserted once only: libcheck notes every assertion in a file */
            ck_abort_msg("%s: weight %lld is %g and not %g", q->name, (long long)i, (double)actual[i],
                         (double)expected[i]);
        }
    }
    free(expected);
}
