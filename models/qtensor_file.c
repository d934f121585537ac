/* A finished block on disk: one safetensors file, so that any reader can look into it.
 *
 * Item i is <name>.<part> for each of its parts (qtensor_parts); the schemes are a JSON list under "schemes" in
 * __metadata__, in the order that they were saved, next to the "version" of all this. Codes of fewer than eight bits
 * are packed: each row is a little-endian stream that ends in zero bits up to a complete byte, and the array in the
 * file is as wide as that. Whatever disagrees with this is ERR_SOURCE_CORRUPT, another version ERR_UNSUPPORTED: the
 * caller throws the checkpoint away and solves the block again.
 */

#include "models/qtensor_internal.h"

#include "base/cleanup.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "gpu/ggml_blocks.h"
#include "models/pack.h"
#include "models/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STRETCH_BYTES ((int64_t)1 << 20)
#define SCHEMES_MEMORY_MAX ((size_t)4096 * QTENSOR_ITEMS_MAX) /* of their parsed list */

void qtensor_part_name(const struct qtensor *q, const struct qtensor_part *part, char out[160])
{
    snprintf(out, 160, "%s.%s", q->name, part->suffix);
}

size_t qtensor_part_bytes(const struct qtensor_part *part)
{
    return (size_t)part->rows * (size_t)part->cols * dtype_rows[part->dtype].bytes;
}

bool qtensor_is_packed(const struct qtensor *q, const struct qtensor_part *part)
{
    enum qtensor_kind kind = q->scheme.kind;

    return (qtensor_scaling(kind) != NULL || kind == QTENSOR_TABLE) && q->scheme.bits < 8 && !q->packed &&
           strcmp(part->suffix, "codes") == 0;
}

int64_t qtensor_stored_cols(const struct qtensor *q, const struct qtensor_part *part)
{
    return qtensor_is_packed(q, part) ? pack_bytes(part->cols, q->scheme.bits) : part->cols;
}

int64_t qtensor_stretch_rows(int64_t rows, int64_t row_bytes)
{
    int64_t limit = STRETCH_BYTES / row_bytes;

    return limit < 1 ? 1 : limit < rows ? limit : rows;
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

static const struct input_name {
    enum dtype element;
    const char *name;
} input_names[] = {{DTYPE_F32, "none"}, {DTYPE_I8, "int8"}, {DTYPE_F8_E4M3, "e4m3"}};
#define INPUT_NAMES (sizeof(input_names) / sizeof(input_names[0]))

const char *qtensor_input_name(enum dtype element)
{
    for (size_t i = 0; i < INPUT_NAMES; i++) {
        if (input_names[i].element == element) {
            return input_names[i].name;
        }
    }
    return NULL;
}

static const struct input_name *find_input(const char *name)
{
    for (size_t i = 0; name != NULL && i < INPUT_NAMES; i++) {
        if (strcmp(input_names[i].name, name) == 0) {
            return &input_names[i];
        }
    }
    return NULL;
}

/* -1: none of them. */
static int place_of(const char *name, const char *const *names, int count)
{
    for (int i = 0; name != NULL && i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static int dtype_of(const json_t *row, const char *key)
{
    const char *name = json_get_string(row, key);

    return name != NULL ? dtype_from_name(name) : -1;
}

/* Only GGUF blocks have a type; 0 for all else, -1 for an unknown name. */
static int block_type_of(const json_t *row, int kind)
{
    const char *name = json_get_string(row, "block_type");

    if (kind != QTENSOR_BLOCKS) {
        return 0;
    }
    for (const struct ggml_block *block = ggml_blocks; name != NULL && block->name != NULL; block++) {
        if (strcmp(block->name, name) == 0) {
            return block->type;
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
    const struct input_name *input = find_input(json_get_string(row, "input_number"));
    int64_t group = 0;
    _Bool dynamic = false;
    double scale = 0, threshold = 0, tensor_scale = 0;

    if (input == NULL || !get_int(row, "input_run", INT32_MAX, &group) ||
        json_get_bool(row, "input_dynamic", &dynamic) != 1 || json_get_number(row, "input_scale", &scale) != 1 ||
        json_get_number(row, "input_threshold", &threshold) != 1 ||
        json_get_number(row, "tensor_scale", &tensor_scale) < 0 || !(tensor_scale >= 0 && tensor_scale <= FLT_MAX)) {
        return false;
    }
    q->scheme.input = (struct gpu_input){.element = input->element, .dynamic = dynamic, .group_size = group};
    q->scheme.input_threshold = (float)threshold;
    q->input_scale = (float)scale;
    q->tensor_scale = (float)tensor_scale;
    return true;
}

static bool has_small_scales(enum qtensor_kind kind)
{
    const struct qtensor_scaling *scaling = qtensor_scaling(kind);

    return scaling != NULL && scaling->small_scales;
}

static bool parse_scheme(const json_t *row, struct qscheme *out)
{
    int kind = place_of(json_get_string(row, "kind"), qtensor_kind_names, QTENSOR_KIND_COUNT);
    int scale = dtype_of(row, "scale_dtype"), weight = dtype_of(row, "weight_dtype"),
        element = dtype_of(row, "element");
    int block_type = block_type_of(row, kind);
    int64_t bits = 0, group_size = 0, group_rows = 0, codebooks = 0;
    _Bool per_channel = false, sym = false, nested = false;

    if (kind < 0 || scale < 0 || weight < 0 || element < 0 || block_type < 0 || !get_int(row, "bits", 32, &bits) ||
        !get_int(row, "group_size", INT32_MAX, &group_size) || !get_int(row, "group_rows", INT32_MAX, &group_rows) ||
        !get_int(row, "codebooks", 64, &codebooks) || json_get_bool(row, "per_channel", &per_channel) != 1 ||
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
                            .block_type = block_type,
                            .element = (enum dtype)element,
                            .scale_dtype = (enum dtype)scale,
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
        qtensor_describe(name, &q.scheme, rows, cols, index_count, out) != 0 ||
        (q.tensor_scale != 0 && !has_small_scales(q.scheme.kind))) {
        return corrupt(name != NULL ? name : "a block", "its scheme is damaged");
    }
    out->input_scale = q.input_scale;
    out->tensor_scale = q.tensor_scale;
    return 0;
}

/* Adds the number of parts to *total. */
static int check_parts(const struct qtensor_file *file, const struct qtensor *q, size_t *total)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);
    char name[160];

    for (int i = 0; i < count; i++) {
        qtensor_part_name(q, &parts[i], name);
        const struct safetensors_entry *entry = safetensors_find(file->file, name);
        if (entry == NULL || entry->dtype != parts[i].dtype || entry->rank != 2 || entry->shape[0] != parts[i].rows ||
            entry->shape[1] != qtensor_stored_cols(q, &parts[i])) {
            return corrupt(q->name, "an array is missing or has another shape than its scheme");
        }
    }
    *total += (size_t)count;
    return 0;
}

static int parse_items(struct qtensor_file *file, const json_t *list)
{
    size_t count = json_array_size(list), parts = 0;

    if (!json_is_array(list) || count > QTENSOR_ITEMS_MAX) {
        return corrupt("a block", "its list of schemes is damaged");
    }
    TRY(mem_array(&file->items, count));
    for (size_t i = 0; i < count; i++) {
        TRY(parse_item(json_array_get(list, i), &file->items[i]));
        TRY(check_parts(file, &file->items[i], &parts));
        file->count++;
    }
    return safetensors_count(file->file) == parts ? 0
                                                  : corrupt("a block", "its list of schemes does not fit its arrays");
}

static int load_schemes(struct qtensor_file *file)
{
    const struct json_budget budget = {.depth = 4, .memory = SCHEMES_MEMORY_MAX};
    AUTO_JSON json_t *list = NULL;
    const char *version = safetensors_metadata(file->file, QTENSOR_VERSION_KEY);
    const char *text = safetensors_metadata(file->file, QTENSOR_SCHEMES);

    if (version == NULL || strcmp(version, QTENSOR_VERSION) != 0) {
        return err_raise(ERR_UNSUPPORTED, "the file of a block has version %.16s, and this build reads %s",
                         version != NULL ? version : "0", QTENSOR_VERSION);
    }

    if (text == NULL || json_parse_within(text, strlen(text), &budget, &list) != 0) {
        return corrupt("a block", "it has no list of schemes");
    }
    return parse_items(file, list);
}

static int verify(int fd, const char *path, const char *expected_hex)
{
    char hex[DIGEST_HEX_SIZE];
    int64_t size;

    if (expected_hex == NULL) {
        return 0;
    }
    TRY(digest_file(fd, hex, &size));
    if (strcmp(hex, expected_hex) != 0) {
        return err_raise(ERR_SOURCE_CORRUPT, "checkpoint %s does not have the digest that it was saved with", path);
    }
    return 0;
}

int qtensor_file_open(const char *path, const char *expected_hex, struct qtensor_file **out)
{
    AUTO(qtensor_file) struct qtensor_file *file = NULL;
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return errno == ENOENT ? err_raise(ERR_SOURCE_CORRUPT, "checkpoint %s is gone", path)
                               : err_raise_errno(errno, "cannot open %s", path);
    }
    TRY(verify(fd, path, expected_hex));
    TRY(mem_new(&file));
    int rc = safetensors_open_fd_take(cleanup_move_fd(&fd), path, &file->file);
    if (rc == ERR_INVALID_MODEL) {
        return err_raise(ERR_SOURCE_CORRUPT, "%s", err_last()->message);
    }
    TRY(rc);
    TRY(load_schemes(file));
    *out = MOVE(file);
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

/* Small types have few numbers: another one was never a scale. */
static bool all_stored(const float *scales, int64_t count, enum dtype dtype)
{
    for (int64_t i = 0; i < count && (dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_E8M0); i++) {
        if (dtype_round_scale(scales[i], dtype) != scales[i]) {
            return false;
        }
    }
    return true;
}

static unsigned largest_byte(const uint8_t *bytes, size_t count)
{
    unsigned limit = 0;
    for (size_t i = 0; i < count; i++) {
        limit = bytes[i] > limit ? bytes[i] : limit;
    }
    return limit;
}

/* The largest value that a part of integers may hold, by the tensor's kind. */
static int64_t largest_of(const struct qtensor *q, const char *suffix)
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
    if (qtensor_is_packed(q, part)) {
        return true; /* no more than their bits were unpacked */
    }
    int64_t count = part->rows * part->cols, limit = largest_of(q, part->suffix);

    if (part->dtype == DTYPE_F32) {
        return all_finite(part->data, count) &&
               (strcmp(part->suffix, "scales") != 0 || all_stored(part->data, count, q->scheme.scale_dtype));
    }
    if (part->dtype == DTYPE_U8) {
        return (int64_t)largest_byte(part->data, (size_t)count) <= limit;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t value = part->dtype == DTYPE_U16 ? ((const uint16_t *)part->data)[i] : ((const int32_t *)part->data)[i];
        if (value < 0 || value > limit) {
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
        if (parts[i].data != NULL && !part_fits(q, &parts[i])) {
            return corrupt(q->name, parts[i].dtype == DTYPE_F32 ? "a scale is not finite, or not of its type"
                                                                : "a code is outside its grid");
        }
    }
    return 0;
}

/* Whether the bits after the last code of a row are zero. */
static bool row_is_padded(const struct qtensor *q, const uint8_t *packed, int64_t row_bytes)
{
    int used = (int)(q->cols % 8 * q->scheme.bits % 8);

    return used == 0 || packed[row_bytes - 1] >> used == 0;
}

static int unpack_rows(const struct qtensor *q, int64_t first, int64_t rows, int64_t row_bytes, const uint8_t *packed)
{
    for (int64_t n = 0; n < rows; n++) {
        if (!row_is_padded(q, packed + n * row_bytes, row_bytes)) {
            return corrupt(q->name, "a row of packed codes does not end in zeros");
        }
        pack_uncodes(packed + n * row_bytes, q->cols, q->scheme.bits, q->codes + (first + n) * q->cols);
    }
    return 0;
}

static int read_packed(const struct qtensor_file *file, const char *name, const struct qtensor *q, int64_t row_bytes)
{
    const struct safetensors_entry *entry = safetensors_find(file->file, name);
    int64_t step = qtensor_stretch_rows(q->rows, row_bytes);
    AUTO_FREE uint8_t *stretch = NULL;

    TRY(mem_buffer(&stretch, (size_t)(step * row_bytes)));
    for (int64_t n = 0; n < q->rows; n += step) {
        int64_t rows = q->rows - n < step ? q->rows - n : step;
        TRY(safetensors_read(file->file, entry, (uint64_t)(n * row_bytes), stretch, (size_t)(rows * row_bytes)));
        TRY(unpack_rows(q, n, rows, row_bytes, stretch));
    }
    return 0;
}

static int read_part(const struct qtensor_file *file, const struct qtensor *q, const struct qtensor_part *part)
{
    char name[160];

    qtensor_part_name(q, part, name);
    return qtensor_is_packed(q, part) ? read_packed(file, name, q, qtensor_stored_cols(q, part))
                                      : safetensors_read(file->file, safetensors_find(file->file, name), 0, part->data,
                                                         qtensor_part_bytes(part));
}

static int read_parts(const struct qtensor_file *file, struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);

    for (int k = 0; k < count; k++) {
        if (parts[k].data != NULL) {
            TRY(read_part(file, q, &parts[k]));
        }
    }
    return check_values(q);
}

static int read_item(const struct qtensor_file *file, int i, bool codes, struct qtensor *out)
{
    const struct qtensor *meta = &file->items[i];
    AUTO(qtensor) struct qtensor q = {0};

    TRY(codes ? qtensor_new(meta->name, &meta->scheme, meta->rows, meta->cols, &q)
              : qtensor_new_without_codes(meta->name, &meta->scheme, meta->rows, meta->cols, &q));
    if (meta->index_count > 0) {
        TRY(qtensor_reserve_index(&q, meta->index_count));
    }
    int rc = read_parts(file, &q);
    if (rc != 0) {
        return err_pass(rc, "read %s", meta->name);
    }
    q.input_scale = meta->input_scale;
    q.tensor_scale = meta->tensor_scale;
    *out = qtensor_move(&q);
    return 0;
}

int qtensor_file_read(struct qtensor_file *file, int i, struct qtensor *out)
{
    return read_item(file, i, true, out);
}

int qtensor_file_read_stored(const struct qtensor_file *file, int i, const char *suffix, uint64_t all, uint64_t at,
                             void *out, size_t size)
{
    const struct qtensor *q = &file->items[i];
    const struct qtensor_part part = {.suffix = suffix};
    char name[160];

    qtensor_part_name(q, &part, name);
    const struct safetensors_entry *entry = safetensors_find(file->file, name);
    if (entry == NULL || entry->end - entry->begin != all) {
        return corrupt(q->name, "an array does not have the size of the tensor that is made of it");
    }
    return safetensors_read(file->file, entry, at, out, size);
}

int qtensor_file_read_without_codes(struct qtensor_file *file, int i, struct qtensor *out)
{
    return read_item(file, i, false, out);
}
