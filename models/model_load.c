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
    const struct model_part *part; /* of it, whose rows are read; NULL: all of it, as it is stored */
    void *host;                    /* a piece read from the file */
    void *device;                  /* raw bytes before conversion; NULL when none is needed */
    uint64_t bytes, step;          /* to read, and of a piece */
};

static int load_read(const struct piece *piece, uint64_t offset, size_t size)
{
    const struct model_part *part = piece->part;

    if (part == NULL) {
        return safetensors_read(piece->source->file, piece->source->entry, offset, piece->host, size);
    }
    uint64_t row_bytes = (uint64_t)part->cols * dtype_rows[piece->source->entry->dtype].bytes;
    return model_part_read(part, (int64_t)(offset / row_bytes), (int64_t)(size / row_bytes), piece->host);
}

static int load_piece(const struct piece *piece, const struct tensor *out, uint64_t offset, size_t size)
{
    const struct gpu_ops *ops = piece->gpu->ops;
    const struct safetensors_entry *entry = piece->source->entry;
    uint64_t width = dtype_rows[entry->dtype].bytes;
    char *to = (char *)out->data + offset / width * dtype_rows[out->dtype].bytes;

    void *first = piece->device != NULL ? piece->device : to;
    TRY(load_read(piece, offset, size));
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
    for (uint64_t at = 0; at < piece->bytes; at += piece->step) {
        uint64_t left = piece->bytes - at;
        TRY(load_piece(piece, out, at, (size_t)(left < piece->step ? left : piece->step)));
    }
    return 0;
}

static int check_finite(const struct piece *piece, const struct tensor *out)
{
    int64_t index = -1;

    TRY(piece->gpu->ops->find_nonfinite(piece->stream, &index, out));
    if (index < 0) {
        return 0;
    }
    if (piece->part != NULL) {
        index = model_part_element(piece->part, index / piece->part->cols, index % piece->part->cols);
    }
    return model_raise_nonfinite(piece->source->name, index);
}

void model_prefetch_tensor(const struct model *model, const char *name)
{
    struct model_tensor source = model_find(model, name);

    if (source.file != NULL) {
        off_t size = (off_t)(source.entry->end - source.entry->begin);
        (void)posix_fadvise(safetensors_fd(source.file), (off_t)source.entry->begin, size, POSIX_FADV_WILLNEED);
    }
}

/* Complete elements, and of a part complete rows. */
static void size_pieces(struct piece *piece, const struct tensor *out)
{
    uint64_t width = dtype_rows[piece->source->entry->dtype].bytes;
    uint64_t row_bytes = piece->part != NULL ? (uint64_t)piece->part->cols * width : width;

    piece->bytes = (uint64_t)tensor_count(out) * width;
    piece->step = row_bytes < PIECE_BYTES ? PIECE_BYTES / row_bytes * row_bytes : row_bytes;
}

/* In pieces from the file. */
static int load_from_file(struct piece *piece, const struct tensor *out)
{
    const struct gpu *gpu = piece->gpu;

    size_pieces(piece, out);
    size_t buffer = (size_t)(piece->bytes < piece->step ? piece->bytes : piece->step);
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

static int load_part(const struct model_part *part, const struct gpu *gpu, struct gpu_stream *stream,
                     struct tensor *out)
{
    const int64_t shape[] = {part->rows, part->cols};
    struct piece piece = {.gpu = gpu, .stream = stream, .source = &part->tensor, .part = part};
    AUTO_TENSOR(tensor, gpu);

    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, part->vector ? 1 : 2, shape, &tensor));
    TRY(load_from_file(&piece, &tensor));
    TRY(check_finite(&piece, &tensor));
    *out = tensor_move(&tensor);
    return 0;
}

int model_load_part(const struct model_part *part, const struct gpu *gpu, struct gpu_stream *stream, struct tensor *out)
{
    const char *name = part->tensor.name;
    int rc = part->tensor.file != NULL ? load_part(part, gpu, stream, out)
                                       : err_raise(ERR_INVALID_MODEL, "tensor %.160s is missing", name);

    return rc != 0 ? err_set_module(err_pass(rc, "load tensor %s", name), name) : 0;
}

static int load_rows(const struct model_part *part, int64_t first, int64_t count, void *bytes, const struct gpu *gpu,
                     struct gpu_stream *stream, const struct tensor *out)
{
    const struct tensor stored = tensor_2d(bytes, part->tensor.entry->dtype, count, part->cols);
    int64_t index = -1;

    TRY(model_part_read(part, first, count, bytes));
    TRY(gpu->ops->convert(stream, out, &stored));
    TRY(gpu->ops->find_nonfinite(stream, &index, out));
    return index < 0 ? 0
                     : model_raise_nonfinite(part->tensor.name,
                                             model_part_element(part, first + index / part->cols, index % part->cols));
}

int model_load_rows(const struct model_part *part, int64_t first, int64_t count, void *bytes, const struct gpu *gpu,
                    struct gpu_stream *stream, const struct tensor *out)
{
    const char *name = part->tensor.name;
    int rc = part->tensor.file != NULL ? load_rows(part, first, count, bytes, gpu, stream, out)
                                       : err_raise(ERR_INVALID_MODEL, "tensor %.160s is missing", name);

    return rc != 0 ? err_set_module(err_pass(rc, "load tensor %s", name), name) : 0;
}
