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

#include "storage/blob_fs.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LARGE_BYTES ((int64_t)16 << 20) /* from this size on a thread costs less than closing does */

struct closing {
    struct blobs *blobs;
    int fd;
};

int blob_fs_path(const struct blobs *blobs, const char *sha256, char path[BLOB_PATH_MAX])
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
void blob_fs_close_dropped(struct blobs *blobs, int fd)
{
    struct stat info;
    bool large = fstat(fd, &info) == 0 && info.st_nlink == 0 && info.st_size >= LARGE_BYTES;

    if (!large || !close_in_thread(blobs, fd)) {
        close(fd);
    }
}

/* The link to the hold on a blob; the end of the list when there is none. Under the lock. */
struct hold **blob_fs_find_hold(struct blobs *blobs, const char *sha256)
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
    struct hold **at = blob_fs_find_hold(blobs, sha256);
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

void blob_fs_let_go(struct blobs *blobs, const char *sha256)
{
    pthread_mutex_lock(&blobs->lock);
    struct hold **at = blob_fs_find_hold(blobs, sha256);
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

    int rc = blob_fs_path(blobs, sha256, path);
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
int blob_fs_place(struct blobs *blobs, const char *from, const char *sha256, int64_t size)
{
    int rc = hold(blobs, sha256);

    if (rc != 0) {
        return rc;
    }
    rc = rename_in(blobs, from, sha256, size);
    if (rc != 0) {
        blob_fs_let_go(blobs, sha256);
    }
    return rc;
}

/* The link is relative, so that the data directory can be moved, and opening it stays beneath the directory. A hard
 * link would change the blob's ctime, by which an open checkpoint is known to be unchanged. */
static int blob_fs_link(struct blobs *blobs, const char *sha256, const char *relative)
{
    char path[BLOB_PATH_MAX], target[BLOB_PATH_MAX] = "";
    size_t used = 0;

    TRY(blob_fs_path(blobs, sha256, path));
    if (access(path, R_OK) != 0) {
        return err_raise_errno(errno, "cannot reach blob %s", sha256);
    }
    for (const char *at = strchr(relative, '/'); at != NULL && used < 64; at = strchr(at + 1, '/')) {
        used += (size_t)snprintf(target + used, sizeof(target) - used, "../");
    }
    TRY(fs_path(target + used, sizeof(target) - used, "blobs/sha256/%.2s/%s", sha256, sha256));
    TRY(fs_path(path, sizeof(path), "%s/%s", blobs->data_dir, relative));
    return symlink(target, path) != 0 ? err_raise_errno(errno, "cannot create %s", path) : 0;
}

const struct blob_ops blob_fs = {
    .name = "fs",
    .open = blobs_open,
    .close = blobs_close,
    .writer_new = blob_fs_writer_new,
    .writer_write = blob_fs_writer_write,
    .writer_commit_take = blob_fs_writer_commit_take,
    .writer_abort = blob_fs_writer_abort,
    .adopt = blob_fs_adopt,
    .reader_open = blob_fs_reader_open,
    .reader_read = blob_fs_reader_read,
    .reader_close = blob_fs_reader_close,
    .let_go = blob_fs_let_go,
    .link = blob_fs_link,
    .collect = blob_fs_collect,
};
