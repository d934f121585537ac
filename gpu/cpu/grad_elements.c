/* Gradients of what works on single elements and columns: activations, the soft cap, copies of columns, and quantized
 * inputs, which gradients pass straight through. Bound by memory; tasks are groups of rows. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define ROW_TILE 16
#define FLAT_TILE 16384

struct activate_grad {
    const struct kernels *kernels;
    float *dgate, *dup; /* or NULL */
    const float *dy, *gate, *up;
    int64_t count, cols;
    enum gpu_activation kind;
};

/* The element at `i`; NULL stays NULL. */
static float *grad_at(float *p, int64_t i)
{
    return p != NULL ? p + i : NULL;
}

static void activate_grad_tile(void *ctx, int64_t task)
{
    const struct activate_grad *job = ctx;
    int64_t at = task * FLAT_TILE;

    job->kernels->activate_grad(grad_at(job->dgate, at), grad_at(job->dup, at), job->dy + at, job->gate + at, false,
                                job->up != NULL ? job->up + at : NULL, tile_size(job->count, FLAT_TILE, task),
                                job->kind);
}

/* A gate of one column: its gradient is a sum over the row. */
static void activate_grad_row(void *ctx, int64_t row)
{
    const struct activate_grad *job = ctx;
    int64_t at = row * job->cols;
    double sum = job->kernels->activate_grad(NULL, grad_at(job->dup, at), job->dy + at, job->gate + row, true,
                                             job->up + at, job->cols, job->kind);

    if (job->dgate != NULL) {
        job->dgate[row] = (float)((double)job->dgate[row] + sum);
    }
}

int cpu_activate_grad(struct gpu_stream *stream, const struct tensor *dgate, const struct tensor *dup,
                      const struct tensor *dy, const struct tensor *gate, const struct tensor *up,
                      enum gpu_activation activation)
{
    struct activate_grad job = {.kernels = stream->device->kernels,
                                .dgate = dgate != NULL ? dgate->data : NULL,
                                .dup = dup != NULL ? dup->data : NULL,
                                .dy = dy->data,
                                .gate = gate->data,
                                .up = up != NULL ? up->data : NULL,
                                .count = tensor_count(dy),
                                .cols = matrix_cols(dy),
                                .kind = activation};

    if (matrix_cols(gate) != job.cols) {
        stream_run(stream, matrix_rows(dy), activate_grad_row, &job);
    } else {
        stream_run(stream, tiles_of(job.count, FLAT_TILE), activate_grad_tile, &job);
    }
    return 0;
}

struct soft_cap_grad {
    const struct kernels *kernels;
    float *dx;
    const float *dy, *x;
    int64_t count;
    float cap;
};

static void soft_cap_grad_tile(void *ctx, int64_t task)
{
    const struct soft_cap_grad *job = ctx;
    int64_t at = task * FLAT_TILE;

    job->kernels->soft_cap_grad(job->dx + at, job->dy + at, job->x + at, tile_size(job->count, FLAT_TILE, task),
                                job->cap);
}

int cpu_soft_cap_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dy,
                      const struct tensor *x, double cap)
{
    struct soft_cap_grad job = {stream->device->kernels, dx->data, dy->data, x->data, tensor_count(x), (float)cap};

    stream_run(stream, tiles_of(job.count, FLAT_TILE), soft_cap_grad_tile, &job);
    return 0;
}

struct add_columns {
    float *y;
    const float *x;
    int64_t rows, to_cols, from_cols;
    struct gpu_columns spec;
};

static void add_columns_tile(void *ctx, int64_t task)
{
    const struct add_columns *job = ctx;
    const struct gpu_columns *spec = &job->spec;

    for (int64_t t = task * ROW_TILE; t < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); t++) {
        for (int64_t h = 0; h < spec->heads; h++) {
            float *to = job->y + t * job->to_cols + spec->to + h * spec->to_stride;
            const float *from = job->x + t * job->from_cols + spec->from + h * spec->from_stride;
            for (int64_t i = 0; i < spec->count; i++) {
                to[i] += from[i];
            }
        }
    }
}

int cpu_add_columns(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                    const struct gpu_columns *spec)
{
    struct add_columns job = {y->data, x->data, matrix_rows(x), matrix_cols(y), matrix_cols(x), *spec};

    stream_run(stream, tiles_of(job.rows, ROW_TILE), add_columns_tile, &job);
    return 0;
}

struct input_grad {
    float *dx;
    const float *dy, *x, *outliers;
    int64_t rows, cols;
    float limit; /* of |x| / scale */
    float scale;
};

static void input_grad_tile(void *ctx, int64_t task)
{
    const struct input_grad *job = ctx;

    for (int64_t t = task * ROW_TILE; t < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); t++) {
        int64_t at = t * job->cols;
        for (int64_t i = 0; i < job->cols; i++) {
            bool passes =
                fabsf(job->x[at + i] / job->scale) <= job->limit || (job->outliers != NULL && job->outliers[i] != 0.0f);
            job->dx[at + i] += passes ? job->dy[at + i] : 0.0f;
        }
    }
}

int cpu_quantize_input_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dy,
                            const struct tensor *x, const struct tensor *outliers, const struct gpu_input *spec)
{
    struct input_grad job = {.dx = dx->data,
                             .dy = dy->data,
                             .x = x->data,
                             .outliers = outliers != NULL ? outliers->data : NULL,
                             .rows = matrix_rows(x),
                             .cols = matrix_cols(x),
                             .limit = (float)dtype_max(spec->element),
                             .scale = spec->scale};

    if (spec->dynamic) { /* a range that reaches the largest */
        return cpu_add(stream, dx, dy);
    }
    stream_run(stream, tiles_of(job.rows, ROW_TILE), input_grad_tile, &job);
    return 0;
}
