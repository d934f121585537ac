/* The gradient of a norm y = n * w + b, n = c / sqrt(mean(c^2) + eps) with c = x, or x - mean(x) for a layer norm, and
 * w meaning 1 + weight where the spec says so. With g = dy * w:
 *
 *     dx = (g - n mean(g n)) / sqrt(...), less mean(g) in the brackets for a layer norm;
 *     dweight = sum over rows of dy * n, dbias = sum over rows of dy.
 *
 * Tasks are tiles of groups of columns, which add up their parts of the sums over rows in double; the parts are added
 * in the order of the tiles. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define GROUP_TILE 64
#define SUM_TILE 256

struct norm_grad {
    struct gpu_stream *stream;
    float *dx;
    const float *dy, *x, *weight; /* weight: or NULL */
    float *dweight, *dbias;       /* or NULL */
    double *parts;                /* [tiles][dweight, dbias][size] */
    int64_t groups, tiles, size;
    float eps, offset;
    bool layer;
};

/* n of one group; returns the factor that made it. */
static float norm_grad_normalize(const struct norm_grad *job, const float *x, float *n)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t size = job->size;

    memcpy(n, x, (size_t)size * sizeof(*n));
    if (job->layer) {
        double sums[8] = {0}, total = 0;
        for (int64_t i = 0; i < size; i++) {
            sums[i % 8] += (double)x[i];
        }
        for (int i = 0; i < 8; i++) {
            total += sums[i];
        }
        double mean = total / (double)size;
        for (int64_t i = 0; i < size; i++) {
            n[i] = (float)((double)x[i] - mean);
        }
    }
    float factor = (float)(1.0 / sqrt(kernels->dot(n, n, size) / (double)size + (double)job->eps));
    for (int64_t i = 0; i < size; i++) {
        n[i] *= factor;
    }
    return factor;
}

/* dx of one group; g holds dy * w after it. */
static void norm_grad_input(const struct norm_grad *job, float *dx, const float *dy, const float *n, float factor,
                            float *g)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t size = job->size;
    double mean = 0;

    for (int64_t i = 0; i < size; i++) {
        g[i] = job->weight != NULL ? dy[i] * (job->offset + job->weight[i]) : dy[i];
    }
    if (job->layer) {
        double sums[8] = {0};
        for (int64_t i = 0; i < size; i++) {
            sums[i % 8] += (double)g[i];
        }
        for (int i = 0; i < 8; i++) {
            mean += sums[i];
        }
    }
    double slope = kernels->dot(g, n, size) / (double)size;
    kernels->norm_grad(dx, g, n, size, factor, (float)(mean / (double)size), (float)slope);
}

static void norm_grad_tile(void *ctx, int64_t task)
{
    const struct norm_grad *job = ctx;
    const struct kernels *kernels = job->stream->device->kernels;
    float *n = scratch_slice(job->stream), *g = n + job->size;
    double *sums = NULL;

    if (job->parts != NULL) {
        sums = job->parts + task * 2 * job->size;
        memset(sums, 0, (size_t)(2 * job->size) * sizeof(*sums));
    }
    for (int64_t r = task * GROUP_TILE; r < task * GROUP_TILE + tile_size(job->groups, GROUP_TILE, task); r++) {
        const float *dy = job->dy + r * job->size;
        float factor = norm_grad_normalize(job, job->x + r * job->size, n);
        if (job->dx != NULL) {
            norm_grad_input(job, job->dx + r * job->size, dy, n, factor, g);
        }
        if (job->dweight != NULL) {
            kernels->add_products(sums, dy, n, job->size);
        }
        if (job->dbias != NULL) {
            kernels->add_products(sums + job->size, dy, NULL, job->size);
        }
    }
}

static void norm_grad_sum(float *d, const struct norm_grad *job, int64_t first, int64_t count, int64_t which)
{
    for (int64_t i = first; d != NULL && i < first + count; i++) {
        double sum = 0;
        for (int64_t tile = 0; tile < job->tiles; tile++) {
            sum += job->parts[(2 * tile + which) * job->size + i];
        }
        d[i] = (float)((double)d[i] + sum);
    }
}

static void norm_grad_columns(void *ctx, int64_t task)
{
    const struct norm_grad *job = ctx;
    int64_t count = tile_size(job->size, SUM_TILE, task);

    norm_grad_sum(job->dweight, job, task * SUM_TILE, count, 0);
    norm_grad_sum(job->dbias, job, task * SUM_TILE, count, 1);
}

int cpu_norm_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dweight,
                  const struct tensor *dbias, const struct tensor *dy, const struct tensor *x,
                  const struct tensor *weight, const struct gpu_norm *spec)
{
    struct norm_grad job = {.stream = stream,
                            .dx = dx != NULL ? dx->data : NULL,
                            .dy = dy->data,
                            .x = x->data,
                            .weight = weight != NULL ? weight->data : NULL,
                            .dweight = dweight != NULL ? dweight->data : NULL,
                            .dbias = dbias != NULL ? dbias->data : NULL,
                            .groups = matrix_rows(x) * (matrix_cols(x) / spec->size),
                            .size = spec->size,
                            .eps = spec->eps,
                            .offset = spec->unit_offset ? 1.0f : 0.0f,
                            .layer = spec->layer};
    bool sums = dweight != NULL || dbias != NULL;

    job.tiles = tiles_of(job.groups, GROUP_TILE);
    TRY(scratch_reserve(stream, sums ? scratch_size(job.tiles * 2 * job.size, sizeof(double)) : 0,
                        scratch_size(2 * job.size, sizeof(float))));
    job.parts = sums ? scratch_shared(stream) : NULL;
    stream_run(stream, job.tiles, norm_grad_tile, &job);
    if (sums) {
        stream_run(stream, tiles_of(job.size, SUM_TILE), norm_grad_columns, &job);
    }
    return 0;
}
