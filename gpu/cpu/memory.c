/* Host memory as device memory, scratch memory for tasks, and the checks that every operation makes.
 *
 * A block carries its size in the cache line before it, so that free needs no table. Large blocks come from mmap: they
 * are zero without being touched, and go back to the system when freed. */

#include "gpu/cpu/internal.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LINE 64
#define MAPPED_FROM ((size_t)1 << 20)

struct block_head {
    size_t total; /* with the head */
};

int memory_new(size_t bytes, void **pointer)
{
    size_t total;
    char *block = NULL;

    if (__builtin_add_overflow(bytes, (size_t)2 * LINE - 1, &total)) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %zu bytes", bytes);
    }
    total = total / LINE * LINE;
    if (total >= MAPPED_FROM) {
        void *mapped = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped != MAP_FAILED) {
            block = mapped;
            madvise(mapped, total, MADV_HUGEPAGE); /* advice: without it only slower */
        }
    } else {
        block = aligned_alloc(LINE, total);
        if (block != NULL) {
            memset(block, 0, total);
        }
    }
    if (block == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %zu bytes", bytes);
    }
    memcpy(block, &(struct block_head){total}, sizeof(struct block_head));
    *pointer = block + LINE;
    return 0;
}

void memory_free(void *pointer)
{
    struct block_head head;

    if (pointer == NULL) {
        return;
    }
    char *block = (char *)pointer - LINE;
    memcpy(&head, block, sizeof(head));
    if (head.total >= MAPPED_FROM) {
        munmap(block, head.total);
    } else {
        free(block);
    }
}

size_t scratch_size(int64_t count, size_t element)
{
    size_t bytes;

    if (count < 0 || __builtin_mul_overflow((size_t)count, element, &bytes) || bytes > SIZE_MAX - LINE) {
        return SIZE_MAX; /* scratch_reserve refuses it */
    }
    return (bytes + LINE - 1) / LINE * LINE;
}

int scratch_reserve(struct gpu_stream *stream, size_t shared, size_t slice)
{
    size_t needed, workers = (size_t)pool_threads(stream->device->pool);
    void *block = NULL;

    if (shared == SIZE_MAX || slice == SIZE_MAX || __builtin_mul_overflow(slice, workers, &needed) ||
        __builtin_add_overflow(needed, shared, &needed)) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "scratch memory for a task is larger than an address");
    }
    if (needed > stream->capacity) {
        int rc = memory_new(needed, &block);
        if (rc != 0) {
            return err_pass(rc, "scratch memory");
        }
        memory_free(stream->scratch);
        stream->scratch = block;
        stream->capacity = needed;
    }
    stream->shared_bytes = shared;
    stream->slice_bytes = slice;
    return 0;
}

void *scratch_shared(const struct gpu_stream *stream)
{
    return stream->scratch;
}

void *scratch_slice(const struct gpu_stream *stream)
{
    assert(pool_worker() < pool_threads(stream->device->pool)); /* no operation is called from another pool's task */
    return stream->scratch + stream->shared_bytes + (size_t)pool_worker() * stream->slice_bytes;
}

void stream_run(struct gpu_stream *stream, int64_t tasks, void (*fn)(void *ctx, int64_t task), void *ctx)
{
    pool_run(stream->device->pool, tasks, fn, ctx);
}

int64_t matrix_cols(const struct tensor *tensor)
{
    return tensor->rank > 0 ? tensor->shape[tensor->rank - 1] : 1;
}

int64_t matrix_rows(const struct tensor *tensor)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < tensor->rank; i++) {
        rows *= tensor->shape[i];
    }
    return rows;
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
        return err_raise(ERR_INTERNAL, "%s: %s is [%lld, %lld], wanted [%lld, %lld]", op, name, (long long)has_rows,
                         (long long)has_cols, (long long)rows, (long long)cols);
    }
    if (tensor->data == NULL && has_rows != 0 && has_cols != 0) {
        return err_raise(ERR_INTERNAL, "%s: %s has no data", op, name);
    }
    return 0;
}

int check_vector(const char *op, const char *name, const struct tensor *tensor, int64_t count)
{
    if (tensor->dtype != DTYPE_F32 || tensor_count(tensor) != count || (tensor->data == NULL && count != 0)) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s with %lld elements, wanted F32 with %lld", op, name,
                         dtype_rows[tensor->dtype].name, (long long)tensor_count(tensor), (long long)count);
    }
    return 0;
}

int check_grid(const char *op, const struct gpu_grid *spec, int64_t cols)
{
    if (spec->bits < 2 || spec->bits > 8) {
        return err_raise(ERR_INTERNAL, "%s: %d bits, wanted 2 to 8", op, spec->bits);
    }
    if (spec->group_size < 1 || cols % spec->group_size != 0) {
        return err_raise(ERR_INTERNAL, "%s: groups of %lld do not divide %lld inputs", op, (long long)spec->group_size,
                         (long long)cols);
    }
    return 0;
}

int check_order(const char *op, const int32_t *order, int64_t n)
{
    if (order == NULL) {
        return 0;
    }
    unsigned char *seen = calloc((size_t)(n > 0 ? n : 1), 1);
    if (seen == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %lld bytes", (long long)n);
    }
    int rc = 0;
    for (int64_t i = 0; i < n && rc == 0; i++) {
        if (order[i] < 0 || order[i] >= n || seen[order[i]]) {
            rc = err_raise(ERR_INTERNAL, "%s: the order is not a permutation: entry %lld is %d", op, (long long)i,
                           (int)order[i]);
        } else {
            seen[order[i]] = 1;
        }
    }
    free(seen);
    return rc;
}
