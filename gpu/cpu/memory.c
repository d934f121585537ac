/* Host memory as device memory, and scratch memory for tasks.
 *
 * A block carries its size in the cache line before it, so that free needs no table. Large blocks come from mmap: they
 * are zero without being touched. Freed ones are kept for the next of their size, within what was in use at most, until
 * a stream is closed. */

#include "gpu/cpu/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(block, size) ((void)(block), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(block, size) ((void)(block), (void)(size))
#endif

#define LINE 64
#define MAPPED_FROM ((size_t)1 << 20)

struct block_head {
    size_t total; /* with the head */
};

static size_t total_of(const void *block)
{
    struct block_head head;
    memcpy(&head, block, sizeof(head));
    return head.total;
}

void memory_open(struct gpu_device *device)
{
    pthread_mutex_init(&device->memory.lock, NULL);
}

void memory_close(struct gpu_device *device)
{
    memory_trim(device);
    pthread_mutex_destroy(&device->memory.lock);
}

/* Kept block i leaves the list. */
static void *take_unused(struct memory *memory, int i)
{
    void *block = memory->unused[i];

    memory->count--;
    memory->idle -= total_of(block);
    memmove(&memory->unused[i], &memory->unused[i + 1], (size_t)(memory->count - i) * sizeof(memory->unused[0]));
    return block;
}

static void unmap_oldest(struct memory *memory)
{
    void *block = take_unused(memory, 0);
    ASAN_UNPOISON_MEMORY_REGION(block, total_of(block)); /* the address may be anybody's next */
    munmap(block, total_of(block));
}

void memory_trim(struct gpu_device *device)
{
    struct memory *memory = &device->memory;

    pthread_mutex_lock(&memory->lock);
    while (memory->count > 0) {
        unmap_oldest(memory);
    }
    memory->max = memory->used;
    pthread_mutex_unlock(&memory->lock);
}

int64_t memory_idle(struct gpu_device *device)
{
    pthread_mutex_lock(&device->memory.lock);
    size_t idle = device->memory.idle;
    pthread_mutex_unlock(&device->memory.lock);
    return (int64_t)idle;
}

/* An unused one of that size, the latest first, since caches may hold it; else NULL, and unused ones are freed for a
 * new one. */
static void *reuse(struct memory *memory, size_t total)
{
    void *block = NULL;

    pthread_mutex_lock(&memory->lock);
    memory->used += total;
    memory->max = memory->used > memory->max ? memory->used : memory->max;
    for (int i = memory->count - 1; block == NULL && i >= 0; i--) {
        block = total_of(memory->unused[i]) == total ? take_unused(memory, i) : NULL;
    }
    while (memory->count > 0 && memory->used + memory->idle > memory->max) {
        unmap_oldest(memory);
    }
    pthread_mutex_unlock(&memory->lock);
    return block;
}

static void memory_keep(struct memory *memory, void *block)
{
    pthread_mutex_lock(&memory->lock);
    if (memory->count == MEMORY_UNUSED_MAX) {
        unmap_oldest(memory);
    }
    memory->unused[memory->count++] = block;
    memory->idle += total_of(block);
    memory->used -= total_of(block);
    ASAN_POISON_MEMORY_REGION((char *)block + LINE, total_of(block) - LINE);
    pthread_mutex_unlock(&memory->lock);
}

/* NULL: there is none. */
static void *map_pages(size_t total)
{
    void *block = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (block == MAP_FAILED) {
        return NULL;
    }
    madvise(block, total, MADV_HUGEPAGE); /* advice: without it only slower */
    return block;
}

/* A second try without what is kept. */
static void *map_or_trim(struct gpu_device *device, size_t total)
{
    struct memory *memory = &device->memory;
    void *block = map_pages(total);

    if (block == NULL) {
        memory_trim(device);
        block = map_pages(total);
    }
    if (block == NULL) {
        pthread_mutex_lock(&memory->lock);
        memory->used -= total;
        memory->max = memory->used + memory->idle; /* it was never in use */
        pthread_mutex_unlock(&memory->lock);
    }
    return block;
}

static void *map_block(struct gpu_device *device, size_t total, bool zeroed)
{
    void *block = reuse(&device->memory, total);

    if (block != NULL) {
        ASAN_UNPOISON_MEMORY_REGION(block, total);
        if (zeroed) {
            memset(block, 0, total);
        }
        return block;
    }
    return map_or_trim(device, total);
}

/* More or fewer bytes in use. */
static void count(struct memory *memory, size_t more, size_t fewer)
{
    pthread_mutex_lock(&memory->lock);
    memory->live += more - fewer;
    memory->peak = memory->live > memory->peak ? memory->live : memory->peak;
    pthread_mutex_unlock(&memory->lock);
}

int64_t memory_peak(struct gpu_device *device, bool reset)
{
    pthread_mutex_lock(&device->memory.lock);
    size_t peak = device->memory.peak;
    device->memory.peak = reset ? device->memory.live : peak;
    pthread_mutex_unlock(&device->memory.lock);
    return (int64_t)peak;
}

int memory_new(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
{
    size_t total;
    char *block;

    if (__builtin_add_overflow(bytes, (size_t)2 * LINE - 1, &total)) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %zu bytes", bytes);
    }
    total = total / LINE * LINE;
    if (total >= MAPPED_FROM) {
        block = map_block(device, total, zeroed);
    } else {
        block = aligned_alloc(LINE, total);
        if (block != NULL && zeroed) {
            memset(block, 0, total);
        }
    }
    if (block == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %zu bytes", bytes);
    }
    memcpy(block, &(struct block_head){total}, sizeof(struct block_head));
    count(&device->memory, total, 0);
    *pointer = block + LINE;
    return 0;
}

void memory_free(struct gpu_device *device, void *pointer)
{
    if (pointer == NULL) {
        return;
    }
    char *block = (char *)pointer - LINE;
    count(&device->memory, 0, total_of(block));
    if (total_of(block) >= MAPPED_FROM) {
        memory_keep(&device->memory, block);
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
        int rc = memory_new(stream->device, needed, false, &block);
        if (rc != 0) {
            return err_pass(rc, "scratch memory");
        }
        memory_free(stream->device, stream->scratch);
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
