/* Sending replies.
 *
 * A body in memory is lent to the HTTP library until the request ends. A stream is pulled: what a fill has made is
 * copied, and when nothing is left, the connection is suspended and a worker fills again.
 *
 * The library cannot respond before a body has ended. A client that would continue a failed upload for hours therefore
 * gets a response past the library: nothing of this request's reply has been written by then, so we can write to the
 * socket. Our direction is then shut down, and what the client still sends is discarded for a moment, because a reset
 * could overtake the response. */

#include "api/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define STREAM_BLOCK ((size_t)64 << 10)

const char *request_header(const struct request *request, const char *name)
{
    return request->mhd != NULL && !request->nested ? MHD_lookup_connection_value(request->mhd, MHD_HEADER_KIND, name)
                                                    : NULL;
}

/* Every header of the reply except those that frame it. */
static void each_header(const struct request *request, void (*put)(void *out, const char *name, const char *value),
                        void *out)
{
    const struct reply *reply = &request->reply;
    bool cached = false, governed = false;
    for (int i = 0; i < reply->header_count; i++) {
        cached = cached || strcmp(reply->headers[i].name, "Cache-Control") == 0;
        governed = governed || strcmp(reply->headers[i].name, "Content-Security-Policy") == 0;
        put(out, reply->headers[i].name, reply->headers[i].value);
    }
    if (!cached) {
        put(out, "Cache-Control", "no-store");
    }
    if (reply->content_type != NULL) {
        put(out, "Content-Type", reply->content_type);
    }
    put(out, "X-Request-Id", request->id);
    put(out, "X-Content-Type-Options", "nosniff");
    if (!governed) {
        put(out, "Content-Security-Policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'");
    }
    if (reply->close || atomic_load(&request->context->draining)) {
        put(out, "Connection", "close");
    }
}

static void put_header(void *out, const char *name, const char *value)
{
    (void)MHD_add_response_header(out, name, value);
}

/* The library wants bytes of a stream. */
static ssize_t pull(void *data, uint64_t position, char *buffer, size_t capacity)
{
    struct request *request = data;
    struct connection *connection = request->connection;
    connection->since_ms = clock_monotonic_ms();
    size_t left = request->out_size - request->out_used;
    if (left > 0) {
        size_t part = left < capacity ? left : capacity;
        memcpy(buffer, request->out + request->out_used, part);
        request->out_used += part;
        request->bytes_out += (int64_t)part;
        return (ssize_t)part;
    }
    if (request->out_rc == REQUEST_END) {
        return MHD_CONTENT_READER_END_OF_STREAM;
    }
    if (request->out_rc < 0) {
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    api_hand_over(connection, REQUEST_FILL);
    return 0;
}

/* Free what was only needed to make the reply: a stream may last for hours. */
static void drop_input(struct request *request)
{
    free(request->scratch);
    request->scratch = NULL;
    free(request->body);
    request->body = NULL;
    request->body_size = request->body_capacity = 0;
    json_decref(request->json);
    request->json = NULL;
}

enum MHD_Result send_reply(struct connection *connection)
{
    struct request *request = connection->request;
    const struct reply *reply = &request->reply;
    struct MHD_Response *response =
        reply->stream != NULL
            ? MHD_create_response_from_callback(reply->length < 0 ? MHD_SIZE_UNKNOWN : (uint64_t)reply->length,
                                                STREAM_BLOCK, pull, request, NULL)
            : MHD_create_response_from_buffer(reply->size, reply->body, MHD_RESPMEM_PERSISTENT);
    if (response == NULL) {
        return MHD_NO;
    }
    each_header(request, put_header, response);
    request->phase = SERVER_SENDING;
    sweeper_set(connection, CONNECTION_REPLY);
    if (reply->stream == NULL && strcmp(request->method, "HEAD") != 0) {
        request->bytes_out = (int64_t)reply->size;
    }
    enum MHD_Result queued = MHD_queue_response(request->mhd, (unsigned)reply->status, response);
    MHD_destroy_response(response);
    drop_input(request);
    return queued;
}

static void print_header(void *out, const char *name, const char *value)
{
    if (strcmp(name, "Connection") != 0) {
        (void)fprintf(out, "%s: %s\r\n", name, value);
    }
}

void send_early(struct connection *connection)
{
    struct request *request = connection->request;
    const struct reply *reply = &request->reply;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out != NULL) {
        (void)fprintf(out, "HTTP/1.1 %d %s\r\n", reply->status, MHD_get_reason_phrase_for((unsigned)reply->status));
        each_header(request, print_header, out);
        (void)fprintf(out, "Content-Length: %zu\r\nConnection: close\r\n\r\n", reply->size);
        (void)fwrite(reply->body != NULL ? reply->body : "", 1, reply->size, out);
        if (fclose(out) == 0) {
            (void)send(connection->fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL); /* a few KiB into an empty buffer */
            request->bytes_out = (int64_t)reply->size;
        }
    }
    free(text);
    (void)shutdown(connection->fd, SHUT_WR);
    request->phase = SERVER_LINGER;
    sweeper_set(connection, CONNECTION_LINGER);
    drop_input(request);
}
