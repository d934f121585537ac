#pragma once
/* What the host files of the CUDA module share: its device and stream, scratch memory, errors, products.
 *
 * Everything is queued on the stream's one CUDA stream, so scratch memory that one operation used is free for the next
 * without waiting. Operations that answer the host wait for it. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "gpu/backend.h"
#include "gpu/cuda/launch.h"
#include "gpu/shared/tiles.h"

#include <cublasLt.h>
#include <pthread.h>
#include <stdatomic.h>

struct gpu_device {
    int index;
    atomic_bool lost; /* a sticky error: only the end of the process clears it */
    bool fp32;        /* products in F32 (QUANTD_CUDA_MATH=fp32), else BF16 with F32 sums */
    cublasLtHandle_t blas;
    cudaStream_t memory;        /* tensors are allocated and freed on it */
    cudaMemPool_t pool;         /* NULL where the device has none: plain cudaMalloc */
    pthread_mutex_t lock;       /* guards what follows */
    struct gpu_stream *streams; /* what freed memory may still be in use on */
    size_t raw, raw_peak;       /* bytes outside the pool: scratch and workspaces */
};

#define RING_SLOTS 4
#define RING_BYTES ((size_t)4 << 20) /* stays in a cache on its way */

struct gemm_cache;

struct gpu_stream {
    struct gpu_stream_head head;
    struct gpu_device *device;
    struct gpu_stream *next; /* of the device */
    cudaStream_t stream;
    cudaEvent_t mark; /* its end when memory was freed */
    char *scratch;
    size_t capacity, used;
    bool scratch_held; /* by an operation that has not ended */
    void *workspace;   /* for products: GEMM_WORKSPACE bytes, from the first on */
    struct gemm_cache *cache;
    void *ring[RING_SLOTS]; /* pinned host memory, from the first copy on */
    cudaEvent_t ring_free[RING_SLOTS];
    int ring_next;
};

struct gpu_event {
    struct gpu_device *device;
    cudaEvent_t event;
};

#define GEMM_WORKSPACE ((size_t)64 << 20)

/* 0, or raises: out of memory is ERR_GPU_OUT_OF_MEMORY and leaves the device usable; what CUDA says is sticky is
 * ERR_DEVICE_LOST and marks the device; the rest is ERR_INTERNAL. */
int cuda_ok(struct gpu_device *device, int status, const char *what);
/* The same without a record, for what cannot fail: false for success. */
bool cuda_failed(struct gpu_device *device, int status);
/* Before the first call of cuBLASLt, by the probe. False: it is not here, and why. */
bool cublas_open(char *reason, size_t size);
int cublas_ok(struct gpu_device *device, cublasStatus_t status, const char *what);
/* Make the device current and refuse when it is lost. First call of every operation. */
int cuda_begin(struct gpu_device *device);

/* Scratch: SCRATCH_SCOPE before the first statement of the function that uses it, then reserve the sum of
 * scratch_size(...) once, then take pieces, which are gone at the end of that function. Device memory, 256-byte
 * aligned. A function that holds scratch calls no other one that reserves: that is asserted. */
struct scratch_scope {
    struct gpu_stream *stream;
    bool held; /* by a caller */
};
void scratch_leave(struct scratch_scope *scope);
#define SCRATCH_SCOPE(of) \
    __attribute__((cleanup(scratch_leave))) struct scratch_scope scratch_scope = {(of), (of)->scratch_held}
size_t scratch_size(int64_t count, size_t element);
int scratch_reserve(struct gpu_stream *stream, size_t bytes);
void *scratch_take(struct gpu_stream *stream, int64_t count, size_t element);

/* memory.c: memory_close is due after memory_init, whether memory_open succeeded or not. Streams that may use the
 * device's memory join it. */
void memory_init(struct gpu_device *device);
int memory_open(struct gpu_device *device);
void memory_close(struct gpu_device *device);
void memory_join(struct gpu_stream *stream);
void memory_leave(struct gpu_stream *stream); /* also one that never joined */
/* Bytes that the pool holds for reuse. */
size_t memory_idle(struct gpu_device *device);
/* Device memory without a tensor's promises: not zeroed. */
int memory_raw(struct gpu_device *device, size_t bytes, void **pointer);
/* Waits for all that uses it; NULL is fine. Returns CUDA's status. */
int memory_raw_free(struct gpu_device *device, void *pointer, size_t bytes);
int memory_peak(struct gpu_device *device, bool reset, int64_t *bytes);
int memory_alloc(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer);
void memory_free(struct gpu_device *device, void *pointer);
int memory_upload(struct gpu_stream *stream, void *to, const void *host, size_t bytes);
int memory_download(struct gpu_stream *stream, void *host, const void *from, size_t bytes);
int memory_host_alloc(struct gpu_device *device, size_t bytes, void **pointer);
void memory_host_free(struct gpu_device *device, void *pointer);
int memory_upload_pinned(struct gpu_stream *stream, void *to, const void *pinned, size_t bytes);
int memory_fill_zero(struct gpu_stream *stream, void *to, size_t bytes);

/* Row-major product: c[m, n] = alpha * a b + beta * c, a [m, k] (or [k, m] when trans_a), b [k, n] (or [n, k]). `count`
 * of them, at a distance of the strides, in elements; a stride of 0 uses one operand for all. c is F32; sums are F32.
 */
struct gemm {
    bool trans_a, trans_b;
    int64_t m, n, k;
    float alpha, beta;
    const void *a, *b;
    float *c;
    int64_t lda, ldb, ldc; /* elements from row to row */
    bool bf16;             /* a and b are BF16, else F32 (without TF32) */
    int64_t count;         /* 0 and 1: one */
    int64_t stride_a, stride_b, stride_c;
};
int gemm_run(struct gpu_stream *stream, const struct gemm *gemm);
int gemm_cache_new(struct gemm_cache **cache);
void gemm_cache_free(struct gemm_cache *cache);

/* x as an operand of a product: itself when products are F32 or it is BF16 already, else converted into scratch
 * that the caller reserved (operand_size). */
size_t operand_size(const struct gpu_stream *stream, const struct tensor *x);
int operand_of(struct gpu_stream *stream, const struct tensor *x, const void **operand);
bool operand_bf16(const struct gpu_stream *stream);
/* An order of columns from the host, in scratch that the caller reserved: [n] int32; NULL stays NULL. */
int order_upload(struct gpu_stream *stream, const int32_t *order, int64_t n, const int32_t **on_device);

/* The operations; their arguments have been checked (gpu/front.c). One without a function here is not there (weak): the
 * daemon refuses it by name. */
#define GPU_OP(group, name, does, ...) \
    __attribute__((weak)) int cuda_##name(struct gpu_stream *stream GPU_PARAMETERS(__VA_ARGS__));
#include "gpu/ops.def"
