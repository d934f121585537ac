/* From codes back to weights, kind by kind; the reference that formats' loaders are held to. */

#include "gpu/ggml_blocks.h"
#include "gpu/shared/grid.h"
#include "models/qtensor.h"

#include <stdlib.h>
#include <string.h>

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Seven decades, each with twice the points of the one below: the middles of 2^i even steps from 0.1 to 1, times
 * 10^(i-6), of both signs; then 0 and 1 (Dettmers et al. 2021, arXiv 2110.02861). The library's own map has last bits
 * that depend on the vectors of the machine it was made on; these are the nearest singles, and they travel in the file.
 */
void qtensor_nested_levels(float out[256])
{
    static const double decades[7] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
    int count = 0;

    for (int i = 0; i < 7; i++) {
        int steps = 1 << i;
        for (int k = 0; k < steps; k++) {
            float level = (float)(decades[i] * (0.1 + 0.9 * ((double)k + 0.5) / (double)steps));
            out[count++] = level;
            out[count++] = -level;
        }
    }
    out[count++] = 0.0f;
    out[count++] = 1.0f;
    qsort(out, (size_t)count, sizeof(*out), compare_floats);
}

static int64_t dequantize_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* A stretch of one block. levels NULL: those of integers, which need no table. */
static void dequantize_stretch(const uint8_t *codes, int64_t count, const float *levels, float scale, float zero,
                               float *w)
{
    for (int64_t i = 0; levels == NULL && i < count; i++) {
        w[i] = grid_weight(codes[i], scale, zero);
    }
    for (int64_t i = 0; levels != NULL && i < count; i++) {
        w[i] = scale * (levels[codes[i]] - zero);
    }
}

/* Blocks divide rows and columns, or the weight as one row. */
static void dequantize_scaled(const struct qtensor *q, float *out)
{
    const struct qtensor_scaling *scaling = qtensor_scaling(q->scheme.kind);
    int64_t size = q->scheme.group_size, rows = scaling->flat ? 1 : q->rows, cols = q->rows * q->cols / rows;
    float levels[256], *table = qscheme_element(&q->scheme) == DTYPE_U8 ? NULL : levels;

    qscheme_levels(&q->scheme, levels);
    for (int64_t n = 0; n < rows; n++) {
        for (int64_t g = 0; g < q->groups; g++) {
            int64_t block = n / q->scheme.group_rows * q->groups + g, at = n * cols + g * size;
            float scale = q->tensor_scale != 0 ? q->tensor_scale * q->scales[block] : q->scales[block];
            float zero = scaling->zeros ? (float)q->zeros[block] : 0.0f;
            dequantize_stretch(q->codes + at, dequantize_min(size, cols - g * size), table, scale, zero, out + at);
        }
    }
}

static void dequantize_table(const struct qtensor *q, float *out)
{
    int64_t entries = (int64_t)1 << q->scheme.bits;

    for (int64_t n = 0; n < q->rows; n++) {
        for (int64_t k = 0; k < q->cols; k++) {
            out[n * q->cols + k] = q->tables[n * entries + q->codes[n * q->cols + k]];
        }
    }
    for (int64_t j = 0; j < q->index_count; j++) {
        out[q->index[j]] = q->values[j];
    }
}

static void dequantize_codebooks(const struct qtensor *q, float *out)
{
    const struct qscheme *s = &q->scheme;
    int64_t entries = (int64_t)1 << s->bits, width = s->group_rows * s->group_size;

    memset(out, 0, (size_t)(q->rows * q->cols) * sizeof(*out));
    for (int64_t at = 0; at < q->row_groups * q->groups; at++) {
        float *w = out + at / q->groups * s->group_rows * q->cols + at % q->groups * s->group_size;
        for (int m = 0; m < s->codebooks; m++) {
            const float *vector = q->tables + (m * entries + q->entries[at * s->codebooks + m]) * width;
            for (int64_t i = 0; i < width; i++) {
                w[i / s->group_size * q->cols + i % s->group_size] += vector[i];
            }
        }
        for (int64_t i = 0; i < width; i++) {
            w[i / s->group_size * q->cols + i % s->group_size] *= q->scales[at / q->groups];
        }
    }
}

static void dequantize_blocks(const struct qtensor *q, float *out)
{
    int64_t bytes = ggml_row_bytes(q->scheme.block_type, q->cols);

    for (int64_t n = 0; n < q->rows; n++) {
        ggml_decode_row(q->scheme.block_type, q->codes + n * bytes, q->cols, out + n * q->cols);
    }
}

void qtensor_dequantize(const struct qtensor *q, float *out)
{
    switch (q->scheme.kind) {
    case QTENSOR_INT:
    case QTENSOR_FLOAT8:
    case QTENSOR_FLOAT4:
    case QTENSOR_NF4:
        dequantize_scaled(q, out);
        break;
    case QTENSOR_TABLE:
        dequantize_table(q, out);
        break;
    case QTENSOR_CODEBOOKS:
        dequantize_codebooks(q, out);
        break;
    case QTENSOR_BLOCKS:
        dequantize_blocks(q, out);
        break;
    case QTENSOR_DENSE:
    case QTENSOR_KIND_COUNT:
        memcpy(out, q->tables, (size_t)(q->rows * q->cols) * sizeof(*out));
        break;
    }
}
