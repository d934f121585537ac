/* The memory that counts is the smallest of what the machine has and what the control groups allow, since crossing
 * either ends the process. */

#include "base/host.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The number after KEY at the begin of a line of the file; -1 when there is none. */
static int64_t host_value(const char *path, const char *key)
{
    char line[256];
    int64_t value = -1;
    size_t length = strlen(key);
    FILE *file = fopen(path, "re");

    while (file != NULL && value < 0 && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, key, length) != 0 || sscanf(line + length, "%" SCNd64, &value) != 1) {
            value = -1;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return value;
}

/* The same of a file in a folder; a file of one number has the key "". */
static int64_t host_number(const char *folder, const char *name, const char *key)
{
    char path[1024];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return host_value(path, key);
}

/* The files of one version of control groups. */
struct host_group {
    const char *limit, *used, *cache;
};

static const struct host_group host_v1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "};
static const struct host_group host_v2 = {"memory.max", "memory.current", "inactive_file "};

static void host_apply(const char *folder, const struct host_group *group, struct host_memory *memory)
{
    int64_t limit = host_number(folder, group->limit, "");

    if (limit < 0 || limit >= memory->total) {
        return; /* none ("max", or no file), or version 1's huge number that means none */
    }
    int64_t used = host_number(folder, group->used, ""), cache = host_number(folder, "memory.stat", group->cache);
    used -= cache > 0 ? cache : 0;
    int64_t left = used <= 0 ? limit : used < limit ? limit - used : 0;
    memory->total = limit;
    memory->available = left < memory->available ? left : memory->available;
}

/* Limits hold at every level between our group and the root, in version 2 under one tree. */
static void host_apply_groups(const char *root, struct host_memory *memory)
{
    char line[400], folder[900];

    snprintf(folder, sizeof(folder), "%s/proc/self/cgroup", root);
    FILE *file = fopen(folder, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, "0::/", 4) != 0) {
            continue;
        }
        line[strcspn(line, "\n")] = '\0';
        for (char *path = line + 3; path[0] == '/';) {
            snprintf(folder, sizeof(folder), "%s/sys/fs/cgroup%s", root, path);
            host_apply(folder, &host_v2, memory);
            *strrchr(path, '/') = '\0';
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    snprintf(folder, sizeof(folder), "%s/sys/fs/cgroup", root);
    host_apply(folder, &host_v2, memory);
    snprintf(folder, sizeof(folder), "%s/sys/fs/cgroup/memory", root);
    host_apply(folder, &host_v1, memory);
}

void host_memory_read(const char *root, struct host_memory *memory)
{
    char path[900];

    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    int64_t total = host_value(path, "MemTotal:"), available = host_value(path, "MemAvailable:");
    *memory =
        (struct host_memory){.total = total > 0 ? total * 1024 : 0, .available = available > 0 ? available * 1024 : 0};
    host_apply_groups(root, memory);
}

static int64_t host_status(const char *name)
{
    int64_t kilobytes = host_value("/proc/self/status", name);

    return kilobytes > 0 ? kilobytes * 1024 : 0;
}

int64_t host_resident(void)
{
    return host_status("VmRSS:");
}

int64_t host_peak(void)
{
    return host_status("VmHWM:");
}
