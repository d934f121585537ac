#pragma once
/* The table of a blob store's functions. Within storage only. Any thread. */

#include "storage/storage.h"

struct blobs; /* an open blob store; the implementation's own */

struct blob_ops {
    const char *name;
    int (*open)(const char *data_dir, struct blobs **out);
    void (*close)(struct blobs *blobs);
    int (*writer_new)(struct blobs *blobs, struct blob_writer **out);
    int (*writer_write)(struct blob_writer *writer, const void *data, size_t size);
    int (*writer_commit_take)(struct blob_writer *writer, char sha256[DIGEST_HEX_SIZE], int64_t *size);
    void (*writer_abort)(struct blob_writer *writer);
    int (*adopt)(struct blobs *blobs, const char *path, const char *known_sha256, char sha256[DIGEST_HEX_SIZE],
                 int64_t *size);
    int (*reader_open)(struct blobs *blobs, const char *sha256, struct blob_reader **out, int64_t *size);
    int (*reader_read)(struct blob_reader *reader, int64_t offset, void *buffer, size_t size);
    void (*reader_close)(struct blob_reader *reader);
    /* commit_take and adopt hold their blob; this gives one hold up. */
    void (*let_go)(struct blobs *blobs, const char *sha256);
    int (*link)(struct blobs *blobs, const char *sha256, const char *relative);
    /* Delete what nobody holds and for which referenced() says 0. */
    int (*collect)(struct blobs *blobs, int (*referenced)(void *data, const char *sha256), void *data,
                   int64_t *removed);
};

/* Every implementation's writer and reader begin with these. */
struct blob_writer {
    const struct blob_ops *ops;
};

struct blob_reader {
    const struct blob_ops *ops;
};

/* 64 lower-case hexadecimal digits and nothing else: safe as a file name. */
bool blob_sha256_valid(const char *sha256);

extern const struct blob_ops blob_fs;

/* store.c: the rows, NULL-terminated; the first is the default. */
const struct blob_ops *const *blob_list(void);
/* store.c: the blob half of a store. */
const struct blob_ops *store_blob_ops(struct store *store, struct blobs **blobs);
