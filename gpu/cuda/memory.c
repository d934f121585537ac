/* Device memory, the scratch of a stream, and copies through a ring of pinned buffers: while one slot is on the wire
 * the host fills the next, and the caller's buffer is free when upload returns.
 *
 * Tensors come from the device's memory pool and go back to it in stream order, so that neither waits for all
 * work of the device, and the next block's tensors take the last one's place. Everything is allocated and zeroed on one
 * stream of its own; what is freed there first waits for all that other streams have queued. */

#include "gpu/cuda/cuda.h"

#include <assert.h>
#include <string.h>

#define ALIGNMENT 256

void memory_init(struct gpu_device *device)
{
    pthread_mutex_init(&device->lock, NULL);
}

int memory_open(struct gpu_device *device)
{
    int pools = 0;
    uint64_t keep = UINT64_MAX; /* what is freed stays with us until it is trimmed */

    TRY(cuda_ok(device, cudaStreamCreateWithFlags(&device->memory, cudaStreamNonBlocking), "a stream for memory"));
    TRY(cuda_ok(device, cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device->index),
                "memory pools"));
    if (pools != 0) {
        TRY(cuda_ok(device, cudaDeviceGetDefaultMemPool(&device->pool, device->index), "memory pool"));
        TRY(cuda_ok(device, cudaMemPoolSetAttribute(device->pool, cudaMemPoolAttrReleaseThreshold, &keep),
                    "memory pool"));
    }
    return 0;
}

void memory_close(struct gpu_device *device)
{
    if (device->memory != NULL) {
        (void)cudaStreamSynchronize(device->memory);
        (void)cudaStreamDestroy(device->memory);
    }
    if (device->pool != NULL) {
        (void)cudaMemPoolTrimTo(device->pool, 0);
    }
    pthread_mutex_destroy(&device->lock);
}

void memory_join(struct gpu_stream *stream)
{
    pthread_mutex_lock(&stream->device->lock);
    stream->next = stream->device->streams;
    stream->device->streams = stream;
    pthread_mutex_unlock(&stream->device->lock);
}

void memory_leave(struct gpu_stream *stream)
{
    pthread_mutex_lock(&stream->device->lock);
    for (struct gpu_stream **at = &stream->device->streams; *at != NULL; at = &(*at)->next) {
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    }
    pthread_mutex_unlock(&stream->device->lock);
}

size_t memory_idle(struct gpu_device *device)
{
    uint64_t reserved = 0, used = 0;

    if (device->pool == NULL ||
        cudaMemPoolGetAttribute(device->pool, cudaMemPoolAttrReservedMemCurrent, &reserved) != cudaSuccess ||
        cudaMemPoolGetAttribute(device->pool, cudaMemPoolAttrUsedMemCurrent, &used) != cudaSuccess) {
        return 0;
    }
    return (size_t)(reserved > used ? reserved - used : 0);
}

static cudaError_t memory_allocate(struct gpu_device *device, size_t bytes, bool pooled, void **block)
{
    return pooled ? cudaMallocAsync(block, bytes, device->memory) : cudaMalloc(block, bytes);
}

/* A second try when the pool holds memory that is of no use to it. */
static int allocate_or_trim(struct gpu_device *device, size_t bytes, bool pooled, void **block)
{
    cudaError_t status = memory_allocate(device, bytes, pooled, block);

    if (status == cudaErrorMemoryAllocation && device->pool != NULL) {
        (void)cudaGetLastError();
        TRY(cuda_ok(device, cudaStreamSynchronize(device->memory), "waiting for freed memory"));
        TRY(cuda_ok(device, cudaMemPoolTrimTo(device->pool, 0), "trimming the memory pool"));
        status = memory_allocate(device, bytes, pooled, block);
    }
    return cuda_ok(device, status, "device memory");
}

int memory_raw(struct gpu_device *device, size_t bytes, void **pointer)
{
    TRY(allocate_or_trim(device, bytes, false, pointer));
    pthread_mutex_lock(&device->lock);
    device->raw += bytes;
    device->raw_peak = device->raw > device->raw_peak ? device->raw : device->raw_peak;
    pthread_mutex_unlock(&device->lock);
    return 0;
}

int memory_raw_free(struct gpu_device *device, void *pointer, size_t bytes)
{
    if (pointer == NULL) {
        return cudaSuccess;
    }
    pthread_mutex_lock(&device->lock);
    device->raw -= bytes;
    pthread_mutex_unlock(&device->lock);
    return cudaFree(pointer);
}

/* The sum of both peaks: no less than the peak of the sum. */
int memory_peak(struct gpu_device *device, bool reset, int64_t *bytes)
{
    uint64_t pooled = 0, none = 0;

    TRY(cuda_begin(device));
    if (device->pool == NULL) {
        return err_raise(ERR_UNSUPPORTED, "cuda:%d has no memory pool that counts", device->index);
    }
    TRY(cuda_ok(device, cudaMemPoolGetAttribute(device->pool, cudaMemPoolAttrUsedMemHigh, &pooled), "memory in use"));
    if (reset) {
        TRY(cuda_ok(device, cudaMemPoolSetAttribute(device->pool, cudaMemPoolAttrUsedMemHigh, &none), "memory in use"));
    }
    pthread_mutex_lock(&device->lock);
    *bytes = (int64_t)(pooled + device->raw_peak);
    device->raw_peak = reset ? device->raw : device->raw_peak;
    pthread_mutex_unlock(&device->lock);
    return 0;
}

/* What was queued on a stream so far comes before what the memory stream does next. Where no event says so, the host
 * waits. False: nothing is known of that stream. */
static bool memory_follows(struct gpu_device *device, const struct gpu_stream *stream)
{
    if (!cuda_failed(device, cudaEventRecord(stream->mark, stream->stream)) &&
        !cuda_failed(device, cudaStreamWaitEvent(device->memory, stream->mark, 0))) {
        return true;
    }
    return !cuda_failed(device, cudaStreamSynchronize(stream->stream));
}

/* A block that may still be in use is not freed: the device is lost then, and the end of the process frees it. */
static void release(struct gpu_device *device, void *block)
{
    bool unused = true;

    if (device->pool == NULL) {
        (void)cuda_failed(device, cudaFree(block)); /* waits for what still uses it */
        return;
    }
    pthread_mutex_lock(&device->lock);
    for (struct gpu_stream *stream = device->streams; stream != NULL && unused; stream = stream->next) {
        unused = memory_follows(device, stream);
    }
    if (unused) {
        (void)cuda_failed(device, cudaFreeAsync(block, device->memory));
    } else {
        atomic_store(&device->lost, true);
    }
    pthread_mutex_unlock(&device->lock);
}

/* The first `bytes` of a block as zeros, and the block ready for any stream. */
static int memory_prepare(struct gpu_device *device, void *block, size_t bytes)
{
    if (bytes > 0) {
        TRY(cuda_ok(device, cudaMemsetAsync(block, 0, bytes, device->memory), "zeroing memory"));
    }
    return cuda_ok(device, cudaStreamSynchronize(device->memory), "waiting for memory");
}

int memory_alloc(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
{
    void *block = NULL;

    TRY(cuda_begin(device));
    TRY(allocate_or_trim(device, bytes > 0 ? bytes : 1, device->pool != NULL, &block));
    int rc = memory_prepare(device, block, zeroed ? bytes : 0);
    if (rc != 0) {
        release(device, block);
        return rc;
    }
    *pointer = block;
    return 0;
}

void memory_free(struct gpu_device *device, void *pointer)
{
    if (pointer != NULL && !cuda_failed(device, cudaSetDevice(device->index))) {
        release(device, pointer);
    }
}

size_t scratch_size(int64_t count, size_t element)
{
    size_t bytes;

    if (count < 0 || __builtin_mul_overflow((size_t)count, element, &bytes) || bytes > SIZE_MAX / 16) {
        return SIZE_MAX / 16; /* scratch_reserve fails on it */
    }
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void scratch_leave(struct scratch_scope *scope)
{
    scope->stream->scratch_held = scope->held;
}

int scratch_reserve(struct gpu_stream *stream, size_t bytes)
{
    void *block = NULL;

    assert(!stream->scratch_held); /* else a caller's pieces would be handed out again */
    stream->scratch_held = true;
    stream->used = 0;
    if (bytes <= stream->capacity) {
        return 0;
    }
    void *smaller = stream->scratch;
    size_t capacity = stream->capacity;
    stream->scratch = NULL;
    stream->capacity = 0;
    TRY(cuda_ok(stream->device, memory_raw_free(stream->device, smaller, capacity), "freeing scratch"));
    int rc = memory_raw(stream->device, bytes, &block);
    if (rc != 0) {
        return err_pass(rc, "%zu bytes of scratch", bytes);
    }
    stream->scratch = block;
    stream->capacity = bytes;
    return 0;
}

void *scratch_take(struct gpu_stream *stream, int64_t count, size_t element)
{
    void *piece = stream->scratch + stream->used;

    stream->used += scratch_size(count, element);
    assert(stream->scratch_held && stream->used <= stream->capacity);
    return piece;
}

static int open_ring(struct gpu_stream *stream)
{
    TRY(cuda_begin(stream->device));

    for (int i = 0; i < RING_SLOTS && stream->ring_free[RING_SLOTS - 1] == NULL; i++) {
        if (stream->ring[i] == NULL) {
            TRY(cuda_ok(stream->device, cudaMallocHost(&stream->ring[i], RING_BYTES), "pinned memory"));
        }
        if (stream->ring_free[i] == NULL) {
            TRY(cuda_ok(stream->device, cudaEventCreateWithFlags(&stream->ring_free[i], cudaEventDisableTiming),
                        "cudaEventCreate"));
        }
    }
    return 0;
}

int memory_upload(struct gpu_stream *stream, void *to, const void *host, size_t bytes)
{
    TRY(open_ring(stream));

    for (size_t done = 0; done < bytes;) {
        int slot = stream->ring_next;
        size_t piece = bytes - done < RING_BYTES ? bytes - done : RING_BYTES;
        TRY(cuda_ok(stream->device, cudaEventSynchronize(stream->ring_free[slot]), "waiting for a pinned buffer"));
        memcpy(stream->ring[slot], (const char *)host + done, piece);
        TRY(cuda_ok(
            stream->device,
            cudaMemcpyAsync((char *)to + done, stream->ring[slot], piece, cudaMemcpyHostToDevice, stream->stream),
            "upload"));
        TRY(cuda_ok(stream->device, cudaEventRecord(stream->ring_free[slot], stream->stream), "upload"));
        stream->ring_next = (slot + 1) % RING_SLOTS;
        done += piece;
    }
    return 0;
}

/* Copy out piece i while piece i + 1 is on the wire. */
int memory_download(struct gpu_stream *stream, void *host, const void *from, size_t bytes)
{
    size_t pieces = (bytes + RING_BYTES - 1) / RING_BYTES;
    int first = stream->ring_next;

    TRY(open_ring(stream));
    stream->ring_next = (int)((first + pieces) % RING_SLOTS);
    for (size_t i = 0; i < pieces + 1; i++) {
        if (i < pieces) {
            int slot = (int)((first + i) % RING_SLOTS);
            size_t at = i * RING_BYTES, piece = bytes - at < RING_BYTES ? bytes - at : RING_BYTES;
            TRY(cuda_ok(stream->device, cudaEventSynchronize(stream->ring_free[slot]), "waiting for a pinned buffer"));
            TRY(cuda_ok(stream->device,
                        cudaMemcpyAsync(stream->ring[slot], (const char *)from + at, piece, cudaMemcpyDeviceToHost,
                                        stream->stream),
                        "download"));
            TRY(cuda_ok(stream->device, cudaEventRecord(stream->ring_free[slot], stream->stream), "download"));
        }
        if (i > 0) {
            int slot = (int)((first + i - 1) % RING_SLOTS);
            size_t at = (i - 1) * RING_BYTES, piece = bytes - at < RING_BYTES ? bytes - at : RING_BYTES;
            TRY(cuda_ok(stream->device, cudaEventSynchronize(stream->ring_free[slot]), "download"));
            memcpy((char *)host + at, stream->ring[slot], piece);
        }
    }
    return 0;
}

int memory_host_alloc(struct gpu_device *device, size_t bytes, void **pointer)
{
    void *block = NULL;

    TRY(cuda_begin(device));
    TRY(cuda_ok(device, cudaMallocHost(&block, bytes > 0 ? bytes : 1), "pinned memory"));
    *pointer = block;
    return 0;
}

void memory_host_free(struct gpu_device *device, void *pointer)
{
    if (pointer != NULL && !cuda_failed(device, cudaSetDevice(device->index))) {
        (void)cuda_failed(device, cudaFreeHost(pointer));
    }
}

int memory_upload_pinned(struct gpu_stream *stream, void *to, const void *pinned, size_t bytes)
{
    TRY(cuda_begin(stream->device));
    return bytes == 0 ? 0
                      : cuda_ok(stream->device,
                                cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, stream->stream), "upload");
}

int memory_fill_zero(struct gpu_stream *stream, void *to, size_t bytes)
{
    TRY(cuda_begin(stream->device));
    return bytes == 0 ? 0 : cuda_ok(stream->device, cudaMemsetAsync(to, 0, bytes, stream->stream), "zeros");
}
