#pragma once
/* What the files of the local disk's blob store share. Within storage only. */

#include "storage/blob.h"

#include <pthread.h>

#define BLOB_PATH_MAX 4096

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

/* --- blob_fs.c */
int blob_fs_path(const struct blobs *blobs, const char *sha256, char path[BLOB_PATH_MAX]);
/* Rename a synced file in, or drop it when the blob is there already. The blob is held. */
int blob_fs_place(struct blobs *blobs, const char *from, const char *sha256, int64_t size);
void blob_fs_let_go(struct blobs *blobs, const char *sha256);
/* Where the hold on a blob hangs; the end of the list when there is none. Under the lock. */
struct hold **blob_fs_find_hold(struct blobs *blobs, const char *sha256);
/* Close a file that may just have lost its last name. */
void blob_fs_close_dropped(struct blobs *blobs, int fd);

/* --- blob_fs_io.c, blob_fs_collect.c: as in struct blob_ops */
int blob_fs_writer_new(struct blobs *blobs, struct blob_writer **out);
int blob_fs_writer_write(struct blob_writer *base, const void *data, size_t size);
int blob_fs_writer_commit_take(struct blob_writer *base, char sha256[DIGEST_HEX_SIZE], int64_t *size);
void blob_fs_writer_abort(struct blob_writer *base);
int blob_fs_adopt(struct blobs *blobs, const char *path, const char *known_sha256, char sha256[DIGEST_HEX_SIZE],
                  int64_t *size);
int blob_fs_reader_open(struct blobs *blobs, const char *sha256, struct blob_reader **out, int64_t *size);
int blob_fs_reader_read(struct blob_reader *base, int64_t offset, void *buffer, size_t size);
void blob_fs_reader_close(struct blob_reader *base);
int blob_fs_collect(struct blobs *blobs, int (*referenced)(void *data, const char *sha256), void *data,
                    int64_t *removed);
