/* Where requests begin and end.
 *
 * libmicrohttpd 0.9 reads more than HTTP allows: it accepts a bare LF as a line end in the header and after a chunk's
 * size, truncates a value at a NUL, and joins folded lines to a name. Each of these lets two readers of one stream see
 * different requests, so that a part of a refused request may be executed as the next one. Here nothing is tolerated:
 * CRLF ends lines, names are tokens, numbers are digits, and everything else is refused.
 *
 * The library still parses everything itself. It finds the same ends of requests because only one form is let through,
 * and the relay passes no byte of a request on before the response to the previous one is complete. */

#include "api/frame.h"

#include "api/header.h"
#include "base/text.h"

#include <string.h>
#include <strings.h>

#define METHOD_MAX 32
#define VERSION_SIZE 8
#define SIZE_DIGITS_MAX 16

static void frame_refuse(struct frame *frame, int status, const char *detail)
{
    frame->state = FRAME_REFUSED;
    frame->status = status;
    frame->detail = detail;
}

static bool is_token(unsigned char c)
{
    return header_is_token((const char *)&c, 1);
}

/* Allowed in a value, an extension or a trailer: no control character except tab. */
static bool is_text(unsigned char c)
{
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

static const char *bad_byte(unsigned char c, const char *otherwise)
{
    return c == '\n'   ? "A line ends in LF without CR."
           : c == '\0' ? "The request contains a NUL byte."
           : c == '\r' ? "A CR is not followed by LF."
                       : otherwise;
}

static void keep(char *buffer, size_t capacity, unsigned *size, unsigned char c)
{
    if (*size < capacity - 1) {
        buffer[*size] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
        buffer[*size + 1] = '\0';
    }
    (*size)++;
}

/* --- the request line */

static void take_start(struct frame *frame, unsigned char c)
{
    if (c == '\r' && !frame->blank_line) { /* some clients send an empty line after a body */
        frame->blank_line = true;
        frame->state = FRAME_BLANK;
    } else if (is_token(c)) {
        frame->state = FRAME_METHOD;
        frame->used = 1;
    } else {
        frame_refuse(frame, 400, bad_byte(c, "The request line does not begin with a method."));
    }
}

static void take_method(struct frame *frame, unsigned char c)
{
    frame->used++;
    if (c == ' ') {
        frame->state = FRAME_TARGET;
    } else if (!is_token(c) || frame->used > METHOD_MAX) {
        frame_refuse(frame, 400, bad_byte(c, "The method is not a token of at most 31 characters."));
    }
}

static void take_target(struct frame *frame, unsigned char c)
{
    if (++frame->used > FRAME_LINE_MAX) {
        frame_refuse(frame, 414, "The request target is too long.");
    } else if (c == '&' && ++frame->parts > FRAME_PARTS_MAX) {
        frame_refuse(frame, 414, "The query has more than 100 parts.");
    } else if (c == ' ') {
        frame->state = FRAME_VERSION;
        frame->value_size = 0;
        frame->parts = 0;
    } else if (c < 0x21 || c > 0x7e) {
        frame_refuse(frame, 400, bad_byte(c, "The request target contains a byte that must be percent-encoded."));
    }
}

static void end_version(struct frame *frame)
{
    const char *version = frame->value;
    bool shaped = frame->value_size == VERSION_SIZE && memcmp(version, "HTTP/", 5) == 0 && version[5] >= '0' &&
                  version[5] <= '9' && version[6] == '.' && version[7] >= '0' && version[7] <= '9';

    if (!shaped) {
        frame_refuse(frame, 400, "The request line does not end in HTTP/1.1 or HTTP/1.0.");
    } else if (version[5] != '1' || version[7] > '1') {
        frame_refuse(frame, 505, "Only HTTP/1.0 and HTTP/1.1 are supported.");
    } else {
        frame->old = version[7] == '0';
        frame->state = FRAME_LINE_END;
    }
}

static void take_version(struct frame *frame, unsigned char c)
{
    frame->used++;
    if (c == '\r') {
        end_version(frame);
    } else if (c < 0x21 || c > 0x7e || frame->value_size == VERSION_SIZE) {
        frame_refuse(frame, 400, bad_byte(c, "The request line does not end in HTTP/1.1 or HTTP/1.0."));
    } else {
        frame->value[frame->value_size++] = (char)c; /* in its original case: "http/1.1" is not a version */
    }
}

/* --- the header section, and the trailer */

static bool is_name(const struct frame *frame, const char *name)
{
    return frame->name_size == strlen(name) && memcmp(frame->name, name, frame->name_size) == 0;
}

static void take_name_first(struct frame *frame, unsigned char c)
{
    if (c == '\r') {
        frame->state = FRAME_HEAD_END;
    } else if (c == ' ' || c == '\t') {
        frame_refuse(frame, 400, "A header line is folded.");
    } else if (!is_token(c)) {
        frame_refuse(frame, 400, bad_byte(c, c == ':' ? "A header has no name." : "A header name is not a token."));
    } else if (++frame->lines > FRAME_LINES_MAX) {
        frame_refuse(frame, 431, "The header section has too many lines.");
    } else {
        frame->name_size = 0;
        keep(frame->name, sizeof(frame->name), &frame->name_size, c);
        frame->state = FRAME_NAME;
    }
}

static void take_name(struct frame *frame, unsigned char c)
{
    if (c == ':') {
        frame->framing_line = is_name(frame, "content-length") || is_name(frame, "transfer-encoding");
        frame->cookie_line = is_name(frame, "cookie");
        frame->hosts += is_name(frame, "host");
        frame->value_size = 0;
        frame->value_ended = false;
        frame->state = FRAME_VALUE;
        if (frame->trailer && (frame->framing_line || is_name(frame, "host"))) {
            frame_refuse(frame, 400, "The trailer contains a header that must come before the body.");
        }
    } else if (is_token(c)) {
        keep(frame->name, sizeof(frame->name), &frame->name_size, c);
    } else {
        frame_refuse(frame, 400, bad_byte(c, "A header name is not a token."));
    }
}

static void take_value(struct frame *frame, unsigned char c)
{
    if (c == '\r') {
        frame->state = FRAME_VALUE_END;
    } else if (!is_text(c)) {
        frame_refuse(frame, 400, bad_byte(c, "A header value contains a control character."));
    } else if (frame->cookie_line && c == ';' && ++frame->parts > FRAME_PARTS_MAX) {
        frame_refuse(frame, 431, "The cookies have more than 100 parts.");
    } else if (c == ' ' || c == '\t') {
        frame->value_ended = frame->value_size > 0;
    } else if (frame->framing_line) {
        if (frame->value_ended) { /* whitespace inside is stored, so that the value is found invalid */
            keep(frame->value, sizeof(frame->value), &frame->value_size, ' ');
            frame->value_ended = false;
        }
        keep(frame->value, sizeof(frame->value), &frame->value_size, c);
    }
}

static void end_framing_line(struct frame *frame)
{
    if (frame->has_length || frame->chunked) {
        frame_refuse(frame, 400, "Only one Content-Length or Transfer-Encoding header is allowed, and not both.");
    } else if (frame->value_ended) { /* HTTP allows it; the library does not, and would respond twice */
        frame_refuse(frame, 400, "A Content-Length or Transfer-Encoding header ends in whitespace.");
    } else if (is_name(frame, "content-length")) {
        frame->has_length = true;
        if (frame->value_size == 0 || frame->value_size >= sizeof(frame->value) ||
            !header_parse_u63(frame->value, frame->value_size, &frame->left)) {
            frame_refuse(frame, 400, "Content-Length is not a number.");
        }
    } else if (frame->old || frame->value_size != strlen("chunked") ||
               memcmp(frame->value, "chunked", strlen("chunked")) != 0) {
        frame_refuse(frame, 400, "The only supported transfer coding is chunked, in HTTP/1.1.");
    } else {
        frame->chunked = true;
    }
}

static void end_line(struct frame *frame, unsigned char c)
{
    if (c != '\n') {
        frame_refuse(frame, 400, "A CR is not followed by LF.");
        return;
    }
    bool framing = frame->state == FRAME_VALUE_END && frame->framing_line;
    frame->state = FRAME_NAME_FIRST;
    if (framing) {
        end_framing_line(frame);
    }
}

static void end_head(struct frame *frame, unsigned char c)
{
    if (c != '\n') {
        frame_refuse(frame, 400, "A CR is not followed by LF.");
    } else if (frame->hosts != 1) { /* the library would respond twice */
        frame_refuse(frame, 400, "A request needs exactly one Host header.");
    } else if (frame->trailer || (!frame->chunked && frame->left == 0)) {
        frame->state = FRAME_DONE;
    } else {
        frame->state = frame->chunked ? FRAME_SIZE_FIRST : FRAME_BODY;
    }
}

/* --- chunks */

static void take_size(struct frame *frame, unsigned char c)
{
    int digit = text_hex_value((char)c);
    bool first = frame->state == FRAME_SIZE_FIRST;

    if (first) {
        frame->left = 0;
        frame->used = 0;
    }
    if (digit >= 0) {
        frame->state = FRAME_SIZE;
        if (++frame->used > SIZE_DIGITS_MAX) {
            frame_refuse(frame, 400, "A chunk's size has more than 16 digits.");
        } else if (frame->left > (FRAME_CHUNK_MAX - digit) / 16) {
            frame_refuse(frame, 413, "A chunk is larger than the largest body allowed.");
        } else {
            frame->left = frame->left * 16 + digit;
        }
    } else if (!first && c == ';') {
        frame->state = FRAME_EXTENSION;
    } else if (!first && c == '\r') {
        frame->state = FRAME_SIZE_END;
    } else {
        frame_refuse(frame, 400, bad_byte(c, "A chunk's size is not a hexadecimal number."));
    }
}

static void take_extension(struct frame *frame, unsigned char c)
{
    if (c == '\r') {
        frame->state = FRAME_SIZE_END;
    } else if (!is_text(c)) {
        frame_refuse(frame, 400, bad_byte(c, "A chunk's extension contains a control character."));
    } else if (++frame->used > FRAME_EXTENSION_MAX) {
        frame_refuse(frame, 400, "A chunk's extension is too long.");
    }
}

static void end_size(struct frame *frame, unsigned char c)
{
    if (c != '\n') {
        frame_refuse(frame, 400, "A CR is not followed by LF.");
    } else if (frame->left > 0) {
        frame->state = FRAME_CHUNK;
    } else {
        frame->trailer = true;
        frame->used = 0;
        frame->lines = 0;
        frame->state = FRAME_NAME_FIRST;
    }
}

static void end_chunk(struct frame *frame, unsigned char c)
{
    bool first = frame->state == FRAME_CHUNK_CR;

    if (c != (first ? '\r' : '\n')) {
        frame_refuse(frame, 400, "A chunk's data does not end in CRLF.");
    } else {
        frame->state = first ? FRAME_CHUNK_LF : FRAME_SIZE_FIRST;
    }
}

/* --- all of it */

static void take_header_byte(struct frame *frame, unsigned char c)
{
    if (++frame->used > (frame->trailer ? FRAME_TRAILER_MAX : FRAME_HEAD_MAX)) {
        frame_refuse(frame, 431, "The header section is too large.");
    } else if (frame->state == FRAME_NAME_FIRST) {
        take_name_first(frame, c);
    } else if (frame->state == FRAME_NAME) {
        take_name(frame, c);
    } else {
        take_value(frame, c);
    }
}

static void take_byte(struct frame *frame, unsigned char c)
{
    switch (frame->state) {
    case FRAME_START:
        take_start(frame, c);
        break;
    case FRAME_BLANK:
        frame->state = FRAME_START;
        if (c != '\n') {
            frame_refuse(frame, 400, "A CR is not followed by LF.");
        }
        break;
    case FRAME_METHOD:
        take_method(frame, c);
        break;
    case FRAME_TARGET:
        take_target(frame, c);
        break;
    case FRAME_VERSION:
        take_version(frame, c);
        break;
    case FRAME_LINE_END:
    case FRAME_VALUE_END:
        end_line(frame, c);
        break;
    case FRAME_NAME_FIRST:
    case FRAME_NAME:
    case FRAME_VALUE:
        take_header_byte(frame, c);
        break;
    case FRAME_HEAD_END:
        end_head(frame, c);
        break;
    case FRAME_SIZE_FIRST:
    case FRAME_SIZE:
        take_size(frame, c);
        break;
    case FRAME_EXTENSION:
        take_extension(frame, c);
        break;
    case FRAME_SIZE_END:
        end_size(frame, c);
        break;
    case FRAME_CHUNK_CR:
    case FRAME_CHUNK_LF:
        end_chunk(frame, c);
        break;
    case FRAME_BODY:
    case FRAME_CHUNK:
    case FRAME_DONE:
    case FRAME_REFUSED:
        break; /* not handled byte by byte */
    }
}

size_t frame_feed(struct frame *frame, const char *data, size_t size)
{
    size_t at = 0;

    while (at < size && frame->state != FRAME_DONE && frame->state != FRAME_REFUSED) {
        if (frame->state != FRAME_BODY && frame->state != FRAME_CHUNK) {
            take_byte(frame, (unsigned char)data[at]);
            at += frame->state != FRAME_REFUSED;
            continue;
        }
        size_t part = (int64_t)(size - at) < frame->left ? size - at : (size_t)frame->left;
        at += part;
        frame->left -= (int64_t)part;
        if (frame->left == 0) {
            frame->state = frame->state == FRAME_BODY ? FRAME_DONE : FRAME_CHUNK_CR;
        }
    }
    return at;
}

void frame_next(struct frame *frame)
{
    *frame = (struct frame){.state = FRAME_START};
}
