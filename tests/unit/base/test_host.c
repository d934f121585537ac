/* The memory of the host, from trees of files as the kernel shows them: without limits, under control groups of version
 * 2 at several levels, and of version 1. */

#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include "base/fs.h"
#include "base/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((int64_t)1 << 20)

static char root[256];

static void put(const char *path, const char *text)
{
    char full[512];

    snprintf(full, sizeof(full), "%s/%s", root, path);
    char *slash = strrchr(full, '/');
    *slash = '\0';
    ck_assert_rc_ok(fs_make_dirs(full));
    *slash = '/';
    ck_assert_rc_ok(fs_write_atomic(full, text, strlen(text)));
}

static void host_begin(const char *groups)
{
    scratch_make(root);
    put("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:          123456 kB\nMemAvailable:    8388608 kB\n");
    put("proc/self/cgroup", groups);
}

static void host_expect(int64_t total, int64_t available)
{
    struct host_memory memory;

    host_memory_read(root, &memory);
    ck_assert_int_eq(memory.total, total * MIB);
    ck_assert_int_eq(memory.available, available * MIB);
}

START_TEST(without_limits)
{
    host_begin("0::/user.slice\n");
    put("sys/fs/cgroup/user.slice/memory.max", "max\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    host_expect(16384, 8192);
    scratch_remove(root);
}
END_TEST

START_TEST(the_smallest_of_the_levels)
{
    host_begin("0::/system.slice/quantd.service\n");
    put("sys/fs/cgroup/system.slice/memory.max", "2147483648\n");
    put("sys/fs/cgroup/system.slice/memory.current", "1610612736\n");
    put("sys/fs/cgroup/system.slice/quantd.service/memory.max", "4294967296\n");
    put("sys/fs/cgroup/system.slice/quantd.service/memory.current", "1048576\n");
    host_expect(2048, 512);
    put("sys/fs/cgroup/system.slice/memory.stat",
        "anon 536870912\ninactive_file 1073741824\nactive_file 0\n"); /* files that were read */
    host_expect(2048, 1536);
    scratch_remove(root);
}
END_TEST

/* Its own group is the root of what a container sees. */
START_TEST(in_a_container)
{
    host_begin("0::/\n");
    put("sys/fs/cgroup/memory.max", "1073741824\n");
    put("sys/fs/cgroup/memory.current", "2147483648\n"); /* nothing is left */
    host_expect(1024, 0);
    scratch_remove(root);
    host_begin("4:memory:/docker/0123\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "536870912\n");
    put("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 268435456\n");
    host_expect(1024, 768);
    scratch_remove(root);
}
END_TEST

START_TEST(the_peak_is_what_was_touched)
{
    size_t size = (size_t)64 * MIB;
    char *memory = malloc(size);
    volatile char *touched = memory;

    ck_assert_ptr_nonnull(memory);
    for (size_t i = 0; i < size; i += 4096) {
        touched[i] = 1;
    }
    int64_t most = host_peak();
    ck_assert_int_ge(most, (int64_t)size);
    free(memory);
    ck_assert_int_ge(host_peak(), most);
    ck_assert_int_gt(host_resident(), 0);
}
END_TEST

START_TEST(what_cannot_be_read_is_nothing)
{
    struct host_memory memory;

    host_memory_read("/nonexistent", &memory);
    ck_assert_int_eq(memory.total, 0);
    ck_assert_int_eq(memory.available, 0);
}
END_TEST

UNIT_MAIN("host", without_limits, the_smallest_of_the_levels, in_a_container, the_peak_is_what_was_touched,
          what_cannot_be_read_is_nothing)
