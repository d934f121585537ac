/* Blobs on the local disk, written and read: temporary file, digest on the way, and one descriptor a reader. */

#include "storage/blob_fs.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct fs_writer {
    struct blob_writer base;
    struct blobs *blobs;
    struct digest *digest;
    int fd;
    int64_t size;
    char path[BLOB_PATH_MAX];
};

struct fs_reader {
    struct blob_reader base;
    int fd;
    int64_t size;
    char path[BLOB_PATH_MAX];
};

static void blob_fs_writer_free(struct fs_writer *writer)
{
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    digest_free(writer->digest);
    free(writer);
}

CLEANUP_FREE(fs_writer, struct fs_writer, blob_fs_writer_free)

int blob_fs_writer_new(struct blobs *blobs, struct blob_writer **out)
{
    AUTO(fs_writer) struct fs_writer *writer = calloc(1, sizeof(*writer));
    char name[ID_SIZE];

    if (writer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a blob writer");
    }
    id_new("blob", name);
    writer->base.ops = &blob_fs;
    writer->blobs = blobs;
    writer->fd = -1;
    writer->digest = digest_new();
    if (writer->digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(fs_path(writer->path, sizeof(writer->path), "%s/tmp/%s", blobs->data_dir, name));
    writer->fd = open(writer->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (writer->fd < 0) {
        return err_raise_errno(errno, "cannot create %s", writer->path);
    }
    *out = &MOVE(writer)->base;
    return 0;
}

int blob_fs_writer_write(struct blob_writer *base, const void *data, size_t size)
{
    struct fs_writer *writer = (struct fs_writer *)base;

    int rc = fs_pwrite_full(writer->fd, data, size, writer->size);
    if (rc == 0) {
        digest_update(writer->digest, data, size);
        writer->size += (int64_t)size;
    }
    return rc;
}

void blob_fs_writer_abort(struct blob_writer *base)
{
    struct fs_writer *writer = (struct fs_writer *)base;

    (void)unlink(writer->path);
    blob_fs_writer_free(writer);
}

/* On disk and read-only. */
static int finalize(int fd)
{
    return fchmod(fd, 0444) != 0 ? err_raise_errno(errno, "cannot make a blob read-only") : fs_sync(fd);
}

int blob_fs_writer_commit_take(struct blob_writer *base, char sha256[DIGEST_HEX_SIZE], int64_t *size)
{
    struct fs_writer *writer = (struct fs_writer *)base;
    char hex[DIGEST_HEX_SIZE];

    int rc = finalize(writer->fd);
    if (rc == 0) {
        digest_finish(writer->digest, hex);
        writer->digest = NULL;
        rc = blob_fs_place(writer->blobs, writer->path, hex, writer->size);
    }
    if (rc != 0) {
        blob_fs_writer_abort(base);
        return rc;
    }
    memcpy(sha256, hex, sizeof(hex));
    if (size != NULL) {
        *size = writer->size;
    }
    blob_fs_writer_free(writer);
    return 0;
}

static int adopt_open(struct blobs *blobs, int fd, const char *path, const char *known_sha256,
                      char sha256[DIGEST_HEX_SIZE], int64_t *size)
{
    char hex[DIGEST_HEX_SIZE];
    struct stat info;
    int64_t hashed;

    if (fstat(fd, &info) != 0) {
        return err_raise_errno(errno, "cannot stat %s", path);
    }
    if (!S_ISREG(info.st_mode)) {
        return err_raise(ERR_INVALID_PARAMETER, "%s is not a regular file", path);
    }
    if (known_sha256 != NULL) {
        memcpy(hex, known_sha256, sizeof(hex));
    } else {
        TRY(digest_file(fd, hex, &hashed));
    }
    TRY(finalize(fd));
    TRY(blob_fs_place(blobs, path, hex, info.st_size));
    memcpy(sha256, hex, sizeof(hex));
    if (size != NULL) {
        *size = info.st_size;
    }
    return 0;
}

int blob_fs_adopt(struct blobs *blobs, const char *path, const char *known_sha256, char sha256[DIGEST_HEX_SIZE],
                  int64_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    int rc = adopt_open(blobs, fd, path, known_sha256, sha256, size);
    blob_fs_close_dropped(blobs, fd);
    return rc;
}

int blob_fs_reader_open(struct blobs *blobs, const char *sha256, struct blob_reader **out, int64_t *size)
{
    struct fs_reader *reader = calloc(1, sizeof(*reader));
    struct stat info;

    if (reader == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a blob reader");
    }
    reader->base.ops = &blob_fs;
    int rc = blob_fs_path(blobs, sha256, reader->path);
    if (rc != 0) {
        free(reader);
        return rc;
    }
    reader->fd = open(reader->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (reader->fd < 0 || fstat(reader->fd, &info) != 0) {
        rc = errno == ENOENT ? err_raise(ERR_NOT_FOUND, "there is no such blob")
                             : err_raise_errno(errno, "cannot open blob %s", sha256);
        if (reader->fd >= 0) {
            close(reader->fd);
        }
        free(reader);
        return rc;
    }
    reader->size = info.st_size;
    if (size != NULL) {
        *size = info.st_size;
    }
    *out = &reader->base;
    return 0;
}

int blob_fs_reader_read(struct blob_reader *base, int64_t offset, void *buffer, size_t size)
{
    struct fs_reader *reader = (struct fs_reader *)base;

    if (offset < 0 || offset > reader->size || size > (uint64_t)(reader->size - offset)) {
        return err_raise(ERR_RANGE_NOT_SATISFIABLE, "the blob has %lld bytes", (long long)reader->size);
    }
    return fs_pread_full(reader->fd, buffer, size, offset);
}

void blob_fs_reader_close(struct blob_reader *base)
{
    struct fs_reader *reader = (struct fs_reader *)base;

    close(reader->fd);
    free(reader);
}
