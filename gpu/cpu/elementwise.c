/* The operations between the products of a decoder block: norms, rotary embedding, activations, sums, column
 * statistics.
 *
 * All are bound by memory; tasks are groups of rows (or of columns, where a sum goes down the rows). */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define ROW_TILE 16
#define FLAT_TILE 16384
#define COLUMN_TILE 128

struct norm {
    const struct kernels *kernels;
    float *y;
    const float *x, *weight, *bias; /* weight, bias: or NULL */
    int64_t groups;
    struct gpu_norm spec;
};

/* y = x - mean(x). */
static void norm_center(float *y, const float *x, int64_t size)
{
    double sums[8] = {0}, total = 0;

    for (int64_t i = 0; i < size; i++) {
        sums[i % 8] += (double)x[i];
    }
    for (int i = 0; i < 8; i++) {
        total += sums[i];
    }
    double mean = total / (double)size;
    for (int64_t i = 0; i < size; i++) {
        y[i] = (float)((double)x[i] - mean);
    }
}

/* y = x * factor * (the offset + weight) + bias. */
static void norm_scale(const struct norm *job, float *y, const float *x, float factor)
{
    int64_t size = job->spec.size;
    float offset = job->spec.unit_offset ? 1.0f : 0.0f;

    if (job->weight == NULL) {
        for (int64_t i = 0; i < size; i++) {
            y[i] = x[i] * factor;
        }
    } else {
        for (int64_t i = 0; i < size; i++) {
            y[i] = x[i] * factor * (offset + job->weight[i]);
        }
    }
    for (int64_t i = 0; job->bias != NULL && i < size; i++) {
        y[i] += job->bias[i];
    }
}

static void norm_tile(void *ctx, int64_t task)
{
    const struct norm *job = ctx;

    int64_t size = job->spec.size;

    for (int64_t r = task * ROW_TILE; r < task * ROW_TILE + tile_size(job->groups, ROW_TILE, task); r++) {
        const float *x = job->x + r * size;
        float *y = job->y + r * size;
        if (job->spec.layer) {
            norm_center(y, x, size);
            x = y;
        }
        double mean = job->kernels->dot(x, x, size) / (double)size;
        norm_scale(job, y, x, (float)(1.0 / sqrt(mean + (double)job->spec.eps)));
    }
}

int cpu_norm(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *weight,
             const struct tensor *bias, const struct gpu_norm *spec)
{
    struct norm job = {.kernels = stream->device->kernels,
                       .y = y->data,
                       .x = x->data,
                       .weight = weight != NULL ? weight->data : NULL,
                       .bias = bias != NULL ? bias->data : NULL,
                       .groups = matrix_rows(x) * (matrix_cols(x) / spec->size),
                       .spec = *spec};

    stream_run(stream, tiles_of(job.groups, ROW_TILE), norm_tile, &job);
    return 0;
}

struct rope {
    float *x;
    const float *cosine, *sine;
    int64_t rows, cols;
    struct gpu_rope spec;
};

/* turn: 1, or -1 for the negative angles. */
static void rope_halves(float *a, const float *c, const float *s, int64_t half, float turn)
{
    float *b = a + half;

    for (int64_t i = 0; i < half; i++) {
        float low = a[i], high = b[i], sine = s[i] * turn;
        a[i] = low * c[i] - high * sine;
        b[i] = high * c[i] + low * sine;
    }
}

static void rope_neighbours(float *x, const float *c, const float *s, int64_t half, float turn)
{
    for (int64_t i = 0; i < half; i++) {
        float low = x[2 * i], high = x[2 * i + 1], sine = s[i] * turn;
        x[2 * i] = low * c[i] - high * sine;
        x[2 * i + 1] = high * c[i] + low * sine;
    }
}

static void rope_tile(void *ctx, int64_t task)
{
    const struct rope *job = ctx;
    int64_t half = job->spec.rotated / 2;
    float turn = job->spec.inverse ? -1.0f : 1.0f;

    for (int64_t t = task * ROW_TILE; t < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); t++) {
        int64_t at = t % job->spec.length * half;
        for (int64_t col = 0; col < job->cols; col += job->spec.head_dim) {
            float *x = job->x + t * job->cols + col;
            if (job->spec.interleaved) {
                rope_neighbours(x, job->cosine + at, job->sine + at, half, turn);
            } else {
                rope_halves(x, job->cosine + at, job->sine + at, half, turn);
            }
        }
    }
}

int cpu_rope(struct gpu_stream *stream, const struct tensor *x, const struct tensor *cosine, const struct tensor *sine,
             const struct gpu_rope *spec)
{
    struct rope job = {x->data, cosine->data, sine->data, matrix_rows(x), matrix_cols(x), *spec};

    stream_run(stream, tiles_of(job.rows, ROW_TILE), rope_tile, &job);
    return 0;
}

struct placement {
    float *y;
    const float *x;
    int64_t rows, to_cols, from_cols;
    struct gpu_columns spec;
};

static void columns_copy_tile(void *ctx, int64_t task)
{
    const struct placement *job = ctx;
    const struct gpu_columns *spec = &job->spec;

    for (int64_t t = task * ROW_TILE; t < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); t++) {
        float *to = job->y + t * job->to_cols + spec->to;
        const float *from = job->x + t * job->from_cols + spec->from;
        for (int64_t h = 0; h < spec->heads; h++) {
            memcpy(to + h * spec->to_stride, from + h * spec->from_stride, (size_t)spec->count * sizeof(float));
        }
    }
}

int cpu_copy_columns(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                     const struct gpu_columns *spec)
{
    struct placement job = {y->data, x->data, matrix_rows(x), matrix_cols(y), matrix_cols(x), *spec};

    stream_run(stream, tiles_of(job.rows, ROW_TILE), columns_copy_tile, &job);
    return 0;
}

struct activation {
    const struct kernels *kernels;
    float *y;
    const float *gate, *up;
    int64_t count, cols;
    enum gpu_activation kind;
};

static void activate_tile(void *ctx, int64_t task)
{
    const struct activation *job = ctx;
    int64_t at = task * FLAT_TILE;

    job->kernels->activate(job->y + at, job->gate + at, false, job->up != NULL ? job->up + at : NULL,
                           tile_size(job->count, FLAT_TILE, task), job->kind);
}

/* A gate of one column. */
static void activate_row(void *ctx, int64_t row)
{
    const struct activation *job = ctx;
    int64_t at = row * job->cols;

    job->kernels->activate(job->y + at, job->gate + row, true, job->up + at, job->cols, job->kind);
}

int cpu_activate(struct gpu_stream *stream, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                 enum gpu_activation activation)
{
    struct activation job = {.kernels = stream->device->kernels,
                             .y = y->data,
                             .gate = gate->data,
                             .up = up != NULL ? up->data : NULL,
                             .count = tensor_count(y),
                             .cols = matrix_cols(y),
                             .kind = activation};

    if (matrix_cols(gate) != job.cols) {
        stream_run(stream, matrix_rows(y), activate_row, &job);
    } else {
        stream_run(stream, tiles_of(job.count, FLAT_TILE), activate_tile, &job);
    }
    return 0;
}

struct flat {
    float *y;
    const float *a;
    int64_t count;
    float cap; /* of soft_cap */
};

static void soft_cap_tile(void *ctx, int64_t task)
{
    const struct flat *job = ctx;
    int64_t begin = task * FLAT_TILE, end = begin + tile_size(job->count, FLAT_TILE, task);
    for (int64_t i = begin; i < end; i++) {
        job->y[i] = job->cap * tanhf(job->a[i] / job->cap);
    }
}

int cpu_soft_cap(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, double cap)
{
    struct flat job = {y->data, x->data, tensor_count(x), (float)cap};

    stream_run(stream, tiles_of(job.count, FLAT_TILE), soft_cap_tile, &job);
    return 0;
}

static void add_tile(void *ctx, int64_t task)
{
    const struct flat *job = ctx;
    int64_t begin = task * FLAT_TILE, end = begin + tile_size(job->count, FLAT_TILE, task);
    for (int64_t i = begin; i < end; i++) {
        job->y[i] += job->a[i];
    }
}

int cpu_add(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x)
{
    struct flat job = {y->data, x->data, tensor_count(x), 0};

    stream_run(stream, tiles_of(job.count, FLAT_TILE), add_tile, &job);
    return 0;
}

struct columns {
    float *absmax, *abssum;
    const float *x;
    int64_t rows, cols;
};

/* Sums go down the rows in double, so that many tokens lose nothing, and are added to the running F32 once. */
static void columns_tile(void *ctx, int64_t task)
{
    const struct columns *job = ctx;
    int64_t first = task * COLUMN_TILE, count = tile_size(job->cols, COLUMN_TILE, task);
    float max[COLUMN_TILE] = {0};
    double sum[COLUMN_TILE] = {0};

    for (int64_t t = 0; t < job->rows; t++) {
        const float *x = job->x + t * job->cols + first;
        for (int64_t i = 0; i < count; i++) {
            float magnitude = fabsf(x[i]);
            max[i] = magnitude > max[i] ? magnitude : max[i];
            sum[i] += (double)magnitude;
        }
    }
    for (int64_t i = 0; i < count; i++) {
        if (job->absmax != NULL && max[i] > job->absmax[first + i]) {
            job->absmax[first + i] = max[i];
        }
        if (job->abssum != NULL) {
            job->abssum[first + i] = (float)((double)job->abssum[first + i] + sum[i]);
        }
    }
}

int cpu_column_stats(struct gpu_stream *stream, const struct tensor *absmax, const struct tensor *abssum,
                     const struct tensor *x)
{
    struct columns job = {absmax != NULL ? absmax->data : NULL, abssum != NULL ? abssum->data : NULL, x->data,
                          matrix_rows(x), matrix_cols(x)};

    stream_run(stream, tiles_of(job.cols, COLUMN_TILE), columns_tile, &job);
    return 0;
}
