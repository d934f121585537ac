/* One tensor from the disk to the device: read in pieces of bounded size, widened on the device, checked for NaN and
 * Inf once it is complete. The host never holds more than one piece. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <fcntl.h>

#define PIECE_BYTES ((uint64_t)4 << 20)

struct piece {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    const struct model_tensor *source;
    void *host;   /* a piece read from the file */
    void *device; /* raw bytes before conversion; NULL when none is needed */
};

static int load_piece(const struct piece *piece, const struct tensor *out, uint64_t offset, size_t size)
{
    const struct gpu_ops *ops = piece->gpu->ops;
    const struct safetensors_entry *entry = piece->source->entry;
    uint64_t width = dtype_rows[entry->dtype].bytes;
    char *to = (char *)out->data + offset / width * dtype_rows[out->dtype].bytes;

    void *first = piece->device != NULL ? piece->device : to;
    TRY(safetensors_read(piece->source->file, entry, offset, piece->host, size));
    TRY(ops->upload(piece->stream, first, piece->host, size));
    if (piece->device != NULL) {
        int64_t count = (int64_t)(size / width);
        struct tensor raw = tensor_1d(piece->device, entry->dtype, count);
        struct tensor wide = tensor_1d(to, out->dtype, count);
        TRY(ops->convert(piece->stream, &wide, &raw));
    }
    return 0;
}

static int load_pieces(const struct piece *piece, const struct tensor *out)
{
    uint64_t bytes = piece->source->entry->end - piece->source->entry->begin;

    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
        uint64_t left = bytes - at;
        TRY(load_piece(piece, out, at, (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES)));
    }
    return 0;
}

static int check_finite(const struct piece *piece, const struct tensor *out)
{
    int64_t index = -1;

    TRY(piece->gpu->ops->find_nonfinite(piece->stream, &index, out));
    if (index >= 0) {
        return model_raise_nonfinite(piece->source->name, index);
    }
    return 0;
}

void model_prefetch_tensor(const struct model *model, const char *name)
{
    struct model_tensor source = model_find(model, name);

    if (source.file != NULL) {
        off_t size = (off_t)(source.entry->end - source.entry->begin);
        (void)posix_fadvise(safetensors_fd(source.file), (off_t)source.entry->begin, size, POSIX_FADV_WILLNEED);
    }
}

/* In pieces from the file. */
static int load_from_file(struct piece *piece, const struct tensor *out)
{
    const struct gpu *gpu = piece->gpu;
    uint64_t bytes = piece->source->entry->end - piece->source->entry->begin;
    size_t buffer = (size_t)(bytes < PIECE_BYTES ? bytes : PIECE_BYTES);
    AUTO_FREE char *host = NULL;

    TRY(mem_buffer(&host, buffer));
    piece->host = host;
    if (out->dtype == piece->source->entry->dtype) {
        return load_pieces(piece, out);
    }
    TRY(gpu->ops->alloc(gpu->device, buffer, false, &piece->device));
    int rc = load_pieces(piece, out);
    gpu->ops->free(gpu->device, piece->device);
    return rc;
}

/* From `bytes`, the tensor as it is stored, or from the file when that is NULL. */
static int load_fill(struct piece *piece, const void *bytes, const struct tensor *out)
{
    if (bytes == NULL) {
        TRY(load_from_file(piece, out));
    } else {
        struct tensor stored = *out;
        stored.dtype = piece->source->entry->dtype;
        stored.data = (void *)bytes;
        TRY(piece->gpu->ops->convert(piece->stream, out, &stored));
    }
    return check_finite(piece, out);
}

int model_load_bytes(const struct model *model, const char *name, const void *bytes, enum dtype dtype,
                     const struct gpu *gpu, struct gpu_stream *stream, struct tensor *out)
{
    struct model_tensor source = model_find(model, name);
    AUTO_TENSOR(tensor, gpu);

    if (source.file == NULL) {
        return err_set_module(err_raise(ERR_INVALID_MODEL, "tensor %.160s is missing", name), name);
    }
    const struct safetensors_entry *entry = source.entry;
    struct piece piece = {.gpu = gpu, .stream = stream, .source = &source};

    dtype = dtype == DTYPE_COUNT ? entry->dtype : dtype;
    int rc = gpu_tensor_uninitialized(gpu, dtype, entry->rank, entry->shape, &tensor);
    if (rc == 0) {
        rc = load_fill(&piece, bytes, &tensor);
    }
    if (rc != 0) {
        return err_set_module(err_pass(rc, "load tensor %s", name), name);
    }
    *out = tensor_move(&tensor);
    return 0;
}

int model_load_tensor(const struct model *model, const char *name, enum dtype dtype, const struct gpu *gpu,
                      struct gpu_stream *stream, struct tensor *out)
{
    return model_load_bytes(model, name, NULL, dtype, gpu, stream, out);
}
