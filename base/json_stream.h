#pragma once
/* A pull parser for JSON text in memory: no tree, no recursion, bounded depth. For large or hostile documents
 * (safetensors headers, tokenizer.json vocabularies) where a DOM would cost a multiple of the text. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_STREAM_DEPTH_MAX 64

enum json_token {
    JSON_TOKEN_ERROR = -1, /* malformed; stream->error says what, stream->at where */
    JSON_TOKEN_END,        /* the one value is over and only whitespace followed */
    JSON_TOKEN_OBJECT_BEGIN,
    JSON_TOKEN_OBJECT_END,
    JSON_TOKEN_ARRAY_BEGIN,
    JSON_TOKEN_ARRAY_END,
    JSON_TOKEN_KEY,    /* text/length: the member's name, unescaped */
    JSON_TOKEN_STRING, /* text/length: unescaped UTF-8, not NUL-terminated by contract; may hold NUL */
    JSON_TOKEN_NUMBER, /* text/length: the literal */
    JSON_TOKEN_TRUE,
    JSON_TOKEN_FALSE,
    JSON_TOKEN_NULL,
};

struct json_stream {
    const char *data;
    size_t size;
    size_t at;         /* bytes consumed */
    const char *error; /* static text, NULL when fine */
    const char *text;  /* of the last KEY, STRING or NUMBER; valid until the next call */
    size_t length;
    int depth;
    uint8_t state[JSON_STREAM_DEPTH_MAX + 1];
    char *scratch; /* unescaped strings with escapes */
    size_t scratch_size;
    bool started;
};

void json_stream_init(struct json_stream *stream, const char *data, size_t size);
void json_stream_deinit(struct json_stream *stream);
/* The next token. Strict RFC 8259: valid UTF-8, escapes and surrogate pairs checked, no trailing commas, one value. */
enum json_token json_stream_next(struct json_stream *stream);
/* Consume the complete value whose first token was just returned (scalars: nothing left to do). False on an error. */
bool json_stream_skip(struct json_stream *stream, enum json_token first);
/* The last NUMBER as a non-negative integer. False when it has a sign, fraction, exponent or does not fit. */
bool json_stream_u64(const struct json_stream *stream, uint64_t *out);

CLEANUP_DEINIT(json_stream, struct json_stream, json_stream_deinit)
