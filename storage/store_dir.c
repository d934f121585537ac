/* The data directory belongs to one daemon at a time.
 *
 * The lock is an open-file-description lock: it belongs to the descriptor, not to the process, so that a second open in
 * the same process conflicts too and a crash releases it. POSIX locks and SQLite's WAL are not reliable on network
 * filesystems, so those are refused by name. tmp/ is emptied only after the lock is held. */

#include "storage/store_dir.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DIR_PATH_MAX 4096

/* f_type of the filesystems on which locks are not to be trusted (statfs(2)). */
#define DIR_MAGIC_NFS 0x6969
#define DIR_MAGIC_SMB 0x517B
#define DIR_MAGIC_CIFS 0xFF534D42u
#define DIR_MAGIC_SMB2 0xFE534D42u
#define DIR_MAGIC_9P 0x01021997

static int refuse_network(const char *data_dir)
{
    struct statfs info;

    if (statfs(data_dir, &info) != 0) {
        return err_raise_errno(errno, "cannot examine %s", data_dir);
    }
    switch ((unsigned)info.f_type) {
    case DIR_MAGIC_NFS:
    case DIR_MAGIC_SMB:
    case DIR_MAGIC_CIFS:
    case DIR_MAGIC_SMB2:
    case DIR_MAGIC_9P:
        return err_raise(ERR_CONFIG, "data directory %s is on a network filesystem; locks there are not reliable",
                         data_dir);
    default:
        return 0;
    }
}

static int take_lock(const char *data_dir, int *lock_fd)
{
    char path[DIR_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/lock", data_dir));
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s as the user %u", path, (unsigned)geteuid());
    }
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
        int saved = errno;
        close(fd);
        return saved == EAGAIN || saved == EACCES
                   ? err_raise(ERR_CONFIG, "another daemon holds the data directory %s", data_dir)
                   : err_raise_errno(saved, "cannot lock %s", path);
    }
    *lock_fd = fd;
    return 0;
}

static int store_dir_make_folders(const char *data_dir)
{
    static const char *const folders[] = {"blobs/sha256", "jobs", "tmp"};
    char path[DIR_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/tmp", data_dir));
    TRY(fs_remove_tree(path));
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        TRY(fs_path(path, sizeof(path), "%s/%s", data_dir, folders[i]));
        TRY(fs_make_dirs(path));
    }
    return fs_sync_dir(data_dir);
}

static int dir_prepare(const char *data_dir, int *lock_fd)
{
    AUTO_CLOSE int fd = -1;

    TRY(fs_make_dirs(data_dir));
    TRY(refuse_network(data_dir));
    TRY(take_lock(data_dir, &fd));
    TRY(store_dir_make_folders(data_dir));
    *lock_fd = cleanup_move_fd(&fd);
    return 0;
}

int store_dir_open(const char *data_dir, int *lock_fd)
{
    if (data_dir == NULL || data_dir[0] != '/') {
        return err_raise(ERR_CONFIG, "the data directory \"%.200s\" is not an absolute path",
                         data_dir == NULL ? "" : data_dir);
    }
    int rc = dir_prepare(data_dir, lock_fd);
    return rc != 0 ? err_pass(rc, "open the data directory %s", data_dir) : 0;
}
