/* The reserve of a data directory.
 *
 * On a full disk even a deletion needs space: a transaction is written to the log before pages become free. The file
 * "reserve" holds that space. Only transactions that end or remove something may use it (store.c decides); those that
 * create something get ERR_DISK_FULL instead. Once there is space again the file is created again, and until then the
 * store is not ready.
 *
 * Sizes follow the disk, so that a small one is usable too. Allocation is the filesystem's own, which counts against a
 * quota as well; one that only promises space (copy-on-write) makes the reserve weaker, not wrong. */

#include "storage/store_reserve.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MIB ((int64_t)1 << 20)
#define RESERVE_BYTES_MIN MIB
#define RESERVE_BYTES_MAX (8 * MIB)
#define FREE_BYTES_MAX (64 * MIB)
#define RESERVE_SHARE 16 /* of the disk, at most */
#define FREE_SHARE 20
#define RENEW_EVERY_MS 1000

static int64_t disk_bytes(const char *path)
{
    struct statvfs info;

    return statvfs(path, &info) == 0 ? (int64_t)info.f_blocks * (int64_t)info.f_frsize : INT64_MAX;
}

static int64_t between(int64_t value, int64_t min, int64_t max)
{
    return value < min ? min : value > max ? max : value;
}

static int reserve_path(const struct reserve *reserve, const char *suffix, char path[RESERVE_PATH_MAX])
{
    return fs_path(path, RESERVE_PATH_MAX, "%s/reserve%s", reserve->data_dir, suffix);
}

static int allocate(const char *path, int64_t bytes)
{
    int failed;

    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    do {
        failed = posix_fallocate(fd, 0, (off_t)bytes);
    } while (failed == EINTR);
    close(fd);
    return failed != 0 ? err_raise_errno(failed, "cannot reserve %lld bytes in %s", (long long)bytes, path) : 0;
}

/* A file that has its name has its bytes. */
static int make(struct reserve *reserve)
{
    char temp[RESERVE_PATH_MAX], path[RESERVE_PATH_MAX];

    TRY(reserve_path(reserve, ".tmp", temp));
    TRY(reserve_path(reserve, "", path));
    int rc = allocate(temp, reserve->bytes);
    if (rc == 0 && rename(temp, path) != 0) {
        rc = err_raise_errno(errno, "cannot rename to %s", path);
    }
    if (rc != 0) {
        (void)unlink(temp);
        return rc;
    }
    reserve->held = true;
    return 0;
}

static bool has_space(const struct reserve *reserve)
{
    int64_t available = fs_free_bytes(reserve->data_dir);

    return available < 0 || available >= reserve->min_free + reserve->bytes;
}

void reserve_renew(struct reserve *reserve)
{
    struct err_record record;
    int64_t now = clock_monotonic_ms();

    if (reserve->held || (reserve->tried_ms != 0 && now - reserve->tried_ms < RENEW_EVERY_MS)) {
        return;
    }
    reserve->tried_ms = now;
    if (!has_space(reserve)) {
        return;
    }
    err_take(&record); /* the caller's */
    if (make(reserve) == 0) {
        log_info("disk reserve made", LOG_I("bytes", reserve->bytes));
    } else {
        log_err(LOG_DEBUG, "disk reserve not made", NULL);
    }
    err_restore(&record);
}

bool reserve_release(struct reserve *reserve)
{
    char path[RESERVE_PATH_MAX];

    if (!reserve->held || reserve_path(reserve, "", path) != 0) {
        return false;
    }
    bool gone = unlink(path) == 0;
    reserve->held = !gone && errno != ENOENT;
    reserve->tried_ms = clock_monotonic_ms();
    if (gone) {
        log_warn("disk full, reserve given up", LOG_I("bytes", reserve->bytes));
    }
    return gone;
}

int reserve_open(struct reserve *reserve, const char *data_dir)
{
    char path[RESERVE_PATH_MAX];
    struct stat info;
    int64_t disk = disk_bytes(data_dir);

    *reserve = (struct reserve){.bytes = between(disk / RESERVE_SHARE, RESERVE_BYTES_MIN, RESERVE_BYTES_MAX),
                                .min_free = between(disk / FREE_SHARE, 0, FREE_BYTES_MAX)};
    TRY(fs_path(reserve->data_dir, sizeof(reserve->data_dir), "%s", data_dir));
    TRY(reserve_path(reserve, "", path));
    reserve->held = lstat(path, &info) == 0;
    if (reserve->held && info.st_size != reserve->bytes) { /* of a build or a disk of another size */
        (void)unlink(path);
        reserve->held = false;
    }
    int64_t available = fs_free_bytes(data_dir);
    if (reserve->held && available >= 0 && available < reserve->bytes) {
        (void)reserve_release(reserve);
        return 0;
    }
    reserve_renew(reserve);
    return 0;
}

int reserve_check(struct reserve *reserve)
{
    int64_t available = fs_free_bytes(reserve->data_dir);
    int rc;

    if (available >= 0 && available < reserve->min_free) {
        rc = err_raise(ERR_DISK_FULL, "%lld MiB are free in the data directory and %lld MiB are needed for new work",
                       (long long)(available / MIB), (long long)(reserve->min_free / MIB));
    } else {
        reserve->tried_ms = 0; /* try at once */
        reserve_renew(reserve);
        if (reserve->held) {
            return 0;
        }
        rc = err_raise(ERR_DISK_FULL,
                       "the data directory has no space for its reserve of %lld MiB in addition to %lld MiB",
                       (long long)(reserve->bytes / MIB), (long long)(reserve->min_free / MIB));
    }
    return err_set_hint(rc, "delete artifacts, files or jobs, or give the data directory more space");
}
