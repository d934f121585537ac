#pragma once
/* Where each request of a connection begins and ends, byte by byte: the request line, the header, and the framing of
 * the body, read strictly (RFC 9112 without what it only tolerates). It runs before the HTTP library, so
 * that no byte with an ambiguous meaning reaches it. No allocation, no I/O: any thread, one caller at a time. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_LINE_MAX 4352     /* bytes of the request line */
#define FRAME_HEAD_MAX 12288    /* bytes of the header section, including the request line */
#define FRAME_LINES_MAX 64      /* header lines */
#define FRAME_PARTS_MAX 100     /* parts of the query, and of a Cookie: the library allocates memory for each */
#define FRAME_EXTENSION_MAX 256 /* bytes of one chunk's size and extensions */
#define FRAME_TRAILER_MAX 2048  /* bytes after the last chunk */
#define FRAME_CHUNK_MAX ((int64_t)64 << 30)

enum frame_state {
    FRAME_START, /* before a request line */
    FRAME_BLANK, /* after the CR of an empty line before it */
    FRAME_METHOD,
    FRAME_TARGET,
    FRAME_VERSION,
    FRAME_LINE_END, /* after the CR of the request line */
    FRAME_NAME_FIRST,
    FRAME_NAME,
    FRAME_VALUE,
    FRAME_VALUE_END, /* after the CR of a header line */
    FRAME_HEAD_END,  /* after the CR of the empty line */
    FRAME_BODY,
    FRAME_SIZE_FIRST,
    FRAME_SIZE,
    FRAME_EXTENSION,
    FRAME_SIZE_END,
    FRAME_CHUNK,
    FRAME_CHUNK_CR,
    FRAME_CHUNK_LF,
    FRAME_DONE,    /* the request is complete: nothing is consumed until frame_next */
    FRAME_REFUSED, /* nothing more is consumed */
};

struct frame {
    enum frame_state state;
    int status;         /* of the refusal: 400, 413, 414, 431, 505 */
    const char *detail; /* why; static text */
    int64_t left;       /* bytes of the body, or of the chunk */
    size_t used;        /* bytes of the header section, of a chunk's size line or of the trailer */
    unsigned hosts;     /* Host lines so far */
    unsigned lines;     /* header lines so far */
    unsigned parts;     /* of the query so far, then of cookies */
    char name[24];      /* of the header line, in lower case; truncated, but never to another relevant name */
    char value[24];     /* of a header that frames the body, or the version */
    unsigned name_size, value_size;
    bool framing_line; /* value is being stored */
    bool cookie_line;
    bool value_ended; /* trailing whitespace has begun */
    bool has_length, chunked, old, trailer, blank_line;
};

/* How many of the bytes may be passed on: fewer than size when the request is complete (FRAME_DONE) or must be refused
 * (FRAME_REFUSED), and then the rest is not examined. A zeroed frame is at the start of a connection's first request.
 */
size_t frame_feed(struct frame *frame, const char *data, size_t size);
/* Start with the next request. */
void frame_next(struct frame *frame);
