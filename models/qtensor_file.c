/* A finished block on disk: one safetensors file, so that any reader can look into it.
 *
 * Item i is <name>.<part> for each of its parts (qtensor_parts); the schemes are a JSON list under "schemes" in
 * __metadata__, in the order that they were saved. Whatever disagrees with that is ERR_SOURCE_CORRUPT: the caller
 * throws the checkpoint away and solves the block again. */

#include "models/qtensor.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "models/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCHEMES "schemes"
#define ITEMS_MAX 4096
#define PATH_BYTES 4096

static void part_name(const struct qtensor *q, const struct qtensor_part *part, char out[160])
{
    snprintf(out, 160, "%s.%s", q->name, part->suffix);
}

static size_t part_bytes(const struct qtensor_part *part)
{
    return (size_t)part->rows * (size_t)part->cols * dtype_rows[part->dtype].bytes;
}

static json_t *scheme_json(const struct qtensor *q)
{
    const struct qscheme *s = &q->scheme;

    return json_pack(
        "{s:s, s:s, s:i, s:I, s:I, s:b, s:b, s:b, s:i, s:i, s:i, s:s, s:s, s:i, s:b, s:I, s:f, s:f, s:I, s:I, s:I}",
        "name", q->name, "kind", qtensor_kind_names[s->kind], "bits", s->bits, "group_size", (json_int_t)s->group_size,
        "group_rows", (json_int_t)s->group_rows, "per_channel", (int)s->per_channel, "sym", (int)s->sym, "nested",
        (int)s->nested, "codebooks", s->codebooks, "block_type", s->block_type, "element", (int)s->element,
        "scale_dtype", dtype_rows[s->scale_dtype].name, "weight_dtype", dtype_rows[s->weight_dtype].name,
        "input_number", (int)s->input.number, "input_dynamic", (int)s->input.dynamic, "input_run",
        (json_int_t)s->input.run, "input_scale", (double)q->input_scale, "input_threshold", (double)s->input_threshold,
        "rows", (json_int_t)q->rows, "cols", (json_int_t)q->cols, "index_count", (json_int_t)q->index_count);
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
    int rc = safetensors_writer_metadata(writer, SCHEMES, text);
    free(text);
    return rc;
}

static int declare_item(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts), rc = 0;
    char name[160];

    for (int i = 0; rc == 0 && i < count; i++) {
        part_name(q, &parts[i], name);
        rc = safetensors_writer_declare(writer, name, parts[i].dtype, 2,
                                        (const int64_t[]){parts[i].rows, parts[i].cols});
    }
    return rc;
}

static int put_item(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts), rc = 0;
    char name[160];

    for (int i = 0; rc == 0 && i < count; i++) {
        part_name(q, &parts[i], name);
        rc = safetensors_writer_put(writer, name, 0, parts[i].data, part_bytes(&parts[i]));
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
    if (rc != 0 || count < 0 || count > ITEMS_MAX) {
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

struct qtensor_file {
    struct safetensors *file;
    struct qtensor *items; /* arrays NULL */
    int count;
};

static int corrupt(const char *name, const char *what)
{
    return err_raise(ERR_SOURCE_CORRUPT, "checkpoint of %.127s: %s", name, what);
}

static int kind_of(const char *name)
{
    for (int kind = 0; name != NULL && kind < QTENSOR_KIND_COUNT; kind++) {
        if (strcmp(qtensor_kind_names[kind], name) == 0) {
            return kind;
        }
    }
    return -1;
}

static bool get_int(const json_t *row, const char *key, int64_t max, int64_t *out)
{
    return json_get_int(row, key, 0, max, out) == 1;
}

static bool parse_input(const json_t *row, struct qtensor *q)
{
    int64_t number = 0, run = 0;
    _Bool dynamic = false;
    double scale = 0, threshold = 0;

    if (!get_int(row, "input_number", GPU_NUMBER_E4M3, &number) || !get_int(row, "input_run", INT32_MAX, &run) ||
        json_get_bool(row, "input_dynamic", &dynamic) != 1 || json_get_number(row, "input_scale", &scale) != 1 ||
        json_get_number(row, "input_threshold", &threshold) != 1) {
        return false;
    }
    q->scheme.input = (struct gpu_input){.number = (enum gpu_number)number, .dynamic = dynamic, .run = run};
    q->scheme.input_threshold = (float)threshold;
    q->input_scale = (float)scale;
    return true;
}

static bool parse_scheme(const json_t *row, struct qscheme *out)
{
    const char *scale = json_get_string(row, "scale_dtype"), *source = json_get_string(row, "weight_dtype");
    int kind = kind_of(json_get_string(row, "kind")), dtype = scale != NULL ? dtype_from_name(scale) : -1;
    int weight = source != NULL ? dtype_from_name(source) : -1;
    int64_t bits = 0, group_size = 0, group_rows = 0, codebooks = 0, block_type = 0, element = 0;
    _Bool per_channel = false, sym = false, nested = false;

    if (kind < 0 || dtype < 0 || weight < 0 || !get_int(row, "bits", 32, &bits) ||
        !get_int(row, "group_size", INT64_MAX, &group_size) || !get_int(row, "group_rows", INT32_MAX, &group_rows) ||
        !get_int(row, "codebooks", 64, &codebooks) || !get_int(row, "block_type", 255, &block_type) ||
        !get_int(row, "element", DTYPE_COUNT - 1, &element) || json_get_bool(row, "per_channel", &per_channel) != 1 ||
        json_get_bool(row, "sym", &sym) != 1 || json_get_bool(row, "nested", &nested) != 1) {
        return false;
    }
    *out = (struct qscheme){.kind = (enum qtensor_kind)kind,
                            .bits = (int)bits,
                            .group_size = group_size,
                            .group_rows = group_rows,
                            .per_channel = per_channel,
                            .sym = sym,
                            .nested = nested,
                            .codebooks = (int)codebooks,
                            .block_type = (int)block_type,
                            .element = (enum dtype)element,
                            .scale_dtype = (enum dtype)dtype,
                            .weight_dtype = (enum dtype)weight};
    return true;
}

/* One scheme, through the checks that a new tensor goes through. The arrays stay away. */
static int parse_item(const json_t *row, struct qtensor *out)
{
    const char *name = json_get_string(row, "name");
    struct qtensor q = {0};
    int64_t rows = 0, cols = 0, index_count = 0;

    if (name == NULL || !parse_scheme(row, &q.scheme) || !parse_input(row, &q) ||
        !get_int(row, "rows", INT32_MAX, &rows) || !get_int(row, "cols", INT32_MAX, &cols) || rows < 1 || cols < 1 ||
        !get_int(row, "index_count", rows * cols, &index_count) ||
        qtensor_describe(name, &q.scheme, rows, cols, index_count, out) != 0) {
        return corrupt(name != NULL ? name : "a block", "its scheme is damaged");
    }
    out->input_scale = q.input_scale;
    return 0;
}

/* Adds the number of parts to *total. */
static int check_parts(const struct qtensor_file *file, const struct qtensor *q, size_t *total)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);
    char name[160];

    for (int i = 0; i < count; i++) {
        part_name(q, &parts[i], name);
        const struct safetensors_entry *entry = safetensors_find(file->file, name);
        if (entry == NULL || entry->dtype != parts[i].dtype || entry->rank != 2 || entry->shape[0] != parts[i].rows ||
            entry->shape[1] != parts[i].cols) {
            return corrupt(q->name, "an array is missing or has another shape than its scheme");
        }
    }
    *total += (size_t)count;
    return 0;
}

static int parse_items(struct qtensor_file *file, const json_t *list)
{
    size_t count = json_array_size(list), parts = 0;

    if (!json_is_array(list) || count > ITEMS_MAX) {
        return corrupt("a block", "its list of schemes is damaged");
    }
    file->items = calloc(count + 1, sizeof(*file->items));
    if (file->items == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu schemes", count);
    }
    for (size_t i = 0; i < count; i++) {
        int rc = parse_item(json_array_get(list, i), &file->items[i]);
        rc = rc != 0 ? rc : check_parts(file, &file->items[i], &parts);
        if (rc != 0) {
            return rc;
        }
        file->count++;
    }
    return safetensors_count(file->file) == parts ? 0
                                                  : corrupt("a block", "its list of schemes does not fit its arrays");
}

static int load_schemes(struct qtensor_file *file)
{
    json_t *list = NULL;
    const char *text = safetensors_metadata(file->file, SCHEMES);

    if (text == NULL || json_parse(text, strlen(text), 4, &list) != 0) {
        return corrupt("a block", "it has no list of schemes");
    }
    int rc = parse_items(file, list);
    json_decref(list);
    return rc;
}

static int verify(int fd, const char *path, const char *expected_hex)
{
    char hex[DIGEST_HEX_SIZE];
    int64_t size;
    int rc = expected_hex != NULL ? digest_file(fd, hex, &size) : 0;

    if (rc == 0 && expected_hex != NULL && strcmp(hex, expected_hex) != 0) {
        rc = err_raise(ERR_SOURCE_CORRUPT, "checkpoint %s does not have the digest that it was saved with", path);
    }
    return rc;
}

int qtensor_file_open(const char *path, const char *expected_hex, struct qtensor_file **out)
{
    struct qtensor_file *file = calloc(1, sizeof(*file));
    if (file == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %s", path);
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int saved = errno;
        free(file);
        return saved == ENOENT ? err_raise(ERR_SOURCE_CORRUPT, "checkpoint %s is gone", path)
                               : err_raise_errno(saved, "cannot open %s", path);
    }
    int rc = verify(fd, path, expected_hex);
    if (rc != 0) {
        close(fd);
    } else {
        rc = safetensors_open_fd_take(fd, path, &file->file);
        if (rc == ERR_INVALID_MODEL) {
            rc = err_raise(ERR_SOURCE_CORRUPT, "%s", err_last()->message);
        }
    }
    rc = rc != 0 ? rc : load_schemes(file);
    if (rc != 0) {
        qtensor_file_close(file);
        return rc;
    }
    *out = file;
    return 0;
}

void qtensor_file_close(struct qtensor_file *file)
{
    if (file == NULL) {
        return;
    }
    safetensors_close(file->file);
    free(file->items);
    free(file);
}

int qtensor_file_count(const struct qtensor_file *file)
{
    return file->count;
}

const struct qtensor *qtensor_file_meta(const struct qtensor_file *file, int i)
{
    return &file->items[i];
}

static bool all_finite(const float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            return false;
        }
    }
    return true;
}

static unsigned largest_byte(const uint8_t *bytes, size_t count)
{
    unsigned most = 0;
    for (size_t i = 0; i < count; i++) {
        most = bytes[i] > most ? bytes[i] : most;
    }
    return most;
}

/* The largest value that a part of integers may hold, by the tensor's kind. */
static int64_t most_of(const struct qtensor *q, const char *suffix)
{
    if (strcmp(suffix, "index") == 0) {
        return (q->scheme.kind == QTENSOR_TABLE ? q->rows * q->cols : q->cols) - 1;
    }
    bool bytes = q->scheme.kind == QTENSOR_BLOCKS || q->scheme.kind == QTENSOR_FLOAT8 ||
                 (q->scheme.kind == QTENSOR_NF4 && strcmp(suffix, "zeros") == 0);
    return bytes ? 255 : ((int64_t)1 << q->scheme.bits) - 1;
}

static bool part_fits(const struct qtensor *q, const struct qtensor_part *part)
{
    int64_t count = part->rows * part->cols, most = most_of(q, part->suffix);

    if (part->dtype == DTYPE_F32) {
        return all_finite(part->data, count);
    }
    if (part->dtype == DTYPE_U8) {
        return (int64_t)largest_byte(part->data, (size_t)count) <= most;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t value = part->dtype == DTYPE_U16 ? ((const uint16_t *)part->data)[i] : ((const int32_t *)part->data)[i];
        if (value < 0 || value > most) {
            return false;
        }
    }
    return true;
}

/* Codes on their grid, scales and tables finite: what formats pack and methods divide by. */
static int check_values(const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);

    for (int i = 0; i < count; i++) {
        if (!part_fits(q, &parts[i])) {
            return corrupt(q->name,
                           parts[i].dtype == DTYPE_F32 ? "a scale is not finite" : "a code is outside its grid");
        }
    }
    return 0;
}

int qtensor_file_read(struct qtensor_file *file, int i, struct qtensor *out)
{
    const struct qtensor *meta = &file->items[i];
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    struct qtensor q = {0};
    char name[160];

    int rc = qtensor_new(meta->name, &meta->scheme, meta->rows, meta->cols, &q);
    rc = rc != 0 || meta->index_count == 0 ? rc : qtensor_reserve_index(&q, meta->index_count);
    int count = rc == 0 ? qtensor_parts(&q, parts) : 0;
    for (int k = 0; rc == 0 && k < count; k++) {
        part_name(meta, &parts[k], name);
        rc = safetensors_read(file->file, safetensors_find(file->file, name), 0, parts[k].data, part_bytes(&parts[k]));
    }
    rc = rc != 0 ? rc : check_values(&q);
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_pass(rc, "read %s", meta->name);
    }
    q.input_scale = meta->input_scale;
    *out = q;
    return 0;
}
