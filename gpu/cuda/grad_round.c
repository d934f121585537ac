/* Weights on a grid or on levels as functions of what is trained, and the steps that train it. */

#include "gpu/cuda/cuda.h"
#include "gpu/cuda/launch_grad.h"

static struct launch_fake fake_of(const struct tensor *u, const struct tensor *scale, int64_t group)
{
    return (struct launch_fake){.u = u->data, .scale = scale->data, .points = tensor_count(scale), .group = group};
}

static struct launch_fake fake_grid(const struct tensor *u, const struct tensor *scale, const struct tensor *zero,
                                    const struct gpu_grid *spec)
{
    struct launch_fake job = fake_of(u, scale, spec->group_size);

    job.zero = zero->data;
    job.top = (float)((1 << spec->bits) - 1);
    return job;
}

int cuda_fake_round(struct gpu_stream *stream, const struct tensor *wq, const struct tensor *codes,
                    const struct tensor *u, const struct tensor *scale, const struct tensor *zero,
                    const struct gpu_grid *spec)
{
    struct launch_fake job = fake_grid(u, scale, zero, spec);

    job.wq = wq != NULL ? wq->data : NULL;
    job.codes = codes != NULL ? codes->data : NULL;
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_fake_round(&job, stream->stream), "fake_round");
}

int cuda_fake_round_grad(struct gpu_stream *stream, const struct tensor *du, const struct tensor *dscale,
                         const struct tensor *dzero, const struct tensor *dwq, const struct tensor *u,
                         const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    struct launch_fake job = fake_grid(u, scale, zero, spec);

    job.du = du != NULL ? du->data : NULL;
    job.dscale = dscale != NULL ? dscale->data : NULL;
    job.dzero = dzero != NULL ? dzero->data : NULL;
    job.dwq = dwq->data;
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_fake_round_grad(&job, stream->stream), "fake_round_grad");
}

int cuda_fake_levels(struct gpu_stream *stream, const struct tensor *wq, const struct tensor *codes,
                     const struct tensor *u, const struct tensor *scale, const struct gpu_levels *levels)
{
    struct launch_fake job = fake_of(u, scale, levels->group_size);
    struct levels_sorted sorted;

    job.wq = wq != NULL ? wq->data : NULL;
    job.codes = codes != NULL ? codes->data : NULL;
    levels_sort(&sorted, levels->values, levels->count);
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_fake_levels(&job, &sorted, stream->stream), "fake_levels");
}

int cuda_fake_levels_grad(struct gpu_stream *stream, const struct tensor *du, const struct tensor *dscale,
                          const struct tensor *dwq, const struct tensor *u, const struct tensor *scale,
                          const struct gpu_levels *levels)
{
    struct launch_fake job = fake_of(u, scale, levels->group_size);
    struct levels_sorted sorted;

    job.du = du != NULL ? du->data : NULL;
    job.dscale = dscale != NULL ? dscale->data : NULL;
    job.dwq = dwq->data;
    levels_sort(&sorted, levels->values, levels->count);
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_fake_levels_grad(&job, &sorted, stream->stream), "fake_levels_grad");
}

int cuda_sign_step(struct gpu_stream *stream, const struct tensor *p, const struct tensor *g,
                   const struct tensor *center, double lr, double low, double high)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_sign_step(p->data, g->data, center != NULL ? center->data : NULL, (float)lr, (float)low,
                                    (float)high, tensor_count(p), stream->stream),
                   "sign_step");
}

int cuda_adamw(struct gpu_stream *stream, const struct tensor *p, const struct tensor *m, const struct tensor *v,
               const struct tensor *g, const struct gpu_adamw *spec)
{
    const struct adamw_factors factors =
        adamw_factors_of(spec->lr, spec->beta1, spec->beta2, spec->eps, spec->decay, spec->factor, spec->step);

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_adamw(p->data, m->data, v->data, g->data, &factors, tensor_count(p), stream->stream),
                   "adamw");
}
