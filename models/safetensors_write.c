/* Writing the container as the reference does: tensors by alignment descending then name, ranges contiguous from 0,
 * the header padded with spaces to 8 bytes, {"format":"pt"} always in __metadata__.
 *
 * Two phases: declare everything, then begin fixes every offset; after that data may come in any order and pieces, and
 * from several threads, since nothing but the counts changes any more. What was written is counted per tensor, so that
 * finish can tell a hole from a complete file; a count goes up after its bytes are in the file, so that a reader who
 * saw the count finds the bytes. */

#include "models/safetensors.h"

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX 8

struct item {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[SAFETENSORS_RANK_MAX];
    uint64_t begin, bytes; /* begin: relative to the data */
    _Atomic uint64_t written;
};

struct safetensors_writer {
    int fd;
    char *path;
    struct arena arena;
    json_t *metadata;
    struct item *items;
    size_t count, capacity;
    struct item **by_name; /* from begin on */
    uint64_t data_begin;
    size_t final; /* leading items that are known to be complete */
};

int safetensors_writer_new(const char *path, struct safetensors_writer **out)
{
    AUTO(safetensors_writer) struct safetensors_writer *writer = NULL;

    TRY(mem_new(&writer));
    writer->fd = -1;
    arena_init(&writer->arena, 0);
    writer->path = arena_strndup(&writer->arena, path, strlen(path));
    TRY(arena_check(&writer->arena));
    writer->metadata = json_pack("{s:s}", "format", "pt");
    if (writer->metadata == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to write %s", path);
    }
    writer->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (writer->fd < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    *out = MOVE(writer);
    return 0;
}

void safetensors_writer_free(struct safetensors_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    json_decref(writer->metadata);
    free(writer->items);
    free(writer->by_name);
    arena_deinit(&writer->arena);
    free(writer);
}

static int writer_grow(struct safetensors_writer *writer)
{
    if (writer->count < writer->capacity) {
        return 0;
    }
    size_t larger = writer->capacity == 0 ? 64 : writer->capacity * 2;
    TRY(mem_resize(&writer->items, larger));
    writer->capacity = larger;
    return 0;
}

int safetensors_writer_declare(struct safetensors_writer *writer, const char *name, enum dtype dtype, int rank,
                               const int64_t *shape)
{
    if (writer->by_name != NULL || rank < 0 || rank > SAFETENSORS_RANK_MAX) {
        return err_raise(ERR_INTERNAL, "tensor %.160s of rank %d cannot be declared", name, rank);
    }
    TRY(writer_grow(writer));
    struct item item = {.dtype = dtype, .rank = rank, .bytes = dtype_rows[dtype].bytes};
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(item.bytes, (uint64_t)shape[i], &item.bytes) ||
            item.bytes > INT64_MAX) {
            return err_raise(ERR_INTERNAL, "dimension %d of tensor %.160s is %lld", i, name, (long long)shape[i]);
        }
        item.shape[i] = shape[i];
    }
    item.name = arena_strndup(&writer->arena, name, strlen(name));
    TRY(arena_check(&writer->arena));
    writer->items[writer->count++] = item;
    return 0;
}

int safetensors_writer_metadata(struct safetensors_writer *writer, const char *key, const char *value)
{
    if (writer->by_name != NULL || json_object_get(writer->metadata, key) != NULL) {
        return err_raise(ERR_INTERNAL, "metadata %.160s cannot be added", key);
    }
    if (json_object_set_new(writer->metadata, key, json_string(value)) != 0) {
        return err_raise(ERR_INTERNAL, "metadata %.160s is not UTF-8", key);
    }
    return 0;
}

static int by_layout(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int difference = (int)dtype_rows[y->dtype].bytes - (int)dtype_rows[x->dtype].bytes;

    return difference != 0 ? difference : strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct item *const *)a)->name, (*(struct item *const *)b)->name);
}

/* Fix the order and each tensor's place. */
static int lay_out(struct safetensors_writer *writer, uint64_t *total)
{
    uint64_t at = 0;

    TRY(mem_array(&writer->by_name, writer->count));
    if (writer->count > 0) {
        qsort(writer->items, writer->count, sizeof(*writer->items), by_layout);
    }
    for (size_t i = 0; i < writer->count; i++) {
        writer->items[i].begin = at;
        if (__builtin_add_overflow(at, writer->items[i].bytes, &at) || at > INT64_MAX / 2) {
            return err_raise(ERR_INTERNAL, "%s would be larger than a file can be", writer->path);
        }
        writer->by_name[i] = &writer->items[i];
    }
    qsort(writer->by_name, writer->count, sizeof(struct item *), by_name);
    for (size_t i = 1; i < writer->count; i++) {
        if (strcmp(writer->by_name[i - 1]->name, writer->by_name[i]->name) == 0) {
            return err_raise(ERR_INTERNAL, "tensor %.160s is declared twice", writer->by_name[i]->name);
        }
    }
    *total = at;
    return 0;
}

static json_t *writer_describe(const struct item *item)
{
    json_t *shape = json_array();

    for (int i = 0; i < item->rank; i++) {
        json_array_append_new(shape, json_integer(item->shape[i]));
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_rows[item->dtype].name, "shape", shape, "data_offsets",
                     (json_int_t)item->begin, (json_int_t)item->begin + (json_int_t)item->bytes);
}

/* The padded header text, which keeps the layout's order. NULL when memory is out or a name is not UTF-8. */
static char *header_text(const struct safetensors_writer *writer, size_t *size)
{
    json_t *header = json_object();
    int failed = json_object_set(header, "__metadata__", writer->metadata);

    for (size_t i = 0; i < writer->count; i++) {
        failed |= json_object_set_new(header, writer->items[i].name, writer_describe(&writer->items[i]));
    }
    char *text = failed == 0 ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    if (text == NULL) {
        return NULL;
    }
    size_t length = strlen(text), padded = (length + PREFIX - 1) / PREFIX * PREFIX;
    char *larger = realloc(text, padded + 1);
    if (larger == NULL) {
        free(text);
        return NULL;
    }
    memset(larger + length, ' ', padded - length);
    *size = padded;
    return larger;
}

static int write_header(struct safetensors_writer *writer, const char *header, size_t size, uint64_t total)
{
    unsigned char prefix[PREFIX];

    for (int i = 0; i < PREFIX; i++) {
        prefix[i] = (unsigned char)((uint64_t)size >> (8 * i));
    }
    TRY(fs_pwrite_full(writer->fd, prefix, sizeof(prefix), 0));
    TRY(fs_pwrite_full(writer->fd, header, size, PREFIX));
    writer->data_begin = PREFIX + size;
    return ftruncate(writer->fd, (off_t)(writer->data_begin + total)) == 0 ? 0 : err_raise_errno(errno, "cannot size");
}

int safetensors_writer_begin(struct safetensors_writer *writer)
{
    AUTO_FREE char *header = NULL;
    uint64_t total = 0;
    size_t size = 0;

    if (writer->by_name != NULL) {
        return err_raise(ERR_INTERNAL, "%s was begun twice", writer->path);
    }
    TRY(lay_out(writer, &total));
    header = header_text(writer, &size);
    if (header == NULL) {
        return err_raise(ERR_INTERNAL, "the header of %s cannot be made: no memory, or a name is not UTF-8",
                         writer->path);
    }
    if (size > SAFETENSORS_HEADER_MAX) {
        return err_raise(ERR_INTERNAL, "the header of %s is %zu bytes, more than readers take", writer->path, size);
    }
    int rc = write_header(writer, header, size, total);
    return rc != 0 ? err_pass(rc, "write the header of %s", writer->path) : 0;
}

/* The tensor, once begun; or NULL and raised. */
static struct item *find_item(const struct safetensors_writer *writer, const char *name)
{
    struct item key = {.name = name};
    struct item *sought = &key;

    if (writer->by_name == NULL) {
        (void)err_raise(ERR_INTERNAL, "%s was not begun", writer->path);
        return NULL;
    }
    struct item **found = bsearch(&sought, writer->by_name, writer->count, sizeof(struct item *), by_name);
    if (found == NULL) {
        (void)err_raise(ERR_INTERNAL, "tensor %.160s was not declared", name);
        return NULL;
    }
    return *found;
}

int safetensors_writer_put(struct safetensors_writer *writer, const char *name, uint64_t offset, const void *data,
                           size_t size)
{
    struct item *item = find_item(writer, name);

    if (item == NULL) {
        return ERR_INTERNAL;
    }
    uint64_t written = atomic_load_explicit(&item->written, memory_order_relaxed);
    if (offset > item->bytes || size > item->bytes - offset || written > item->bytes || size > item->bytes - written) {
        return err_raise(ERR_INTERNAL, "%zu bytes at %llu are too many for tensor %.160s", size,
                         (unsigned long long)offset, name);
    }
    int rc = fs_pwrite_full(writer->fd, data, size, (int64_t)(writer->data_begin + item->begin + offset));
    if (rc != 0) {
        return err_pass(rc, "tensor %s of %s", name, writer->path);
    }
    atomic_fetch_add_explicit(&item->written, size, memory_order_release);
    return 0;
}

int safetensors_writer_place(const struct safetensors_writer *writer, const char *name, uint64_t *offset)
{
    const struct item *item = find_item(writer, name);

    if (item == NULL) {
        return ERR_INTERNAL;
    }
    *offset = writer->data_begin + item->begin;
    return 0;
}

uint64_t safetensors_writer_final_bytes(struct safetensors_writer *writer)
{
    while (writer->final < writer->count) {
        struct item *item = &writer->items[writer->final];
        if (atomic_load_explicit(&item->written, memory_order_acquire) != item->bytes) {
            return writer->data_begin + item->begin;
        }
        writer->final++;
    }
    const struct item *last = writer->count > 0 ? &writer->items[writer->count - 1] : NULL;
    return writer->data_begin + (last != NULL ? last->begin + last->bytes : 0);
}

int safetensors_writer_finish(struct safetensors_writer *writer)
{
    if (writer->by_name == NULL) {
        return err_raise(ERR_INTERNAL, "%s was not begun", writer->path);
    }
    for (size_t i = 0; i < writer->count; i++) {
        if (writer->items[i].written != writer->items[i].bytes) {
            return err_raise(ERR_INTERNAL, "tensor %.160s was not written completely", writer->items[i].name);
        }
    }
    int rc = fs_sync(writer->fd);
    if (close(writer->fd) != 0 && rc == 0) {
        rc = err_raise_errno(errno, "cannot close");
    }
    writer->fd = -1;
    return rc != 0 ? err_pass(rc, "finish %s", writer->path) : 0;
}
