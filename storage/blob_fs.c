/* Blobs on the local disk: blobs/sha256/ab/<digest>, mode 0444, written once.
 *
 * Writing is temp -> fsync -> rename -> fsync directory, so a blob that has a name is complete and survives power loss.
 * Between a blob and the object row that refers to it nothing in the database says that it is wanted; its writer holds
 * it for that time. Holds are counted in memory: the directory belongs to one process, and those of a process that died
 * went with it. Taking a hold and deleting happen under one lock, so that a writer who found its blob there cannot lose
 * it.
 *
 * Freeing the pages and the disk space of a large file takes a while, so nobody waits for it: its last name is removed
 * at once, and a thread closes it. */

#include "storage/blob.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOB_PATH_MAX 4096
#define LARGE_BYTES ((int64_t)16 << 20) /* from this size on a thread costs less than closing does */

struct hold {
    struct hold *next;
    int count;
    char sha256[DIGEST_HEX_SIZE];
};

struct blobs {
    char *data_dir;
    pthread_mutex_t lock; /* between finding a blob and deleting one; of what follows */
    struct hold *holds;
    pthread_cond_t closed;
    int closing; /* threads that close a file */
};

struct closing {
    struct blobs *blobs;
    int fd;
};

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

static int blob_path(const struct blobs *blobs, const char *sha256, char path[BLOB_PATH_MAX])
{
    return fs_path(path, BLOB_PATH_MAX, "%s/blobs/sha256/%.2s/%s", blobs->data_dir, sha256, sha256);
}

static int sync_folder(const struct blobs *blobs, const char *sha256)
{
    char path[BLOB_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/blobs/sha256/%.2s", blobs->data_dir, sha256));
    return fs_sync_dir(path);
}

/* All 256 folders at once, so that a commit needs to sync only its own. */
static int blob_fs_make_folders(const char *data_dir)
{
    char path[BLOB_PATH_MAX];
    bool made = false;

    for (int i = 0; i < 256; i++) {
        TRY(fs_path(path, sizeof(path), "%s/blobs/sha256/%02x", data_dir, i));
        if (mkdir(path, 0700) == 0) {
            made = true;
        } else if (errno != EEXIST) {
            return err_raise_errno(errno, "cannot create %s", path);
        }
    }
    if (!made) {
        return 0;
    }
    TRY(fs_path(path, sizeof(path), "%s/blobs/sha256", data_dir));
    TRY(fs_sync_dir(path));
    TRY(fs_path(path, sizeof(path), "%s/blobs", data_dir));
    return fs_sync_dir(path);
}

static void blobs_close(struct blobs *blobs)
{
    pthread_mutex_lock(&blobs->lock);
    while (blobs->closing > 0) {
        pthread_cond_wait(&blobs->closed, &blobs->lock);
    }
    pthread_mutex_unlock(&blobs->lock);
    while (blobs->holds != NULL) {
        struct hold *hold = blobs->holds;
        blobs->holds = hold->next;
        free(hold);
    }
    pthread_cond_destroy(&blobs->closed);
    pthread_mutex_destroy(&blobs->lock);
    free(blobs->data_dir);
    free(blobs);
}

static int blobs_open(const char *data_dir, struct blobs **out)
{
    struct blobs *blobs = calloc(1, sizeof(*blobs));

    if (blobs == NULL || (blobs->data_dir = strdup(data_dir)) == NULL) {
        free(blobs);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the blob store");
    }
    pthread_mutex_init(&blobs->lock, NULL);
    pthread_cond_init(&blobs->closed, NULL);
    int rc = blob_fs_make_folders(data_dir);
    if (rc != 0) {
        blobs_close(blobs);
        return rc;
    }
    *out = blobs;
    return 0;
}

static void count_closing(struct blobs *blobs, int change)
{
    pthread_mutex_lock(&blobs->lock);
    blobs->closing += change;
    pthread_cond_signal(&blobs->closed);
    pthread_mutex_unlock(&blobs->lock);
}

static void *close_main(void *data)
{
    struct closing *closing = data;

    close(closing->fd);
    count_closing(closing->blobs, -1);
    free(closing);
    return NULL;
}

static bool close_in_thread(struct blobs *blobs, int fd)
{
    struct closing *closing = malloc(sizeof(*closing));
    pthread_t thread;

    if (closing == NULL) {
        return false;
    }
    *closing = (struct closing){.blobs = blobs, .fd = fd};
    count_closing(blobs, 1);
    if (pthread_create(&thread, NULL, close_main, closing) != 0) {
        count_closing(blobs, -1);
        free(closing);
        return false;
    }
    (void)pthread_detach(thread);
    return true;
}

/* Close a file that may just have lost its last name. */
static void close_dropped(struct blobs *blobs, int fd)
{
    struct stat info;
    bool large = fstat(fd, &info) == 0 && info.st_nlink == 0 && info.st_size >= LARGE_BYTES;

    if (!large || !close_in_thread(blobs, fd)) {
        close(fd);
    }
}

/* The link to the hold on a blob; the end of the list when there is none. Under the lock. */
static struct hold **find_hold(struct blobs *blobs, const char *sha256)
{
    struct hold **at = &blobs->holds;

    while (*at != NULL && strcmp((*at)->sha256, sha256) != 0) {
        at = &(*at)->next;
    }
    return at;
}

static int hold(struct blobs *blobs, const char *sha256)
{
    pthread_mutex_lock(&blobs->lock);
    struct hold **at = find_hold(blobs, sha256);
    if (*at == NULL && (*at = calloc(1, sizeof(**at))) != NULL) {
        snprintf((*at)->sha256, sizeof((*at)->sha256), "%s", sha256);
    }
    bool held = *at != NULL;
    if (held) {
        (*at)->count++;
    }
    pthread_mutex_unlock(&blobs->lock);
    return held ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to hold a blob");
}

static void let_go(struct blobs *blobs, const char *sha256)
{
    pthread_mutex_lock(&blobs->lock);
    struct hold **at = find_hold(blobs, sha256);
    if (*at != NULL && --(*at)->count == 0) {
        struct hold *last = *at;
        *at = last->next;
        free(last);
    }
    pthread_mutex_unlock(&blobs->lock);
}

/* Rename a synced file in, or drop it when the blob is there already. */
static int rename_in(struct blobs *blobs, const char *from, const char *sha256, int64_t size)
{
    char path[BLOB_PATH_MAX];
    struct stat info;

    int rc = blob_path(blobs, sha256, path);
    if (rc != 0) {
        return rc;
    }
    pthread_mutex_lock(&blobs->lock);
    if (lstat(path, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == size) {
        (void)unlink(from);
    } else if (rename(from, path) != 0) {
        rc = err_raise_errno(errno, "cannot move a file in as blob %s", sha256);
    }
    pthread_mutex_unlock(&blobs->lock);
    return rc != 0 ? rc : sync_folder(blobs, sha256);
}

/* The same, held. */
static int place(struct blobs *blobs, const char *from, const char *sha256, int64_t size)
{
    int rc = hold(blobs, sha256);

    if (rc != 0) {
        return rc;
    }
    rc = rename_in(blobs, from, sha256, size);
    if (rc != 0) {
        let_go(blobs, sha256);
    }
    return rc;
}

static void writer_free(struct fs_writer *writer)
{
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    digest_free(writer->digest);
    free(writer);
}

CLEANUP_FREE(fs_writer, struct fs_writer, writer_free)

static int writer_new(struct blobs *blobs, struct blob_writer **out)
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

static int writer_write(struct blob_writer *base, const void *data, size_t size)
{
    struct fs_writer *writer = (struct fs_writer *)base;

    int rc = fs_pwrite_full(writer->fd, data, size, writer->size);
    if (rc == 0) {
        digest_update(writer->digest, data, size);
        writer->size += (int64_t)size;
    }
    return rc;
}

static void writer_abort(struct blob_writer *base)
{
    struct fs_writer *writer = (struct fs_writer *)base;

    (void)unlink(writer->path);
    writer_free(writer);
}

/* On disk and read-only. */
static int finalize(int fd)
{
    return fchmod(fd, 0444) != 0 ? err_raise_errno(errno, "cannot make a blob read-only") : fs_sync(fd);
}

static int writer_commit_take(struct blob_writer *base, char sha256[DIGEST_HEX_SIZE], int64_t *size)
{
    struct fs_writer *writer = (struct fs_writer *)base;
    char hex[DIGEST_HEX_SIZE];

    int rc = finalize(writer->fd);
    if (rc == 0) {
        digest_finish(writer->digest, hex);
        writer->digest = NULL;
        rc = place(writer->blobs, writer->path, hex, writer->size);
    }
    if (rc != 0) {
        writer_abort(base);
        return rc;
    }
    memcpy(sha256, hex, sizeof(hex));
    if (size != NULL) {
        *size = writer->size;
    }
    writer_free(writer);
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
    TRY(place(blobs, path, hex, info.st_size));
    memcpy(sha256, hex, sizeof(hex));
    if (size != NULL) {
        *size = info.st_size;
    }
    return 0;
}

static int blob_fs_adopt(struct blobs *blobs, const char *path, const char *known_sha256, char sha256[DIGEST_HEX_SIZE],
                         int64_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    int rc = adopt_open(blobs, fd, path, known_sha256, sha256, size);
    close_dropped(blobs, fd);
    return rc;
}

static int reader_open(struct blobs *blobs, const char *sha256, struct blob_reader **out, int64_t *size)
{
    struct fs_reader *reader = calloc(1, sizeof(*reader));
    struct stat info;

    if (reader == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a blob reader");
    }
    reader->base.ops = &blob_fs;
    int rc = blob_path(blobs, sha256, reader->path);
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

static int reader_read(struct blob_reader *base, int64_t offset, void *buffer, size_t size)
{
    struct fs_reader *reader = (struct fs_reader *)base;

    if (offset < 0 || offset > reader->size || size > (uint64_t)(reader->size - offset)) {
        return err_raise(ERR_RANGE_NOT_SATISFIABLE, "the blob has %lld bytes", (long long)reader->size);
    }
    return fs_pread_full(reader->fd, buffer, size, offset);
}

static void reader_close(struct blob_reader *base)
{
    struct fs_reader *reader = (struct fs_reader *)base;

    close(reader->fd);
    free(reader);
}

/* Delete one blob unless it is held now, with writers held off. */
static int delete_loose(struct blobs *blobs, int folder, const char *name, bool *deleted)
{
    int rc = 0;

    *deleted = false;
    pthread_mutex_lock(&blobs->lock);
    if (*find_hold(blobs, name) == NULL) {
        if (unlinkat(folder, name, 0) == 0) {
            *deleted = true;
        } else {
            rc = err_raise_errno(errno, "cannot delete blob %s", name);
        }
    }
    pthread_mutex_unlock(&blobs->lock);
    return rc;
}

static int sweep_folder(struct blobs *blobs, DIR *folder, int (*referenced)(void *data, const char *sha256), void *data,
                        int64_t *removed)
{
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        bool deleted;
        if (!blob_sha256_valid(entry->d_name)) {
            continue;
        }
        int rc = referenced(data, entry->d_name);
        if (rc == 0) {
            rc = delete_loose(blobs, dirfd(folder), entry->d_name, &deleted);
            *removed += rc == 0 && deleted ? 1 : 0;
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int blob_fs_collect(struct blobs *blobs, int (*referenced)(void *data, const char *sha256), void *data,
                           int64_t *removed)
{
    char path[BLOB_PATH_MAX];
    int64_t count = 0;

    for (int i = 0; i < 256; i++) {
        int rc = fs_path(path, sizeof(path), "%s/blobs/sha256/%02x", blobs->data_dir, i);
        if (rc != 0) {
            return rc;
        }
        DIR *folder = opendir(path);
        if (folder == NULL) {
            return err_raise_errno(errno, "cannot list %s", path);
        }
        rc = sweep_folder(blobs, folder, referenced, data, &count);
        closedir(folder);
        if (rc != 0) {
            return rc;
        }
    }
    *removed = count;
    return 0;
}

const struct blob_ops blob_fs = {
    .name = "fs",
    .open = blobs_open,
    .close = blobs_close,
    .writer_new = writer_new,
    .writer_write = writer_write,
    .writer_commit_take = writer_commit_take,
    .writer_abort = writer_abort,
    .adopt = blob_fs_adopt,
    .reader_open = reader_open,
    .reader_read = reader_read,
    .reader_close = reader_close,
    .let_go = let_go,
    .collect = blob_fs_collect,
};
