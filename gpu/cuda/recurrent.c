/* What goes along a sequence: the kernels' arguments. */

#include "gpu/cuda/cuda.h"

int cuda_causal_conv(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                     const struct tensor *bias, int64_t length, bool silu)
{
    const struct launch_conv conv = {.y = y->data,
                                     .x = x->data,
                                     .w = w->data,
                                     .bias = bias != NULL ? bias->data : NULL,
                                     .rows = matrix_rows(x),
                                     .cols = matrix_cols(x),
                                     .width = matrix_cols(w),
                                     .length = length,
                                     .silu = silu};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_causal_conv(&conv, stream->stream), "causal_conv");
}

int cuda_delta_rule(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *a,
                    const struct tensor *beta, const struct tensor *a_log, const struct tensor *dt_bias,
                    const struct gpu_delta *spec)
{
    const struct launch_recurrence job = {.y = y->data,
                                          .x = x->data,
                                          .step = a->data,
                                          .beta = beta->data,
                                          .a_log = a_log->data,
                                          .dt_bias = dt_bias->data,
                                          .sequences = matrix_rows(x) / spec->length,
                                          .length = spec->length,
                                          .heads = spec->value_heads,
                                          .groups = spec->key_heads,
                                          .keys = spec->key_dim,
                                          .values = spec->value_dim};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_delta_rule(&job, stream->stream), "delta_rule");
}

int cuda_state_scan(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *dt,
                    const struct tensor *a_log, const struct tensor *dt_bias, const struct tensor *d,
                    const struct gpu_scan *spec)
{
    const struct launch_recurrence job = {.y = y->data,
                                          .x = x->data,
                                          .step = dt->data,
                                          .a_log = a_log->data,
                                          .dt_bias = dt_bias->data,
                                          .d = d->data,
                                          .sequences = matrix_rows(x) / spec->length,
                                          .length = spec->length,
                                          .heads = spec->heads,
                                          .groups = spec->groups,
                                          .keys = spec->state,
                                          .values = spec->head_dim,
                                          .dt_min = spec->dt_min,
                                          .dt_max = spec->dt_max};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_state_scan(&job, stream->stream), "state_scan");
}

int cuda_gated_norm(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                    const struct tensor *gate, const struct tensor *weight, int64_t size, float eps, bool gate_first)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_gated_norm(y->data, x->data, gate->data, weight->data, matrix_rows(x), matrix_cols(x), size,
                                     tensor_count(weight), eps, gate_first, stream->stream),
                   "gated_norm");
}
