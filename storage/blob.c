/* The public blob calls: each goes to the store's blob row. Not dispatched: blobs are files or objects that any thread
 * may reach. */

#include "storage/blob.h"

#include "base/err.h"

#include <string.h>

bool blob_sha256_valid(const char *sha256)
{
    return sha256 != NULL && strspn(sha256, "0123456789abcdef") == DIGEST_HEX_SIZE - 1 &&
           sha256[DIGEST_HEX_SIZE - 1] == '\0';
}

int blob_writer_new(struct store *store, struct blob_writer **out)
{
    struct blobs *blobs;
    const struct blob_ops *ops = store_blob_ops(store, &blobs);

    return ops->writer_new(blobs, out);
}

int blob_writer_write(struct blob_writer *writer, const void *data, size_t size)
{
    return writer->ops->writer_write(writer, data, size);
}

int blob_writer_commit_take(struct blob_writer *writer, char sha256[DIGEST_HEX_SIZE], int64_t *size)
{
    return writer->ops->writer_commit_take(writer, sha256, size);
}

void blob_writer_abort(struct blob_writer *writer)
{
    if (writer != NULL) {
        writer->ops->writer_abort(writer);
    }
}

int blob_adopt(struct store *store, const char *path, const char *known_sha256, char sha256[DIGEST_HEX_SIZE],
               int64_t *size)
{
    struct blobs *blobs;
    const struct blob_ops *ops = store_blob_ops(store, &blobs);

    if (known_sha256 != NULL && !blob_sha256_valid(known_sha256)) {
        return err_raise(ERR_INVALID_PARAMETER, "\"%.80s\" is no SHA-256", known_sha256);
    }
    return ops->adopt(blobs, path, known_sha256, sha256, size);
}

void blob_let_go(struct store *store, const char *sha256)
{
    struct blobs *blobs;
    const struct blob_ops *ops = store_blob_ops(store, &blobs);

    ops->let_go(blobs, sha256);
}

int blob_link(struct store *store, const char *sha256, const char *relative)
{
    struct blobs *blobs;
    const struct blob_ops *ops = store_blob_ops(store, &blobs);

    return blob_sha256_valid(sha256) ? ops->link(blobs, sha256, relative)
                                     : err_raise(ERR_NOT_FOUND, "there is no such blob");
}

int blob_reader_open(struct store *store, const char *sha256, struct blob_reader **out, int64_t *size)
{
    struct blobs *blobs;
    const struct blob_ops *ops = store_blob_ops(store, &blobs);

    if (!blob_sha256_valid(sha256)) {
        return err_raise(ERR_NOT_FOUND, "there is no such blob");
    }
    return ops->reader_open(blobs, sha256, out, size);
}

int blob_reader_read(struct blob_reader *reader, int64_t offset, void *buffer, size_t size)
{
    return reader->ops->reader_read(reader, offset, buffer, size);
}

void blob_reader_close(struct blob_reader *reader)
{
    if (reader != NULL) {
        reader->ops->reader_close(reader);
    }
}
