/* Files. Every loop survives EINTR and short counts; every replacement is temp -> fsync -> rename -> fsync directory.
 */

#include "base/fs.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FS_PATH_MAX 4096
#define FS_OPEN_ATTEMPTS 128

int fs_pread_full(int fd, void *buffer, size_t size, int64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, (char *)buffer + done, size - done, (off_t)offset + (off_t)done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_raise_errno(errno, "cannot read %zu bytes at %lld", size, (long long)offset);
        }
        if (n == 0) {
            return err_raise(ERR_SOURCE_CORRUPT, "the file ends at %lld, %zu bytes early",
                             (long long)offset + (long long)done, size - done);
        }
        done += (size_t)n;
    }
    return 0;
}

int fs_pwrite_full(int fd, const void *buffer, size_t size, int64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(fd, (const char *)buffer + done, size - done, (off_t)offset + (off_t)done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_raise_errno(errno, "cannot write %zu bytes at %lld", size, (long long)offset);
        }
        if (n == 0) {
            return err_raise(ERR_STORAGE, "cannot write %zu bytes at %lld: nothing is taken", size, (long long)offset);
        }
        done += (size_t)n;
    }
    return 0;
}

int fs_sync(int fd)
{
    while (fsync(fd) != 0) {
        if (errno != EINTR) {
            return err_raise_errno(errno, "cannot fsync");
        }
    }
    return 0;
}

int fs_sync_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return err_raise_errno(errno, "cannot open directory %s", path);
    }
    int rc = fs_sync(fd);
    close(fd);
    return rc;
}

int fs_sync_parent(const char *path)
{
    char parent[FS_PATH_MAX];

    int rc = fs_path(parent, sizeof(parent), "%s", path);
    if (rc != 0) {
        return rc;
    }
    char *slash = strrchr(parent, '/');
    if (slash == NULL) {
        return fs_sync_dir(".");
    }
    *(slash == parent ? slash + 1 : slash) = '\0';
    return fs_sync_dir(parent);
}

static int make_dir(const char *path)
{
    struct stat info;

    if (mkdir(path, 0700) == 0) {
        return fs_sync_parent(path);
    }
    if (errno != EEXIST) {
        return err_raise_errno(errno, "cannot create directory %s", path);
    }
    if (stat(path, &info) != 0) {
        return err_raise_errno(errno, "cannot examine %s", path);
    }
    return S_ISDIR(info.st_mode) ? 0 : err_raise(ERR_INVALID_PARAMETER, "%s is no directory", path);
}

int fs_make_dirs(const char *path)
{
    char copy[FS_PATH_MAX];

    int rc = fs_path(copy, sizeof(copy), "%s", path);
    if (rc != 0) {
        return rc;
    }
    size_t length = strlen(copy);
    while (length > 1 && copy[length - 1] == '/') {
        copy[--length] = '\0';
    }
    if (length == 0) {
        return err_raise(ERR_INVALID_PARAMETER, "the empty path names no directory");
    }
    for (char *at = copy + 1; rc == 0 && *at != '\0'; at++) {
        if (*at == '/' && at[-1] != '/') {
            *at = '\0';
            rc = make_dir(copy);
            *at = '/';
        }
    }
    return rc != 0 ? rc : make_dir(copy);
}

static int write_temp(const char *temp, const void *data, size_t size)
{
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_raise_errno(errno, "cannot create %s", temp);
    }
    int rc = fs_pwrite_full(fd, data, size, 0);
    if (rc == 0) {
        rc = fs_sync(fd);
    }
    if (close(fd) != 0 && rc == 0) {
        rc = err_raise_errno(errno, "cannot close %s", temp);
    }
    if (rc != 0) {
        (void)unlink(temp);
    }
    return rc;
}

int fs_write_atomic(const char *path, const void *data, size_t size)
{
    char temp[FS_PATH_MAX];

    TRY(fs_path(temp, sizeof(temp), "%s.tmp", path));
    TRY(write_temp(temp, data, size));
    if (rename(temp, path) != 0) {
        int saved = errno;
        (void)unlink(temp);
        return err_raise_errno(saved, "cannot rename to %s", path);
    }
    return fs_sync_parent(path);
}

int fs_read_fd(int fd, size_t max, char **data, size_t *size)
{
    struct stat info;

    if (fstat(fd, &info) != 0) {
        return err_raise_errno(errno, "cannot stat");
    }
    if (!S_ISREG(info.st_mode)) {
        return err_raise(ERR_INVALID_PARAMETER, "not a regular file");
    }
    if (info.st_size < 0 || (uint64_t)info.st_size > max) {
        return err_raise(ERR_PAYLOAD_TOO_LARGE, "%lld bytes are more than the %zu allowed", (long long)info.st_size,
                         max);
    }
    char *buffer = malloc((size_t)info.st_size + 1);
    if (buffer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld bytes", (long long)info.st_size);
    }
    int rc = fs_pread_full(fd, buffer, (size_t)info.st_size, 0);
    if (rc != 0) {
        free(buffer);
        return rc;
    }
    buffer[info.st_size] = '\0';
    *data = buffer;
    *size = (size_t)info.st_size;
    return 0;
}

int fs_read_file(const char *path, size_t max, char **data, size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block the caller */
    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    int rc = fs_read_fd(fd, max, data, size);
    close(fd);
    return rc != 0 ? err_pass(rc, "read %s", path) : 0;
}

int fs_open_beneath(int root_fd, const char *relative, int flags, int *fd)
{
    struct open_how how = {
        .flags = (uint64_t)(flags | O_CLOEXEC),
        .mode = (flags & O_CREAT) != 0 ? 0600 : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    long opened = -1;

    /* EAGAIN: a rename elsewhere raced with the walk, and the kernel could not decide. */
    for (int attempt = 0; attempt < FS_OPEN_ATTEMPTS; attempt++) {
        opened = syscall(SYS_openat2, root_fd, relative, &how, sizeof(how));
        if (opened >= 0 || (errno != EINTR && errno != EAGAIN)) {
            break;
        }
    }
    if (opened >= 0) {
        *fd = (int)opened;
        return 0;
    }
    switch (errno) {
    case EXDEV:
    case ELOOP:
        return err_raise(ERR_INVALID_PARAMETER, "\"%.200s\" leaves its root directory", relative);
    case ENOSYS:
        return err_set_hint(
            err_raise(ERR_CONFIG, "the system call openat2 is not available"),
            "Linux 5.6 or newer is needed, and no filter that hides it: allow openat2 in the container's seccomp "
            "profile; systemd's RestrictSUIDSGID= and DynamicUser= hide it, too");
    case ENOENT:
    case ENOTDIR:
        return err_raise(ERR_NOT_FOUND, "there is no \"%.200s\"", relative);
    default:
        return err_raise_errno(errno, "cannot open \"%.200s\"", relative);
    }
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)type;
    (void)where;
    return remove(path) != 0 && errno != ENOENT ? -1 : 0;
}

int fs_remove_tree(const char *path)
{
    struct stat info;

    if (lstat(path, &info) != 0) {
        return errno == ENOENT ? 0 : err_raise_errno(errno, "cannot stat %s", path);
    }
    if (nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS) != 0) {
        return err_raise_errno(errno, "cannot remove %s", path);
    }
    return 0;
}

int fs_path(char *out, size_t size, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    int n = vsnprintf(out, size, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= size) {
        return err_raise(ERR_INVALID_PARAMETER, "a path is longer than %zu bytes", size);
    }
    return 0;
}

int64_t fs_free_bytes(const char *path)
{
    struct statvfs info;

    if (statvfs(path, &info) != 0) {
        return -1;
    }
    return (int64_t)info.f_bavail * (int64_t)info.f_frsize;
}
