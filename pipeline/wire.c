/* Fields and frames. A header is magic, version, kind and the size of the body, 32 bits each. */

#include "pipeline/wire.h"

#include "base/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAGIC 0x51575246u /* "QWRF" */

struct header {
    uint32_t magic, version, kind, size;
};

void wire_put_bytes(struct wire_out *out, const void *bytes, size_t size)
{
    if (out->failed || size > WIRE_FRAME_MAX - out->size) {
        out->failed = true;
        return;
    }
    if (out->capacity - out->size < size) {
        size_t capacity = 2 * (out->size + size) + 256;
        unsigned char *grown = realloc(out->data, capacity);
        if (grown == NULL) {
            out->failed = true;
            return;
        }
        out->data = grown;
        out->capacity = capacity;
    }
    if (size > 0) {
        memcpy(out->data + out->size, bytes, size);
        out->size += size;
    }
}

void wire_put_int(struct wire_out *out, int64_t value)
{
    wire_put_bytes(out, &value, sizeof(value));
}

void wire_put_real(struct wire_out *out, double value)
{
    wire_put_bytes(out, &value, sizeof(value));
}

void wire_put_text(struct wire_out *out, const char *text)
{
    size_t length = strlen(text);

    wire_put_int(out, (int64_t)length);
    wire_put_bytes(out, text, length);
}

const void *wire_get_bytes(struct wire_in *in, size_t size)
{
    if (in->bad || size > in->left) {
        in->bad = true;
        return NULL;
    }
    const void *bytes = in->at;
    in->at += size;
    in->left -= size;
    return bytes;
}

int64_t wire_get_int(struct wire_in *in)
{
    const void *bytes = wire_get_bytes(in, sizeof(int64_t));
    int64_t value = 0;

    if (bytes != NULL) {
        memcpy(&value, bytes, sizeof(value));
    }
    return value;
}

int wire_get_code(struct wire_in *in)
{
    int64_t code = wire_get_int(in);

    in->bad = in->bad || (code != 0 && (code >= -ERR_BASE_ || code <= -ERR_END_));
    return in->bad ? 0 : (int)code;
}

double wire_get_real(struct wire_in *in)
{
    const void *bytes = wire_get_bytes(in, sizeof(double));
    double value = 0;

    if (bytes != NULL) {
        memcpy(&value, bytes, sizeof(value));
    }
    return value;
}

/* The bytes of a text of at most max bytes; NULL: bad. */
static const char *text_bytes(struct wire_in *in, size_t max, size_t *length)
{
    int64_t size = wire_get_int(in);

    if (size < 0 || (uint64_t)size > max) {
        in->bad = true;
    }
    const char *bytes = in->bad ? NULL : wire_get_bytes(in, (size_t)size);
    if (bytes != NULL && memchr(bytes, '\0', (size_t)size) != NULL) {
        in->bad = true;
        bytes = NULL;
    }
    *length = (size_t)size;
    return bytes;
}

void wire_get_text(struct wire_in *in, char *out, size_t size)
{
    size_t length;
    const char *bytes = text_bytes(in, size - 1, &length);

    if (bytes != NULL) {
        memcpy(out, bytes, length);
    }
    out[bytes != NULL ? length : 0] = '\0';
}

char *wire_get_long_text(struct wire_in *in, size_t max)
{
    size_t length;
    const char *bytes = text_bytes(in, max, &length);
    char *text = bytes != NULL ? strndup(bytes, length) : NULL;

    in->bad = in->bad || text == NULL;
    return text;
}

int64_t wire_get_count(struct wire_in *in, size_t size)
{
    int64_t count = wire_get_int(in);

    if (count < 0 || (uint64_t)count > in->left / size) {
        in->bad = true;
    }
    return in->bad ? 0 : count;
}

static int raise_gone(int saved_errno)
{
    return err_raise(ERR_WORKER_LOST, "the peer of a run's messages is gone: %s", strerror(saved_errno));
}

static int send_all(int socket, const void *data, size_t size)
{
    const char *at = data;

    while (size > 0) {
        ssize_t sent = send(socket, at, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            return raise_gone(sent == 0 ? EPIPE : errno);
        }
        at += sent;
        size -= (size_t)sent;
    }
    return 0;
}

int wire_send(int socket, enum wire_kind kind, const struct wire_out *body)
{
    const struct header header = {MAGIC, WIRE_VERSION, (uint32_t)kind, (uint32_t)body->size};

    if (body->failed) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a message of a run");
    }
    int rc = send_all(socket, &header, sizeof(header));
    return rc != 0 ? rc : send_all(socket, body->data, body->size);
}

int wire_send_code(int socket, enum wire_kind kind, int code)
{
    int64_t value = code;
    unsigned char bytes[sizeof(value)];

    memcpy(bytes, &value, sizeof(value));
    const struct wire_out body = {.data = bytes, .size = sizeof(bytes)};
    return wire_send(socket, kind, &body);
}

/* The number of bytes that are still missing: of the header first, then of the frame. */
static int missing(const struct wire_receiver *receiver, size_t *bytes)
{
    struct header header;

    if (receiver->size < sizeof(header)) {
        *bytes = sizeof(header) - receiver->size;
        return 0;
    }
    memcpy(&header, receiver->data, sizeof(header));
    if (header.magic != MAGIC || header.version != WIRE_VERSION || header.kind >= WIRE_KIND_COUNT ||
        header.size > WIRE_FRAME_MAX) {
        return err_raise(ERR_WORKER_LOST, "a run's message has a header that is not of version %d", WIRE_VERSION);
    }
    *bytes = sizeof(header) + header.size - receiver->size;
    return 0;
}

static int reserve(struct wire_receiver *receiver, size_t bytes)
{
    if (receiver->capacity - receiver->size >= bytes) {
        return 0;
    }
    unsigned char *grown = realloc(receiver->data, receiver->size + bytes);
    if (grown == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a message of a run");
    }
    receiver->data = grown;
    receiver->capacity = receiver->size + bytes;
    return 0;
}

int wire_receive(int socket, struct wire_receiver *receiver, bool wait, bool *got, enum wire_kind *kind,
                 struct wire_in *body)
{
    struct header header;
    size_t bytes = 0;
    int rc;

    *got = false;
    while ((rc = missing(receiver, &bytes)) == 0 && bytes > 0) {
        rc = reserve(receiver, bytes);
        if (rc != 0) {
            return rc;
        }
        ssize_t count = recv(socket, receiver->data + receiver->size, bytes, wait ? 0 : MSG_DONTWAIT);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0 && errno == EAGAIN) {
            return 0;
        }
        if (count <= 0) {
            return raise_gone(count == 0 ? EPIPE : errno);
        }
        receiver->size += (size_t)count;
    }
    if (rc != 0) {
        return rc;
    }
    memcpy(&header, receiver->data, sizeof(header));
    *kind = (enum wire_kind)header.kind;
    *body = (struct wire_in){.at = receiver->data + sizeof(header), .left = header.size};
    receiver->size = 0;
    *got = true;
    return 0;
}

void wire_receiver_deinit(struct wire_receiver *receiver)
{
    free(receiver->data);
    *receiver = (struct wire_receiver){0};
}
