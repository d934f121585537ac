/* Writing an artifact: one pass over the plan, shard by shard.
 *
 * In memory at any time: one module's codes, one of its packed tensors, or one piece of a tensor that is copied. Copies
 * are byte for byte: what was not quantized is the source's own. */

#include "storage/export.h"

#include "base/err.h"
#include "base/fs.h"

#include <stdlib.h>
#include <string.h>

#define EXPORT_COPY_BYTES ((size_t)4 << 20)

struct exporter {
    const struct format_export *request;
    const struct export_plan *plan;
    struct safetensors_writer *writer;
    struct qtensor_file *file; /* the open block, or NULL */
    int block;
    struct qtensor module; /* the loaded module; its index or -1 */
    int module_index;
    unsigned char *buffer; /* [EXPORT_COPY_BYTES] */
    int64_t done;
};

static int tick(struct exporter *exporter)
{
    const struct format_export *request = exporter->request;
    double total = (double)exporter->plan->total_bytes;

    return request->tick == NULL ? 0
                                 : request->tick(request->tick_data, total > 0 ? (double)exporter->done / total : 1.0);
}

static int copy_piece(struct exporter *exporter, const struct export_piece *piece)
{
    const struct model_tensor tensor = model_tensor_at(exporter->request->config.model, piece->source);

    for (int64_t at = 0; at < piece->bytes;) {
        size_t size = piece->bytes - at < (int64_t)EXPORT_COPY_BYTES ? (size_t)(piece->bytes - at) : EXPORT_COPY_BYTES;
        int rc = safetensors_read(tensor.file, tensor.entry, (uint64_t)at, exporter->buffer, size);
        rc = rc != 0 ? rc : safetensors_writer_put(exporter->writer, piece->name, (uint64_t)at, exporter->buffer, size);
        at += (int64_t)size;
        exporter->done += (int64_t)size;
        rc = rc != 0 ? rc : tick(exporter);
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

static int open_block(struct exporter *exporter, const struct export_place *place)
{
    int rc = 0;

    if (exporter->file == NULL || exporter->block != place->block) {
        if (exporter->file != NULL) {
            qtensor_file_close(exporter->file);
            exporter->file = NULL;
        }
        rc = qtensor_file_open(exporter->request->block_files[place->block], NULL, &exporter->file);
        exporter->block = place->block;
    }
    return rc;
}

static int load_module(struct exporter *exporter, int index)
{
    const struct export_place *place = &exporter->plan->places[index];

    if (exporter->module_index == index) {
        return 0;
    }
    qtensor_deinit(&exporter->module);
    exporter->module = (struct qtensor){0};
    exporter->module_index = -1;
    int rc = open_block(exporter, place);
    rc = rc != 0 ? rc : qtensor_file_read(exporter->file, place->item, &exporter->module);
    rc = rc != 0 ? rc : check_codes(&exporter->module);
    if (rc == 0) {
        exporter->module_index = index;
    }
    return rc;
}

static int encode_piece(struct exporter *exporter, const struct export_piece *piece)
{
    int rc = load_module(exporter, piece->module);

    if (rc != 0) {
        return err_pass(rc, "load %s", piece->name);
    }
    void *packed = calloc(1, piece->bytes > 0 ? (size_t)piece->bytes : 1);
    if (packed == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld bytes of %s", (long long)piece->bytes,
                         piece->name);
    }
    rc = exporter->request->format->encode(&exporter->module, piece->index, packed);
    rc = rc != 0 ? rc : safetensors_writer_put(exporter->writer, piece->name, 0, packed, (size_t)piece->bytes);
    free(packed);
    exporter->done += piece->bytes;
    return rc != 0 ? err_pass(rc, "pack %s", piece->name) : tick(exporter);
}

/* A float tensor that the job made, in the type that it is stored in. */
static int write_dense(struct exporter *exporter, const struct export_piece *piece)
{
    const struct export_place *place = &exporter->plan->dense[piece->dense].place;
    struct qtensor q = {0};

    int rc = open_block(exporter, place);
    rc = rc != 0 ? rc : qtensor_file_read(exporter->file, place->item, &q);
    void *stored = rc == 0 ? malloc((size_t)piece->bytes) : NULL;
    if (rc == 0 && stored == NULL) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld bytes of %s", (long long)piece->bytes, piece->name);
    }
    if (rc == 0) {
        format_narrow(q.tables, q.rows * q.cols, piece->dtype, stored);
        rc = safetensors_writer_put(exporter->writer, piece->name, 0, stored, (size_t)piece->bytes);
    }
    free(stored);
    qtensor_deinit(&q);
    exporter->done += piece->bytes;
    return rc != 0 ? err_pass(rc, "write %s", piece->name) : tick(exporter);
}

static int write_piece(struct exporter *exporter, const struct export_piece *piece)
{
    return piece->module >= 0  ? encode_piece(exporter, piece)
           : piece->dense >= 0 ? write_dense(exporter, piece)
                               : copy_piece(exporter, piece);
}

static int declare_shard(struct exporter *exporter, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const struct export_piece *piece = &exporter->plan->pieces[i];
        int rc = safetensors_writer_declare(exporter->writer, piece->name, piece->dtype, piece->rank, piece->shape);
        if (rc != 0) {
            return rc;
        }
    }
    return safetensors_writer_begin(exporter->writer);
}

static int write_shard(struct exporter *exporter, size_t begin, size_t end)
{
    char path[EXPORT_PATH_MAX];
    char name[64];

    export_shard_name(exporter->plan, exporter->plan->pieces[begin].shard, name);
    int rc = fs_path(path, sizeof(path), "%s/%s", exporter->request->directory, name);
    rc = rc != 0 ? rc : safetensors_writer_new(path, &exporter->writer);
    if (rc != 0) {
        return rc;
    }
    rc = declare_shard(exporter, begin, end);
    for (size_t i = begin; rc == 0 && i < end; i++) {
        rc = write_piece(exporter, &exporter->plan->pieces[i]);
    }
    rc = rc != 0 ? rc : safetensors_writer_finish(exporter->writer);
    safetensors_writer_free(exporter->writer);
    exporter->writer = NULL;
    return rc;
}

static int write_shards(const struct format_export *request, const struct export_plan *plan)
{
    struct exporter exporter = {.request = request, .plan = plan, .module_index = -1};
    int rc = 0;

    exporter.buffer = malloc(EXPORT_COPY_BYTES);
    if (exporter.buffer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a copy buffer");
    }
    for (size_t begin = 0; rc == 0 && begin < plan->count;) {
        size_t end = begin;
        while (end < plan->count && plan->pieces[end].shard == plan->pieces[begin].shard) {
            end++;
        }
        rc = write_shard(&exporter, begin, end);
        begin = end;
    }
    qtensor_deinit(&exporter.module);
    if (exporter.file != NULL) {
        qtensor_file_close(exporter.file);
    }
    free(exporter.buffer);
    return rc;
}

int format_export(const struct format_export *request, json_t **files)
{
    struct export_plan plan = {0};

    int rc = fs_make_dirs(request->directory);
    rc = rc != 0 ? rc : export_plan_make(request, &plan);
    rc = rc != 0 ? rc : write_shards(request, &plan);
    if (rc == 0 && plan.shards > 1) {
        rc = export_write_index(request, &plan);
    }
    export_plan_deinit(&plan);
    rc = rc != 0 ? rc : export_write_config(request);
    rc = rc != 0 ? rc : export_copy_side_files(request);
    rc = rc != 0 ? rc : model_check_unchanged(request->config.model);
    return rc != 0 ? rc : export_write_manifest(request, files);
}
