/* The model section of BPE and Unigram: vocabulary and merges, pulled from the text token by token. Members may come in
 * any order, so a first pass notes the places of the two large ones. Every merge must name tokens that exist, and so
 * must what they merge into. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json_stream.h"
#include "base/mem.h"
#include "models/tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct part {
    const char *data; /* NULL = absent */
    size_t size;
};

struct model_parts {
    struct part vocab, merges;
    bool unigram;
    int64_t unk_id; /* of Unigram; -1 = none */
};

static void text_deinit(struct tokenizer_text *text)
{
    free(text->data);
}

CLEANUP_DEINIT(tokenizer_text, struct tokenizer_text, text_deinit)

static int raise_stream(const struct json_stream *stream, const char *what)
{
    return err_raise(ERR_INVALID_TOKENIZER, "%s: %s at byte %zu", what,
                     stream->error != NULL ? stream->error : "unexpected value", stream->at);
}

size_t tokenizer_value_start(const struct json_stream *stream)
{
    size_t at = stream->at;
    while (at < stream->size && strchr(" \t\r\n:", stream->data[at]) != NULL && stream->data[at] != '\0') {
        at++;
    }
    return at;
}

/* Copy the string just returned; NULL for null. */
static int take_string(const struct json_stream *stream, enum json_token token, const char *what, char **out)
{
    if (token == JSON_TOKEN_NULL) {
        return 0;
    }
    if (token != JSON_TOKEN_STRING || memchr(stream->text, '\0', stream->length) != NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "model.%s is not a string", what);
    }
    char *copy = NULL;
    TRY(mem_buffer(&copy, stream->length + 1));
    if (stream->length > 0) {
        memcpy(copy, stream->text, stream->length);
    }
    copy[stream->length] = '\0';
    free(*out);
    *out = copy;
    return 0;
}

static int take_bool(enum json_token token, const char *what, bool *out)
{
    if (token != JSON_TOKEN_TRUE && token != JSON_TOKEN_FALSE && token != JSON_TOKEN_NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "model.%s is not a boolean", what);
    }
    *out = token == JSON_TOKEN_TRUE;
    return 0;
}

/* Members that may be there as long as they say nothing: null, "" or 0. */
static int require_unset(const struct json_stream *stream, enum json_token token, const char *what)
{
    bool zero = token == JSON_TOKEN_NUMBER;
    for (size_t i = 0; zero && i < stream->length; i++) {
        zero = stream->text[i] == '0' || stream->text[i] == '.';
    }
    bool empty = token == JSON_TOKEN_STRING && stream->length == 0;
    return token == JSON_TOKEN_NULL || zero || empty
               ? 0
               : err_raise(ERR_INVALID_TOKENIZER, "model.%s is set, which is not supported", what);
}

static int read_type(const struct json_stream *stream, enum json_token token, struct model_parts *parts)
{
    bool named = token == JSON_TOKEN_STRING;
    bool bpe = named && stream->length == 3 && memcmp(stream->text, "BPE", 3) == 0;

    parts->unigram = named && stream->length == 7 && memcmp(stream->text, "Unigram", 7) == 0;
    if (bpe || parts->unigram) {
        return 0;
    }
    return err_raise(ERR_INVALID_TOKENIZER, "model type \"%.*s\" is not supported (BPE and Unigram are)",
                     named ? (int)(stream->length < 32 ? stream->length : 32) : 0, named ? stream->text : "");
}

static int read_unk_id(const struct json_stream *stream, enum json_token token, struct model_parts *parts)
{
    uint64_t id;

    if (token == JSON_TOKEN_NULL) {
        return 0;
    }
    if (token != JSON_TOKEN_NUMBER || !json_stream_u64(stream, &id) || id >= INT32_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "model.unk_id is not an id");
    }
    parts->unk_id = (int64_t)id;
    return 0;
}

static int read_member(struct tokenizer *tokenizer, struct json_stream *stream, const char *key,
                       struct model_parts *parts)
{
    size_t start = tokenizer_value_start(stream);
    enum json_token token = json_stream_next(stream);

    if (strcmp(key, "type") == 0) {
        return read_type(stream, token, parts);
    }
    if (strcmp(key, "unk_token") == 0) {
        return take_string(stream, token, key, &tokenizer->unk_token);
    }
    if (strcmp(key, "unk_id") == 0) {
        return read_unk_id(stream, token, parts);
    }
    if (strcmp(key, "fuse_unk") == 0) {
        return take_bool(token, key, &tokenizer->fuse_unk);
    }
    if (strcmp(key, "byte_fallback") == 0) {
        return take_bool(token, key, &tokenizer->byte_fallback);
    }
    if (strcmp(key, "ignore_merges") == 0) {
        return take_bool(token, key, &tokenizer->ignore_merges);
    }
    if (strcmp(key, "dropout") == 0 || strcmp(key, "continuing_subword_prefix") == 0 ||
        strcmp(key, "end_of_word_suffix") == 0) {
        return require_unset(stream, token, key);
    }
    if (!json_stream_skip(stream, token)) {
        return raise_stream(stream, "model");
    }
    if (strcmp(key, "vocab") == 0) {
        parts->vocab = (struct part){stream->data + start, stream->at - start};
    } else if (strcmp(key, "merges") == 0) {
        parts->merges = (struct part){stream->data + start, stream->at - start};
    }
    return 0;
}

static int load_members(struct tokenizer *tokenizer, const char *json, size_t size, struct model_parts *parts)
{
    AUTO(json_stream) struct json_stream stream = {0};
    enum json_token token;

    json_stream_init(&stream, json, size);
    if (json_stream_next(&stream) != JSON_TOKEN_OBJECT_BEGIN) {
        return raise_stream(&stream, "model");
    }
    while ((token = json_stream_next(&stream)) != JSON_TOKEN_OBJECT_END) {
        char key[32] = "";
        if (token != JSON_TOKEN_KEY) {
            return raise_stream(&stream, "model");
        }
        if (stream.length < sizeof(key)) { /* no longer name is known */
            memcpy(key, stream.text, stream.length);
        }
        TRY(read_member(tokenizer, &stream, key, parts));
    }
    return 0;
}

static int read_vocab(struct tokenizer *tokenizer, struct part part)
{
    AUTO(json_stream) struct json_stream stream = {0};
    enum json_token token;

    json_stream_init(&stream, part.data, part.size);
    if (json_stream_next(&stream) != JSON_TOKEN_OBJECT_BEGIN) {
        return raise_stream(&stream, "model.vocab");
    }
    while ((token = json_stream_next(&stream)) != JSON_TOKEN_OBJECT_END) {
        struct tokenizer_vocab_entry *entry = NULL;
        uint64_t value;
        if (token != JSON_TOKEN_KEY) {
            return raise_stream(&stream, "model.vocab");
        }
        TRY(tokenizer_vocab_put(&tokenizer->vocab, stream.text, stream.length, &entry));
        if (json_stream_next(&stream) != JSON_TOKEN_NUMBER || !json_stream_u64(&stream, &value) || value >= INT32_MAX) {
            return raise_stream(&stream, "model.vocab holds an id that is not an integer in range");
        }
        entry->id = (int32_t)value;
    }
    return 0;
}

/* A merge as its two halves in one buffer. */
static int add_merge(struct tokenizer *tokenizer, const struct tokenizer_text *both, size_t left_size)
{
    const struct tokenizer_vocab *vocab = &tokenizer->vocab;
    int32_t left = tokenizer_vocab_find(vocab, both->data, left_size);
    int32_t right = tokenizer_vocab_find(vocab, both->data + left_size, both->size - left_size);
    int32_t merged = tokenizer_vocab_find(vocab, both->data, both->size);

    if (left < 0 || right < 0 || merged < 0) {
        return err_raise(ERR_INVALID_TOKENIZER, "merge %zu (\"%.*s\" + \"%.*s\") has no token", tokenizer->merges.count,
                         (int)(left_size < 64 ? left_size : 64), both->data,
                         (int)(both->size - left_size < 64 ? both->size - left_size : 64), both->data + left_size);
    }
    return tokenizer_merges_add(&tokenizer->merges, left, right, merged);
}

/* "a b" */
static int read_merge_string(struct tokenizer *tokenizer, const struct json_stream *stream, struct tokenizer_text *both)
{
    const char *space = memchr(stream->text, ' ', stream->length);
    if (stream->length >= 8 && memcmp(stream->text, "#version", 8) == 0) {
        return 0;
    }
    size_t left = space != NULL ? (size_t)(space - stream->text) : 0;
    if (space == NULL || memchr(space + 1, ' ', stream->length - left - 1) != NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "merge %zu is not two tokens", tokenizer->merges.count);
    }
    both->size = 0;
    TRY(tokenizer_text_reserve(both, stream->length));
    TRY(tokenizer_text_append(both, stream->text, left));
    TRY(tokenizer_text_append(both, space + 1, stream->length - left - 1));
    return add_merge(tokenizer, both, left);
}

/* ["a", "b"], its bracket already read */
static int read_merge_pair(struct tokenizer *tokenizer, struct json_stream *stream, struct tokenizer_text *both)
{
    size_t left = 0;

    both->size = 0;
    for (int i = 0; i < 2; i++) {
        left = both->size;
        TRY(json_stream_next(stream) == JSON_TOKEN_STRING ? tokenizer_text_reserve(both, stream->length + 1)
                                                          : raise_stream(stream, "model.merges"));
        TRY(tokenizer_text_append(both, stream->text, stream->length));
    }
    if (json_stream_next(stream) != JSON_TOKEN_ARRAY_END) {
        return raise_stream(stream, "model.merges");
    }
    return add_merge(tokenizer, both, left);
}

static int read_merges(struct tokenizer *tokenizer, struct part part)
{
    AUTO(json_stream) struct json_stream stream = {0};
    AUTO(tokenizer_text) struct tokenizer_text both = {0};
    enum json_token token;

    json_stream_init(&stream, part.data, part.size);
    if (json_stream_next(&stream) != JSON_TOKEN_ARRAY_BEGIN) {
        return raise_stream(&stream, "model.merges");
    }
    while ((token = json_stream_next(&stream)) != JSON_TOKEN_ARRAY_END) {
        switch (token) {
        case JSON_TOKEN_STRING:
            TRY(read_merge_string(tokenizer, &stream, &both));
            break;
        case JSON_TOKEN_ARRAY_BEGIN:
            TRY(read_merge_pair(tokenizer, &stream, &both));
            break;
        default:
            return raise_stream(&stream, "model.merges");
        }
    }
    return 0;
}

/* Answers that encoding needs for every character, looked up once. */
static void load_prepare(struct tokenizer *tokenizer)
{
    for (uint32_t i = 0; i < sizeof(tokenizer->char_ids) / sizeof(tokenizer->char_ids[0]); i++) {
        char bytes[4];
        tokenizer->char_ids[i] = tokenizer_vocab_find(&tokenizer->vocab, bytes, tokenizer_utf8_encode(i, bytes));
    }
    for (unsigned i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", i);
        tokenizer->byte_ids[i] = tokenizer_vocab_find(&tokenizer->vocab, name, 6);
    }
}

static int load_bpe(struct tokenizer *tokenizer, const struct model_parts *parts)
{
    if (parts->merges.data == NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "model has no merges");
    }
    TRY(read_vocab(tokenizer, parts->vocab));
    TRY(read_merges(tokenizer, parts->merges));
    const char *unknown = tokenizer->unk_token;
    tokenizer->unk_id = unknown == NULL ? -1 : tokenizer_vocab_find(&tokenizer->vocab, unknown, strlen(unknown));
    tokenizer->size = tokenizer->vocab.count;
    return 0;
}

/* The members of BPE mean nothing here, but for the bytes. */
static int load_unigram(struct tokenizer *tokenizer, const struct model_parts *parts)
{
    tokenizer->is_unigram = true;
    tokenizer->ignore_merges = false;
    TRY(tokenizer_load_unigram(tokenizer, parts->vocab.data, parts->vocab.size));
    if (parts->unk_id >= (int64_t)tokenizer->size) {
        return err_raise(ERR_INVALID_TOKENIZER, "model.unk_id is %lld, of %zu tokens", (long long)parts->unk_id,
                         tokenizer->size);
    }
    tokenizer->unk_id = (int32_t)parts->unk_id;
    return 0;
}

int tokenizer_load_model(struct tokenizer *tokenizer, const char *json, size_t size)
{
    struct model_parts parts = {.unk_id = -1};

    TRY(tokenizer_seed(&tokenizer->vocab.seed));
    TRY(tokenizer_seed(&tokenizer->merges.seed));
    TRY(load_members(tokenizer, json, size, &parts));
    if (parts.vocab.data == NULL) {
        return err_raise(ERR_INVALID_TOKENIZER, "model has no vocab");
    }
    TRY(parts.unigram ? load_unigram(tokenizer, &parts) : load_bpe(tokenizer, &parts));
    load_prepare(tokenizer);
    return 0;
}
