/* A tokenizer on its way into a GGUF file: tokenizer.json, tokenizer_config.json, chat_template.jinja,
 * chat_template.json and a named template, separated by NULs. What is written must be complete keys that a reader can
 * walk, with one text for each id and no text at two. */

#include "base/err.h"
#include "formats/gguf.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 512
#define PARTS 5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct reader {
    const unsigned char *at, *end;
};

static uint64_t take(struct reader *reader, size_t bytes)
{
    uint64_t value = 0;

    if ((size_t)(reader->end - reader->at) < bytes) {
        abort();
    }
    memcpy(&value, reader->at, bytes);
    reader->at += bytes;
    return value;
}

static const unsigned char *take_string(struct reader *reader, size_t *size)
{
    *size = (size_t)take(reader, 8);
    if ((size_t)(reader->end - reader->at) < *size) {
        abort();
    }
    reader->at += *size;
    return reader->at - *size;
}

struct text {
    const unsigned char *data;
    size_t size;
};

static int compare(const void *a, const void *b)
{
    const struct text *left = a, *right = b;
    size_t shorter = left->size < right->size ? left->size : right->size;
    int order = shorter > 0 ? memcmp(left->data, right->data, shorter) : 0;

    return order != 0 ? order : (left->size > right->size) - (left->size < right->size);
}

/* Strings of an array, which must all differ when they are tokens. */
static void walk_strings(struct reader *reader, uint64_t count, bool differ)
{
    struct text *texts = calloc(count + 1, sizeof(*texts));

    for (uint64_t i = 0; texts != NULL && i < count; i++) {
        texts[i].data = take_string(reader, &texts[i].size);
    }
    if (texts == NULL || (differ && count != ROWS)) {
        abort();
    }
    qsort(texts, count, sizeof(*texts), compare);
    for (uint64_t i = 1; differ && i < count; i++) {
        if (compare(&texts[i - 1], &texts[i]) == 0) {
            abort();
        }
    }
    free(texts);
}

static void walk_value(struct reader *reader, uint64_t type, bool tokens)
{
    size_t size;

    switch (type) {
    case GGUF_U32:
    case GGUF_I32:
    case GGUF_F32:
        (void)take(reader, 4);
        break;
    case GGUF_BOOL:
        if (take(reader, 1) > 1) {
            abort();
        }
        break;
    case GGUF_STRING:
        (void)take_string(reader, &size);
        break;
    case GGUF_ARRAY: {
        uint64_t element = take(reader, 4), count = take(reader, 8);
        if (element == GGUF_STRING) {
            walk_strings(reader, count, tokens);
        }
        for (uint64_t i = 0; element != GGUF_STRING && i < count; i++) {
            walk_value(reader, element, false);
        }
        break;
    }
    default:
        abort();
    }
}

static void walk(const struct gguf_buffer *buffer)
{
    static const char tokens[] = "tokenizer.ggml.tokens";
    struct reader reader = {buffer->data, buffer->data + buffer->size};

    for (uint64_t i = 0; i < buffer->pairs; i++) {
        size_t size;
        const unsigned char *key = take_string(&reader, &size);
        walk_value(&reader, take(&reader, 4), size == sizeof(tokens) - 1 && memcmp(key, tokens, size) == 0);
    }
    if (reader.at != reader.end || buffer->failed) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf_text parts[PARTS] = {{0}};
    const char *at = (const char *)data, *end = at + size;

    for (int i = 0; i < PARTS && at < end; i++) {
        const char *cut = i < PARTS - 1 ? memchr(at, '\0', (size_t)(end - at)) : NULL;
        const char *stop = cut != NULL ? cut : end;
        if (stop > at) {
            parts[i] = (struct gguf_text){(char *)(uintptr_t)at, (size_t)(stop - at)};
        }
        at = stop + (cut != NULL);
    }
    if (parts[0].data == NULL) {
        return 0;
    }
    struct gguf_named_text named = {.name = "a name", .text = parts[4]};
    const struct gguf_tokenizer_files files = {.tokenizer = parts[0],
                                               .config = parts[1],
                                               .jinja = parts[2],
                                               .json = parts[3],
                                               .templates = &named,
                                               .template_count = parts[4].data != NULL};
    struct gguf_buffer buffer = {0};
    int rc = gguf_put_tokenizer_files(&buffer, &files, ROWS, NULL);
    if (rc == 0) {
        walk(&buffer);
    } else if (rc != ERR_INCOMPATIBLE_OPTIONS && rc != ERR_PAYLOAD_TOO_LARGE && rc != ERR_INVALID_PARAMETER) {
        abort();
    }
    gguf_buffer_deinit(&buffer);
    return 0;
}
