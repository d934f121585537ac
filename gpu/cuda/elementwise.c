/* Operations that are one kernel and its checks. */

#include "gpu/cuda/cuda.h"

#include <limits.h>

enum launch_dtype launch_dtype_of(enum dtype dtype)
{
    return dtype == DTYPE_F16 ? LAUNCH_F16 : dtype == DTYPE_BF16 ? LAUNCH_BF16 : LAUNCH_F32;
}

static bool is_convertible(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

int cuda_convert(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x)
{
    int64_t count = tensor_count(x);

    if (!is_convertible(y->dtype) || !is_convertible(x->dtype)) {
        return err_raise(ERR_INTERNAL, "convert: from %s to %s", dtype_rows[x->dtype].name, dtype_rows[y->dtype].name);
    }
    if (tensor_count(y) != count) {
        return err_raise(ERR_INTERNAL, "convert: %lld elements into %lld", (long long)count,
                         (long long)tensor_count(y));
    }
    int rc = cuda_begin(stream->device);
    return rc != 0 ? rc
                   : cuda_ok(stream->device,
                             launch_convert(y->data, launch_dtype_of(y->dtype), x->data, launch_dtype_of(x->dtype),
                                            count, stream->stream),
                             "convert");
}

int cuda_symmetrize(struct gpu_stream *stream, const struct tensor *h, double scale)
{
    int64_t n = matrix_cols(h);
    int rc = check_matrix("symmetrize", "h", h, DTYPE_F32, n, n);

    rc = rc != 0 ? rc : cuda_begin(stream->device);
    return rc != 0 ? rc
                   : cuda_ok(stream->device, launch_symmetrize(h->data, n, (float)scale, stream->stream), "symmetrize");
}

int cuda_embed(struct gpu_stream *stream, const struct tensor *y, const struct tensor *table, const int32_t *ids)
{
    SCRATCH_SCOPE(stream);
    int64_t count = matrix_rows(y), entries = matrix_rows(table);
    int rc = check_weight("embed", "table", table, -1, -1);

    rc = rc != 0 ? rc : check_matrix("embed", "y", y, DTYPE_F32, -1, matrix_cols(table));
    for (int64_t t = 0; rc == 0 && t < count; t++) {
        if (ids[t] < 0 || ids[t] >= entries) {
            rc = err_raise(ERR_INVALID_MODEL, "token %lld has id %d, but the embedding has %lld rows", (long long)t,
                           (int)ids[t], (long long)entries);
        }
    }
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    rc = rc != 0 ? rc : scratch_reserve(stream, scratch_size(count, sizeof(int32_t)));
    if (rc != 0) {
        return rc;
    }
    int32_t *device_ids = scratch_take(stream, count, sizeof(int32_t));
    rc = memory_upload(stream, device_ids, ids, (size_t)count * sizeof(int32_t));
    return rc != 0 ? rc
                   : cuda_ok(stream->device,
                             launch_embed(y->data, table->data, launch_dtype_of(table->dtype), device_ids, count,
                                          matrix_cols(table), stream->stream),
                             "embed");
}

int cuda_rmsnorm(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *weight,
                 float eps)
{
    int64_t cols = matrix_cols(x), size = tensor_count(weight);
    int rc = check_matrix("rmsnorm", "x", x, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_vector("rmsnorm", "weight", weight, size);
    rc = rc != 0 ? rc : check_matrix("rmsnorm", "y", y, DTYPE_F32, matrix_rows(x), cols);
    if (rc == 0 && (size < 1 || cols % size != 0)) {
        rc = err_raise(ERR_INTERNAL, "rmsnorm: a weight of %lld over rows of %lld", (long long)size, (long long)cols);
    }
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    return rc != 0 ? rc
                   : cuda_ok(stream->device,
                             launch_rmsnorm(y->data, x->data, weight->data, matrix_rows(x) * (cols / size), size, eps,
                                            stream->stream),
                             "rmsnorm");
}

int cuda_rope(struct gpu_stream *stream, const struct tensor *x, const struct tensor *cosine, const struct tensor *sine,
              int64_t length, int64_t head_dim)
{
    int64_t cols = matrix_cols(x), half = head_dim / 2;
    int rc = check_matrix("rope", "x", x, DTYPE_F32, -1, -1);

    if (rc == 0 && (length < 1 || head_dim < 2 || head_dim % 2 != 0 || cols % head_dim != 0)) {
        rc = err_raise(ERR_INTERNAL, "rope: rows of %lld in heads of %lld, length %lld", (long long)cols,
                       (long long)head_dim, (long long)length);
    }
    rc = rc != 0 ? rc : check_matrix("rope", "cos", cosine, DTYPE_F32, -1, half);
    rc = rc != 0 ? rc : check_matrix("rope", "sin", sine, DTYPE_F32, matrix_rows(cosine), half);
    if (rc == 0 && matrix_rows(cosine) < length) {
        rc = err_raise(ERR_INTERNAL, "rope: a table of %lld positions for %lld", (long long)matrix_rows(cosine),
                       (long long)length);
    }
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    return rc != 0 ? rc
                   : cuda_ok(stream->device,
                             launch_rope(x->data, cosine->data, sine->data, matrix_rows(x), cols, length, half,
                                         stream->stream),
                             "rope");
}

int cuda_swiglu(struct gpu_stream *stream, const struct tensor *y, const struct tensor *gate, const struct tensor *up)
{
    int64_t count = tensor_count(gate);
    int rc = check_vector("swiglu", "gate", gate, count);

    rc = rc != 0 ? rc : check_vector("swiglu", "up", up, count);
    rc = rc != 0 ? rc : check_vector("swiglu", "y", y, count);
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    return rc != 0
               ? rc
               : cuda_ok(stream->device, launch_swiglu(y->data, gate->data, up->data, count, stream->stream), "swiglu");
}

int cuda_add(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x)
{
    int64_t count = tensor_count(x);
    int rc = check_vector("add", "x", x, count);

    rc = rc != 0 ? rc : check_vector("add", "y", y, count);
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    return rc != 0 ? rc : cuda_ok(stream->device, launch_add(y->data, x->data, count, stream->stream), "add");
}

int cuda_column_stats(struct gpu_stream *stream, const struct tensor *absmax, const struct tensor *abssum,
                      const struct tensor *x)
{
    SCRATCH_SCOPE(stream);
    int64_t rows = matrix_rows(x), cols = matrix_cols(x), chunks = tiles_of(rows, LAUNCH_STATS_ROWS);
    int rc = check_matrix("column_stats", "x", x, DTYPE_F32, -1, -1);

    rc = rc != 0 || absmax == NULL ? rc : check_vector("column_stats", "absmax", absmax, cols);
    rc = rc != 0 || abssum == NULL ? rc : check_vector("column_stats", "abssum", abssum, cols);
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    rc = rc != 0 ? rc
                 : scratch_reserve(stream, scratch_size(chunks * cols, sizeof(float)) +
                                               scratch_size(chunks * cols, sizeof(double)));
    if (rc != 0) {
        return rc;
    }
    float *most = scratch_take(stream, chunks * cols, sizeof(float));
    double *sum = scratch_take(stream, chunks * cols, sizeof(double));
    return cuda_ok(stream->device,
                   launch_column_stats(absmax != NULL ? absmax->data : NULL, abssum != NULL ? abssum->data : NULL,
                                       x->data, rows, cols, most, sum, stream->stream),
                   "column_stats");
}

int cuda_find_nonfinite(struct gpu_stream *stream, int64_t *index, const struct tensor *x)
{
    SCRATCH_SCOPE(stream);
    int64_t found = 0;

    if (!is_convertible(x->dtype)) {
        return err_raise(ERR_INTERNAL, "find_nonfinite: x is %s", dtype_rows[x->dtype].name);
    }
    int rc = cuda_begin(stream->device);
    rc = rc != 0 ? rc : scratch_reserve(stream, scratch_size(1, sizeof(int64_t)));
    if (rc != 0) {
        return rc;
    }
    int64_t *least = scratch_take(stream, 1, sizeof(int64_t));
    rc = cuda_ok(stream->device,
                 launch_find_nonfinite(least, x->data, launch_dtype_of(x->dtype), tensor_count(x), stream->stream),
                 "find_nonfinite");
    rc = rc != 0 ? rc : memory_download(stream, &found, least, sizeof(found));
    if (rc == 0) {
        *index = found == INT64_MAX ? -1 : found;
    }
    return rc;
}

int cuda_diagonal(struct gpu_stream *stream, float *host, const struct tensor *h)
{
    SCRATCH_SCOPE(stream);
    int64_t n = matrix_cols(h);
    int rc = check_matrix("diagonal", "h", h, DTYPE_F32, n, n);

    rc = rc != 0 ? rc : cuda_begin(stream->device);
    rc = rc != 0 ? rc : scratch_reserve(stream, scratch_size(n, sizeof(float)));
    if (rc != 0) {
        return rc;
    }
    float *diagonal = scratch_take(stream, n, sizeof(float));
    rc = cuda_ok(stream->device, launch_diagonal(diagonal, h->data, n, stream->stream), "diagonal");
    return rc != 0 ? rc : memory_download(stream, host, diagonal, (size_t)n * sizeof(float));
}
