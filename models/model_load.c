/* One tensor from the disk to the device: read in pieces of bounded size, widened on the device, looked through for NaN
 * and Inf once it is whole. The host never holds more than one piece. */

#include "base/err.h"
#include "models/model_internal.h"

#include <fcntl.h>
#include <stdlib.h>

#define PIECE_BYTES ((uint64_t)4 << 20)

struct piece {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    const struct model_tensor *source;
    void *host;        /* a piece read from the file, or NULL: */
    const char *bytes; /* all of them, in memory of host_alloc */
    void *device;      /* raw bytes before conversion; NULL when none is needed */
};

static int load_piece(const struct piece *piece, const struct tensor *out, uint64_t offset, size_t size)
{
    const struct gpu_ops *ops = piece->gpu->ops;
    const struct safetensors_entry *entry = piece->source->entry;
    uint64_t width = dtype_rows[entry->dtype].bytes;
    char *to = (char *)out->data + offset / width * dtype_rows[out->dtype].bytes;

    void *first = piece->device != NULL ? piece->device : to;
    int rc = 0;
    if (piece->bytes != NULL) {
        rc = ops->upload_pinned(piece->stream, first, piece->bytes + offset, size);
    } else {
        rc = safetensors_read(piece->source->file, entry, offset, piece->host, size);
        rc = rc != 0 ? rc : ops->upload(piece->stream, first, piece->host, size);
    }
    if (rc == 0 && piece->device != NULL) {
        int64_t count = (int64_t)(size / width);
        struct tensor raw = tensor_1d(piece->device, entry->dtype, count);
        struct tensor wide = tensor_1d(to, out->dtype, count);
        rc = ops->convert(piece->stream, &wide, &raw);
    }
    return rc;
}

static int load_pieces(const struct piece *piece, const struct tensor *out)
{
    uint64_t bytes = piece->source->entry->end - piece->source->entry->begin;
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && at < bytes; at += PIECE_BYTES) {
        uint64_t left = bytes - at;
        rc = load_piece(piece, out, at, (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES));
    }
    return rc;
}

static int check_finite(const struct piece *piece, const struct tensor *out)
{
    int64_t index = -1;
    int rc = piece->gpu->ops->find_nonfinite(piece->stream, &index, out);

    if (rc == 0 && index >= 0) {
        rc = err_raise(ERR_NON_FINITE_VALUE, "tensor %.160s has a NaN or Inf at element %lld", piece->source->name,
                       (long long)index);
    }
    return rc;
}

void model_prefetch_tensor(const struct model *model, const char *name)
{
    struct model_tensor source = model_find(model, name);

    if (source.file != NULL) {
        off_t size = (off_t)(source.entry->end - source.entry->begin);
        (void)posix_fadvise(safetensors_fd(source.file), (off_t)source.entry->begin, size, POSIX_FADV_WILLNEED);
    }
}

int model_load_bytes(const struct model *model, const char *name, const void *pinned, enum dtype dtype,
                     const struct gpu *gpu, struct gpu_stream *stream, struct tensor *out)
{
    struct model_tensor source = model_find(model, name);
    struct tensor tensor = {0};

    if (source.file == NULL) {
        return err_raise(ERR_INVALID_MODEL, "tensor %.160s is missing", name);
    }
    const struct safetensors_entry *entry = source.entry;
    dtype = dtype == DTYPE_COUNT ? entry->dtype : dtype;
    uint64_t bytes = entry->end - entry->begin;
    size_t buffer = (size_t)(bytes < PIECE_BYTES ? bytes : PIECE_BYTES);
    struct piece piece = {.gpu = gpu, .stream = stream, .source = &source, .bytes = pinned};
    int rc = 0;

    if (pinned == NULL && (piece.host = malloc(buffer + 1)) == NULL) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a piece of %zu bytes", buffer);
    }
    if (rc == 0 && dtype != entry->dtype) {
        rc = gpu->ops->alloc(gpu->device, buffer, &piece.device);
    }
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, dtype, entry->rank, entry->shape, &tensor);
    rc = rc != 0 ? rc : load_pieces(&piece, &tensor);
    rc = rc != 0 ? rc : check_finite(&piece, &tensor);
    if (piece.device != NULL) {
        gpu->ops->free(gpu->device, piece.device);
    }
    free(piece.host);
    if (rc != 0) {
        gpu_tensor_free(gpu, &tensor);
        return err_pass(rc, "load tensor %s", name);
    }
    *out = tensor;
    return 0;
}

int model_load_tensor(const struct model *model, const char *name, enum dtype dtype, const struct gpu *gpu,
                      struct gpu_stream *stream, struct tensor *out)
{
    return model_load_bytes(model, name, NULL, dtype, gpu, stream, out);
}
