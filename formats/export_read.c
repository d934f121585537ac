/* The bytes of an artifact's tensors, unit by unit, for whatever container they go into.
 *
 * In a thread's memory at any time: one module's codes, one of its packed tensors, or one stretch of a tensor that is
 * copied. Copies are byte for byte: what was not quantized is the source's own. Every float that leaves is looked at: a
 * NaN or Inf anywhere makes a model that answers nothing, so it ends the export with the tensor's name. */

#include "formats/export.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define COPY_BYTES ((int64_t)4 << 20)

int export_tick(struct export_progress *progress)
{
    const struct format_export *request = progress->request;
    double total = (double)progress->total;

    return request->tick == NULL
               ? 0
               : request->tick(request->tick_data, total > 0 ? (double)atomic_load(&progress->done) / total : 1.0);
}

static int advance(struct export_reader *reader, int64_t bytes)
{
    atomic_fetch_add(&reader->progress->done, bytes);
    if (atomic_load(&reader->progress->stop)) {
        return err_raise(ERR_INTERRUPTED, "another part of the export has failed");
    }
    return reader->ticks ? export_tick(reader->progress) : 0;
}

/* Kept from unit to unit: fresh memory costs as much as what is done in it. */
static unsigned char *room(struct export_reader *reader, int64_t bytes)
{
    if ((size_t)bytes > reader->capacity || reader->buffer == NULL) {
        size_t wanted = bytes > 0 ? (size_t)bytes : 1;
        free(reader->buffer);
        reader->buffer = malloc(wanted);
        reader->capacity = reader->buffer != NULL ? wanted : 0;
    }
    if (reader->buffer == NULL) {
        (void)err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld bytes of a tensor", (long long)bytes);
    }
    return reader->buffer;
}

/* Hand on bytes [at, at + size) of a piece, once they are seen to be finite. */
static int hand_on(const struct export_piece *piece, int64_t at, const void *bytes, int64_t size, export_sink sink,
                   void *data)
{
    int64_t width = dtype_rows[piece->dtype].bytes, found = dtype_find_nonfinite(piece->dtype, bytes, size / width);

    return found >= 0 ? model_raise_nonfinite(piece->name, at / width + found)
                      : sink(data, piece, (uint64_t)at, bytes, (size_t)size);
}

static int copy_stretch(struct export_reader *reader, const struct export_piece *piece, const struct export_unit *unit,
                        export_sink sink, void *data)
{
    const struct model_tensor tensor = model_tensor_at(reader->request->config.model, piece->source);
    unsigned char *buffer = room(reader, COPY_BYTES);
    int rc = buffer != NULL ? 0 : ERR_HOST_OUT_OF_MEMORY;

    for (int64_t at = unit->at; rc == 0 && at < unit->at + unit->size;) {
        int64_t left = unit->at + unit->size - at, size = left < COPY_BYTES ? left : COPY_BYTES;
        rc = safetensors_read(tensor.file, tensor.entry, (uint64_t)at, buffer, (size_t)size);
        rc = rc != 0 ? rc : hand_on(piece, at, buffer, size, sink, data);
        rc = rc != 0 ? rc : advance(reader, size);
        at += size;
    }
    return rc != 0 ? err_pass(rc, "copy %s", piece->name) : 0;
}

/* The checkpoint's reader has looked at every value; that symmetric zero points are the middle is for formats to know,
 * since they do not store them. */
static int check_zeros(const struct qtensor *q)
{
    if (q->scheme.kind != QTENSOR_INT || !q->scheme.sym) {
        return 0;
    }
    for (int64_t i = 0; i < q->row_groups * q->groups; i++) {
        if (q->zeros[i] != 1u << (q->scheme.bits - 1)) {
            return err_raise(ERR_SOURCE_CORRUPT, "%s is symmetric and has zero point %u", q->name, q->zeros[i]);
        }
    }
    return 0;
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

/* beside: its codes are not needed. */
static int load_module(struct export_reader *reader, int index, bool beside)
{
    const struct export_place *place = &reader->plan->places[index];

    if (reader->module_index == index && (beside || !reader->beside)) {
        return 0;
    }
    qtensor_deinit(&reader->module);
    reader->module = (struct qtensor){0};
    reader->module_index = -1;
    int rc = open_block(reader, place);
    if (rc == 0) {
        rc = beside ? qtensor_file_read_without_codes(reader->file, place->item, &reader->module)
                    : qtensor_file_read(reader->file, place->item, &reader->module);
    }
    rc = rc != 0 ? rc : check_zeros(&reader->module);
    if (rc == 0) {
        reader->module_index = index;
        reader->beside = beside;
    }
    return rc;
}

static int encode_piece(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    int rc = load_module(reader, piece->module, piece->ahead);

    if (rc != 0) {
        return err_set_module(err_pass(rc, "load %s", piece->name),
                              reader->request->config.modules[piece->module].name);
    }
    unsigned char *packed = room(reader, piece->bytes);
    if (packed == NULL) {
        return ERR_HOST_OUT_OF_MEMORY;
    }
    memset(packed, 0, (size_t)piece->bytes);
    rc = reader->request->format->encode(&reader->module, piece->index, packed);
    rc = rc != 0 ? rc : hand_on(piece, 0, packed, piece->bytes, sink, data);
    if (rc == ERR_CANCELLED || rc == ERR_INTERRUPTED) {
        return err_pass(rc, "pack %s", piece->name);
    }
    return rc != 0 ? err_set_module(err_pass(rc, "pack %s", piece->name), reader->module.name)
                   : advance(reader, piece->bytes);
}

/* A float tensor that the job made, in the type that it is stored in. */
static int read_dense(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    const struct export_place *place = &reader->plan->dense[piece->dense].place;
    struct qtensor q = {0};

    int rc = open_block(reader, place);
    rc = rc != 0 ? rc : qtensor_file_read(reader->file, place->item, &q);
    unsigned char *stored = rc == 0 ? room(reader, piece->bytes) : NULL;
    if (rc == 0 && stored == NULL) {
        rc = ERR_HOST_OUT_OF_MEMORY;
    }
    if (rc == 0) {
        format_narrow(q.tables, q.rows * q.cols, piece->dtype, stored);
        rc = hand_on(piece, 0, stored, piece->bytes, sink, data);
    }
    qtensor_deinit(&q);
    return rc != 0 ? err_pass(rc, "write %s", piece->name) : advance(reader, piece->bytes);
}

int export_read_unit(struct export_reader *reader, const struct export_unit *unit, export_sink sink, void *data)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < unit->count; i++) {
        const struct export_piece *piece = &reader->plan->pieces[unit->first + i];
        if (piece->ahead != unit->ahead) {
            continue;
        }
        rc = piece->module >= 0  ? encode_piece(reader, piece, sink, data)
             : piece->dense >= 0 ? read_dense(reader, piece, sink, data)
                                 : copy_stretch(reader, piece, unit, sink, data);
    }
    return rc;
}

void export_reader_init(struct export_reader *reader, const struct format_export *request,
                        const struct export_plan *plan, struct export_progress *progress, bool ticks)
{
    *reader = (struct export_reader){
        .request = request, .plan = plan, .progress = progress, .ticks = ticks, .module_index = -1};
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
