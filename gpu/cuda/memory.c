/* Device memory, the scratch of a stream, and copies through a ring of pinned buffers: while one slot is on the wire
 * the host fills the next, and the caller's buffer is free when upload returns. */

#include "gpu/cuda/cuda.h"

#include <string.h>

#define ALIGNMENT 256

int memory_alloc(struct gpu_device *device, size_t bytes, void **pointer)
{
    void *block = NULL;
    int rc = cuda_begin(device);

    rc = rc != 0 ? rc : cuda_ok(device, cudaMalloc(&block, bytes > 0 ? bytes : 1), "cudaMalloc");
    if (rc != 0) {
        return err_pass(rc, "%zu bytes on cuda:%d", bytes, device->index);
    }
    /* On the default stream, and waited for: memory may be used from any stream, and starts zeroed by contract. */
    rc = cuda_ok(device, cudaMemset(block, 0, bytes), "cudaMemset");
    rc = rc != 0 ? rc : cuda_ok(device, cudaStreamSynchronize(NULL), "cudaMemset");
    if (rc != 0) {
        (void)cudaFree(block);
        return rc;
    }
    *pointer = block;
    return 0;
}

void memory_free(struct gpu_device *device, void *pointer)
{
    if (pointer != NULL && cudaSetDevice(device->index) == cudaSuccess) {
        (void)cudaFree(pointer); /* waits for what still uses it */
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

int scratch_reserve(struct gpu_stream *stream, size_t bytes)
{
    void *block = NULL;

    stream->used = 0;
    if (bytes <= stream->capacity) {
        return 0;
    }
    (void)cudaFree(stream->scratch);
    stream->scratch = NULL;
    stream->capacity = 0;
    int rc = cuda_ok(stream->device, cudaMalloc(&block, bytes), "scratch memory");
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
    return piece;
}

int memory_upload(struct gpu_stream *stream, void *to, const void *host, size_t bytes)
{
    int rc = cuda_begin(stream->device);

    for (size_t done = 0; rc == 0 && done < bytes;) {
        int slot = stream->ring_next;
        size_t piece = bytes - done < RING_BYTES ? bytes - done : RING_BYTES;
        rc = cuda_ok(stream->device, cudaEventSynchronize(stream->ring_free[slot]), "waiting for a pinned buffer");
        if (rc != 0) {
            break;
        }
        memcpy(stream->ring[slot], (const char *)host + done, piece);
        rc = cuda_ok(
            stream->device,
            cudaMemcpyAsync((char *)to + done, stream->ring[slot], piece, cudaMemcpyHostToDevice, stream->stream),
            "upload");
        rc = rc != 0 ? rc : cuda_ok(stream->device, cudaEventRecord(stream->ring_free[slot], stream->stream), "upload");
        stream->ring_next = (slot + 1) % RING_SLOTS;
        done += piece;
    }
    return rc;
}

/* Copy out piece i while piece i + 1 is on the wire. */
int memory_download(struct gpu_stream *stream, void *host, const void *from, size_t bytes)
{
    size_t pieces = (bytes + RING_BYTES - 1) / RING_BYTES;
    int first = stream->ring_next, rc = cuda_begin(stream->device);

    for (size_t i = 0; rc == 0 && i < pieces + 1; i++) {
        if (i < pieces) {
            int slot = (int)((first + i) % RING_SLOTS);
            size_t at = i * RING_BYTES, piece = bytes - at < RING_BYTES ? bytes - at : RING_BYTES;
            rc = cuda_ok(stream->device, cudaEventSynchronize(stream->ring_free[slot]), "waiting for a pinned buffer");
            rc = rc != 0 ? rc
                         : cuda_ok(stream->device,
                                   cudaMemcpyAsync(stream->ring[slot], (const char *)from + at, piece,
                                                   cudaMemcpyDeviceToHost, stream->stream),
                                   "download");
            rc = rc != 0
                     ? rc
                     : cuda_ok(stream->device, cudaEventRecord(stream->ring_free[slot], stream->stream), "download");
        }
        if (rc == 0 && i > 0) {
            int slot = (int)((first + i - 1) % RING_SLOTS);
            size_t at = (i - 1) * RING_BYTES, piece = bytes - at < RING_BYTES ? bytes - at : RING_BYTES;
            rc = cuda_ok(stream->device, cudaEventSynchronize(stream->ring_free[slot]), "download");
            if (rc == 0) {
                memcpy((char *)host + at, stream->ring[slot], piece);
            }
        }
    }
    stream->ring_next = (int)((first + pieces) % RING_SLOTS);
    return rc;
}

int memory_fill_zero(struct gpu_stream *stream, void *to, size_t bytes)
{
    int rc = cuda_begin(stream->device);
    return rc != 0 || bytes == 0 ? rc : cuda_ok(stream->device, cudaMemsetAsync(to, 0, bytes, stream->stream), "zeros");
}
