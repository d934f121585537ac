/* Writing the file of a finished block: qtensor_file.c says what is in it. Codes are packed a stretch of rows at a
 * time, so that there is never a complete second copy of them. */

#include "models/qtensor_internal.h"

#include "base/cleanup.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "gpu/ggml_blocks.h"
#include "models/pack.h"
#include "models/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_BYTES 4096

/* Everything that is a choice goes by its name: numbers of enums are this build's alone. */
static json_t *scheme_json(const struct qtensor *q)
{
    const struct qscheme *s = &q->scheme;
    const struct ggml_block *block = s->kind == QTENSOR_BLOCKS ? ggml_block_find(s->block_type) : NULL;

    json_t *row = json_pack(
        "{s:s, s:s, s:i, s:I, s:I, s:b, s:b, s:b, s:i, s:s?, s:s, s:s, s:s, s:s, s:b, s:I, s:f, s:f, s:I, s:I, s:I}",
        "name", q->name, "kind", qtensor_kind_names[s->kind], "bits", s->bits, "group_size", (json_int_t)s->group_size,
        "group_rows", (json_int_t)s->group_rows, "per_channel", (int)s->per_channel, "sym", (int)s->sym, "nested",
        (int)s->nested, "codebooks", s->codebooks, "block_type", block != NULL ? block->name : NULL, "element",
        dtype_rows[s->element].name, "scale_dtype", dtype_rows[s->scale_dtype].name, "weight_dtype",
        dtype_rows[s->weight_dtype].name, "input_number", qtensor_input_name(s->input.element), "input_dynamic",
        (int)s->input.dynamic, "input_run", (json_int_t)s->input.group_size, "input_scale", (double)q->input_scale,
        "input_threshold", (double)s->input_threshold, "rows", (json_int_t)q->rows, "cols", (json_int_t)q->cols,
        "index_count", (json_int_t)q->index_count);
    if (row != NULL && q->tensor_scale != 0 &&
        json_object_set_new(row, "tensor_scale", json_real((double)q->tensor_scale)) != 0) {
        json_decref(row);
        row = NULL;
    }
    return row;
}

static int add_schemes(struct safetensors_writer *writer, const struct qtensor *items, int count)
{
    AUTO_JSON json_t *list = json_array();
    AUTO_FREE char *text = NULL;
    int failed = 0;

    for (int i = 0; i < count; i++) {
        failed |= json_array_append_new(list, scheme_json(&items[i]));
    }
    text = failed == 0 ? json_dumps(list, JSON_COMPACT) : NULL;
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d schemes", count);
    }
    TRY(safetensors_writer_metadata(writer, QTENSOR_VERSION_KEY, QTENSOR_VERSION));
    return safetensors_writer_metadata(writer, QTENSOR_SCHEMES, text);
}

static int declare_item(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);
    char name[160];

    for (int i = 0; i < count; i++) {
        qtensor_part_name(q, &parts[i], name);
        TRY(safetensors_writer_declare(writer, name, parts[i].dtype, 2,
                                       (const int64_t[]){parts[i].rows, qtensor_stored_cols(q, &parts[i])}));
    }
    return 0;
}

/* A code beyond its bits would be cut to another one without an error. */
static int pack_rows(const struct qtensor *q, const uint8_t *codes, int64_t rows, int64_t row_bytes, uint8_t *out)
{
    unsigned seen = 0;

    for (int64_t i = 0; i < rows * q->cols; i++) {
        seen |= codes[i];
    }
    if (seen >> q->scheme.bits != 0) {
        return err_set_module(err_raise(ERR_INTERNAL, "%s has codes of more than %d bits", q->name, q->scheme.bits),
                              q->name);
    }
    for (int64_t n = 0; n < rows; n++) {
        pack_codes(codes + n * q->cols, q->cols, q->scheme.bits, out + n * row_bytes);
    }
    return 0;
}

int qtensor_pack_rows(struct qtensor *q, int64_t first, int64_t rows, const uint8_t *codes)
{
    int64_t row_bytes = pack_bytes(q->cols, q->scheme.bits);

    if (!q->packed || first < 0 || rows > q->rows - first) {
        return err_raise(ERR_INTERNAL, "rows %lld and on of %s are not to be packed", (long long)first, q->name);
    }
    return pack_rows(q, codes, rows, row_bytes, q->codes + first * row_bytes);
}

static int put_packed(struct safetensors_writer *writer, const char *name, const struct qtensor *q, int64_t row_bytes)
{
    int64_t step = qtensor_stretch_rows(q->rows, row_bytes);
    AUTO_FREE uint8_t *stretch = NULL;

    TRY(mem_buffer(&stretch, (size_t)(step * row_bytes)));
    for (int64_t n = 0; n < q->rows; n += step) {
        int64_t rows = q->rows - n < step ? q->rows - n : step;
        TRY(pack_rows(q, q->codes + n * q->cols, rows, row_bytes, stretch));
        TRY(safetensors_writer_put(writer, name, (uint64_t)(n * row_bytes), stretch, (size_t)(rows * row_bytes)));
    }
    return 0;
}

static int put_item(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);
    char name[160];

    for (int i = 0; i < count; i++) {
        qtensor_part_name(q, &parts[i], name);
        TRY(qtensor_is_packed(q, &parts[i])
                ? put_packed(writer, name, q, qtensor_stored_cols(q, &parts[i]))
                : safetensors_writer_put(writer, name, 0, parts[i].data, qtensor_part_bytes(&parts[i])));
    }
    return 0;
}

/* One whose arrays are in the spill file; they are in memory for as long as they are written. */
static int put_spilled(struct safetensors_writer *writer, const struct qtensor *q, const struct qtensor_spill *spill)
{
    struct qtensor whole;

    TRY(qtensor_spill_read(spill, q, &whole));
    int rc = put_item(writer, &whole);
    qtensor_deinit(&whole);
    return rc;
}

static int write_items(struct safetensors_writer *writer, const struct qtensor *items, int count,
                       const struct qtensor_spill *spill)
{
    TRY(add_schemes(writer, items, count));

    for (int i = 0; i < count; i++) {
        TRY(declare_item(writer, &items[i]));
    }
    TRY(safetensors_writer_begin(writer));
    for (int i = 0; i < count; i++) {
        TRY(qtensor_spill_has(spill, &items[i]) ? put_spilled(writer, &items[i], spill) : put_item(writer, &items[i]));
    }
    return safetensors_writer_finish(writer);
}

static int hash_path(const char *path, char hex[DIGEST_HEX_SIZE])
{
    int64_t size;
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    return digest_file(fd, hex, &size);
}

/* Write to temp, which becomes path. */
static int save_file(const char *temp, const char *path, const struct qtensor *items, int count,
                     const struct qtensor_spill *spill, char digest[DIGEST_HEX_SIZE])
{
    {
        AUTO(safetensors_writer) struct safetensors_writer *writer = NULL;
        TRY(safetensors_writer_new(temp, &writer));
        TRY(write_items(writer, items, count, spill));
    }
    TRY(hash_path(temp, digest));
    return rename(temp, path) == 0 ? 0 : err_raise_errno(errno, "cannot rename to %s", path);
}

int qtensor_save(const char *path, const struct qtensor *items, int count, const struct qtensor_spill *spill,
                 char hex[65])
{
    char temp[PATH_BYTES], digest[DIGEST_HEX_SIZE];

    TRY(fs_path(temp, sizeof(temp), "%s.tmp", path));
    if (count < 0 || count > QTENSOR_ITEMS_MAX) {
        return err_raise(ERR_INTERNAL, "%d tensors in one checkpoint", count);
    }
    int rc = save_file(temp, path, items, count, spill, digest);
    if (rc != 0) {
        (void)unlink(temp);
        return err_pass(rc, "save %s", path);
    }
    TRY(fs_sync_parent(path));
    memcpy(hex, digest, sizeof(digest));
    return 0;
}
