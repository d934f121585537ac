/* Writing the file of a finished block: qtensor_file.c says what is in it. Codes are packed a stretch of rows at a
 * time, so that no second copy of them is ever whole. */

#include "models/qtensor_internal.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"
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
    json_t *list = json_array();
    int failed = 0;

    for (int i = 0; i < count; i++) {
        failed |= json_array_append_new(list, scheme_json(&items[i]));
    }
    char *text = failed == 0 ? json_dumps(list, JSON_COMPACT) : NULL;
    json_decref(list);
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d schemes", count);
    }
    int rc = safetensors_writer_metadata(writer, QTENSOR_VERSION_KEY, QTENSOR_VERSION);
    rc = rc != 0 ? rc : safetensors_writer_metadata(writer, QTENSOR_SCHEMES, text);
    free(text);
    return rc;
}

static int declare_item(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts), rc = 0;
    char name[160];

    for (int i = 0; rc == 0 && i < count; i++) {
        qtensor_part_name(q, &parts[i], name);
        rc = safetensors_writer_declare(writer, name, parts[i].dtype, 2,
                                        (const int64_t[]){parts[i].rows, qtensor_stored_cols(q, &parts[i])});
    }
    return rc;
}

/* Rows from the stretch's first on, packed. A code beyond its bits would be cut to another one without a word. */
static int pack_rows(const struct qtensor *q, int64_t first, int64_t rows, int64_t row_bytes, uint8_t *out)
{
    const uint8_t *codes = q->codes + first * q->cols;
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

static int put_packed(struct safetensors_writer *writer, const char *name, const struct qtensor *q, int64_t row_bytes)
{
    int64_t most = qtensor_stretch_rows(q->rows, row_bytes);
    uint8_t *stretch = malloc((size_t)(most * row_bytes));
    int rc = 0;

    if (stretch == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to pack %s", name);
    }
    for (int64_t n = 0; rc == 0 && n < q->rows; n += most) {
        int64_t rows = q->rows - n < most ? q->rows - n : most;
        rc = pack_rows(q, n, rows, row_bytes, stretch);
        rc = rc != 0
                 ? rc
                 : safetensors_writer_put(writer, name, (uint64_t)(n * row_bytes), stretch, (size_t)(rows * row_bytes));
    }
    free(stretch);
    return rc;
}

static int put_item(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts), rc = 0;
    char name[160];

    for (int i = 0; rc == 0 && i < count; i++) {
        qtensor_part_name(q, &parts[i], name);
        rc = qtensor_is_packed(q, &parts[i])
                 ? put_packed(writer, name, q, qtensor_stored_cols(q, &parts[i]))
                 : safetensors_writer_put(writer, name, 0, parts[i].data, qtensor_part_bytes(&parts[i]));
    }
    return rc;
}

static int write_items(struct safetensors_writer *writer, const struct qtensor *items, int count)
{
    int rc = add_schemes(writer, items, count);

    for (int i = 0; rc == 0 && i < count; i++) {
        rc = declare_item(writer, &items[i]);
    }
    rc = rc != 0 ? rc : safetensors_writer_begin(writer);
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = put_item(writer, &items[i]);
    }
    return rc != 0 ? rc : safetensors_writer_finish(writer);
}

static int hash_path(const char *path, char hex[DIGEST_HEX_SIZE])
{
    int64_t size;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    int rc = digest_file(fd, hex, &size);
    close(fd);
    return rc;
}

int qtensor_save(const char *path, const struct qtensor *items, int count, char hex[65])
{
    struct safetensors_writer *writer = NULL;
    char temp[PATH_BYTES], digest[DIGEST_HEX_SIZE];

    int rc = fs_path(temp, sizeof(temp), "%s.tmp", path);
    if (rc != 0 || count < 0 || count > QTENSOR_ITEMS_MAX) {
        return rc != 0 ? rc : err_raise(ERR_INTERNAL, "%d tensors in one checkpoint", count);
    }
    rc = safetensors_writer_new(temp, &writer);
    rc = rc != 0 ? rc : write_items(writer, items, count);
    safetensors_writer_free(writer);
    rc = rc != 0 ? rc : hash_path(temp, digest);
    if (rc == 0 && rename(temp, path) != 0) {
        rc = err_raise_errno(errno, "cannot rename to %s", path);
    }
    if (rc != 0) {
        (void)unlink(temp);
        return err_pass(rc, "save %s", path);
    }
    rc = fs_sync_parent(path);
    if (rc == 0) {
        memcpy(hex, digest, sizeof(digest));
    }
    return rc;
}
