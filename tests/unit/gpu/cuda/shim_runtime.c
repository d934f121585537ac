/* The runtime: devices, memory, streams, events. Streams run in step with the host, except for copies. */

#include "tests/unit/gpu/cuda/shim_state.h"

#include "gpu/cuda/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- devices */
/* QUANTD_SHIM_DEVICES: how many, where a test did not say so. */
cudaError_t cudaGetDeviceCount(int *count)
{
    const char *devices = getenv("QUANTD_SHIM_DEVICES");

    if (devices != NULL && shim_state.devices == 1) {
        shim_state.devices = atoi(devices);
    }
    *count = shim_state.probe_error == 0 ? shim_state.devices : 0;
    return (cudaError_t)shim_state.probe_error;
}

cudaError_t cudaGetLastError(void)
{
    pthread_mutex_lock(&shim_state.lock);
    cudaError_t last = shim_state.last;
    shim_state.last = shim_state.sticky; /* what is sticky cannot be cleared */
    pthread_mutex_unlock(&shim_state.lock);
    return last;
}

cudaError_t cudaPeekAtLastError(void)
{
    pthread_mutex_lock(&shim_state.lock);
    cudaError_t last = shim_state.last;
    pthread_mutex_unlock(&shim_state.lock);
    return last;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the shim";
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    cudaError_t status = shim_enter();

    *value = attribute == cudaDevAttrComputeCapabilityMajor   ? shim_state.capability / 10
             : attribute == cudaDevAttrComputeCapabilityMinor ? shim_state.capability % 10
                                                              : 1;
    return device < shim_state.devices ? status : cudaErrorInvalidDevice;
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t status = shim_enter();
    return device < shim_state.devices ? status : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    memset(properties, 0, sizeof(*properties));
    snprintf(properties->name, sizeof(properties->name), "shim");
    properties->major = shim_state.capability / 10;
    properties->multiProcessorCount = 1;
    return shim_enter();
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    pthread_mutex_lock(&shim_state.lock);
    *total = shim_state.memory;
    *left = shim_state.memory - shim_state.used;
    pthread_mutex_unlock(&shim_state.lock);
    return shim_enter();
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = shim_state.probe_error != 0 ? 12040 : 13000;
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

    pthread_mutex_lock(&shim_state.lock);
    for (int i = 0; status == cudaSuccess && i < shim_state.block_count; i++) {
        if (shim_state.blocks[i].pointer == *pointer) {
            shim_state.blocks[i].pooled = true;
            shim_state.pooled += bytes;
            shim_state.pooled_max =
                shim_state.pooled > shim_state.pooled_max ? shim_state.pooled : shim_state.pooled_max;
        }
    }
    pthread_mutex_unlock(&shim_state.lock);
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
    *pool = (cudaMemPool_t)&shim_state;
    return shim_enter();
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    pthread_mutex_lock(&shim_state.lock);
    if (attribute == cudaMemPoolAttrUsedMemHigh) {
        shim_state.pooled_max = shim_state.pooled;
    }
    pthread_mutex_unlock(&shim_state.lock);
    return shim_enter();
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    pthread_mutex_lock(&shim_state.lock);
    *(uint64_t *)value = attribute == cudaMemPoolAttrUsedMemHigh ? shim_state.pooled_max : shim_state.used;
    pthread_mutex_unlock(&shim_state.lock);
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
    pthread_mutex_lock(&shim_state.lock);
    while (shim_state.copy_count == SHIM_COPIES_MAX) {
        pthread_mutex_unlock(&shim_state.lock);
        shim_flush();
        pthread_mutex_lock(&shim_state.lock);
    }
    shim_state.copies[shim_state.copy_count++] = (struct shim_copy){to, from, bytes};
    pthread_mutex_unlock(&shim_state.lock);
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
        *handle = shim_take(sizeof(struct shim_event));
        memset(*handle, 0, sizeof(struct shim_event));
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
    if (shim_state.on_sync != NULL) {
        shim_state.on_sync(shim_state.on_sync_data);
    }
    return status;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    pthread_mutex_lock(&shim_state.lock);
    shim_state.waits++;
    pthread_mutex_unlock(&shim_state.lock);
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
        struct shim_event *at = (struct shim_event *)(void *)event;
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        at->milliseconds = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
        pthread_mutex_lock(&shim_state.lock);
        at->copies = shim_state.copied + (uint64_t)shim_state.copy_count;
        shim_state.records++;
        pthread_mutex_unlock(&shim_state.lock);
    }
    return status;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t status = shim_enter();

    if (status == cudaSuccess) {
        shim_copy_until(((struct shim_event *)(void *)event)->copies);
    }
    return status;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first, cudaEvent_t last)
{
    cudaError_t status = shim_enter();
    const struct shim_event *from = (const struct shim_event *)(void *)first,
                            *to = (const struct shim_event *)(void *)last;

    if (status == cudaSuccess) {
        *milliseconds = (float)(to->milliseconds - from->milliseconds);
    }
    return status;
}
