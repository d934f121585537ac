/* Host memory as device memory, and scratch memory for tasks.
 *
 * A block carries its size in the cache line before it, so that free needs no table. Large blocks come from mmap: they
 * are zero without being touched, and go back to the system when freed. */

#include "gpu/cpu/internal.h"

#include <assert.h>
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
