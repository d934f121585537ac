/* The CPU backend's table: device, streams and memory. It is the reference that other backends are held to.
 *
 * A stream here is only scratch memory: operations run on the caller's thread and the device's pool, and have ended
 * when they return. Two streams may run at once; the pool lets one through at a time. */

#include "gpu/cpu/internal.h"

#include "base/cleanup.h"
#include "base/ids.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct products *chosen_products; /* of devices that are opened from now on */

int gpu_cpu_products(const char *want)
{
    const struct products *products = strcmp(want, "float32") != 0 ? products_choose() : NULL;

    if (strcmp(want, "float32") != 0 && strcmp(want, "bfloat16") != 0 && strcmp(want, "auto") != 0) {
        return err_raise(ERR_CONFIG, "\"%.40s\" is not float32, bfloat16 or auto", want);
    }
    if (strcmp(want, "bfloat16") == 0 && products == NULL) {
        return err_raise(ERR_CONFIG, "this CPU has no instructions for products in bfloat16 (AMX-BF16 or AVX512_BF16)");
    }
    if (strcmp(want, "auto") == 0 && products != NULL && !products_faster(products)) {
        products = NULL;
    }
    chosen_products = products;
    return 0;
}

static int cpu_probe(char *reason, size_t size)
{
    if (blas_load() != 0) {
        snprintf(reason, size, "%s", err_last()->message);
        return 0;
    }
    return 1;
}

static int cpu_device_count(void)
{
    return 1;
}

static void cpu_device_close(struct gpu_device *device)
{
    if (device != NULL) {
        pool_free(device->pool);
        memory_close(device);
        free(device);
    }
}

CLEANUP_FREE(cpu_device, struct gpu_device, cpu_device_close)

static int cpu_device_open(int index, int threads, struct gpu_device **device)
{
    if (index != 0) {
        return err_raise(ERR_CONFIG, "there is one CPU device, not number %d", index);
    }
    AUTO(cpu_device) struct gpu_device *opened = NULL;

    TRY(blas_load());
    TRY(mem_new(&opened));
    memory_open(opened);
    opened->kernels = kernels_choose();
    opened->products = chosen_products;
    opened->pool = pool_new(threads);
    if (opened->pool == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot start %d threads", threads);
    }
    *device = MOVE(opened);
    return 0;
}

static int cpu_device_info(struct gpu_device *device, struct gpu_info *info)
{
    return info_read(device, info);
}

static int cpu_stream_new(struct gpu_device *device, struct gpu_stream **stream)
{
    struct gpu_stream *opened = NULL;

    TRY(mem_new(&opened));
    opened->head.ops = gpu_cpu_ops();
    opened->device = device;
    *stream = opened;
    return 0;
}

static void cpu_stream_free(struct gpu_stream *stream)
{
    if (stream != NULL) {
        memory_free(stream->device, stream->scratch);
        memory_trim(stream->device); /* work has ended, or some of it */
        free(stream);
    }
}

static int cpu_stream_sync(struct gpu_stream *stream)
{
    return 0;
}

/* Operations have ended when they return. */
static int cpu_event_new(struct gpu_device *device, struct gpu_event **event)
{
    return mem_new(event);
}

static void cpu_event_free(struct gpu_event *event)
{
    free(event);
}

static int cpu_event_record(struct gpu_stream *stream, struct gpu_event *event)
{
    event->seconds = clock_monotonic_seconds();
    return 0;
}

static int cpu_event_wait(struct gpu_stream *stream, struct gpu_event *event)
{
    return 0;
}

static int cpu_event_elapsed(struct gpu_event *first, struct gpu_event *last, double *seconds)
{
    *seconds = last->seconds - first->seconds;
    return 0;
}

static int cpu_memory_peak(struct gpu_device *device, bool reset, int64_t *bytes)
{
    *bytes = memory_peak(device, reset);
    return 0;
}

static int cpu_alloc(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
{
    return memory_new(device, bytes, zeroed, pointer);
}

static int cpu_host_alloc(struct gpu_device *device, size_t bytes, void **pointer)
{
    return memory_new(device, bytes, false, pointer);
}

static void cpu_free(struct gpu_device *device, void *pointer)
{
    memory_free(device, pointer);
}

static int cpu_upload(struct gpu_stream *stream, void *to, const void *host, size_t bytes)
{
    if (bytes > 0) {
        memcpy(to, host, bytes);
    }
    return 0;
}

static int cpu_fill_zero(struct gpu_stream *stream, void *to, size_t bytes)
{
    if (bytes > 0) {
        memset(to, 0, bytes);
    }
    return 0;
}

static const struct gpu_ops cpu_ops = {
    .abi = GPU_ABI,
    .name = "cpu",
    .signature = gpu_signature,
    .probe = cpu_probe,
    .device_count = cpu_device_count,
    .device_open = cpu_device_open,
    .device_close = cpu_device_close,
    .device_info = cpu_device_info,
    .stream_new = cpu_stream_new,
    .stream_free = cpu_stream_free,
    .stream_sync = cpu_stream_sync,
    .event_new = cpu_event_new,
    .event_free = cpu_event_free,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_elapsed = cpu_event_elapsed,
    .memory_peak = cpu_memory_peak,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_upload,
    .fill_zero = cpu_fill_zero,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_free,
    .upload_pinned = cpu_upload,
#define GPU_OP(group, name, does, ...) .name = cpu_##name,
#include "gpu/ops.def"
};

const struct gpu_ops *gpu_cpu_ops(void)
{
    return &cpu_ops;
}
