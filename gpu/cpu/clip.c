/* Scale and zero of each group of weights, its range cut where the group's part of the output loses the least.
 *
 * A group's part of an output is d . x for its inputs x, d = w - wq; the mean square of it over the inputs is
 * d H_gg d^T, H_gg the group's diagonal block of the inputs' second moments. Candidates cut weights at
 * +- (1 - i/steps) of the group's largest magnitude, i = 0 .. max_shrink*steps - 1 (Lin et al. 2023, arXiv 2306.00978,
 * reference clip search, which sums over a sample of inputs instead); ties keep the wider range, and the first is
 * min-max itself, so a group never loses to it.
 *
 * A task takes ROWS rows of one group: one product of [ROWS, g] with [g, g] for each candidate. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define ROWS 32

struct clip {
    struct gpu_stream *stream;
    const struct gpu_grid *spec;
    float *scale, *zero;
    const float *w, *h;
    int64_t rows, cols, groups, candidates, tiles;
    float top;
};

/* The rows of a task and what is known of them. */
struct tile {
    const float *w; /* of the first row */
    int64_t group, first, count;
    float low[ROWS], high[ROWS];
    struct grid_point best[ROWS];
    double min[ROWS];
};

/* With signs, candidates 2i and 2i + 1 cut at one place: the second negates the scale. */
static struct grid_point cut(const struct clip *job, const struct tile *tile, int64_t row, int64_t candidate)
{
    float p = (float)(1.0 - (double)(job->spec->signs ? candidate / 2 : candidate) / job->spec->steps);
    float low = tile->low[row], high = tile->high[row], bound = p * (-low > high ? -low : high);
    struct grid_point point = grid_of(job->spec, low < -bound ? -bound : low, high > bound ? bound : high);

    if (job->spec->signs && candidate % 2 != 0) {
        point.scale = -point.scale;
    }
    return point;
}

/* Judge one cut of every row. error, product: [ROWS, g] of scratch; codes [g]. */
static void clip_candidate(const struct clip *job, struct tile *tile, int64_t candidate, float *error, float *product,
                           uint8_t *codes)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t g = job->spec->group_size;
    const float *h = job->h + tile->group * g * (job->cols + 1);
    struct grid_point points[ROWS];

    for (int64_t r = 0; r < tile->count; r++) {
        const float *w = tile->w + r * job->cols;
        float *d = error + r * g;
        points[r] = cut(job, tile, r, candidate);
        kernels->round(codes, w, g, points[r].scale, points[r].zero, job->top);
        kernels->dequantize(d, codes, g, points[r].scale, points[r].zero);
        for (int64_t k = 0; k < g; k++) {
            d[k] = w[k] - d[k];
        }
    }
    blas_gemm(0, 0, (int)tile->count, (int)g, (int)g, 1.0f, error, (int)g, h, (int)job->cols, 0.0f, product, (int)g);
    for (int64_t r = 0; r < tile->count; r++) {
        double lost = kernels->dot(error + r * g, product + r * g, g);
        if (candidate == 0 || lost < tile->min[r]) {
            tile->min[r] = lost;
            tile->best[r] = points[r];
        }
    }
}

static void clip_tile(void *ctx, int64_t task)
{
    const struct clip *job = ctx;
    int64_t g = job->spec->group_size;
    struct tile tile = {.group = task / job->tiles, .first = task % job->tiles * ROWS};
    float *error = scratch_slice(job->stream), *product = error + ROWS * g;
    uint8_t *codes = (uint8_t *)(product + ROWS * g);

    tile.count = tile_size(job->rows, ROWS, task % job->tiles);
    tile.w = job->w + tile.first * job->cols + tile.group * g;
    for (int64_t r = 0; r < tile.count; r++) {
        job->stream->device->kernels->range(tile.w + r * job->cols, g, &tile.low[r], &tile.high[r]);
    }
    for (int64_t i = 0; i < job->candidates; i++) {
        clip_candidate(job, &tile, i, error, product, codes);
    }
    for (int64_t r = 0; r < tile.count; r++) {
        bool empty = tile.low[r] == 0.0f && tile.high[r] == 0.0f;
        float middle = job->spec->sym ? (float)(1 << (job->spec->bits - 1)) : 0.0f;
        int64_t at = (tile.first + r) * job->groups + tile.group;
        job->scale[at] = empty ? 1.0f : tile.best[r].scale;
        job->zero[at] = empty ? middle : tile.best[r].zero;
    }
}

int cpu_clip(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
             const struct tensor *h, const struct gpu_grid *spec)
{
    struct clip job = {.stream = stream,
                       .spec = spec,
                       .scale = scale->data,
                       .zero = zero->data,
                       .w = w->data,
                       .h = h->data,
                       .rows = matrix_rows(w),
                       .cols = matrix_cols(w),
                       .top = (float)((1 << spec->bits) - 1)};
    job.groups = job.cols / spec->group_size;
    job.tiles = tiles_of(job.rows, ROWS);
    job.candidates = (int64_t)(spec->max_shrink * spec->steps + 1e-9);
    job.candidates = (job.candidates > 0 ? job.candidates : 1) * (spec->signs ? 2 : 1);
    size_t slice = scratch_size(2 * ROWS * spec->group_size, sizeof(float)) + scratch_size(spec->group_size, 1);
    TRY(scratch_reserve(stream, 0, slice));
    stream_run(stream, job.groups * job.tiles, clip_tile, &job);
    return 0;
}
