/* The header of a safetensors file: JSON from strangers that says where every tensor lies.
 *
 * The order of the checks is the reference reader's: one JSON object without a name twice, known dtypes, products that
 * do not wrap, ranges that tile the data exactly, so that no byte belongs to two tensors or to none. Memory is bounded
 * by the header: names in one arena, entries in one array, both capped. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/safetensors_internal.h"

#include <stdlib.h>
#include <string.h>

#define TENSORS_MAX ((size_t)1 << 18)
#define METADATA_MAX ((size_t)1 << 16)
#define NUMBER_MAX (((uint64_t)1 << 48) - 1)

static int invalid(const struct safetensors *file, const char *what)
{
    return err_raise(ERR_INVALID_MODEL, "%.120s: %s", file->label, what);
}

static int invalid_entry(const struct safetensors *file, const char *name, const char *what)
{
    return err_raise(ERR_INVALID_MODEL, "%.120s: tensor \"%.160s\" %s", file->label, name, what);
}

static int malformed(const struct safetensors *file, const struct json_stream *stream)
{
    return err_raise(ERR_INVALID_MODEL, "%.120s: the header is not the expected JSON, byte %zu: %s", file->label,
                     stream->at, stream->error != NULL ? stream->error : "a value of another type was expected");
}

/* The stream's current text as a string of the file's arena; NULL when it holds a NUL or memory is out. */
static const char *keep_text(struct safetensors *file, const struct json_stream *stream)
{
    if (stream->length > 0 && memchr(stream->text, '\0', stream->length) != NULL) {
        return NULL;
    }
    return arena_strndup(&file->arena, stream->text, stream->length);
}

static int no_text(const struct safetensors *file)
{
    int rc = arena_check(&file->arena);
    return rc != 0 ? err_pass(rc, "index of %s", file->label) : invalid(file, "a name holds a NUL");
}

static int header_grow(void **array, size_t *capacity, size_t count, size_t limit, size_t element)
{
    if (count < *capacity) {
        return 0;
    }
    if (count >= limit) {
        return err_raise(ERR_INVALID_MODEL, "the header has more than %zu entries", limit);
    }
    size_t larger = *capacity == 0 ? 64 : *capacity * 2;
    TRY(mem_resized(array, larger, element));
    *capacity = larger;
    return 0;
}

static int parse_metadata(struct safetensors *file, struct json_stream *stream)
{
    if (file->metadata_seen || json_stream_next(stream) != JSON_TOKEN_OBJECT_BEGIN) {
        return invalid(file, file->metadata_seen ? "__metadata__ appears twice" : "__metadata__ is not an object");
    }
    file->metadata_seen = true;
    enum json_token token;
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        int rc = header_grow((void **)&file->metadata, &file->metadata_capacity, file->metadata_count, METADATA_MAX,
                             sizeof(*file->metadata));
        if (rc != 0) {
            return err_pass(rc, "metadata of %s", file->label);
        }
        struct safetensors_pair *pair = &file->metadata[file->metadata_count];
        pair->key = keep_text(file, stream);
        if (pair->key == NULL) {
            return no_text(file);
        }
        if (json_stream_next(stream) != JSON_TOKEN_STRING) {
            return invalid(file, "a __metadata__ value is not a string");
        }
        pair->value = keep_text(file, stream);
        if (pair->value == NULL) {
            return no_text(file);
        }
        file->metadata_count++;
    }
    return token == JSON_TOKEN_OBJECT_END ? 0 : malformed(file, stream);
}

/* Read an array of at most `max` non-negative integers. */
static int parse_numbers(const struct safetensors *file, struct json_stream *stream, const char *name, uint64_t *out,
                         int max, int *count)
{
    int n = 0;
    enum json_token token;

    if (json_stream_next(stream) != JSON_TOKEN_ARRAY_BEGIN) {
        return invalid_entry(file, name, "has a shape or data_offsets that is not an array");
    }
    while ((token = json_stream_next(stream)) == JSON_TOKEN_NUMBER) {
        if (n == max) {
            return invalid_entry(file, name, "has too many numbers in its shape or data_offsets");
        }
        if (!json_stream_u64(stream, &out[n]) || out[n] > NUMBER_MAX) {
            return invalid_entry(file, name, "has a shape or offset that is not an integer in [0, 2^48)");
        }
        n++;
    }
    if (token == JSON_TOKEN_ERROR) {
        return malformed(file, stream);
    }
    if (token != JSON_TOKEN_ARRAY_END) {
        return invalid_entry(file, name, "has a shape or offset that is not a number");
    }
    *count = n;
    return 0;
}

static int parse_dtype(const struct safetensors *file, struct json_stream *stream, const char *name, enum dtype *out)
{
    char text[32] = "";

    if (json_stream_next(stream) != JSON_TOKEN_STRING) {
        return invalid_entry(file, name, "has a dtype that is not a string");
    }
    if (stream->length < sizeof(text)) {
        memcpy(text, stream->text, stream->length);
    }
    int dtype = strlen(text) == stream->length ? dtype_from_name(text) : -1;
    if (dtype < 0) {
        return err_raise(ERR_INVALID_MODEL, "%.120s: tensor \"%.160s\" has the unknown dtype \"%s\"", file->label, name,
                         text);
    }
    *out = (enum dtype)dtype;
    return 0;
}

/* Everything about one entry that can be said without its neighbours. Offsets become absolute. */
static int check_entry(const struct safetensors *file, struct safetensors_entry *entry, const uint64_t *shape, int rank,
                       const uint64_t *offsets)
{
    uint64_t bytes = dtype_rows[entry->dtype].bytes;

    for (int i = 0; i < rank; i++) {
        if (__builtin_mul_overflow(bytes, shape[i], &bytes)) {
            return invalid_entry(file, entry->name, "has a shape whose size overflows");
        }
    }
    if (offsets[1] < offsets[0] || offsets[1] - offsets[0] != bytes) {
        return err_raise(ERR_INVALID_MODEL,
                         "%.120s: tensor \"%.160s\" needs %llu bytes, but has the range [%llu, %llu)", file->label,
                         entry->name, (unsigned long long)bytes, (unsigned long long)offsets[0],
                         (unsigned long long)offsets[1]);
    }
    entry->rank = rank;
    for (int i = 0; i < SAFETENSORS_RANK_MAX; i++) {
        entry->shape[i] = i < rank ? (int64_t)shape[i] : 1;
    }
    entry->begin = file->data_begin + offsets[0];
    entry->end = file->data_begin + offsets[1];
    return 0;
}

static int parse_entry(struct safetensors *file, struct json_stream *stream)
{
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    struct safetensors_entry *entry = &file->entries[file->count];
    uint64_t shape[SAFETENSORS_RANK_MAX] = {0}, offsets[2] = {0};
    int rank = 0, ends = 0, seen = 0;
    enum json_token token;

    *entry = (struct safetensors_entry){.name = keep_text(file, stream)};
    if (entry->name == NULL) {
        return no_text(file);
    }
    if (json_stream_next(stream) != JSON_TOKEN_OBJECT_BEGIN) {
        return invalid_entry(file, entry->name, "is not described by an object");
    }
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        int member = 0;
        for (int i = 0; i < 3; i++) {
            if (stream->length == strlen(names[i]) && memcmp(stream->text, names[i], stream->length) == 0) {
                member = 1 << i;
            }
        }
        if (member == 0 || (seen & member) != 0) {
            return invalid_entry(file, entry->name, member == 0 ? "has an unknown member" : "has a member twice");
        }
        seen |= member;
        TRY(member == DTYPE   ? parse_dtype(file, stream, entry->name, &entry->dtype)
            : member == SHAPE ? parse_numbers(file, stream, entry->name, shape, SAFETENSORS_RANK_MAX, &rank)
                              : parse_numbers(file, stream, entry->name, offsets, 2, &ends));
    }
    if (token != JSON_TOKEN_OBJECT_END) {
        return malformed(file, stream);
    }
    if (seen != (DTYPE | SHAPE | OFFSETS) || ends != 2) {
        return invalid_entry(file, entry->name, "lacks its dtype, shape or two data_offsets");
    }
    TRY(check_entry(file, entry, shape, rank, offsets));
    file->count++;
    return 0;
}

static int parse_tensor(struct safetensors *file, struct json_stream *stream)
{
    TRY(header_grow((void **)&file->entries, &file->capacity, file->count, TENSORS_MAX, sizeof(*file->entries)));
    return parse_entry(file, stream);
}

static int parse_header(struct safetensors *file, struct json_stream *stream)
{
    enum json_token token = json_stream_next(stream);

    if (token != JSON_TOKEN_OBJECT_BEGIN) {
        return malformed(file, stream);
    }
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        static const char special[] = "__metadata__";
        bool metadata = stream->length == sizeof(special) - 1 && memcmp(stream->text, special, stream->length) == 0;
        int rc = metadata ? parse_metadata(file, stream) : parse_tensor(file, stream);
        if (rc != 0) {
            return stream->error != NULL ? malformed(file, stream) : err_pass(rc, "header of %s", file->label);
        }
    }
    if (token != JSON_TOKEN_OBJECT_END || json_stream_next(stream) != JSON_TOKEN_END) {
        return malformed(file, stream);
    }
    return 0;
}

static int by_begin(const void *a, const void *b)
{
    const struct safetensors_entry *x = a, *y = b;

    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    if (x->end != y->end) {
        return x->end < y->end ? -1 : 1;
    }
    return strcmp(x->name, y->name);
}

static int by_entry_name(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_entry *)a)->name, ((const struct safetensors_entry *)b)->name);
}

int safetensors_header_by_name(const void *a, const void *b)
{
    return strcmp((*(const struct safetensors_entry *const *)a)->name,
                  (*(const struct safetensors_entry *const *)b)->name);
}

int safetensors_header_by_key(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_pair *)a)->key, ((const struct safetensors_pair *)b)->key);
}

/* No hole, no overlap, no tail: what is between the header and the end belongs to exactly one tensor. */
static int check_tiling(struct safetensors *file)
{
    uint64_t at = file->data_begin;

    if (file->count > 0) {
        qsort(file->entries, file->count, sizeof(*file->entries), by_begin);
    }
    for (size_t i = 0; i < file->count; i++) {
        const struct safetensors_entry *entry = &file->entries[i];
        if (entry->begin != at) {
            return invalid_entry(file, entry->name,
                                 entry->begin < at ? "overlaps the tensor before it" : "leaves a hole before it");
        }
        at = entry->end;
    }
    if (at != (uint64_t)file->size) {
        return err_raise(ERR_INVALID_MODEL, "%.120s: the tensors end at byte %llu, the file at %lld%s", file->label,
                         (unsigned long long)at, (long long)file->size,
                         at > (uint64_t)file->size ? " (truncated?)" : "");
    }
    return 0;
}

/* Sorts entries by name; check_tiling puts them in their final order. */
static int check_names(struct safetensors *file)
{
    if (file->count > 0) {
        qsort(file->entries, file->count, sizeof(*file->entries), by_entry_name);
    }
    for (size_t i = 1; i < file->count; i++) {
        if (strcmp(file->entries[i - 1].name, file->entries[i].name) == 0) {
            return invalid_entry(file, file->entries[i].name, "appears twice");
        }
    }
    if (file->metadata_count > 0) {
        qsort(file->metadata, file->metadata_count, sizeof(*file->metadata), safetensors_header_by_key);
    }
    for (size_t i = 1; i < file->metadata_count; i++) {
        if (strcmp(file->metadata[i - 1].key, file->metadata[i].key) == 0) {
            return invalid(file, "a __metadata__ name appears twice");
        }
    }
    return 0;
}

static int index_names(struct safetensors *file)
{
    TRY(mem_array(&file->by_name, file->count));
    for (size_t i = 0; i < file->count; i++) {
        file->by_name[i] = &file->entries[i];
    }
    qsort(file->by_name, file->count, sizeof(struct safetensors_entry *), safetensors_header_by_name);
    return 0;
}

int safetensors_header_load(struct safetensors *file, const char *header, size_t size)
{
    AUTO(json_stream) struct json_stream stream = {0};

    if (size == 0 || header[0] != '{') {
        return invalid(file, "the header does not begin with '{'");
    }
    file->data_begin = SAFETENSORS_PREFIX + size;
    json_stream_init(&stream, header, size);
    TRY(parse_header(file, &stream));
    TRY(check_names(file));
    TRY(check_tiling(file));
    TRY(index_names(file));
    digest_bytes(header, size, file->header_digest);
    return 0;
}
