/* A finished block on disk: one safetensors file, so that any reader can look into it.
 *
 * Item i is <name>.codes U8 [rows, cols], <name>.scales F32 [rows, groups] and <name>.zeros U8 [rows, groups]; the
 * schemes are a JSON list under "schemes" in __metadata__, in the order that they were saved. Whatever disagrees
 * with that is ERR_SOURCE_CORRUPT: the caller throws the checkpoint away and solves the block again. */

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

enum part { PART_CODES, PART_SCALES, PART_ZEROS, PART_COUNT };

static const struct part_row {
    const char *suffix;
    enum dtype dtype;
} parts[PART_COUNT] = {{"codes", DTYPE_U8}, {"scales", DTYPE_F32}, {"zeros", DTYPE_U8}};

static void part_name(const struct qtensor *q, enum part part, char out[160])
{
    snprintf(out, 160, "%s.%s", q->name, parts[part].suffix);
}

static int64_t part_columns(const struct qtensor *q, enum part part)
{
    return part == PART_CODES ? q->cols : q->groups;
}

static void *part_data(const struct qtensor *q, enum part part)
{
    return part == PART_CODES ? (void *)q->codes : part == PART_SCALES ? (void *)q->scales : (void *)q->zeros;
}

static size_t part_bytes(const struct qtensor *q, enum part part)
{
    return (size_t)q->rows * (size_t)part_columns(q, part) * dtype_rows[parts[part].dtype].bytes;
}

static json_t *scheme_json(const struct qtensor *q)
{
    const struct qscheme *s = &q->scheme;

    return json_pack("{s:s, s:s, s:i, s:I, s:b, s:b, s:s, s:I, s:I}", "name", q->name, "kind", "int", "bits", s->bits,
                     "group_size", (json_int_t)s->group_size, "per_channel", s->per_channel, "sym", s->sym,
                     "scale_dtype", dtype_rows[s->scale_dtype].name, "rows", (json_int_t)q->rows, "cols",
                     (json_int_t)q->cols);
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

static int write_items(struct safetensors_writer *writer, const struct qtensor *items, int count)
{
    char name[160];
    int rc = add_schemes(writer, items, count);

    for (int i = 0; rc == 0 && i < count * PART_COUNT; i++) {
        const struct qtensor *q = &items[i / PART_COUNT];
        enum part part = (enum part)(i % PART_COUNT);
        part_name(q, part, name);
        rc = safetensors_writer_declare(writer, name, parts[part].dtype, 2,
                                        (const int64_t[]){q->rows, part_columns(q, part)});
    }
    rc = rc != 0 ? rc : safetensors_writer_begin(writer);
    for (int i = 0; rc == 0 && i < count * PART_COUNT; i++) {
        const struct qtensor *q = &items[i / PART_COUNT];
        enum part part = (enum part)(i % PART_COUNT);
        part_name(q, part, name);
        rc = safetensors_writer_put(writer, name, 0, part_data(q, part), part_bytes(q, part));
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

static int sync_parent(const char *path)
{
    char parent[PATH_BYTES];
    int rc = fs_path(parent, sizeof(parent), "%s", path);
    if (rc != 0) {
        return rc;
    }
    char *slash = strrchr(parent, '/');
    if (slash == NULL) {
        return fs_sync_dir(".");
    }
    *(slash == parent ? slash + 1 : slash) = '\0';
    return fs_sync_dir(parent);
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
    rc = sync_parent(path);
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

/* One scheme, through the checks that a new tensor goes through. */
static int parse_item(const json_t *row, struct qtensor *out)
{
    const char *name = json_get_string(row, "name"), *kind = json_get_string(row, "kind");
    const char *scale = json_get_string(row, "scale_dtype");
    int64_t bits = 0, group_size = 0, rows = 0, cols = 0;
    _Bool per_channel = false, sym = false;

    if (name == NULL || kind == NULL || strcmp(kind, "int") != 0 || scale == NULL || dtype_from_name(scale) < 0 ||
        json_get_int(row, "bits", 2, 8, &bits) != 1 || json_get_int(row, "rows", 1, INT32_MAX, &rows) != 1 ||
        json_get_int(row, "cols", 1, INT32_MAX, &cols) != 1 ||
        json_get_int(row, "group_size", 1, cols, &group_size) != 1 || cols % group_size != 0 ||
        json_get_bool(row, "per_channel", &per_channel) != 1 || json_get_bool(row, "sym", &sym) != 1 ||
        strlen(name) >= sizeof(out->name)) {
        return corrupt(name != NULL ? name : "a block", "its scheme is damaged");
    }
    *out = (struct qtensor){.scheme = {.bits = (int)bits,
                                       .group_size = group_size,
                                       .per_channel = per_channel,
                                       .sym = sym,
                                       .scale_dtype = (enum dtype)dtype_from_name(scale)},
                            .rows = rows,
                            .cols = cols,
                            .groups = cols / group_size};
    snprintf(out->name, sizeof(out->name), "%s", name);
    return 0;
}

static int check_parts(const struct qtensor_file *file, const struct qtensor *q)
{
    char name[160];

    for (int part = 0; part < PART_COUNT; part++) {
        part_name(q, (enum part)part, name);
        const struct safetensors_entry *entry = safetensors_find(file->file, name);
        if (entry == NULL || entry->dtype != parts[part].dtype || entry->rank != 2 || entry->shape[0] != q->rows ||
            entry->shape[1] != part_columns(q, (enum part)part)) {
            return corrupt(q->name, "an array is missing or has another shape than its scheme");
        }
    }
    return 0;
}

static int parse_items(struct qtensor_file *file, const json_t *list)
{
    size_t count = json_array_size(list);

    if (!json_is_array(list) || count > ITEMS_MAX || safetensors_count(file->file) != count * PART_COUNT) {
        return corrupt("a block", "its list of schemes does not fit its arrays");
    }
    file->items = calloc(count + 1, sizeof(*file->items));
    if (file->items == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu schemes", count);
    }
    for (size_t i = 0; i < count; i++) {
        int rc = parse_item(json_array_get(list, i), &file->items[i]);
        rc = rc != 0 ? rc : check_parts(file, &file->items[i]);
        if (rc != 0) {
            return rc;
        }
        file->count++;
    }
    return 0;
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

/* Codes and zeros on the grid, scales finite: what formats pack and methods divide by. */
static int check_values(const struct qtensor *q)
{
    size_t codes = part_bytes(q, PART_CODES), groups = part_bytes(q, PART_ZEROS);
    unsigned most = (1u << q->scheme.bits) - 1, worst = 0;

    for (size_t i = 0; i < codes; i++) {
        worst = q->codes[i] > worst ? q->codes[i] : worst;
    }
    for (size_t i = 0; i < groups; i++) {
        worst = q->zeros[i] > worst ? q->zeros[i] : worst;
        if (!isfinite(q->scales[i])) {
            return corrupt(q->name, "a scale is not finite");
        }
    }
    return worst <= most ? 0 : corrupt(q->name, "a code is outside its grid");
}

int qtensor_file_read(struct qtensor_file *file, int i, struct qtensor *out)
{
    const struct qtensor *meta = &file->items[i];
    struct qtensor q = {0};
    char name[160];

    int rc = qtensor_new(meta->name, &meta->scheme, meta->rows, meta->cols, &q);
    for (int part = 0; rc == 0 && part < PART_COUNT; part++) {
        part_name(meta, (enum part)part, name);
        rc = safetensors_read(file->file, safetensors_find(file->file, name), 0, part_data(&q, (enum part)part),
                              part_bytes(&q, (enum part)part));
    }
    rc = rc != 0 ? rc : check_values(&q);
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_pass(rc, "read %s", meta->name);
    }
    *out = q;
    return 0;
}
