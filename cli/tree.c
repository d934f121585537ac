/* Directories are opened relative to their parents and links refused, so that a walk stays below its directory whatever
 * is renamed meanwhile. */

#include "cli/tree.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "cli/manifest.h"
#include "cli/status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define TREE_DEPTH_MAX 32

CLEANUP_FREE(dir, DIR, (void)closedir)

static int walk_directory(const struct tree_walk *walk, int fd, const char *prefix, int depth);

static int walk_entry(const struct tree_walk *walk, int parent, const char *prefix, const char *name, int depth)
{
    char path[MANIFEST_PATH_MAX + 1];
    struct stat info;

    int size = snprintf(path, sizeof(path), "%s%s%s", prefix, prefix[0] != '\0' ? "/" : "", name);
    if (size >= (int)sizeof(path)) {
        return status_fail(STATUS_MISMATCH, "%.300s/...: the path is too long", path);
    }
    if (walk->skip(walk->context, path)) {
        return 0;
    }
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: %s", path, strerror(errno));
    }
    if (S_ISREG(info.st_mode)) {
        return walk->file(walk->context, path, parent, name);
    }
    if (!S_ISDIR(info.st_mode)) {
        return status_fail(STATUS_MISMATCH, "%.300s is %s; only regular files can be signed", path,
                           S_ISLNK(info.st_mode) ? "a symbolic link" : "neither a file nor a directory");
    }
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd >= 0 ? walk_directory(walk, fd, path, depth + 1)
                   : status_fail(STATUS_LOCAL, "%.300s: %s", path, strerror(errno));
}

/* Closes fd. */
static int walk_directory(const struct tree_walk *walk, int fd, const char *prefix, int depth)
{
    AUTO(dir) DIR *dir = fdopendir(fd);

    if (dir == NULL) {
        int error = errno;
        (void)close(fd);
        return status_fail(STATUS_LOCAL, "%.300s: %s", prefix, strerror(error));
    }
    if (depth > TREE_DEPTH_MAX) {
        return status_fail(STATUS_MISMATCH, "%.300s: there are too many directories in each other", prefix);
    }
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            return errno == 0 ? 0 : status_fail(STATUS_LOCAL, "%.300s: %s", prefix, strerror(errno));
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            TRY(walk_entry(walk, dirfd(dir), prefix, entry->d_name, depth));
        }
    }
}

int tree_walk(const char *directory, const struct tree_walk *walk)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd >= 0 ? walk_directory(walk, fd, "", 0)
                   : status_fail(STATUS_LOCAL, "%.300s: %s", directory, strerror(errno));
}
