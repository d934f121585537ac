/* The description of the CPU device: model name, kernels in use, and memory. The memory that counts is the smallest of
 * what the machine has and what the control group allows, since crossing either ends the process. */

#include "gpu/cpu/internal.h"

#include <inttypes.h>
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

static void read_meminfo(int64_t *total, int64_t *available)
{
    char line[256];
    int64_t kib;
    FILE *file = fopen("/proc/meminfo", "re");

    *total = 0;
    *available = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "MemTotal: %" SCNd64, &kib) == 1) {
            *total = kib * 1024;
        } else if (sscanf(line, "MemAvailable: %" SCNd64, &kib) == 1) {
            *available = kib * 1024;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

/* The number in a one-line file; -1 when there is none ("max", or no file). */
static int64_t read_number(const char *folder, const char *name)
{
    char path[512];
    int64_t value;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return -1;
    }
    int got = fscanf(file, "%" SCNd64, &value);
    fclose(file);
    return got == 1 && value >= 0 ? value : -1;
}

static void apply_limit(int64_t limit, int64_t used, struct gpu_info *info)
{
    if (limit < 0 || limit >= info->memory_total) {
        return; /* none, or version 1's huge number that means none */
    }
    int64_t left = used >= 0 && used < limit ? limit - used : 0;
    info->memory_total = limit;
    info->memory_free = left < info->memory_free ? left : info->memory_free;
}

/* Limits hold at every level between our group and the root, in version 2 under one tree. */
static void apply_groups(struct gpu_info *info)
{
    char line[400], folder[480];
    FILE *file = fopen("/proc/self/cgroup", "re");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, "0::/", 4) != 0) {
            continue;
        }
        line[strcspn(line, "\n")] = '\0';
        for (char *path = line + 3; path[0] == '/';) {
            snprintf(folder, sizeof(folder), "/sys/fs/cgroup%s", path);
            apply_limit(read_number(folder, "memory.max"), read_number(folder, "memory.current"), info);
            *strrchr(path, '/') = '\0';
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    apply_limit(read_number("/sys/fs/cgroup", "memory.max"), read_number("/sys/fs/cgroup", "memory.current"), info);
    apply_limit(read_number("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                read_number("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), info);
}

int info_read(struct gpu_device *device, struct gpu_info *info)
{
    *info = (struct gpu_info){
        .id = "cpu", .host_memory = true, .threads = pool_threads(device->pool), .batch_tokens = 2048};
    read_model(info->name, sizeof(info->name));
    snprintf(info->detail, sizeof(info->detail), "openblas %s, %s", blas_core(), device->kernels->name);
    read_meminfo(&info->memory_total, &info->memory_free);
    apply_groups(info);
    int64_t left = info->memory_free + memory_idle(device);
    info->memory_free = left < info->memory_total ? left : info->memory_total;
    return 0;
}
