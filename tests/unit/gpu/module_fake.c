/* A backend module for the registry's test: FAKE_ABI, FAKE_SIGNATURE and FAKE_SCORE say what it claims. It can open a
 * device and knows no operation; FAKE_LACKS names a call that it goes without. */

#include "gpu/backend.h"

#include <stdio.h>
#include <string.h>

static struct gpu_ops fake_ops;
const char *const other_signature[] = {"int probe(void)", NULL};
static struct gpu_stream {
    struct gpu_stream_head head;
} fake_stream = {{&fake_ops}};

static int fake_probe(char *reason, size_t size)
{
    if (FAKE_SCORE <= 0) {
        snprintf(reason, size, "no such device");
    }
    return FAKE_SCORE;
}

static int fake_device_count(void)
{
    return 2;
}

static int fake_device_open(int index, int threads, struct gpu_device **device)
{
    *device = NULL;
    return 0;
}

static int fake_device_info(struct gpu_device *device, struct gpu_info *info)
{
    memset(info, 0, sizeof(*info));
    snprintf(info->id, sizeof(info->id), FAKE_NAME ":0");
    return 0;
}

static int fake_stream_new(struct gpu_device *device, struct gpu_stream **stream)
{
    *stream = &fake_stream;
    return 0;
}

static void fake_device_close(struct gpu_device *device)
{
}

/* For calls that the test never makes. */
static void fake_nothing(void)
{
}

__attribute__((visibility("default"))) gpu_module_entry quantd_gpu_ops;

const struct gpu_ops *quantd_gpu_ops(const struct gpu_host *host)
{
    fake_ops = (struct gpu_ops){.abi = FAKE_ABI, .name = FAKE_NAME, .signature = FAKE_SIGNATURE};
#define GPU_CALL(name, result, parameters, does) fake_ops.name = (result(*) parameters)fake_nothing;
#include "gpu/ops.def"
    fake_ops.probe = fake_probe;
    fake_ops.device_count = fake_device_count;
    fake_ops.device_open = fake_device_open;
    fake_ops.device_close = fake_device_close;
    fake_ops.device_info = fake_device_info;
    fake_ops.stream_new = fake_stream_new;
#ifdef FAKE_LACKS
    fake_ops.FAKE_LACKS = NULL;
#endif
    return &fake_ops;
}
