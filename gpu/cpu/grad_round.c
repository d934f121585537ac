/* Weights on a grid as functions of what is trained: u, weights in units of their group's scale, the scale, and the
 * zero. Both roundings are passed straight through (Bengio et al. 2013, arXiv 1308.3432); the rules for scale and zero
 * are those of EfficientQAT (Chen et al. 2024, arXiv 2407.11062), whose w / scale is u here. A task is a row. */

#include "gpu/cpu/internal.h"
#include "gpu/shared/levels.h"

#include <math.h>

#define CHUNK 256

struct fake {
    const struct kernels *kernels;
    float *wq;      /* or NULL */
    uint8_t *codes; /* or NULL */
    const float *u, *scale, *zero;
    float *du, *dscale, *dzero; /* or NULL */
    const float *dwq;
    int64_t cols, group, groups;
    float top;
    const struct levels_sorted *levels;
};

/* The zero as an integer of the grid. */
static float fake_zero(float zero, float top)
{
    return fminf(fmaxf(rintf(zero), 0.0f), top);
}

static void fake_add(float *d, int64_t at, double sum)
{
    if (d != NULL) {
        d[at] = (float)((double)d[at] + sum);
    }
}

static void fake_round_row(void *ctx, int64_t row)
{
    const struct fake *job = ctx;

    for (int64_t g = 0; g < job->groups; g++) {
        int64_t at = row * job->cols + g * job->group, point = row * job->groups + g;
        job->kernels->fake_round(job->wq != NULL ? job->wq + at : NULL, job->codes != NULL ? job->codes + at : NULL,
                                 job->u + at, job->group, job->scale[point], fake_zero(job->zero[point], job->top),
                                 job->top);
    }
}

static void fake_round_grad_row(void *ctx, int64_t row)
{
    const struct fake *job = ctx;

    for (int64_t g = 0; g < job->groups; g++) {
        int64_t at = row * job->cols + g * job->group, point = row * job->groups + g;
        float scale = job->scale[point];
        double sums[2];
        job->kernels->fake_round_grad(job->du != NULL ? job->du + at : NULL, sums, job->dwq + at, job->u + at,
                                      job->group, scale, fake_zero(job->zero[point], job->top), job->top);
        fake_add(job->dscale, point, sums[0]);
        fake_add(job->dzero, point, -(double)scale * sums[1]);
    }
}

int cpu_fake_round(struct gpu_stream *stream, const struct tensor *wq, const struct tensor *codes,
                   const struct tensor *u, const struct tensor *scale, const struct tensor *zero,
                   const struct gpu_grid *spec)
{
    struct fake job = {.kernels = stream->device->kernels,
                       .wq = wq != NULL ? wq->data : NULL,
                       .codes = codes != NULL ? codes->data : NULL,
                       .u = u->data,
                       .scale = scale->data,
                       .zero = zero->data,
                       .cols = matrix_cols(u),
                       .group = spec->group_size,
                       .groups = matrix_cols(scale),
                       .top = (float)((1 << spec->bits) - 1)};

    stream_run(stream, matrix_rows(u), fake_round_row, &job);
    return 0;
}

int cpu_fake_round_grad(struct gpu_stream *stream, const struct tensor *du, const struct tensor *dscale,
                        const struct tensor *dzero, const struct tensor *dwq, const struct tensor *u,
                        const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    struct fake job = {.kernels = stream->device->kernels,
                       .du = du != NULL ? du->data : NULL,
                       .dscale = dscale != NULL ? dscale->data : NULL,
                       .dzero = dzero != NULL ? dzero->data : NULL,
                       .dwq = dwq->data,
                       .u = u->data,
                       .scale = scale->data,
                       .zero = zero->data,
                       .cols = matrix_cols(u),
                       .group = spec->group_size,
                       .groups = matrix_cols(scale),
                       .top = (float)((1 << spec->bits) - 1)};

    stream_run(stream, matrix_rows(u), fake_round_grad_row, &job);
    return 0;
}

static void fake_levels_row(void *ctx, int64_t row)
{
    const struct fake *job = ctx;
    float level[CHUNK];

    for (int64_t g = 0; g < job->groups; g++) {
        float scale = job->scale[row * job->groups + g];
        for (int64_t first = 0; first < job->group; first += CHUNK) {
            int64_t at = row * job->cols + g * job->group + first;
            int64_t count = job->group - first < CHUNK ? job->group - first : CHUNK;
            job->kernels->nearest_levels(level, job->codes != NULL ? job->codes + at : NULL, job->u + at, count,
                                         job->levels);
            for (int64_t i = 0; job->wq != NULL && i < count; i++) {
                job->wq[at + i] = scale * level[i];
            }
        }
    }
}

static void fake_levels_grad_row(void *ctx, int64_t row)
{
    const struct fake *job = ctx;
    const struct levels_sorted *levels = job->levels;
    float level[CHUNK], low = levels->values[0], high = levels->values[levels->count - 1];

    for (int64_t g = 0; g < job->groups; g++) {
        int64_t point = row * job->groups + g;
        double sum = 0;
        for (int64_t first = 0; first < job->group; first += CHUNK) {
            int64_t at = row * job->cols + g * job->group + first;
            int64_t count = job->group - first < CHUNK ? job->group - first : CHUNK;
            if (job->dscale != NULL) {
                job->kernels->nearest_levels(level, NULL, job->u + at, count, levels);
                sum += job->kernels->dot(job->dwq + at, level, count);
            }
            if (job->du != NULL) {
                job->kernels->add_between(job->du + at, job->dwq + at, job->u + at, count, job->scale[point], low,
                                          high);
            }
        }
        fake_add(job->dscale, point, sum);
    }
}

int cpu_fake_levels(struct gpu_stream *stream, const struct tensor *wq, const struct tensor *codes,
                    const struct tensor *u, const struct tensor *scale, const struct gpu_levels *levels)
{
    struct levels_sorted sorted;
    struct fake job = {.kernels = stream->device->kernels,
                       .wq = wq != NULL ? wq->data : NULL,
                       .codes = codes != NULL ? codes->data : NULL,
                       .u = u->data,
                       .scale = scale->data,
                       .cols = matrix_cols(u),
                       .group = levels->group_size,
                       .groups = matrix_cols(scale),
                       .levels = &sorted};

    levels_sort(&sorted, levels->values, levels->count);
    stream_run(stream, matrix_rows(u), fake_levels_row, &job);
    return 0;
}

int cpu_fake_levels_grad(struct gpu_stream *stream, const struct tensor *du, const struct tensor *dscale,
                         const struct tensor *dwq, const struct tensor *u, const struct tensor *scale,
                         const struct gpu_levels *levels)
{
    struct levels_sorted sorted;
    struct fake job = {.kernels = stream->device->kernels,
                       .du = du != NULL ? du->data : NULL,
                       .dscale = dscale != NULL ? dscale->data : NULL,
                       .dwq = dwq->data,
                       .u = u->data,
                       .scale = scale->data,
                       .cols = matrix_cols(u),
                       .group = levels->group_size,
                       .groups = matrix_cols(scale),
                       .levels = &sorted};

    levels_sort(&sorted, levels->values, levels->count);
    stream_run(stream, matrix_rows(u), fake_levels_grad_row, &job);
    return 0;
}
