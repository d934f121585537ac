/* Weights to codes and back on a given grid, and what that lost.
 *
 * codes = clamp(rne(w / scale) + zero, 0, 2^b - 1) by true division, so that dequantized weights give their own codes
 * back. Sums of the residual are taken in double: along a row, then over the rows in order. */

#include "gpu/cpu/internal.h"

#include <math.h>

struct rounding {
    struct gpu_stream *stream;
    uint8_t *codes;
    float *w;
    const float *scale, *zero;
    int64_t cols, group, groups;
    float top;
};

static void round_row(void *ctx, int64_t row)
{
    const struct rounding *job = ctx;
    for (int64_t g = 0; g < job->groups; g++) {
        int64_t at = row * job->cols + g * job->group, point = row * job->groups + g;
        job->stream->device->kernels->round(job->codes + at, job->w + at, job->group, job->scale[point],
                                            job->zero[point], job->top);
    }
}

static void dequantize_row(void *ctx, int64_t row)
{
    const struct rounding *job = ctx;
    for (int64_t g = 0; g < job->groups; g++) {
        int64_t at = row * job->cols + g * job->group, point = row * job->groups + g;
        job->stream->device->kernels->dequantize(job->w + at, job->codes + at, job->group, job->scale[point],
                                                 job->zero[point]);
    }
}

static int run_rounding(struct gpu_stream *stream, void (*fn)(void *, int64_t), const struct tensor *codes,
                        const struct tensor *w, const struct tensor *scale, const struct tensor *zero,
                        const struct gpu_grid *spec)
{
    struct rounding job = {.stream = stream,
                           .codes = codes->data,
                           .w = w->data,
                           .scale = scale->data,
                           .zero = zero->data,
                           .cols = matrix_cols(w),
                           .group = spec->group_size,
                           .groups = matrix_cols(w) / spec->group_size,
                           .top = (float)((1 << spec->bits) - 1)};
    stream_run(stream, matrix_rows(w), fn, &job);
    return 0;
}

int cpu_round(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
              const struct tensor *zero, const struct gpu_grid *spec)
{
    return run_rounding(stream, round_row, codes, w, scale, zero, spec);
}

int cpu_dequantize(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                   const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    return run_rounding(stream, dequantize_row, codes, w, scale, zero, spec);
}

struct residual {
    const struct kernels *kernels;
    const float *w, *wq, *scale, *zero;
    int64_t cols, group;
    float top;
    struct gpu_residual *rows;
};

static void add_lanes(struct gpu_residual *row, const struct residual_sums *sums)
{
    for (int i = 0; i < RESIDUAL_LANES; i++) {
        const struct gpu_residual lane = {.error_sq = sums->error[i],
                                          .weight_sq = sums->a_sq[i],
                                          .dot = sums->dot[i],
                                          .quant_sq = sums->b_sq[i],
                                          .clipped_sq = sums->outside_error[i],
                                          .max_abs = sums->max_error[i],
                                          .weight_max = sums->largest[i],
                                          .clipped = sums->outside[i],
                                          .nonfinite = sums->nonfinite[i]};
        gpu_residual_add(row, &lane);
    }
}

static void residual_row(void *ctx, int64_t row)
{
    const struct residual *job = ctx;
    struct residual_sums sums = {.error = {0}};
    const float *w = job->w + row * job->cols, *wq = job->wq + row * job->cols;

    for (int64_t col = 0; col < job->cols; col += job->group) {
        float low = -INFINITY, high = INFINITY;
        if (job->scale != NULL) {
            int64_t point = (row * job->cols + col) / job->group;
            float first = job->scale[point] * -job->zero[point];
            float last = job->scale[point] * (job->top - job->zero[point]);
            low = first < last ? first : last;
            high = first < last ? last : first;
        }
        job->kernels->residual(&sums, w + col, wq + col, job->group, low, high);
    }
    job->rows[row] = (struct gpu_residual){0};
    add_lanes(&job->rows[row], &sums);
}

int cpu_residual(struct gpu_stream *stream, struct gpu_residual *out, const struct tensor *w, const struct tensor *wq,
                 const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);
    struct residual job = {
        .kernels = stream->device->kernels, .w = w->data, .wq = wq->data, .cols = cols, .group = cols};

    if (scale != NULL) {
        job.scale = scale->data;
        job.zero = zero->data;
        job.group = spec->group_size;
        job.top = (float)((1 << spec->bits) - 1);
    }
    TRY(scratch_reserve(stream, scratch_size(rows, sizeof(struct gpu_residual)), 0));
    job.rows = scratch_shared(stream);
    stream_run(stream, rows, residual_row, &job);
    struct gpu_residual sum = {0};
    for (int64_t row = 0; row < rows; row++) {
        gpu_residual_add(&sum, &job.rows[row]);
    }
    *out = sum;
    return 0;
}
