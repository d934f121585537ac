/* Garbage on the local disk: blobs that no object names and nobody holds. */

#include "storage/blob_fs.h"

#include "base/err.h"
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <unistd.h>

/* Delete one blob unless it is held now, with writers held off. */
static int delete_loose(struct blobs *blobs, int folder, const char *name, bool *deleted)
{
    int rc = 0;

    *deleted = false;
    pthread_mutex_lock(&blobs->lock);
    if (*blob_fs_find_hold(blobs, name) == NULL) {
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

int blob_fs_collect(struct blobs *blobs, int (*referenced)(void *data, const char *sha256), void *data,
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
