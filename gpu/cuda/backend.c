/* The CUDA backend's table, devices and streams.
 *
 * The CUDA runtime is linked in; the driver is found by it at run time, so on a host without one the probe says why and
 * nothing else happens. CUDA_VISIBLE_DEVICES and MIG are the runtime's business: a device is whatever it lists, and
 * memory is what it reports free, never what a card of that name should have. */

#include "gpu/cuda/cuda.h"
#include "gpu/cuda/host.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPABILITY_LEAST 80 /* BF16 tensor cores */
/* Tokens of a micro-batch: enough to occupy the device, and where there is memory, products at its peak rate. */
#define BATCH_TOKENS 8192
#define LARGE_BATCH_TOKENS 32768
#define LARGE_MEMORY ((size_t)64 << 30)

static int cuda_device_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return count;
}

static void explain_driver(char *reason, size_t size)
{
    int driver = 0, runtime = 0;

    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        snprintf(reason, size, "there is no CUDA driver");
        return;
    }
    (void)cudaRuntimeGetVersion(&runtime);
    snprintf(reason, size, "the driver is for CUDA %d.%d, and %d.%d is needed", driver / 1000, driver % 1000 / 10,
             runtime / 1000, runtime % 1000 / 10);
}

/* 90 for 9.0; 0 when the device does not say. */
static int capability(int index)
{
    int major = 0, minor = 0;

    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return major * 10 + minor;
}

static int cuda_probe(char *reason, size_t size)
{
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);

    if (status == cudaErrorInsufficientDriver) {
        (void)cudaGetLastError();
        explain_driver(reason, size);
        return 0;
    }
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        snprintf(reason, size, "%s", cudaGetErrorString(status));
        return 0;
    }
    if (count == 0) {
        snprintf(reason, size, "there is no CUDA device");
        return 0;
    }
    for (int i = 0; i < count; i++) { /* one is enough; each is checked again when it is opened */
        if (capability(i) >= CAPABILITY_LEAST) {
            return cublas_open(reason, size) ? 100 : 0;
        }
    }
    snprintf(reason, size, "no device has compute capability 8.0 or more");
    return 0;
}

/* After these every call of the process fails, or the device is not there any more. All others concern one call: a
 * mistake of ours, or something that is missing, which a restart would not repair. */
static bool is_sticky(cudaError_t error)
{
    switch (error) {
    case cudaErrorInitializationError:
    case cudaErrorCudartUnloading:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceUninitialized:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsServerNotReady:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
        return true;
    default:
        return false;
    }
}

bool cuda_failed(struct gpu_device *device, int status)
{
    cudaError_t error = (cudaError_t)status;

    if (error == cudaSuccess) {
        return false;
    }
    (void)cudaGetLastError(); /* clears what is not sticky */
    if (is_sticky(error)) {
        atomic_store(&device->lost, true);
    }
    return true;
}

int cuda_ok(struct gpu_device *device, int status, const char *what)
{
    cudaError_t error = (cudaError_t)status;

    if (!cuda_failed(device, status)) {
        return 0;
    }
    if (error == cudaErrorMemoryAllocation) {
        return err_raise(ERR_GPU_OUT_OF_MEMORY, "%s: %s", what, cudaGetErrorString(error));
    }
    if (is_sticky(error)) {
        return err_raise(ERR_DEVICE_LOST, "cuda:%d: %s: %s (%d)", device->index, what, cudaGetErrorString(error),
                         status);
    }
    return err_raise(ERR_INTERNAL, "%s: %s (%d)", what, cudaGetErrorString(error), status);
}

int cuda_begin(struct gpu_device *device)
{
    if (atomic_load(&device->lost)) {
        return err_raise(ERR_DEVICE_LOST, "cuda:%d was lost earlier", device->index);
    }
    return cuda_ok(device, cudaSetDevice(device->index), "cudaSetDevice");
}

static void cuda_device_close(struct gpu_device *device)
{
    if (device != NULL) {
        (void)cudaSetDevice(device->index);
        if (device->blas != NULL) {
            (void)cublasLtDestroy(device->blas);
        }
        memory_close(device);
        free(device);
    }
}

CLEANUP_FREE(cuda_device, struct gpu_device, cuda_device_close)

static int cuda_device_open(int index, int threads, struct gpu_device **device)
{
    int has = capability(index);
    if (has < CAPABILITY_LEAST) {
        return err_raise(ERR_CONFIG, "cuda:%d has compute capability %d.%d, and 8.0 is needed", index, has / 10,
                         has % 10);
    }
    AUTO(cuda_device) struct gpu_device *opened = NULL;
    const char *math = getenv("QUANTD_CUDA_MATH");

    TRY(mem_new(&opened));
    opened->index = index;
    opened->fp32 = math != NULL && strcmp(math, "fp32") == 0;
    memory_init(opened);
    TRY(cuda_begin(opened));
    TRY(memory_open(opened));
    TRY(cublas_ok(opened, cublasLtCreate(&opened->blas), "cublasLtCreate"));
    *device = MOVE(opened);
    return 0;
}

static int cuda_device_info(struct gpu_device *device, struct gpu_info *info)
{
    struct cudaDeviceProp properties;
    size_t left = 0, total = 0;
    int driver = 0, runtime = 0;
    size_t lt = cublasLtGetVersion();

    TRY(cuda_begin(device));
    TRY(cuda_ok(device, cudaGetDeviceProperties(&properties, device->index), "device properties"));
    TRY(cuda_ok(device, cudaMemGetInfo(&left, &total), "device memory"));
    TRY(cuda_ok(device, cudaDriverGetVersion(&driver), "driver version"));
    TRY(cuda_ok(device, cudaRuntimeGetVersion(&runtime), "runtime version"));
    *info = (struct gpu_info){.memory_total = (int64_t)total,
                              .memory_free = (int64_t)(left + memory_idle(device)),
                              .batch_tokens = total >= LARGE_MEMORY ? LARGE_BATCH_TOKENS : BATCH_TOKENS};
    snprintf(info->id, sizeof(info->id), "cuda:%d", device->index);
    snprintf(info->name, sizeof(info->name), "%.120s", properties.name);
    snprintf(info->detail, sizeof(info->detail), "sm_%d%d, %d multiprocessors, driver %d.%d, %s products",
             properties.major, properties.minor, properties.multiProcessorCount, driver / 1000, driver % 1000 / 10,
             device->fp32 ? "fp32" : "bf16");
    snprintf(info->libraries, sizeof(info->libraries), "CUDA runtime %d.%d, cublasLt %zu", runtime / 1000,
             runtime % 1000 / 10, lt);
    return 0;
}

static void cuda_stream_free(struct gpu_stream *stream)
{
    if (stream == NULL) {
        return;
    }
    struct gpu_device *device = stream->device;
    (void)cuda_failed(device, cudaSetDevice(stream->device->index));
    if (stream->stream != NULL) {
        (void)cuda_failed(device, cudaStreamSynchronize(stream->stream));
    }
    memory_leave(stream); /* only now: what another thread frees meanwhile waits for this stream's work */
    for (int i = 0; i < RING_SLOTS; i++) {
        if (stream->ring[i] != NULL) {
            (void)cuda_failed(device, cudaFreeHost(stream->ring[i]));
        }
        if (stream->ring_free[i] != NULL) {
            (void)cuda_failed(device, cudaEventDestroy(stream->ring_free[i]));
        }
    }
    (void)cuda_failed(device, memory_raw_free(device, stream->scratch, stream->capacity));
    (void)cuda_failed(device, memory_raw_free(device, stream->workspace, GEMM_WORKSPACE));
    if (stream->mark != NULL) {
        (void)cuda_failed(device, cudaEventDestroy(stream->mark));
    }
    if (stream->stream != NULL) {
        (void)cuda_failed(device, cudaStreamDestroy(stream->stream));
    }
    gemm_cache_free(stream->cache);
    free(stream);
}

CLEANUP_FREE(cuda_stream, struct gpu_stream, cuda_stream_free)

static const struct gpu_ops cuda_ops;

/* What products and copies need beyond this comes with the first of each: some streams only copy. */
static int cuda_stream_new(struct gpu_device *device, struct gpu_stream **stream)
{
    AUTO(cuda_stream) struct gpu_stream *opened = NULL;

    TRY(cuda_begin(device));
    TRY(mem_new(&opened));
    opened->head.ops = &cuda_ops;
    opened->device = device;
    TRY(gemm_cache_new(&opened->cache));
    TRY(cuda_ok(device, cudaStreamCreateWithFlags(&opened->stream, cudaStreamNonBlocking), "a stream"));
    TRY(cuda_ok(device, cudaEventCreateWithFlags(&opened->mark, cudaEventDisableTiming), "an event"));
    memory_join(opened);
    *stream = MOVE(opened);
    return 0;
}

static int cuda_stream_sync(struct gpu_stream *stream)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, cudaStreamSynchronize(stream->stream), "waiting for the stream");
}

static int cuda_event_new(struct gpu_device *device, struct gpu_event **event)
{
    AUTO_FREE struct gpu_event *opened = NULL;

    TRY(cuda_begin(device));
    TRY(mem_new(&opened));
    opened->device = device;
    TRY(cuda_ok(device, cudaEventCreateWithFlags(&opened->event, cudaEventDefault), "an event"));
    *event = MOVE(opened);
    return 0;
}

static void cuda_event_free(struct gpu_event *event)
{
    if (event != NULL) {
        (void)cuda_failed(event->device, cudaSetDevice(event->device->index));
        (void)cuda_failed(event->device, cudaEventDestroy(event->event));
        free(event);
    }
}

static int cuda_event_record(struct gpu_stream *stream, struct gpu_event *event)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, cudaEventRecord(event->event, stream->stream), "recording an event");
}

static int cuda_event_wait(struct gpu_stream *stream, struct gpu_event *event)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, cudaStreamWaitEvent(stream->stream, event->event, 0), "following an event");
}

static int cuda_event_elapsed(struct gpu_event *first, struct gpu_event *last, double *seconds)
{
    struct gpu_device *device = last->device;
    float milliseconds = 0;

    TRY(cuda_begin(device));
    TRY(cuda_ok(device, cudaEventSynchronize(first->event), "waiting for an event"));
    TRY(cuda_ok(device, cudaEventSynchronize(last->event), "waiting for an event"));
    TRY(cuda_ok(device, cudaEventElapsedTime(&milliseconds, first->event, last->event), "the time between two events"));
    *seconds = (double)milliseconds / 1000.0;
    return 0;
}

static const struct gpu_ops cuda_ops = {
    .abi = GPU_ABI,
    .name = "cuda",
    .signature = gpu_signature,
    .lost_until_exit = true,
    .probe = cuda_probe,
    .device_count = cuda_device_count,
    .device_open = cuda_device_open,
    .device_close = cuda_device_close,
    .device_info = cuda_device_info,
    .stream_new = cuda_stream_new,
    .stream_free = cuda_stream_free,
    .stream_sync = cuda_stream_sync,
    .event_new = cuda_event_new,
    .event_free = cuda_event_free,
    .event_record = cuda_event_record,
    .event_wait = cuda_event_wait,
    .event_elapsed = cuda_event_elapsed,
    .memory_peak = memory_peak,
    .alloc = memory_alloc,
    .free = memory_free,
    .upload = memory_upload,
    .download = memory_download,
    .fill_zero = memory_fill_zero,
    .host_alloc = memory_host_alloc,
    .host_free = memory_host_free,
    .upload_pinned = memory_upload_pinned,
#define GPU_OP(group, name, does, ...) .name = cuda_##name,
#include "gpu/ops.def"
};

__attribute__((visibility("default"))) gpu_module_entry quantd_gpu_ops;

const struct gpu_ops *quantd_gpu_ops(const struct gpu_host *host)
{
    if (host->abi == GPU_ABI) { /* else only the version is read */
        host_set(host);
        if (host->cache_folder != NULL) { /* a service may have no home directory, where the driver would put it */
            (void)setenv("CUDA_CACHE_PATH", host->cache_folder, 0);
        }
    }
    return &cuda_ops;
}
