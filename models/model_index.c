/* model.safetensors.index.json: which shard holds which tensor. Memory is bounded by the file's size and by the number
 * of tensors; names live in the model's arena. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <stdlib.h>
#include <string.h>

#define INDEX_FILE MODEL_INDEX_FILE
#define INDEX_MAX ((size_t)64 << 20)
#define LISTED_MAX ((size_t)1 << 20)

/* A name that can only mean a weight file in this directory. */
static bool is_shard_name(const char *name, size_t length)
{
    static const char suffix[] = ".safetensors";
    size_t tail = sizeof(suffix) - 1;

    return length > tail && length <= 255 && memchr(name, '/', length) == NULL && memchr(name, '\\', length) == NULL &&
           memchr(name, '\0', length) == NULL && name[0] != '.' && memcmp(name + length - tail, suffix, tail) == 0;
}

static int add_listed(struct model *model, struct model_index *index, const char *tensor, struct json_stream *stream)
{
    if (!is_shard_name(stream->text, stream->length)) {
        return err_raise(ERR_INVALID_MODEL,
                         INDEX_FILE ": tensor \"%.160s\" lies in \"%.*s\", which is not the plain name "
                                    "of a safetensors file",
                         tensor, (int)(stream->length < 100 ? stream->length : 100), stream->text);
    }
    if (index->count == index->capacity) {
        size_t larger = index->capacity == 0 ? 512 : index->capacity * 2;
        if (larger > LISTED_MAX) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE " lists more than %zu tensors", LISTED_MAX);
        }
        TRY(mem_resize(&index->items, larger));
        index->capacity = larger;
    }
    const char *shard = arena_strndup(&model->arena, stream->text, stream->length);
    index->items[index->count++] = (struct model_listed){tensor, shard};
    return arena_check(&model->arena);
}

static int index_malformed(const struct json_stream *stream)
{
    return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": byte %zu: %s", stream->at,
                     stream->error != NULL ? stream->error : "a value of another type was expected");
}

static int parse_weight_map(struct model *model, struct model_index *index, struct json_stream *stream)
{
    enum json_token token = json_stream_next(stream);

    if (index->seen || token != JSON_TOKEN_OBJECT_BEGIN) {
        return index->seen ? err_raise(ERR_INVALID_MODEL, INDEX_FILE ": weight_map appears twice")
                           : index_malformed(stream);
    }
    index->seen = true;
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        if (memchr(stream->text, '\0', stream->length) != NULL) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": a tensor name holds a NUL");
        }
        const char *tensor = arena_strndup(&model->arena, stream->text, stream->length);
        TRY(arena_check(&model->arena));
        if (json_stream_next(stream) != JSON_TOKEN_STRING) {
            return index_malformed(stream);
        }
        TRY(add_listed(model, index, tensor, stream));
    }
    return token == JSON_TOKEN_OBJECT_END ? 0 : index_malformed(stream);
}

static int parse_index(struct model *model, struct model_index *index, struct json_stream *stream)
{
    static const char key[] = "weight_map";
    enum json_token token = json_stream_next(stream);

    if (token != JSON_TOKEN_OBJECT_BEGIN) {
        return index_malformed(stream);
    }
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        if (stream->length == sizeof(key) - 1 && memcmp(stream->text, key, stream->length) == 0) {
            TRY(parse_weight_map(model, index, stream));
        } else if (!json_stream_skip(stream, json_stream_next(stream))) {
            return index_malformed(stream);
        }
    }
    if (token != JSON_TOKEN_OBJECT_END || json_stream_next(stream) != JSON_TOKEN_END) {
        return index_malformed(stream);
    }
    return index->count > 0 ? 0 : err_raise(ERR_INVALID_MODEL, INDEX_FILE " lists no tensors");
}

int model_index_read(struct model *model, struct model_index *index, bool *found)
{
    AUTO(json_stream) struct json_stream stream = {0};
    AUTO_FREE char *text = NULL;
    AUTO_CLOSE int fd = -1;
    size_t size = 0;

    int rc = model_files_open(model, INDEX_FILE, &fd, NULL);
    *found = rc == 0;
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? 0 : err_pass(rc, "open the index");
    }
    rc = fs_read_fd(fd, INDEX_MAX, &text, &size);
    if (rc == ERR_PAYLOAD_TOO_LARGE) {
        return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": %s", err_last()->message);
    }
    TRY(rc);
    json_stream_init(&stream, text, size);
    return parse_index(model, index, &stream);
}

int model_index_shards(const struct model_index *index, const char ***out, size_t *count)
{
    const char **names = NULL;

    TRY(mem_array(&names, index->count));
    for (size_t i = 0; i < index->count; i++) {
        names[i] = index->items[i].shard;
    }
    qsort(names, index->count, sizeof(*names), model_by_text);
    size_t distinct = 0;
    for (size_t i = 0; i < index->count; i++) {
        if (distinct == 0 || strcmp(names[distinct - 1], names[i]) != 0) {
            names[distinct++] = names[i];
        }
    }
    *out = names;
    *count = distinct;
    return 0;
}

static int by_listed(const void *a, const void *b)
{
    return strcmp(((const struct model_listed *)a)->tensor, ((const struct model_listed *)b)->tensor);
}

static int by_shard(const void *a, const void *b)
{
    return strcmp(((const struct model_shard *)a)->name, ((const struct model_shard *)b)->name);
}

int model_index_check(const struct model *model, const struct model_index *index)
{
    qsort(index->items, index->count, sizeof(*index->items), by_listed);
    for (size_t i = 0; i < index->count; i++) {
        const struct model_listed *item = &index->items[i];
        if (i > 0 && strcmp(index->items[i - 1].tensor, item->tensor) == 0) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": tensor \"%.160s\" is listed twice", item->tensor);
        }
        const struct model_shard key = {.name = item->shard};
        const struct model_shard *shard =
            bsearch(&key, model->shards, model->shard_count, sizeof(*model->shards), by_shard);
        if (shard == NULL || safetensors_find(shard->file, item->tensor) == NULL) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": tensor \"%.160s\" is not in %.100s", item->tensor,
                             item->shard);
        }
    }
    return 0;
}

void model_index_deinit(struct model_index *index)
{
    free(index->items);
    *index = (struct model_index){0};
}
