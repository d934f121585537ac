/* The bytes of an artifact's tensors, unit by unit, for whatever container they go into.
 *
 * In a thread's memory at any time: one module's codes, one of its packed tensors, or one part of a tensor that is
 * copied: from the source, or codes that the block's file has as the artifact does. Copies are byte for byte: what was
 * not quantized is the source's own. Every float that is written is checked: a NaN or Inf anywhere makes a model
 * unusable, so it ends the export with the tensor's name. */

#include "formats/export.h"

#include "base/err.h"
#include "base/mem.h"

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

static int reader_advance(struct export_reader *reader, int64_t bytes)
{
    atomic_fetch_add(&reader->progress->done, bytes);
    if (atomic_load(&reader->progress->stop)) {
        return err_raise(ERR_INTERRUPTED, "another part of the export has failed");
    }
    return reader->ticks ? export_tick(reader->progress) : 0;
}

/* reader->buffer has at least `bytes` bytes then. It is used again from unit to unit: fresh memory costs as much as
 * what is done in it. */
static int reader_reserve(struct export_reader *reader, int64_t bytes)
{
    if ((size_t)bytes > reader->capacity || reader->buffer == NULL) {
        free(reader->buffer);
        reader->buffer = NULL;
        reader->capacity = 0;
        TRY(mem_buffer(&reader->buffer, (size_t)bytes));
        reader->capacity = (size_t)bytes;
    }
    return 0;
}

/* Give bytes [at, at + size) of a piece to the sink, after a check that they are finite. */
static int reader_emit(const struct export_piece *piece, int64_t at, const void *bytes, int64_t size, export_sink sink,
                       void *data)
{
    int64_t width = dtype_rows[piece->dtype].bytes, found = dtype_find_nonfinite(piece->dtype, bytes, size / width);

    return found >= 0 ? model_raise_nonfinite(piece->name, at / width + found)
                      : sink(data, piece, (uint64_t)at, bytes, (size_t)size);
}

static int reader_copy(struct export_reader *reader, const struct export_piece *piece, const struct export_unit *unit,
                       export_sink sink, void *data)
{
    const struct model_tensor tensor = model_tensor_at(reader->request->config.model, piece->source);

    TRY(reader_reserve(reader, COPY_BYTES));
    for (int64_t at = unit->at, size; at < unit->at + unit->size; at += size) {
        int64_t left = unit->at + unit->size - at;
        size = left < COPY_BYTES ? left : COPY_BYTES;
        TRY(safetensors_read(tensor.file, tensor.entry, (uint64_t)at, reader->buffer, (size_t)size));
        TRY(reader_emit(piece, at, reader->buffer, size, sink, data));
        TRY(reader_advance(reader, size));
    }
    return 0;
}

/* qtensor_file_read has checked every value, but not that the zero points of symmetric grids are the middle: formats
 * rely on it, since they do not store them. */
static int reader_check_zeros(const struct qtensor *q)
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

static int reader_open_block(struct export_reader *reader, const struct export_place *place)
{
    if (reader->file != NULL && reader->block == place->block) {
        return 0;
    }
    if (reader->file != NULL) {
        qtensor_file_close(MOVE(reader->file));
    }
    reader->block = place->block;
    return qtensor_file_open(reader->request->block_files[place->block], NULL, &reader->file);
}

/* Load a module, unless it is loaded already; without its codes where the caller does not need them. */
static int reader_load_module(struct export_reader *reader, int index, bool without_codes)
{
    const struct export_place *place = &reader->plan->places[index];

    if (reader->module_index == index && (without_codes || !reader->without_codes)) {
        return 0;
    }
    qtensor_deinit(&reader->module);
    reader->module_index = -1;
    TRY(reader_open_block(reader, place));
    TRY(without_codes ? qtensor_file_read_without_codes(reader->file, place->item, &reader->module)
                      : qtensor_file_read(reader->file, place->item, &reader->module));
    TRY(reader_check_zeros(&reader->module));
    reader->module_index = index;
    reader->without_codes = without_codes;
    return 0;
}

/* The array that the module's tensor `index` has as it is stored, in the block that is opened for it. */
static int reader_find_stored(struct export_reader *reader, int module, int index, const char **suffix)
{
    const struct format *format = reader->request->format;
    const struct export_place *place = &reader->plan->places[module];

    *suffix = NULL;
    if (format->stored == NULL) {
        return 0;
    }
    TRY(reader_open_block(reader, place));
    *suffix = format->stored(qtensor_file_meta(reader->file, place->item), index);
    return 0;
}

/* Codes that need no packing. */
static int reader_copy_stored(struct export_reader *reader, const struct export_piece *piece, const char *suffix,
                              export_sink sink, void *data)
{
    const struct export_place *place = &reader->plan->places[piece->module];

    TRY(reader_reserve(reader, COPY_BYTES));
    for (int64_t at = 0, size; at < piece->bytes; at += size) {
        size = piece->bytes - at < COPY_BYTES ? piece->bytes - at : COPY_BYTES;
        TRY(qtensor_file_read_stored(reader->file, place->item, suffix, (uint64_t)piece->bytes, (uint64_t)at,
                                     reader->buffer, (size_t)size));
        TRY(reader_emit(piece, at, reader->buffer, size, sink, data));
    }
    return 0;
}

static int reader_encode(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    const char *codes, *own = NULL;

    int rc = reader_find_stored(reader, piece->module, 0, &codes);
    rc = rc == 0 ? reader_find_stored(reader, piece->module, piece->index, &own) : rc;
    if (rc == 0 && own != NULL) {
        return reader_copy_stored(reader, piece, own, sink, data);
    }
    rc = rc == 0 ? reader_load_module(reader, piece->module, piece->ahead || codes != NULL) : rc;
    if (rc != 0) {
        return err_pass(rc, "load %s", piece->name);
    }
    TRY(reader_reserve(reader, piece->bytes));
    memset(reader->buffer, 0, (size_t)piece->bytes);
    TRY(reader->request->format->encode(&reader->module, piece->index, reader->buffer));
    return reader_emit(piece, 0, reader->buffer, piece->bytes, sink, data);
}

/* A float tensor that the job made, in the type that it is stored in. */
static int reader_narrow(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    const struct export_place *place = &reader->plan->dense[piece->dense].place;
    AUTO(qtensor) struct qtensor q = {0};

    TRY(reader_open_block(reader, place));
    TRY(qtensor_file_read(reader->file, place->item, &q));
    TRY(reader_reserve(reader, piece->bytes));
    format_narrow(q.tables, q.rows * q.cols, piece->dtype, reader->buffer);
    return reader_emit(piece, 0, reader->buffer, piece->bytes, sink, data);
}

/* What the job made of a part, row by row as a linear has it. The caller frees *values; NULL: it is the source's. */
static int reader_part_values(struct export_reader *reader, const struct export_part *part, float **values)
{
    const struct export_place *place = part->dense >= 0 ? &reader->plan->dense[part->dense].place : NULL;
    int64_t count = part->stored.rows * part->stored.cols;
    AUTO(qtensor) struct qtensor q = {0};
    AUTO_FREE float *made = NULL;

    *values = NULL;
    if (place == NULL && part->module < 0) {
        return 0;
    }
    TRY(mem_buffer(&made, (size_t)count));
    if (place == NULL) {
        TRY(reader_load_module(reader, part->module, false));
        qtensor_dequantize(&reader->module, made);
    } else {
        TRY(reader_open_block(reader, place));
        TRY(qtensor_file_read(reader->file, place->item, &q));
        if (q.rows * q.cols != count) {
            return err_raise(ERR_SOURCE_CORRUPT, "the changed %s does not have the source's shape", q.name);
        }
        memcpy(made, q.tables, (size_t)count * sizeof(*made));
    }
    *values = MOVE(made);
    return 0;
}

/* Values [rows, cols] of a part to their places in the slice that begins at element `begin`. */
static void reader_put_part(const struct model_part *stored, const float *values, int64_t begin, enum dtype dtype,
                            unsigned char *slice)
{
    int64_t width = dtype_rows[dtype].bytes;

    for (int64_t row = 0; row < stored->rows; row++) {
        for (int64_t col = 0; col < stored->cols; col++) {
            int64_t at = model_part_element(stored, row, col) - begin;
            format_narrow(&values[row * stored->cols + col], 1, dtype, slice + at * width);
        }
    }
}

/* One matrix of a tensor: the source's, with the parts that the job made or changed in their places. */
static int reader_compose(struct export_reader *reader, const struct export_piece *piece,
                          const struct export_unit *unit, export_sink sink, void *data)
{
    const struct model_tensor tensor = model_tensor_at(reader->request->config.model, piece->source);
    int64_t width = dtype_rows[piece->dtype].bytes, begin = unit->at / width;

    TRY(reader_reserve(reader, unit->size));
    TRY(safetensors_read(tensor.file, tensor.entry, (uint64_t)unit->at, reader->buffer, (size_t)unit->size));
    for (size_t i = 0; i < piece->part_count; i++) {
        const struct export_part *part = &reader->plan->parts[piece->first_part + i];
        AUTO_FREE float *values = NULL;
        if (part->stored.first == begin) {
            TRY(reader_part_values(reader, part, &values));
            reader_put_part(&part->stored, values, begin, piece->dtype, reader->buffer);
        }
    }
    TRY(reader_emit(piece, unit->at, reader->buffer, unit->size, sink, data));
    return reader_advance(reader, unit->size);
}

/* A part by itself. */
static int reader_extract(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data)
{
    const struct export_part *part = &reader->plan->parts[piece->first_part];
    AUTO_FREE float *values = NULL;

    TRY(reader_reserve(reader, piece->bytes));
    TRY(reader_part_values(reader, part, &values));
    if (values != NULL) {
        format_narrow(values, part->stored.rows * part->stored.cols, piece->dtype, reader->buffer);
    } else {
        TRY(model_part_read(&part->stored, 0, part->stored.rows, reader->buffer));
    }
    TRY(reader_emit(piece, 0, reader->buffer, piece->bytes, sink, data));
    return reader_advance(reader, piece->bytes);
}

static int reader_read_piece(struct export_reader *reader, const struct export_piece *piece,
                             const struct export_unit *unit, export_sink sink, void *data)
{
    int rc;

    if (piece->part_count > 0) {
        return piece->alone ? reader_extract(reader, piece, sink, data)
                            : reader_compose(reader, piece, unit, sink, data);
    }
    if (piece->module >= 0) {
        rc = reader_encode(reader, piece, sink, data);
        if (rc != 0 && rc != ERR_CANCELLED && rc != ERR_INTERRUPTED) {
            rc = err_set_module(err_pass(rc, "pack %s", piece->name),
                                reader->request->config.modules[piece->module].name);
        }
    } else if (piece->dense >= 0) {
        rc = reader_narrow(reader, piece, sink, data);
    } else {
        return reader_copy(reader, piece, unit, sink, data);
    }
    TRY(rc);
    return reader_advance(reader, piece->bytes);
}

int export_read_unit(struct export_reader *reader, const struct export_unit *unit, export_sink sink, void *data)
{
    for (size_t i = 0; i < unit->count; i++) {
        const struct export_piece *piece = &reader->plan->pieces[unit->first + i];
        int rc = piece->ahead == unit->ahead ? reader_read_piece(reader, piece, unit, sink, data) : 0;
        if (rc != 0) {
            return err_pass(rc, "write %s", piece->name);
        }
    }
    return 0;
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
