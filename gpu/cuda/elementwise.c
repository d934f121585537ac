/* Operations that are one kernel each. */

#include "gpu/cuda/cuda.h"

#include <limits.h>

int cuda_convert(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x)
{
    int64_t count = tensor_count(x);
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_convert(y->data, y->dtype, x->data, x->dtype, count, stream->stream),
                   "convert");
}

int cuda_symmetrize(struct gpu_stream *stream, const struct tensor *h, double scale)
{
    int64_t n = matrix_cols(h);

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_symmetrize(h->data, n, (float)scale, stream->stream), "symmetrize");
}

int cuda_embed(struct gpu_stream *stream, const struct tensor *y, const struct tensor *table, const int32_t *ids)
{
    SCRATCH_SCOPE(stream);
    int64_t count = matrix_rows(y);

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(count, sizeof(int32_t))));
    int32_t *device_ids = scratch_take(stream, count, sizeof(int32_t));
    TRY(memory_upload(stream, device_ids, ids, (size_t)count * sizeof(int32_t)));
    return cuda_ok(
        stream->device,
        launch_embed(y->data, table->data, table->dtype, device_ids, count, matrix_cols(table), stream->stream),
        "embed");
}

int cuda_norm(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *weight,
              const struct tensor *bias, const struct gpu_norm *spec)
{
    const struct launch_norm norm = {.groups = matrix_rows(x) * (matrix_cols(x) / spec->size),
                                     .size = spec->size,
                                     .layer = spec->layer,
                                     .unit_offset = spec->unit_offset,
                                     .eps = spec->eps};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_norm(y->data, x->data, weight != NULL ? weight->data : NULL, bias != NULL ? bias->data : NULL,
                               &norm, stream->stream),
                   "norm");
}

int cuda_rope(struct gpu_stream *stream, const struct tensor *x, const struct tensor *cosine, const struct tensor *sine,
              const struct gpu_rope *spec)
{
    const struct launch_rope rope = {.rows = matrix_rows(x),
                                     .cols = matrix_cols(x),
                                     .length = spec->length,
                                     .head_dim = spec->head_dim,
                                     .rotated = spec->rotated,
                                     .interleaved = spec->interleaved,
                                     .turn = spec->inverse ? -1.0f : 1.0f};

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_rope(x->data, cosine->data, sine->data, &rope, stream->stream), "rope");
}

int cuda_copy_columns(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
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
    return cuda_ok(stream->device, launch_copy_columns(y->data, x->data, &columns, stream->stream), "copy_columns");
}

int cuda_activate(struct gpu_stream *stream, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                  enum gpu_activation activation)
{
    int64_t cols = matrix_cols(y);

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_activate(y->data, gate->data, matrix_cols(gate) != cols, up != NULL ? up->data : NULL,
                                   tensor_count(y), cols, activation, stream->stream),
                   "activate");
}

int cuda_soft_cap(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, double cap)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_soft_cap(y->data, x->data, (float)cap, tensor_count(x), stream->stream),
                   "soft_cap");
}

int cuda_add(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x)
{
    int64_t count = tensor_count(x);

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_add(y->data, x->data, count, stream->stream), "add");
}

int cuda_column_stats(struct gpu_stream *stream, const struct tensor *absmax, const struct tensor *abssum,
                      const struct tensor *x)
{
    SCRATCH_SCOPE(stream);
    int64_t rows = matrix_rows(x), cols = matrix_cols(x), chunks = tiles_of(rows, LAUNCH_STATS_ROWS);

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream,
                        scratch_size(chunks * cols, sizeof(float)) + scratch_size(chunks * cols, sizeof(double))));
    float *max = scratch_take(stream, chunks * cols, sizeof(float));
    double *sum = scratch_take(stream, chunks * cols, sizeof(double));
    return cuda_ok(stream->device,
                   launch_column_stats(absmax != NULL ? absmax->data : NULL, abssum != NULL ? abssum->data : NULL,
                                       x->data, rows, cols, max, sum, stream->stream),
                   "column_stats");
}

int cuda_find_nonfinite(struct gpu_stream *stream, int64_t *index, const struct tensor *x)
{
    SCRATCH_SCOPE(stream);
    int64_t found = 0;

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(1, sizeof(int64_t))));
    int64_t *min = scratch_take(stream, 1, sizeof(int64_t));
    TRY(cuda_ok(stream->device, launch_find_nonfinite(min, x->data, x->dtype, tensor_count(x), stream->stream),
                "find_nonfinite"));
    TRY(memory_download(stream, &found, min, sizeof(found)));
    *index = found == INT64_MAX ? -1 : found;
    return 0;
}

int cuda_diagonal(struct gpu_stream *stream, float *host, const struct tensor *h)
{
    SCRATCH_SCOPE(stream);
    int64_t n = matrix_cols(h);

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(n, sizeof(float))));
    float *diagonal = scratch_take(stream, n, sizeof(float));
    TRY(cuda_ok(stream->device, launch_diagonal(diagonal, h->data, n, stream->stream), "diagonal"));
    return memory_download(stream, host, diagonal, (size_t)n * sizeof(float));
}

int cuda_floor_diagonal(struct gpu_stream *stream, const struct tensor *h, float min)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_floor_diagonal(h->data, matrix_cols(h), min, stream->stream),
                   "floor_diagonal");
}
