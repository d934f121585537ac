/* Steps of what is trained: by the sign of the gradient within limits, and AdamW with masters and moments in F32. */

#include "gpu/cpu/internal.h"
#include "gpu/shared/adamw.h"

#define FLAT_TILE 16384

struct sign_step {
    const struct kernels *kernels;
    float *p;
    const float *g, *center; /* center: or NULL */
    int64_t count;
    float lr, low, high;
};

static void sign_step_tile(void *ctx, int64_t task)
{
    const struct sign_step *job = ctx;
    int64_t at = task * FLAT_TILE;

    job->kernels->sign_step(job->p + at, job->g + at, job->center != NULL ? job->center + at : NULL,
                            tile_size(job->count, FLAT_TILE, task), job->lr, job->low, job->high);
}

int cpu_sign_step(struct gpu_stream *stream, const struct tensor *p, const struct tensor *g,
                  const struct tensor *center, double lr, double low, double high)
{
    struct sign_step job = {.kernels = stream->device->kernels,
                            .p = p->data,
                            .g = g->data,
                            .center = center != NULL ? center->data : NULL,
                            .count = tensor_count(p),
                            .lr = (float)lr,
                            .low = (float)low,
                            .high = (float)high};

    stream_run(stream, tiles_of(job.count, FLAT_TILE), sign_step_tile, &job);
    return 0;
}

struct adamw {
    const struct kernels *kernels;
    float *p, *m, *v;
    const float *g;
    int64_t count;
    struct adamw_factors factors;
};

static void adamw_tile(void *ctx, int64_t task)
{
    const struct adamw *job = ctx;
    int64_t at = task * FLAT_TILE;

    job->kernels->adamw(job->p + at, job->m + at, job->v + at, job->g + at, tile_size(job->count, FLAT_TILE, task),
                        &job->factors);
}

int cpu_adamw(struct gpu_stream *stream, const struct tensor *p, const struct tensor *m, const struct tensor *v,
              const struct tensor *g, const struct gpu_adamw *spec)
{
    struct adamw job = {.kernels = stream->device->kernels,
                        .p = p->data,
                        .m = m->data,
                        .v = v->data,
                        .g = g->data,
                        .count = tensor_count(p)};

    job.factors =
        adamw_factors_of(spec->lr, spec->beta1, spec->beta2, spec->eps, spec->decay, spec->factor, spec->step);
    stream_run(stream, tiles_of(job.count, FLAT_TILE), adamw_tile, &job);
    return 0;
}
