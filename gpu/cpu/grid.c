/* Scale and zero of each group of weights: min-max, or the shrink factor of the smallest loss.
 *
 * Symmetric: scale = 2 absmax / (2^b - 1), zero = 2^(b-1). Asymmetric: low = min(0, w), high = max(0, w),
 * scale = (high - low) / (2^b - 1), zero = clamp(rne(-low / scale)). The search shrinks low and high by p = 1 - i/steps
 * and keeps the p with the smallest sum importance_j |w_j - wq_j|^norm (Frantar et al. 2022, reference quantizer); p =
 * 1 is the first candidate and ties keep the earlier one, so a search never loses to min-max. It ends early where what
 * lies outside of the grid alone loses more than the best. A symmetric grid reaches one step further on its negative
 * side; with `signs` the search tries each scale negated, too, which turns that side to where weights need it.
 *
 * The scale is rounded to the type in which it will be stored before the zero or any error is computed from it. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define LOOK_EVERY 8       /* candidates between two looks at what is left of a search */
#define LOOK_GROUP_MAX 512 /* the loss of a candidate exceeds the best one early in longer groups */

struct grid {
    struct gpu_stream *stream;
    const struct gpu_grid *spec;
    float *scale, *zero;
    const float *w;
    const float *importance; /* [K], or NULL */
    const float *ones;       /* [padded]: the importance when there is none */
    int64_t cols, groups, padded, candidates;
    float top;
};

/* The power of two that brings a scale into [1, 2). Errors so near 1 keep their powers in range, and weights lose
 * nothing by it. */
static float grid_unit(float scale)
{
    uint32_t bits;
    memcpy(&bits, &scale, sizeof(bits));
    uint32_t exponent = bits >> 23;
    bits = (exponent < 253 ? 254 - exponent : 1) << 23;
    memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

/* A group in search of its grid: w, in units, and weight have `padded` elements, those past the group being zero. */
struct group {
    const float *w, *weight;
    float low, high, unit;
};

/* With signs, candidates 2i and 2i + 1 have one range: the second has its longer side where weights are positive. */
static float shrink_of(const struct grid *job, int64_t candidate)
{
    return (float)(1.0 - (double)(job->spec->signs ? candidate / 2 : candidate) / job->spec->steps);
}

static struct grid_point shrunk(const struct grid *job, const struct group *group, int64_t candidate)
{
    float p = shrink_of(job, candidate);
    struct grid_point point = grid_of(job->spec, p * group->low, p * group->high);

    if (job->spec->signs && candidate % 2 != 0) {
        point.scale = -point.scale;
    }
    return point;
}

/* Whether neither this candidate nor a later one can lose less than `min`: a weight outside of a grid costs at least
 * its distance, and later grids reach no further. Without `sym` that holds up to half a step, by which a rounded zero
 * moves the grid. Rounding is far below the margins, so a search ends where it would without this. */
static bool hopeless(const struct grid *job, const struct group *group, int64_t candidate, float min)
{
    struct grid_point point = shrunk(job, group, candidate);
    float scale = point.scale * group->unit, low = -point.zero * scale, high = (job->top - point.zero) * scale;

    if (!job->spec->sym) {
        float p = shrink_of(job, candidate) * group->unit;
        low = p * group->low - 0.51f * scale;
        high = p * group->high + 0.51f * scale;
    } else if (job->spec->signs) {
        low = -point.zero * fabsf(scale);
        high = -low;
    }
    float outside = job->stream->device->kernels->outside_error(group->w, group->weight, job->padded, low, high,
                                                                (float)job->spec->norm);
    return 0.99f * outside > min;
}

static struct grid_point grid_search(const struct grid *job, const struct group *group)
{
    const struct kernels *kernels = job->stream->device->kernels;
    struct grid_point best = shrunk(job, group, 0), last[2] = {best, {0, 0}};
    float unit = group->unit, norm = (float)job->spec->norm;
    float min = kernels->grid_error(group->w, group->weight, job->padded, best.scale * unit, best.zero, job->top, norm,
                                    INFINITY);
    /* a scale raised to the minimum of its type would reach further */
    bool narrows = job->padded <= LOOK_GROUP_MAX && job->candidates > LOOK_EVERY &&
                   fabsf(shrunk(job, group, job->candidates - 1).scale) > 0x1p-24f;

    for (int64_t i = 1; i < job->candidates; i++) {
        if (narrows && i % LOOK_EVERY == 0 && hopeless(job, group, i, min)) {
            break;
        }
        struct grid_point point = shrunk(job, group, i);
        struct grid_point *before = &last[job->spec->signs ? i % 2 : 0];
        if (point.scale == before->scale && point.zero == before->zero) {
            continue;
        }
        *before = point;
        float error = kernels->grid_error(group->w, group->weight, job->padded, point.scale * unit, point.zero,
                                          job->top, norm, min);
        if (error < min) {
            min = error;
            best = point;
        }
    }
    return best;
}

static struct grid_point grid_search_group(const struct grid *job, const float *w, int64_t col, float low, float high)
{
    int64_t size = job->spec->group_size;
    const float *weight = job->importance != NULL ? job->importance + col : job->ones;
    float *copy = scratch_slice(job->stream), *weight_copy = copy + job->padded;
    float unit = grid_unit(grid_of(job->spec, low, high).scale);

    for (int64_t i = 0; i < size; i++) {
        copy[i] = w[i] * unit;
    }
    if (job->padded != size) {
        memset(copy + size, 0, (size_t)(job->padded - size) * sizeof(float));
        memset(weight_copy, 0, (size_t)job->padded * sizeof(float));
        memcpy(weight_copy, weight, (size_t)size * sizeof(float));
        weight = weight_copy;
    }
    return grid_search(job, &(struct group){copy, weight, low, high, unit});
}

static void grid_row(void *ctx, int64_t row)
{
    const struct grid *job = ctx;
    int64_t size = job->spec->group_size;

    for (int64_t g = 0; g < job->groups; g++) {
        const float *w = job->w + row * job->cols + g * size;
        struct grid_point point = {1.0f, job->spec->sym ? (float)(1 << (job->spec->bits - 1)) : 0.0f};
        float low, high;
        job->stream->device->kernels->range(w, size, &low, &high);
        if (low < 0.0f || high > 0.0f) {
            point = job->spec->mse ? grid_search_group(job, w, g * size, low, high) : grid_of(job->spec, low, high);
        }
        job->scale[row * job->groups + g] = point.scale;
        job->zero[row * job->groups + g] = point.zero;
    }
}

int cpu_grid(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
             const struct tensor *importance, const struct gpu_grid *spec)
{
    struct grid job = {.stream = stream,
                       .spec = spec,
                       .scale = scale->data,
                       .zero = zero->data,
                       .w = w->data,
                       .importance = importance != NULL ? importance->data : NULL,
                       .cols = matrix_cols(w),
                       .top = (float)((1 << spec->bits) - 1)};
    int64_t rows = matrix_rows(w);
    job.groups = job.cols / spec->group_size;
    job.padded = tiles_of(spec->group_size, LANES) * LANES;
    job.candidates = spec->mse ? (int64_t)(spec->max_shrink * spec->steps + 1e-9) * (spec->signs ? 2 : 1) : 1;
    TRY(scratch_reserve(stream, scratch_size(job.padded, sizeof(float)), scratch_size(2 * job.padded, sizeof(float))));
    float *ones = scratch_shared(stream);
    for (int64_t i = 0; i < job.padded; i++) {
        ones[i] = 1.0f;
    }
    job.ones = ones;
    stream_run(stream, rows, grid_row, &job);
    return 0;
}
