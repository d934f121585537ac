/* Gradients of products with weights, and the host side of those that are not products. */

#include "gpu/cuda/cuda.h"
#include "gpu/cuda/launch_grad.h"

int cuda_linear_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dy,
                     const struct tensor *w)
{
    SCRATCH_SCOPE(stream);
    struct gemm gemm = {
        .m = matrix_rows(dy), .n = matrix_cols(w), .k = matrix_cols(dy), .alpha = 1.0f, .beta = 1.0f, .c = dx->data};

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, operand_size(stream, dy) + operand_size(stream, w)));
    TRY(operand_of(stream, dy, &gemm.a));
    TRY(operand_of(stream, w, &gemm.b));
    gemm.lda = gemm.k;
    gemm.ldb = gemm.ldc = gemm.n;
    gemm.bf16 = operand_bf16(stream);
    return gemm_run(stream, &gemm);
}

int cuda_column_sums(struct gpu_stream *stream, const struct tensor *d, const struct tensor *x)
{
    SCRATCH_SCOPE(stream);
    int64_t rows = matrix_rows(x), cols = matrix_cols(x), chunks = tiles_of(rows, LAUNCH_STATS_ROWS);

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(chunks * cols, sizeof(double))));
    double *parts = scratch_take(stream, chunks * cols, sizeof(double));
    return cuda_ok(stream->device, launch_column_sums(d->data, x->data, rows, cols, parts, stream->stream),
                   "column_sums");
}

int cuda_norm_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dweight,
                   const struct tensor *dbias, const struct tensor *dy, const struct tensor *x,
                   const struct tensor *weight, const struct gpu_norm *spec)
{
    SCRATCH_SCOPE(stream);
    struct launch_norm_grad job = {.spec = {.groups = matrix_rows(x) * (matrix_cols(x) / spec->size),
                                            .size = spec->size,
                                            .layer = spec->layer,
                                            .unit_offset = spec->unit_offset,
                                            .eps = spec->eps},
                                   .dx = dx != NULL ? dx->data : NULL,
                                   .dweight = dweight != NULL ? dweight->data : NULL,
                                   .dbias = dbias != NULL ? dbias->data : NULL,
                                   .dy = dy->data,
                                   .x = x->data,
                                   .weight = weight != NULL ? weight->data : NULL};
    int64_t parts = 2 * tiles_of(job.spec.groups, LAUNCH_NORM_GROUPS) * spec->size;

    TRY(cuda_begin(stream->device));
    if (dweight != NULL || dbias != NULL) {
        TRY(scratch_reserve(stream, scratch_size(parts, sizeof(double))));
        job.parts = scratch_take(stream, parts, sizeof(double));
    }
    return cuda_ok(stream->device, launch_norm_grad(&job, stream->stream), "norm_grad");
}

int cuda_activate_grad(struct gpu_stream *stream, const struct tensor *dgate, const struct tensor *dup,
                       const struct tensor *dy, const struct tensor *gate, const struct tensor *up,
                       enum gpu_activation activation)
{
    const struct launch_activate_grad job = {.dgate = dgate != NULL ? dgate->data : NULL,
                                             .dup = dup != NULL ? dup->data : NULL,
                                             .dy = dy->data,
                                             .gate = gate->data,
                                             .up = up != NULL ? up->data : NULL,
                                             .rows = matrix_rows(dy),
                                             .cols = matrix_cols(dy),
                                             .one = matrix_cols(gate) != matrix_cols(dy),
                                             .activation = activation};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_activate_grad(&job, stream->stream), "activate_grad");
}

int cuda_soft_cap_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dy,
                       const struct tensor *x, double cap)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_soft_cap_grad(dx->data, dy->data, x->data, (float)cap, tensor_count(x), stream->stream),
                   "soft_cap_grad");
}

int cuda_add_columns(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                     const struct gpu_columns *spec)
{
    const struct launch_columns columns = {.rows = matrix_rows(x),
                                           .to_cols = matrix_cols(y),
                                           .from_cols = matrix_cols(x),
                                           .heads = spec->heads,
                                           .count = spec->count,
                                           .to = spec->to,
                                           .to_stride = spec->to_stride,
                                           .from = spec->from,
                                           .from_stride = spec->from_stride};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_add_columns(y->data, x->data, &columns, stream->stream), "add_columns");
}

int cuda_quantize_input_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dy,
                             const struct tensor *x, const struct tensor *outliers, const struct gpu_input *spec)
{
    const struct launch_input input = {
        .element = spec->element, .rows = matrix_rows(x), .cols = matrix_cols(x), .scale = spec->scale};

    if (spec->dynamic) { /* a range that reaches the largest */
        return cuda_add(stream, dx, dy);
    }
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_quantize_input_grad(dx->data, dy->data, x->data, outliers != NULL ? outliers->data : NULL,
                                              &input, stream->stream),
                   "quantize_input_grad");
}

int cuda_row_dots(struct gpu_stream *stream, const struct tensor *d, const struct tensor *a, const struct tensor *x,
                  const struct tensor *places, int64_t k)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(
        stream->device,
        launch_row_dots(d->data, a->data, x->data, places->data, matrix_rows(x), matrix_cols(x), k, stream->stream),
        "row_dots");
}

int cuda_route_grad(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *dweights,
                    const struct tensor *ids, const struct tensor *logits, const struct gpu_route *spec)
{
    const struct launch_routing routing = {.experts = matrix_cols(logits),
                                           .top_k = spec->top_k,
                                           .sigmoid = spec->scores == GPU_SCORES_SIGMOID,
                                           .all = spec->scores == GPU_SCORES_ALL,
                                           .normalize = spec->normalize,
                                           .factor = spec->factor,
                                           .epsilon = spec->epsilon};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_route_grad(dlogits->data, dweights->data, ids->data, logits->data, matrix_rows(logits),
                                     &routing, stream->stream),
                   "route_grad");
}
