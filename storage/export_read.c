/* The bytes of an artifact's tensors, piece by piece, for whatever container they go into.
 *
 * In memory at any time: one module's codes, one of its packed tensors, or one stretch of a tensor that is copied.
 * Copies are byte for byte: what was not quantized is the source's own. */

#include "storage/export.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define EXPORT_COPY_BYTES ((size_t)4 << 20)

static int tick(struct export_reader *reader)
{
    const struct format_export *request = reader->request;
    double total = (double)reader->plan->total_bytes;

    return request->tick == NULL ? 0
                                 : request->tick(request->tick_data, total > 0 ? (double)reader->done / total : 1.0);
}

static int copy_piece(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    const struct model_tensor tensor = model_tensor_at(reader->request->config.model, piece->source);

    for (int64_t at = 0; at < piece->bytes;) {
        size_t size = piece->bytes - at < (int64_t)EXPORT_COPY_BYTES ? (size_t)(piece->bytes - at) : EXPORT_COPY_BYTES;
        int rc = safetensors_read(tensor.file, tensor.entry, (uint64_t)at, reader->buffer, size);
        rc = rc != 0 ? rc : sink(data, (uint64_t)at, reader->buffer, size);
        at += (int64_t)size;
        reader->done += (int64_t)size;
        rc = rc != 0 ? rc : tick(reader);
        if (rc != 0) {
            return err_pass(rc, "copy %s", piece->name);
        }
    }
    return 0;
}

/* Codes and zero points fit their bits: packing would hide it if they did not. */
static int check_codes(const struct qtensor *q)
{
    if (q->scheme.kind != QTENSOR_INT) {
        return 0; /* the checkpoint's reader has looked at what other kinds have */
    }
    const unsigned limit = 1u << q->scheme.bits;
    unsigned seen = 0;

    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        seen |= q->codes[i];
    }
    for (int64_t i = 0; i < q->row_groups * q->groups; i++) {
        seen |= q->zeros[i];
        if (q->scheme.sym && q->zeros[i] != limit / 2) {
            return err_raise(ERR_SOURCE_CORRUPT, "%s is symmetric and has zero point %u", q->name, q->zeros[i]);
        }
    }
    return seen < limit ? 0
                        : err_raise(ERR_SOURCE_CORRUPT, "%s has codes of more than %d bits", q->name, q->scheme.bits);
}

static int open_block(struct export_reader *reader, const struct export_place *place)
{
    int rc = 0;

    if (reader->file == NULL || reader->block != place->block) {
        if (reader->file != NULL) {
            qtensor_file_close(reader->file);
            reader->file = NULL;
        }
        rc = qtensor_file_open(reader->request->block_files[place->block], NULL, &reader->file);
        reader->block = place->block;
    }
    return rc;
}

static int load_module(struct export_reader *reader, int index)
{
    const struct export_place *place = &reader->plan->places[index];

    if (reader->module_index == index) {
        return 0;
    }
    qtensor_deinit(&reader->module);
    reader->module = (struct qtensor){0};
    reader->module_index = -1;
    int rc = open_block(reader, place);
    rc = rc != 0 ? rc : qtensor_file_read(reader->file, place->item, &reader->module);
    rc = rc != 0 ? rc : check_codes(&reader->module);
    if (rc == 0) {
        reader->module_index = index;
    }
    return rc;
}

static int encode_piece(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    int rc = load_module(reader, piece->module);

    if (rc != 0) {
        return err_pass(rc, "load %s", piece->name);
    }
    void *packed = calloc(1, piece->bytes > 0 ? (size_t)piece->bytes : 1);
    if (packed == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld bytes of %s", (long long)piece->bytes,
                         piece->name);
    }
    rc = reader->request->format->encode(&reader->module, piece->index, packed);
    rc = rc != 0 ? rc : sink(data, 0, packed, (size_t)piece->bytes);
    free(packed);
    reader->done += piece->bytes;
    return rc != 0 ? err_pass(rc, "pack %s", piece->name) : tick(reader);
}

/* A float tensor that the job made, in the type that it is stored in. */
static int read_dense(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    const struct export_place *place = &reader->plan->dense[piece->dense].place;
    struct qtensor q = {0};

    int rc = open_block(reader, place);
    rc = rc != 0 ? rc : qtensor_file_read(reader->file, place->item, &q);
    void *stored = rc == 0 ? malloc((size_t)piece->bytes) : NULL;
    if (rc == 0 && stored == NULL) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld bytes of %s", (long long)piece->bytes, piece->name);
    }
    if (rc == 0) {
        format_narrow(q.tables, q.rows * q.cols, piece->dtype, stored);
        rc = sink(data, 0, stored, (size_t)piece->bytes);
    }
    free(stored);
    qtensor_deinit(&q);
    reader->done += piece->bytes;
    return rc != 0 ? err_pass(rc, "write %s", piece->name) : tick(reader);
}

int export_read_piece(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    return piece->module >= 0  ? encode_piece(reader, piece, sink, data)
           : piece->dense >= 0 ? read_dense(reader, piece, sink, data)
                               : copy_piece(reader, piece, sink, data);
}

int export_reader_init(struct export_reader *reader, const struct format_export *request,
                       const struct export_plan *plan)
{
    unsigned char *buffer = malloc(EXPORT_COPY_BYTES);

    if (buffer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a copy buffer");
    }
    *reader = (struct export_reader){.request = request, .plan = plan, .module_index = -1, .buffer = buffer};
    return 0;
}

void export_reader_deinit(struct export_reader *reader)
{
    qtensor_deinit(&reader->module);
    if (reader->file != NULL) {
        qtensor_file_close(reader->file);
    }
    free(reader->buffer);
    *reader = (struct export_reader){0};
}
