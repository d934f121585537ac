/* The runtime: devices, memory, streams, events. Streams run in step with the host, except for copies, which wait in
 * one queue until something must see them. */

#include "tests/unit/gpu/cuda/shim.h"

#include "gpu/cuda/host.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCKS_MAX 4096
#define COPIES_MAX 256
#define ALIGNMENT 256
#define POISON ((size_t)256 << 10) /* of each block; large ones are never touched whole */

struct block {
    void *pointer;
    size_t bytes;
    bool pooled;
};

/* A stream's handle has its room, too. */
struct event {
    uint64_t copies; /* that were queued before it */
    double milliseconds;
};

struct copy {
    void *to;
    const void *from;
    size_t bytes;
};

static struct {
    pthread_mutex_t lock;
    struct block blocks[BLOCKS_MAX];
    int block_count;
    struct copy copies[COPIES_MAX];
    int copy_count;
    uint64_t copied; /* copies taken out of the queue so far */
    int64_t calls, allocations, fail_call, fail_allocation, fail_times;
    cudaError_t fault, sticky, last;
    int probe_error, devices, capability;
    size_t memory, used, pooled, pooled_most;
    int64_t fail_once, records, waits;
    cudaError_t fault_once;
    void (*on_sync)(void *data);
    void *on_sync_data;
    bool skip_kernels;
} shim = {.lock = PTHREAD_MUTEX_INITIALIZER, .devices = 1, .capability = 90, .memory = (size_t)4 << 30};

cudaError_t shim_enter(void)
{
    pthread_mutex_lock(&shim.lock);
    shim.calls++;
    if (shim.fail_call > 0 && shim.calls >= shim.fail_call) {
        shim.sticky = shim.fault;
    }
    cudaError_t status = shim.sticky;
    if (status == cudaSuccess && shim.fail_once > 0 && shim.calls == shim.fail_once) {
        status = shim.fault_once;
    }
    shim.last = status != cudaSuccess ? status : shim.last;
    pthread_mutex_unlock(&shim.lock);
    return status;
}

cudaError_t shim_enter_allocation(void)
{
    cudaError_t status = shim_enter();

    pthread_mutex_lock(&shim.lock);
    shim.allocations++;
    int64_t past = shim.allocations - shim.fail_allocation;
    if (status == cudaSuccess && shim.fail_allocation > 0 && past >= 0 && past < shim.fail_times) {
        status = shim.last = cudaErrorMemoryAllocation;
    }
    pthread_mutex_unlock(&shim.lock);
    return status;
}

void shim_fail(cudaError_t error)
{
    pthread_mutex_lock(&shim.lock);
    shim.last = error;
    pthread_mutex_unlock(&shim.lock);
}

void *shim_take(size_t bytes)
{
    size_t size = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *pointer = NULL;

    pthread_mutex_lock(&shim.lock);
    if (shim.block_count < BLOCKS_MAX && size <= shim.memory - shim.used &&
        posix_memalign(&pointer, ALIGNMENT, bytes > 0 ? bytes : 1) != 0) { /* no more bytes than were asked for */
        pointer = NULL;
    }
    if (pointer != NULL) {
        memset(pointer, 0xff, bytes < POISON ? bytes : POISON); /* NaN */
        shim.blocks[shim.block_count++] = (struct block){pointer, bytes, false};
        shim.used += size;
    } else {
        shim.last = cudaErrorMemoryAllocation;
    }
    pthread_mutex_unlock(&shim.lock);
    return pointer;
}

void shim_give(void *block)
{
    pthread_mutex_lock(&shim.lock);
    for (int i = 0; block != NULL && i <= shim.block_count; i++) {
        if (i == shim.block_count) {
            fprintf(stderr, "shim: freed what was not allocated\n");
            abort();
        }
        if (shim.blocks[i].pointer == block) {
            shim.used -= (shim.blocks[i].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            shim.pooled -= shim.blocks[i].pooled ? shim.blocks[i].bytes : 0;
            shim.blocks[i] = shim.blocks[--shim.block_count];
            break;
        }
    }
    pthread_mutex_unlock(&shim.lock);
    free(block);
}

static void copy_until(uint64_t end)
{
    pthread_mutex_lock(&shim.lock);
    uint64_t due = end > shim.copied ? end - shim.copied : 0;
    int count = due < (uint64_t)shim.copy_count ? (int)due : shim.copy_count;
    for (int i = 0; i < count; i++) {
        memcpy(shim.copies[i].to, shim.copies[i].from, shim.copies[i].bytes);
    }
    memmove(shim.copies, shim.copies + count, (size_t)(shim.copy_count - count) * sizeof(shim.copies[0]));
    shim.copy_count -= count;
    shim.copied += (uint64_t)count;
    pthread_mutex_unlock(&shim.lock);
}

void shim_flush(void)
{
    copy_until(UINT64_MAX);
}

void shim_check(const char *what, const void *pointer, size_t bytes)
{
    bool inside = bytes == 0;

    pthread_mutex_lock(&shim.lock);
    for (int i = 0; i < shim.block_count && !inside; i++) {
        uintptr_t begin = (uintptr_t)shim.blocks[i].pointer, at = (uintptr_t)pointer;
        inside = at >= begin && at - begin <= shim.blocks[i].bytes && bytes <= shim.blocks[i].bytes - (at - begin);
    }
    pthread_mutex_unlock(&shim.lock);
    if (!inside) {
        fprintf(stderr, "shim: %s: %zu bytes outside live memory\n", what, bytes);
        abort();
    }
}

/* --- controls */
static void control_reset(void)
{
    shim.calls = shim.allocations = shim.fail_call = shim.fail_allocation = shim.fail_once = 0;
    shim.sticky = shim.last = cudaSuccess;
}

static void control_fail_allocation(int64_t k, int64_t times)
{
    shim.fail_allocation = shim.allocations + k;
    shim.fail_times = times;
}

static void control_fail_call(int64_t k, int error)
{
    shim.fail_call = shim.calls + k;
    shim.fault = (cudaError_t)error;
}

static void control_fail_once(int64_t k, int error)
{
    shim.fail_once = shim.calls + k;
    shim.fault_once = (cudaError_t)error;
}

static void control_on_sync(void (*call)(void *data), void *data)
{
    shim.on_sync = call;
    shim.on_sync_data = data;
}

static int64_t control_records(void)
{
    return shim.records;
}

static int64_t control_waits(void)
{
    return shim.waits;
}

static int64_t control_allocations(void)
{
    return shim.allocations;
}

static int64_t control_calls(void)
{
    return shim.calls;
}

static int64_t control_live(void)
{
    return shim.block_count;
}

static void control_discard(void)
{
    shim.copy_count = 0;
    while (shim.block_count > 0) {
        shim_give(shim.blocks[0].pointer);
    }
}

static void control_set_probe(int error, int devices, int capability)
{
    shim.probe_error = error;
    shim.devices = devices;
    shim.capability = capability;
}

static void control_set_memory(size_t bytes)
{
    shim.memory = bytes;
}

static void control_skip_kernels(bool skip)
{
    shim.skip_kernels = skip;
}

bool shim_skips_kernels(void)
{
    return shim.skip_kernels;
}

__attribute__((visibility("default"))) shim_entry shim_get;

const struct shim *shim_get(void)
{
    static const struct shim controls = {
        .reset = control_reset,
        .fail_allocation = control_fail_allocation,
        .fail_call = control_fail_call,
        .fail_once = control_fail_once,
        .on_sync = control_on_sync,
        .records = control_records,
        .waits = control_waits,
        .allocations = control_allocations,
        .calls = control_calls,
        .live = control_live,
        .discard = control_discard,
        .set_probe = control_set_probe,
        .set_memory = control_set_memory,
        .skip_kernels = control_skip_kernels,
    };
    return &controls;
}

/* --- devices */
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = shim.probe_error == 0 ? shim.devices : 0;
    return (cudaError_t)shim.probe_error;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t last = shim.last;
    shim.last = shim.sticky; /* what is sticky cannot be cleared */
    return last;
}

cudaError_t cudaPeekAtLastError(void)
{
    return shim.last;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the shim";
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    cudaError_t status = shim_enter();

    *value = attribute == cudaDevAttrComputeCapabilityMajor   ? shim.capability / 10
             : attribute == cudaDevAttrComputeCapabilityMinor ? shim.capability % 10
                                                              : 1;
    return device < shim.devices ? status : cudaErrorInvalidDevice;
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t status = shim_enter();
    return device < shim.devices ? status : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    memset(properties, 0, sizeof(*properties));
    snprintf(properties->name, sizeof(properties->name), "shim");
    properties->major = shim.capability / 10;
    properties->multiProcessorCount = 1;
    return shim_enter();
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *total = shim.memory;
    *left = shim.memory - shim.used;
    return shim_enter();
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = shim.probe_error != 0 ? 12040 : 13000;
    return shim_enter();
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return shim_enter();
}

/* --- memory */
static cudaError_t allocate(void **pointer, size_t bytes)
{
    cudaError_t status = shim_enter_allocation();

    if (status != cudaSuccess) {
        return status;
    }
    *pointer = shim_take(bytes);
    return *pointer != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}

static cudaError_t release(void *pointer)
{
    shim_flush();
    shim_give(pointer);
    return shim_enter();
}

cudaError_t cudaMalloc(void **pointer, size_t bytes)
{
    return allocate(pointer, bytes);
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes)
{
    return allocate(pointer, bytes);
}

cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t stream)
{
    cudaError_t status = allocate(pointer, bytes);

    pthread_mutex_lock(&shim.lock);
    for (int i = 0; status == cudaSuccess && i < shim.block_count; i++) {
        if (shim.blocks[i].pointer == *pointer) {
            shim.blocks[i].pooled = true;
            shim.pooled += bytes;
            shim.pooled_most = shim.pooled > shim.pooled_most ? shim.pooled : shim.pooled_most;
        }
    }
    pthread_mutex_unlock(&shim.lock);
    return status;
}

cudaError_t cudaFree(void *pointer)
{
    return release(pointer);
}

cudaError_t cudaFreeHost(void *pointer)
{
    return release(pointer);
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream)
{
    return release(pointer);
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device)
{
    *pool = (cudaMemPool_t)&shim;
    return shim_enter();
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    if (attribute == cudaMemPoolAttrUsedMemHigh) {
        shim.pooled_most = shim.pooled;
    }
    return shim_enter();
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    *(uint64_t *)value = attribute == cudaMemPoolAttrUsedMemHigh ? shim.pooled_most : shim.used;
    return shim_enter();
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep)
{
    return shim_enter();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    shim_obey();
    cudaError_t status = shim_enter();

    if (status != cudaSuccess) {
        return status;
    }
    shim_check("copy to", to, bytes);
    shim_check("copy from", from, bytes);
    pthread_mutex_lock(&shim.lock);
    while (shim.copy_count == COPIES_MAX) {
        pthread_mutex_unlock(&shim.lock);
        shim_flush();
        pthread_mutex_lock(&shim.lock);
    }
    shim.copies[shim.copy_count++] = (struct copy){to, from, bytes};
    pthread_mutex_unlock(&shim.lock);
    return status;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    cudaError_t status = shim_enter();

    shim_flush();
    for (size_t i = 0; status == cudaSuccess && i < height; i++) {
        shim_check("copy to", (char *)to + i * to_pitch, width);
        shim_check("copy from", (const char *)from + i * from_pitch, width);
        memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    }
    return status;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    cudaError_t status = shim_enter();

    if (status == cudaSuccess) {
        shim_flush();
        shim_check("zeros", to, bytes);
        memset(to, value, bytes);
    }
    return status;
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    cudaError_t status = shim_enter();

    for (size_t i = 0; status == cudaSuccess && i < height; i++) {
        shim_check("zeros", (char *)to + i * pitch, width);
        memset((char *)to + i * pitch, value, width);
    }
    return status;
}

/* --- streams and events: an event is the number of copies queued before it */
static cudaError_t handle_new(void **handle)
{
    cudaError_t status = shim_enter_allocation();

    if (status == cudaSuccess) {
        *handle = shim_take(sizeof(struct event));
        memset(*handle, 0, sizeof(struct event));
    }
    return status;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return handle_new((void **)stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    return release(stream);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    cudaError_t status = shim_enter();

    if (status == cudaSuccess) {
        shim_flush();
    }
    if (shim.on_sync != NULL) {
        shim.on_sync(shim.on_sync_data);
    }
    return status;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    shim.waits++;
    return shim_enter();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    return handle_new((void **)event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    return release(event);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    cudaError_t status = shim_enter();

    if (status == cudaSuccess) {
        struct event *at = (struct event *)(void *)event;
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        at->copies = shim.copied + (uint64_t)shim.copy_count;
        at->milliseconds = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
        shim.records++;
    }
    return status;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t status = shim_enter();

    if (status == cudaSuccess) {
        copy_until(((struct event *)(void *)event)->copies);
    }
    return status;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first, cudaEvent_t last)
{
    cudaError_t status = shim_enter();
    const struct event *from = (const struct event *)(void *)first, *to = (const struct event *)(void *)last;

    if (status == cudaSuccess) {
        *milliseconds = (float)(to->milliseconds - from->milliseconds);
    }
    return status;
}
