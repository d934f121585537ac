/* The pull parser: one state per open level, no recursion, so that hostile depth costs nothing but an error.
 *
 * state[depth] says what the innermost container awaits. Strings without escapes are handed out in place; those with
 * escapes are unescaped into scratch, which never needs more space than their raw text. An error is sticky: every
 * later call returns it again. */

#include "base/json_stream.h"

#include "base/text.h"

#include <stdlib.h>
#include <string.h>

enum state {
    STATE_VALUE,        /* the document's value, or one that must follow '[ ... ,' */
    STATE_DONE,         /* the document's value is over */
    STATE_ARRAY_FIRST,  /* value or ']' */
    STATE_ARRAY_NEXT,   /* ',' or ']' */
    STATE_OBJECT_FIRST, /* key or '}' */
    STATE_OBJECT_NEXT,  /* ',' or '}' */
    STATE_OBJECT_VALUE, /* a key was returned */
};

void json_stream_init(struct json_stream *stream, const char *data, size_t size)
{
    *stream = (struct json_stream){.data = data, .size = size};
    stream->state[0] = STATE_VALUE;
}

void json_stream_deinit(struct json_stream *stream)
{
    free(stream->scratch);
    *stream = (struct json_stream){0};
}

static enum json_token json_stream_fail(struct json_stream *stream, const char *error)
{
    if (stream->error == NULL) {
        stream->error = error;
    }
    return JSON_TOKEN_ERROR;
}

/* The next byte that is not white space, or -1 at the end. */
static int peek(struct json_stream *stream)
{
    while (stream->at < stream->size) {
        char c = stream->data[stream->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') {
            return (unsigned char)c;
        }
        stream->at++;
    }
    return -1;
}

/* Bytes of the well-formed UTF-8 sequence at p (Unicode 15, table 3-7), or 0. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t length;

    if (p[0] < 0x80) {
        return 1;
    }
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        length = 2;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        length = 3;
        low = p[0] == 0xe0 ? 0xa0 : low;
        high = p[0] == 0xed ? 0x9f : high;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        length = 4;
        low = p[0] == 0xf0 ? 0x90 : low;
        high = p[0] == 0xf4 ? 0x8f : high;
    } else {
        return 0;
    }
    if (left < length || p[1] < low || p[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < length; i++) {
        if (p[i] < 0x80 || p[i] > 0xbf) {
            return 0;
        }
    }
    return length;
}

/* Check the raw text after an opening quote. Leaves `at` after the closing one; *end is that quote's offset. */
static bool scan_string(struct json_stream *stream, size_t *end, bool *escapes)
{
    *escapes = false;
    while (stream->at < stream->size) {
        const unsigned char *p = (const unsigned char *)stream->data + stream->at;
        if (*p == '"') {
            *end = stream->at++;
            return true;
        }
        if (*p < 0x20) {
            json_stream_fail(stream, "a control character in a string");
            return false;
        }
        size_t length = *p == '\\' ? 2 : utf8_length(p, stream->size - stream->at);
        if (length == 0) {
            json_stream_fail(stream, "a string is not valid UTF-8");
            return false;
        }
        if (*p == '\\') {
            *escapes = true;
            if (stream->size - stream->at < 2) {
                break;
            }
            length = (unsigned char)p[1] < 0x80 ? 2 : 1; /* the rest is checked when unescaping */
        }
        stream->at += length;
    }
    json_stream_fail(stream, "a string does not end");
    return false;
}

/* Four hex digits at p, or -1. */
static int32_t hex_unit(const char *p, const char *end)
{
    int32_t unit = 0;

    if (end - p < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        int digit = text_hex_value(p[i]);
        if (digit < 0) {
            return -1;
        }
        unit = unit * 16 + digit;
    }
    return unit;
}

static char *put_utf8(char *out, uint32_t point)
{
    if (point < 0x80) {
        *out++ = (char)point;
    } else if (point < 0x800) {
        *out++ = (char)(0xc0 | (point >> 6));
        *out++ = (char)(0x80 | (point & 0x3f));
    } else if (point < 0x10000) {
        *out++ = (char)(0xe0 | (point >> 12));
        *out++ = (char)(0x80 | ((point >> 6) & 0x3f));
        *out++ = (char)(0x80 | (point & 0x3f));
    } else {
        *out++ = (char)(0xf0 | (point >> 18));
        *out++ = (char)(0x80 | ((point >> 12) & 0x3f));
        *out++ = (char)(0x80 | ((point >> 6) & 0x3f));
        *out++ = (char)(0x80 | (point & 0x3f));
    }
    return out;
}

/* Decode \uXXXX (and its partner) whose digits start at *in. False when it is not a scalar value. */
static bool unescape_unicode(const char **in, const char *end, char **out)
{
    int32_t high = hex_unit(*in, end);

    if (high < 0 || (high >= 0xdc00 && high <= 0xdfff)) {
        return false;
    }
    *in += 4;
    uint32_t point = (uint32_t)high;
    if (high >= 0xd800 && high <= 0xdbff) {
        if (end - *in < 6 || (*in)[0] != '\\' || (*in)[1] != 'u') {
            return false;
        }
        int32_t low = hex_unit(*in + 2, end);
        if (low < 0xdc00 || low > 0xdfff) {
            return false;
        }
        *in += 6;
        point = 0x10000u + (((uint32_t)high - 0xd800u) << 10) + ((uint32_t)low - 0xdc00u);
    }
    *out = put_utf8(*out, point);
    return true;
}

static bool json_stream_reserve(struct json_stream *stream, size_t size)
{
    if (size <= stream->scratch_size) {
        return true;
    }
    char *larger = realloc(stream->scratch, size);
    if (larger == NULL) {
        json_stream_fail(stream, "out of memory");
        return false;
    }
    stream->scratch = larger;
    stream->scratch_size = size;
    return true;
}

static bool unescape(struct json_stream *stream, const char *in, const char *end)
{
    static const char letters[] = "\"\\/bfnrt";
    static const char values[] = "\"\\/\b\f\n\r\t";

    if (!json_stream_reserve(stream, (size_t)(end - in))) {
        return false;
    }
    char *out = stream->scratch;
    while (in < end) {
        if (*in != '\\') {
            *out++ = *in++;
            continue;
        }
        char letter = in[1]; /* scan_string has checked that it exists */
        in += 2;
        const char *found = letter != '\0' ? strchr(letters, letter) : NULL;
        if (found != NULL) {
            *out++ = values[found - letters];
        } else if (letter != 'u' || !unescape_unicode(&in, end, &out)) {
            json_stream_fail(stream, "a string holds an escape that is not valid");
            return false;
        }
    }
    stream->text = stream->scratch;
    stream->length = (size_t)(out - stream->scratch);
    return true;
}

/* Read a string at its opening quote. */
static bool json_stream_read_string(struct json_stream *stream)
{
    bool escapes;
    size_t begin = ++stream->at, end;

    if (!scan_string(stream, &end, &escapes)) {
        return false;
    }
    stream->text = stream->data + begin;
    stream->length = end - begin;
    return !escapes || unescape(stream, stream->data + begin, stream->data + end);
}

static size_t digits(struct json_stream *stream)
{
    size_t begin = stream->at;

    while (stream->at < stream->size && stream->data[stream->at] >= '0' && stream->data[stream->at] <= '9') {
        stream->at++;
    }
    return stream->at - begin;
}

static bool json_stream_take_byte(struct json_stream *stream, const char *any_of)
{
    if (stream->at < stream->size && stream->data[stream->at] != '\0' &&
        strchr(any_of, stream->data[stream->at]) != NULL) {
        stream->at++;
        return true;
    }
    return false;
}

static enum json_token json_stream_read_number(struct json_stream *stream)
{
    size_t begin = stream->at;

    json_stream_take_byte(stream, "-");
    size_t first = stream->at;
    size_t count = digits(stream);
    bool good = count == 1 || (count > 1 && stream->data[first] != '0');
    if (good && json_stream_take_byte(stream, ".")) {
        good = digits(stream) > 0;
    }
    if (good && json_stream_take_byte(stream, "eE")) {
        json_stream_take_byte(stream, "+-");
        good = digits(stream) > 0;
    }
    if (!good) {
        return json_stream_fail(stream, "a number is malformed");
    }
    stream->text = stream->data + begin;
    stream->length = stream->at - begin;
    return JSON_TOKEN_NUMBER;
}

static enum json_token read_word(struct json_stream *stream, const char *word, enum json_token token)
{
    size_t length = strlen(word);

    if (stream->size - stream->at < length || memcmp(stream->data + stream->at, word, length) != 0) {
        return json_stream_fail(stream, "a value is malformed");
    }
    stream->at += length;
    return token;
}

static enum json_token open_level(struct json_stream *stream, enum state state, enum json_token token)
{
    if (stream->depth == JSON_STREAM_DEPTH_MAX) {
        return json_stream_fail(stream, "nested too deeply");
    }
    stream->at++;
    stream->state[++stream->depth] = (uint8_t)state;
    return token;
}

static enum json_token close_level(struct json_stream *stream, enum json_token token)
{
    stream->at++;
    stream->depth--;
    return token;
}

/* A value begins at `at`. The level's state moves on first, so that it is right once the value is over. */
static enum json_token json_stream_read_value(struct json_stream *stream, int c)
{
    uint8_t *state = &stream->state[stream->depth];

    *state = stream->depth == 0 ? STATE_DONE : *state == STATE_OBJECT_VALUE ? STATE_OBJECT_NEXT : STATE_ARRAY_NEXT;
    stream->started = true;
    switch (c) {
    case '{':
        return open_level(stream, STATE_OBJECT_FIRST, JSON_TOKEN_OBJECT_BEGIN);
    case '[':
        return open_level(stream, STATE_ARRAY_FIRST, JSON_TOKEN_ARRAY_BEGIN);
    case '"':
        return json_stream_read_string(stream) ? JSON_TOKEN_STRING : JSON_TOKEN_ERROR;
    case 't':
        return read_word(stream, "true", JSON_TOKEN_TRUE);
    case 'f':
        return read_word(stream, "false", JSON_TOKEN_FALSE);
    case 'n':
        return read_word(stream, "null", JSON_TOKEN_NULL);
    case -1:
        return json_stream_fail(stream, "the text ends early");
    default:
        return c == '-' || (c >= '0' && c <= '9') ? json_stream_read_number(stream)
                                                  : json_stream_fail(stream, "a value is malformed");
    }
}

static enum json_token read_key(struct json_stream *stream, int c)
{
    if (c != '"') {
        return json_stream_fail(stream, c < 0 ? "the text ends early" : "a member must start with its name");
    }
    if (!json_stream_read_string(stream)) {
        return JSON_TOKEN_ERROR;
    }
    if (peek(stream) != ':') {
        return json_stream_fail(stream, "a member's name must be followed by a colon");
    }
    stream->at++;
    stream->state[stream->depth] = STATE_OBJECT_VALUE;
    return JSON_TOKEN_KEY;
}

enum json_token json_stream_next(struct json_stream *stream)
{
    if (stream->error != NULL) {
        return JSON_TOKEN_ERROR;
    }
    int c = peek(stream);
    switch ((enum state)stream->state[stream->depth]) {
    case STATE_DONE:
        return c < 0 ? JSON_TOKEN_END : json_stream_fail(stream, "text follows the value");
    case STATE_ARRAY_FIRST:
        return c == ']' ? close_level(stream, JSON_TOKEN_ARRAY_END) : json_stream_read_value(stream, c);
    case STATE_ARRAY_NEXT:
        if (c == ']') {
            return close_level(stream, JSON_TOKEN_ARRAY_END);
        }
        if (c != ',') {
            return json_stream_fail(stream, c < 0 ? "the text ends early" : "array elements must be parted by commas");
        }
        stream->at++;
        return json_stream_read_value(stream, peek(stream));
    case STATE_OBJECT_FIRST:
        return c == '}' ? close_level(stream, JSON_TOKEN_OBJECT_END) : read_key(stream, c);
    case STATE_OBJECT_NEXT:
        if (c == '}') {
            return close_level(stream, JSON_TOKEN_OBJECT_END);
        }
        if (c != ',') {
            return json_stream_fail(stream, c < 0 ? "the text ends early" : "members must be parted by commas");
        }
        stream->at++;
        return read_key(stream, peek(stream));
    case STATE_VALUE:
    case STATE_OBJECT_VALUE:
        break;
    }
    return json_stream_read_value(stream, c);
}

bool json_stream_skip(struct json_stream *stream, enum json_token first)
{
    switch (first) {
    case JSON_TOKEN_STRING:
    case JSON_TOKEN_NUMBER:
    case JSON_TOKEN_TRUE:
    case JSON_TOKEN_FALSE:
    case JSON_TOKEN_NULL:
        return true;
    case JSON_TOKEN_OBJECT_BEGIN:
    case JSON_TOKEN_ARRAY_BEGIN:
        break;
    default:
        return false;
    }
    for (int outside = stream->depth - 1; stream->depth > outside;) {
        if (json_stream_next(stream) == JSON_TOKEN_ERROR) {
            return false;
        }
    }
    return true;
}

bool json_stream_u64(const struct json_stream *stream, uint64_t *out)
{
    uint64_t value = 0;

    if (stream->length == 0) {
        return false;
    }
    for (size_t i = 0; i < stream->length; i++) {
        char c = stream->text[i];
        if (c < '0' || c > '9' || __builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(c - '0'), &value)) {
            return false;
        }
    }
    *out = value;
    return true;
}
