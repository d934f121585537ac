#pragma once
/* Where each request of a connection begins and ends, byte by byte: the request line, the header, and the framing of
 * the body, read strictly (RFC 9112 without what it only tolerates). It stands in front of the HTTP library, so that no
 * byte reaches it whose meaning could be in doubt. No allocation, no I/O: any thread, one caller at a time. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_LINE_MAX 4352     /* bytes of the request line */
#define FRAME_HEAD_MAX 12288    /* bytes of the whole header section, the request line included */
#define FRAME_LINES_MAX 64      /* header lines */
#define FRAME_PARTS_MAX 100     /* of the query, and of a Cookie: the library has memory for each */
#define FRAME_EXTENSION_MAX 256 /* bytes of one chunk's size and extensions */
#define FRAME_TRAILER_MAX 2048  /* bytes behind the last chunk */
#define FRAME_CHUNK_MAX ((int64_t)64 << 30)

enum frame_state {
    FRAME_START, /* ahead of a request line */
    FRAME_BLANK, /* CR of an empty line ahead of it was seen */
    FRAME_METHOD,
    FRAME_TARGET,
    FRAME_VERSION,
    FRAME_LINE_END, /* CR of the request line was seen */
    FRAME_NAME_FIRST,
    FRAME_NAME,
    FRAME_VALUE,
    FRAME_VALUE_END, /* CR of a header line was seen */
    FRAME_HEAD_END,  /* CR of the empty line was seen */
    FRAME_BODY,
    FRAME_SIZE_FIRST,
    FRAME_SIZE,
    FRAME_EXTENSION,
    FRAME_SIZE_END,
    FRAME_CHUNK,
    FRAME_CHUNK_CR,
    FRAME_CHUNK_LF,
    FRAME_DONE,    /* the request is complete: nothing is taken until frame_next */
    FRAME_REFUSED, /* nothing is taken any more */
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
    char name[24];      /* of the header line, lower case; cut, but never to another name that matters */
    char value[24];     /* of a line that frames the body, or the version */
    unsigned name_size, value_size;
    bool framing_line; /* value is being kept */
    bool cookie_line;
    bool value_ended; /* blanks behind it have begun */
    bool has_length, chunked, old, trailer, blank_line;
};

/* How many of the bytes may be passed on. Fewer than size when the request is complete (FRAME_DONE) or must be refused
 * (FRAME_REFUSED): then the rest is not looked at. A zeroed frame stands ahead of a connection's first request. */
size_t frame_feed(struct frame *frame, const char *data, size_t size);
/* The next request begins. */
void frame_next(struct frame *frame);
