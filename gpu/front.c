/* The operations as callers see them. Each checks its arguments (front_<group>.c) and then runs the backend's
 * own function, so that no backend checks anything twice, and none can forget to. */

#include "gpu/front.h"

#include "base/cleanup.h"
#include "base/mem.h"
#include "gpu/backend.h"

#include <limits.h>

static const struct gpu_ops *backend_of(const struct gpu_stream *stream)
{
    return ((const struct gpu_stream_head *)stream)->ops;
}

static const char *backend_name(const struct gpu_ops *backend)
{
    return backend->name;
}

#define GPU_OP(group, name, does, ...)                                                                                 \
    static int front_##name(struct gpu_stream *stream GPU_PARAMETERS(__VA_ARGS__))                                     \
    {                                                                                                                  \
        const struct gpu_ops *backend = backend_of(stream);                                                            \
        if (backend->name == NULL) {                                                                                   \
            return err_raise(ERR_UNSUPPORTED, "the backend '%s' has no operation '%s'", backend_name(backend), #name); \
        }                                                                                                              \
        TRY(check_##name(#name GPU_ARGUMENTS(__VA_ARGS__)));                                                           \
        int rc = backend->name(stream GPU_ARGUMENTS(__VA_ARGS__));                                                     \
        return rc != 0 ? err_pass(rc, #name) : 0;                                                                      \
    }
#include "gpu/ops.def"

void gpu_front(const struct gpu_ops *backend, struct gpu_ops *front)
{
    *front = *backend;
#define GPU_OP(group, name, does, ...) front->name = front_##name;
#include "gpu/ops.def"
}

const char *gpu_missing_call(const struct gpu_ops *backend)
{
#define GPU_CALL(name, result, parameters, does) \
    if (backend->name == NULL) {                 \
        return #name;                            \
    }
#include "gpu/ops.def"
    return NULL;
}

int check_data(const char *op, const char *name, const struct tensor *tensor)
{
    int bytes = dtype_rows[tensor->dtype].bytes;

    if (tensor->data == NULL && tensor_count(tensor) != 0) {
        return err_raise(ERR_INTERNAL, "%s: %s has no data", op, name);
    }
    if ((uintptr_t)tensor->data % (uintptr_t)bytes != 0) {
        return err_raise(ERR_INTERNAL, "%s: %s is not aligned to its elements of %d bytes", op, name, bytes);
    }
    return 0;
}

int check_matrix(const char *op, const char *name, const struct tensor *tensor, enum dtype dtype, int64_t rows,
                 int64_t cols)
{
    int64_t has_rows = matrix_rows(tensor), has_cols = matrix_cols(tensor);

    if (tensor->dtype != dtype) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s, not %s", op, name, dtype_rows[tensor->dtype].name,
                         dtype_rows[dtype].name);
    }
    if (has_rows < 0 || has_cols < 0 || has_rows > INT_MAX || has_cols > INT_MAX || (rows >= 0 && rows != has_rows) ||
        (cols >= 0 && cols != has_cols)) {
        return err_raise(ERR_INTERNAL, "%s: %s is [%lld, %lld], expected [%lld, %lld]", op, name, (long long)has_rows,
                         (long long)has_cols, (long long)rows, (long long)cols);
    }
    return check_data(op, name, tensor);
}

int check_f32(const char *op, const char *name, const struct tensor *tensor, int64_t rows, int64_t cols)
{
    return check_matrix(op, name, tensor, DTYPE_F32, rows, cols);
}

int check_vector(const char *op, const char *name, const struct tensor *tensor, int64_t count)
{
    if (tensor->dtype != DTYPE_F32 || tensor_count(tensor) != count) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s with %lld elements, expected F32 with %lld", op, name,
                         dtype_rows[tensor->dtype].name, (long long)tensor_count(tensor), (long long)count);
    }
    return check_data(op, name, tensor);
}

int check_optional(const char *op, const char *name, const struct tensor *tensor, int64_t count)
{
    return tensor == NULL ? 0 : check_vector(op, name, tensor, count);
}

bool check_is_plain(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

int check_weight(const char *op, const char *name, const struct tensor *w, int64_t rows, int64_t cols)
{
    if (!check_is_plain(w->dtype)) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s, expected F32, F16 or BF16", op, name, dtype_rows[w->dtype].name);
    }
    return check_matrix(op, name, w, w->dtype, rows, cols);
}

int check_order(const char *op, const int32_t *order, int64_t n)
{
    if (order == NULL) {
        return 0;
    }
    AUTO_FREE bool *seen = NULL;
    TRY(mem_array(&seen, (size_t)n));
    for (int64_t i = 0; i < n; i++) {
        if (order[i] < 0 || order[i] >= n || seen[order[i]]) {
            return err_raise(ERR_INTERNAL, "%s: the order is not a permutation: entry %lld is %d", op, (long long)i,
                             (int)order[i]);
        }
        seen[order[i]] = true;
    }
    return 0;
}

int check_separate(const char *op, const char *name, const struct tensor *out, const char *other,
                   const struct tensor *in)
{
    uintptr_t from = (uintptr_t)out->data, to = from + tensor_bytes(out);
    uintptr_t begin = (uintptr_t)in->data, end = begin + tensor_bytes(in);

    if (from < end && begin < to) {
        return err_raise(ERR_INTERNAL, "%s: %s and %s share memory", op, name, other);
    }
    return 0;
}
