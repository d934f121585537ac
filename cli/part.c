/* Files on their way. The map is a header that names the file's digest and the size of a chunk, and a byte for each
 * chunk, written after the chunk's bytes. A crash of the system may keep the map and lose bytes: the digest finds that,
 * and the download begins from nothing. */

#include "cli/part.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "cli/status.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAP_HEADER 128

static int fail_errno(const char *path, const char *what)
{
    return status_fail(STATUS_LOCAL, "%.300s: %s: %s", path, what, strerror(errno));
}

/* The directory of path below root, which is created; *name is its last component. */
static int open_parent(int root, const char *path, int *out, const char **name)
{
    char copy[MANIFEST_PATH_MAX + 1];
    AUTO_CLOSE int parent = fcntl(root, F_DUPFD_CLOEXEC, 0);

    snprintf(copy, sizeof(copy), "%s", path);
    char *rest = copy;
    char *component = strsep(&rest, "/");
    for (; rest != NULL && parent >= 0; component = strsep(&rest, "/")) {
        if (mkdirat(parent, component, 0777) != 0 && errno != EEXIST) {
            return fail_errno(path, "its directory cannot be created");
        }
        int next = openat(parent, component, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) {
            return fail_errno(path, "its directory cannot be opened");
        }
        (void)close(parent);
        parent = next;
    }
    if (parent < 0) {
        return fail_errno(path, "its directory cannot be opened");
    }
    *name = path + (component - copy);
    *out = cleanup_move_fd(&parent);
    return 0;
}

static int open_beside(const struct part *part, const char *suffix, int *out)
{
    char name[MANIFEST_PATH_MAX + 32];

    snprintf(name, sizeof(name), "%s%s", part->name, suffix);
    *out = openat(part->parent, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    return *out >= 0 ? 0 : fail_errno(part->file->path, "it cannot be written");
}

static void make_header(const struct part *part, char out[MAP_HEADER])
{
    memset(out, '\n', MAP_HEADER);
    int size = snprintf(out, MAP_HEADER, "%s %" PRId64 " %" PRId64, part->file->sha256, part->file->bytes, PART_CHUNK);
    out[size] = '\n';
}

/* Take over the chunks of an earlier process if the map is of this file. */
static int read_map(struct part *part)
{
    char wanted[MAP_HEADER], header[MAP_HEADER];
    AUTO_FREE char *marks = NULL;
    struct stat data;

    make_header(part, wanted);
    bool same = pread(part->map, header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
                memcmp(header, wanted, sizeof(header)) == 0 && fstat(part->data, &data) == 0;
    part->missing = part->chunks;
    if (!same) {
        if (ftruncate(part->map, 0) != 0 || ftruncate(part->data, 0) != 0 ||
            pwrite(part->map, wanted, sizeof(wanted), 0) != (ssize_t)sizeof(wanted)) {
            return fail_errno(part->file->path, "it cannot be written");
        }
        return 0;
    }
    TRY(mem_array(&marks, (size_t)part->chunks + 1));
    ssize_t size = pread(part->map, marks, (size_t)part->chunks, MAP_HEADER);
    for (int64_t i = 0; i < (int64_t)size; i++) {
        int64_t end = i * PART_CHUNK + part_chunk_bytes(part, i);
        part->complete[i] = part->taken[i] = marks[i] == '1' && end <= data.st_size;
        part->missing -= part->complete[i];
        part->continued = part->continued || part->complete[i];
    }
    return 0;
}

static int part_reserve(const struct part *part)
{
    int rc = part->file->bytes > 0 ? posix_fallocate(part->data, 0, part->file->bytes) : 0;

    if (rc == ENOSPC || rc == EDQUOT || rc == EFBIG) {
        return status_fail(STATUS_LOCAL, "%.300s: there is no space for %" PRId64 " bytes", part->file->path,
                           part->file->bytes);
    }
    return 0;
}

int part_open(int root, const struct manifest_file *file, struct part *part)
{
    const char *name = NULL;

    *part = (struct part){.file = file, .parent = -1, .data = -1, .map = -1};
    part->chunks = (file->bytes + PART_CHUNK - 1) / PART_CHUNK;
    TRY(open_parent(root, file->path, &part->parent, &name));
    TRY(mem_strdup(&part->name, name));
    TRY(mem_array(&part->complete, (size_t)part->chunks + 1));
    TRY(mem_array(&part->taken, (size_t)part->chunks + 1));
    TRY(open_beside(part, MANIFEST_PART, &part->data));
    if (flock(part->data, LOCK_EX | LOCK_NB) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: another process downloads it", file->path);
    }
    TRY(open_beside(part, MANIFEST_MAP, &part->map));
    TRY(read_map(part));
    return part_reserve(part);
}

void part_close(struct part *part)
{
    int *const descriptors[] = {&part->map, &part->data, &part->parent};

    for (size_t i = 0; i < sizeof(descriptors) / sizeof(descriptors[0]); i++) {
        if (*descriptors[i] >= 0) {
            (void)close(*descriptors[i]);
        }
        *descriptors[i] = -1;
    }
    free(part->name);
    free(part->complete);
    free(part->taken);
    part->name = NULL;
    part->complete = part->taken = NULL;
}

int part_find(int root, const struct manifest_file *file, bool *there, bool *same)
{
    char digest[DIGEST_HEX_SIZE] = "";
    const char *name = NULL;
    AUTO_CLOSE int parent = -1;
    int64_t size = 0;
    struct stat info;

    TRY(open_parent(root, file->path, &parent, &name));
    *there = *same = false;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
        return errno == ENOENT ? 0 : fail_errno(file->path, "it cannot be examined");
    }
    *there = true;
    AUTO_CLOSE int fd =
        S_ISREG(info.st_mode) ? openat(parent, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK) : -1;
    if (fd < 0 || info.st_size != file->bytes) {
        return 0;
    }
    TRY(digest_file(fd, digest, &size));
    *same = size == file->bytes && strcmp(digest, file->sha256) == 0;
    return 0;
}

int64_t part_take(struct part *part)
{
    for (int64_t i = 0; i < part->chunks; i++) {
        if (!part->taken[i]) {
            part->taken[i] = true;
            return i;
        }
    }
    return -1;
}

void part_release(struct part *part, int64_t chunk)
{
    part->taken[chunk] = false;
}

int64_t part_chunk_bytes(const struct part *part, int64_t chunk)
{
    int64_t left = part->file->bytes - chunk * PART_CHUNK;
    return left < PART_CHUNK ? left : PART_CHUNK;
}

int part_complete(struct part *part, int64_t chunk)
{
    if (pwrite(part->map, "1", 1, (off_t)(MAP_HEADER + chunk)) != 1) {
        return fail_errno(part->file->path, "its map cannot be written");
    }
    part->complete[chunk] = true;
    part->missing--;
    return 0;
}

static void remove_beside(const struct part *part, const char *suffix)
{
    char name[MANIFEST_PATH_MAX + 32];

    snprintf(name, sizeof(name), "%s%s", part->name, suffix);
    (void)unlinkat(part->parent, name, 0);
}

static int restart(struct part *part)
{
    memset(part->complete, 0, (size_t)part->chunks * sizeof(*part->complete));
    memset(part->taken, 0, (size_t)part->chunks * sizeof(*part->taken));
    part->missing = part->chunks;
    part->continued = false;
    return ftruncate(part->map, MAP_HEADER) == 0 ? 0 : fail_errno(part->file->path, "its map cannot be written");
}

static int rename_part(const struct part *part, bool replace)
{
    char from[MANIFEST_PATH_MAX + 32];

    snprintf(from, sizeof(from), "%s%s", part->name, MANIFEST_PART);
    unsigned flags = replace ? 0 : RENAME_NOREPLACE;
    int rc = renameat2(part->parent, from, part->parent, part->name, flags);
    if (rc != 0 && errno == EINVAL && !replace) { /* a file system without the flag; part_find has looked */
        rc = renameat(part->parent, from, part->parent, part->name);
    }
    if (rc != 0) {
        return fail_errno(part->file->path, "it cannot be given its name");
    }
    remove_beside(part, MANIFEST_MAP);
    return fs_sync(part->parent);
}

int part_finish(struct part *part, bool replace, bool *again)
{
    char digest[DIGEST_HEX_SIZE] = "";
    int64_t size = 0;

    *again = false;
    if (ftruncate(part->data, part->file->bytes) != 0) {
        return fail_errno(part->file->path, "it cannot be written");
    }
    TRY(fs_sync(part->data));
    TRY(digest_file(part->data, digest, &size));
    if (strcmp(digest, part->file->sha256) == 0) {
        return rename_part(part, replace);
    }
    if (part->continued) {
        *again = true;
        return restart(part);
    }
    remove_beside(part, MANIFEST_PART);
    remove_beside(part, MANIFEST_MAP);
    return err_set_hint(status_fail(STATUS_MISMATCH, "%.300s: the server's bytes have the SHA-256 %s, the manifest %s",
                                    part->file->path, digest, part->file->sha256),
                        "the file is damaged or was changed; it was not kept");
}
