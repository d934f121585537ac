/* A backend module for the registry's test: FAKE_ABI and FAKE_SCORE say what it claims. It can open a device and knows
 * no operation. */

#include "gpu/gpu.h"

#include <stdio.h>
#include <string.h>

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

__attribute__((visibility("default"))) gpu_module_entry quantd_gpu_ops;

const struct gpu_ops *quantd_gpu_ops(const struct gpu_host *host)
{
    static const struct gpu_ops ops = {.abi = FAKE_ABI,
                                       .name = FAKE_NAME,
                                       .probe = fake_probe,
                                       .device_count = fake_device_count,
                                       .device_open = fake_device_open,
                                       .device_info = fake_device_info};
    return &ops;
}
