/* A layer of experts: who goes where, and rows that go there and come back. */

#include "gpu/cuda/cuda.h"

_Static_assert(LAUNCH_ROUTE_EXPERTS_MAX == GPU_ROUTE_EXPERTS_MAX, "what the kernel has room for");

int cuda_route(struct gpu_stream *stream, const struct tensor *ids, const struct tensor *weights,
               const struct tensor *logits, const struct tensor *bias, const struct gpu_route *spec)
{
    const struct launch_routing routing = {.experts = matrix_cols(logits),
                                           .top_k = spec->top_k,
                                           .sigmoid = spec->scores == GPU_SCORES_SIGMOID,
                                           .all = spec->scores == GPU_SCORES_ALL,
                                           .normalize = spec->normalize,
                                           .groups = spec->groups > 1 ? spec->groups : 1,
                                           .group_top_k = spec->group_top_k,
                                           .group_pairs = spec->group_pairs,
                                           .factor = spec->factor,
                                           .epsilon = spec->epsilon};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_route(ids->data, weights->data, logits->data, bias != NULL ? bias->data : NULL,
                                matrix_rows(logits), &routing, stream->stream),
                   "route");
}

int cuda_group_places(struct gpu_stream *stream, const struct tensor *places, int64_t *offsets,
                      const struct tensor *ids, int64_t experts)
{
    SCRATCH_SCOPE(stream);

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(experts + 1, sizeof(int64_t))));
    int64_t *on_device = scratch_take(stream, experts + 1, sizeof(int64_t));
    TRY(cuda_ok(stream->device,
                launch_group_places(places->data, on_device, ids->data, tensor_count(ids), experts, stream->stream),
                "group_places"));
    return memory_download(stream, offsets, on_device, (size_t)(experts + 1) * sizeof(int64_t));
}

int cuda_gather_rows(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                     const struct tensor *places, const struct tensor *weights, int64_t k)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_gather_rows(y->data, x->data, places->data, weights != NULL ? weights->data : NULL,
                                      matrix_rows(y), matrix_cols(y), k, stream->stream),
                   "gather_rows");
}

int cuda_scatter_rows(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                      const struct tensor *places, const struct tensor *weights, int64_t k)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_scatter_rows(y->data, x->data, places->data, weights != NULL ? weights->data : NULL,
                                       matrix_rows(x), matrix_cols(x), k, stream->stream),
                   "scatter_rows");
}
