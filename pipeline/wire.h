#pragma once
/* Frames between a run's process and its parent: a header, then a body of plain fields. Both ends are one executable,
 * so fields are in the host's representation; the version in the header detects another build. Input is not trusted: a
 * body is bounded, and a field that does not fit makes the frame bad. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION 1
#define WIRE_FRAME_MAX ((size_t)64 << 20)

enum wire_kind {
    /* to the run's process */
    WIRE_ORDER,  /* order.h: what to run */
    WIRE_IDS,    /* a piece of its sets' tokens */
    WIRE_STOP,   /* a code: end with it as soon as possible */
    WIRE_ANSWER, /* a code, or 0: to a message that waits for one */
    /* from it */
    WIRE_MESSAGE, /* message.h */
    WIRE_KIND_COUNT
};

/* A body that is being written. Zeroed at first; free(data). */
struct wire_out {
    unsigned char *data;
    size_t size, capacity;
    bool failed; /* no memory, or beyond WIRE_FRAME_MAX */
};
void wire_put_bytes(struct wire_out *out, const void *bytes, size_t size);
void wire_put_int(struct wire_out *out, int64_t value);
void wire_put_real(struct wire_out *out, double value);
void wire_put_text(struct wire_out *out, const char *text);

/* A body that is being read. Once bad, every value is 0. */
struct wire_in {
    const unsigned char *at;
    size_t left;
    bool bad;
};
/* NULL when there are not that many left. */
const void *wire_get_bytes(struct wire_in *in, size_t size);
int64_t wire_get_int(struct wire_in *in);
double wire_get_real(struct wire_in *in);
/* A code of base/err.def, or 0; bad when it is another number. */
int wire_get_code(struct wire_in *in);
/* Bad when it does not fit with its end, or has a NUL in it. */
void wire_get_text(struct wire_in *in, char *out, size_t size);
/* The same into memory of its own, of at most max bytes; caller frees. NULL: bad, or no memory. */
char *wire_get_long_text(struct wire_in *in, size_t max);
/* A count of items of at least `size` bytes each; bad when there are fewer bytes left. */
int64_t wire_get_count(struct wire_in *in, size_t size);

/* Send a frame on a stream socket; waits. ERR_WORKER_LOST: the peer is gone. */
int wire_send(int socket, enum wire_kind kind, const struct wire_out *body);
/* A frame that holds one code. */
int wire_send_code(int socket, enum wire_kind kind, int code);

/* The received part of the next frame. Zeroed at first; wire_receiver_deinit. */
struct wire_receiver {
    unsigned char *data;
    size_t size, capacity;
};
/* Receive what has arrived; wait: until a frame is complete. *got: it is, and *kind and *body describe it until the
 * next call. ERR_WORKER_LOST: the peer is gone, or the bytes are not a frame of this version. */
int wire_receive(int socket, struct wire_receiver *receiver, bool wait, bool *got, enum wire_kind *kind,
                 struct wire_in *body);
void wire_receiver_deinit(struct wire_receiver *receiver);
