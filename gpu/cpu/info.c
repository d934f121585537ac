/* The description of the CPU device: model name, kernels in use, and memory. */

#include "base/host.h"
#include "gpu/cpu/internal.h"

#include <stdio.h>
#include <string.h>

static void read_model(char *name, size_t size)
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "re");

    snprintf(name, size, "CPU");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(name, size, "%s", colon[1] == ' ' ? colon + 2 : colon + 1);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

int info_read(struct gpu_device *device, struct gpu_info *info)
{
    *info = (struct gpu_info){
        .id = "cpu", .host_memory = true, .threads = pool_threads(device->pool), .batch_tokens = 2048};
    read_model(info->name, sizeof(info->name));
    const struct products *products = device->products;
    snprintf(info->products, sizeof(info->products), "%s", products != NULL ? "bfloat16" : "float32");
    snprintf(info->detail, sizeof(info->detail), "openblas %s, %s, %s products%s%s", blas_core(), device->kernels->name,
             info->products, products != NULL ? " by " : "", products != NULL ? products->name : "");
    struct host_memory memory;
    host_memory_read("", &memory);
    int64_t left = memory.available + memory_idle(device);
    info->memory_total = memory.total;
    info->memory_free = left < memory.total ? left : memory.total;
    return 0;
}
