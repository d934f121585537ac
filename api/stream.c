/* Streams are read from their source as they are sent: a slow client costs one buffer and an entry in a list.
 *
 * A blob has one strong validator, its SHA-256, so If-Range compares only that. The event stream reads the event table
 * after the last number that it sent, and ends when the job's status is terminal and its last event was sent. A comment
 * every 15 seconds keeps proxies from closing the stream, and detects clients that are gone. */

#include "api/stream.h"

#include "api/archive.h"
#include "api/header.h"
#include "api/reply.h"
#include "base/cleanup.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEARTBEAT_MS 15000
#define EVENTS_PAGE 100
/* A blob never changes, but a later signature is another blob under the same path, and makes another archive. */
#define LASTING_CACHING "private, immutable, max-age=31536000"
#define CHANGING_CACHING "private, no-cache"

/* A part of a blob, or of an archive. */
struct blob_stream {
    struct blob_reader *reader;
    struct archive *archive;
    int64_t offset, end;
};

static int blob_fill(struct request *request, void *state, char *buffer, size_t capacity, size_t *size)
{
    struct blob_stream *stream = state;
    int64_t left = stream->end - stream->offset;
    if (left <= 0) {
        return REQUEST_END;
    }
    size_t part = left < (int64_t)capacity ? (size_t)left : capacity;
    int rc = stream->archive != NULL
                 ? archive_read(stream->archive, request->context->service, stream->offset, buffer, part)
                 : service_blob_read(stream->reader, stream->offset, buffer, part);
    if (rc < 0) {
        return err_pass(rc, "sending a blob");
    }
    stream->offset += (int64_t)part;
    *size = part;
    return 0;
}

static void blob_close(void *state)
{
    struct blob_stream *stream = state;
    if (stream->reader != NULL) {
        service_blob_close(stream->reader);
    }
    archive_free(stream->archive);
    free(stream);
}

static const struct reply_stream blob_ops = {blob_fill, blob_close};

static void blob_headers(struct request *request, const char *etag, const char *caching, const char *name)
{
    struct reply *reply = &request->reply;
    reply_header(reply, "ETag", "%s", etag);
    reply_header(reply, "Accept-Ranges", "bytes");
    reply_header(reply, "Cache-Control", "%s", caching);
    if (name != NULL && strpbrk(name, "\"\\") == NULL) {
        reply_header(reply, "Content-Disposition", "attachment; filename=\"%s\"", name);
    } else {
        reply_header(reply, "Content-Disposition", "attachment");
    }
}

static int reply_blob_take(struct request *request, struct blob_stream *stream, const char *etag,
                           const char *content_type, int64_t size)
{
    const char *condition = request_header(request, "If-Range");
    const char *range = request_header(request, "Range");
    if (condition != NULL && !header_etag_matches(condition, etag, false)) {
        range = NULL;
    }
    int64_t first = 0, last = size - 1;
    enum header_range kind = header_range_parse(range, size, &first, &last);
    if (kind == HEADER_RANGE_UNSATISFIABLE) {
        blob_close(stream);
        int code = err_raise(ERR_RANGE_NOT_SATISFIABLE, "the file has %lld bytes", (long long)size);
        reply_problem(request, code, 0);
        reply_header(&request->reply, "Content-Range", "bytes */%lld", (long long)size);
        return 0;
    }
    stream->offset = first;
    stream->end = last + 1;
    int status = kind == HEADER_RANGE_ONE ? 206 : 200;
    reply_stream_take(request, status, content_type, &blob_ops, stream, last + 1 - first);
    if (status == 206) {
        reply_header(&request->reply, "Content-Range", "bytes %lld-%lld/%lld", (long long)first, (long long)last,
                     (long long)size);
    }
    return 0;
}

/* Whether the preconditions of the request ask for the bytes under this entity tag: 0, else 1 with the reply set. */
static int check_conditions(struct request *request, const char *etag, const char *caching)
{
    const char *expected = request_header(request, "If-Match");
    if (expected != NULL && !header_etag_matches(expected, etag, false)) {
        return err_raise(ERR_PRECONDITION_FAILED, "the file's entity tag is %s", etag);
    }
    if (!header_etag_matches(request_header(request, "If-None-Match"), etag, true)) {
        return 0;
    }
    reply_empty(request, 304);
    reply_header(&request->reply, "ETag", "%s", etag);
    reply_header(&request->reply, "Cache-Control", "%s", caching);
    return 1;
}

int stream_blob(struct request *request, const char *sha256, const char *content_type, const char *name, bool lasting)
{
    const char *caching = lasting ? LASTING_CACHING : CHANGING_CACHING;
    char etag[80];
    (void)snprintf(etag, sizeof(etag), "\"%s\"", sha256);
    int answered = check_conditions(request, etag, caching);
    if (answered != 0) {
        return answered < 0 ? answered : 0;
    }
    AUTO_FREE struct blob_stream *stream = NULL;
    int64_t size = 0;
    TRY(mem_new(&stream));
    TRY(service_blob_open(request->context->service, sha256, &stream->reader, &size));
    TRY(reply_blob_take(request, MOVE(stream), etag, content_type, size));
    if (request->reply.status < 300) {
        char digest[DIGEST_BASE64_SIZE];
        digest_base64(sha256, digest);
        blob_headers(request, etag, caching, name);
        reply_header(&request->reply, "Repr-Digest", "sha-256=:%s:", digest);
    }
    return 0;
}

int stream_archive_take(struct request *request, struct archive *archive, const char *name)
{
    AUTO(archive) struct archive *owned = archive;
    AUTO_FREE struct blob_stream *stream = NULL;
    char etag[80];
    (void)snprintf(etag, sizeof(etag), "\"%s\"", archive_digest(archive));
    int answered = check_conditions(request, etag, CHANGING_CACHING);
    if (answered != 0) {
        return answered < 0 ? answered : 0;
    }
    TRY(mem_new(&stream));
    stream->archive = MOVE(owned);
    TRY(reply_blob_take(request, MOVE(stream), etag, "application/x-tar", archive_size(archive)));
    if (request->reply.status < 300) {
        blob_headers(request, etag, CHANGING_CACHING, name);
    }
    return 0;
}

struct event_stream {
    char job[ID_SIZE];
    int64_t after;
    enum stream_format format;
    json_t *page; /* events read and not framed yet */
    size_t next;
    char *frame; /* framed and not sent yet */
    size_t frame_size, frame_used;
    int64_t heartbeat_ms;
    bool started;
    bool last; /* the job has ended, and no event follows those of the page */
};

char *stream_frame_event(const json_t *event, enum stream_format format, size_t *size)
{
    char *data = json_dumps(event, JSON_COMPACT);
    char *text = NULL;
    int length = -1;
    if (data != NULL && format == STREAM_SSE) {
        const char *type = json_string_value(json_object_get(event, "type"));
        length = asprintf(&text, "id: %lld\nevent: %s\ndata: %s\n\n",
                          (long long)json_integer_value(json_object_get(event, "seq")), type != NULL ? type : "message",
                          data);
    } else if (data != NULL) {
        length = asprintf(&text, "%s\n", data);
    }
    free(data);
    if (length < 0) {
        return NULL;
    }
    *size = (size_t)length;
    return text;
}

/* Read the next page after stream->after into stream->page. 0, or REQUEST_WAIT, REQUEST_END, or negative. */
static int next_page(struct request *request, struct event_stream *stream)
{
    json_decref(stream->page);
    stream->page = NULL;
    stream->next = 0;
    if (stream->last) {
        return REQUEST_END;
    }
    int rc = service_job_events(request->context->service, request->who, stream->job, stream->after, EVENTS_PAGE,
                                &stream->page, &stream->last);
    if (rc < 0) {
        return rc == ERR_NOT_FOUND ? REQUEST_END : rc; /* deleted in the meantime */
    }
    if (json_array_size(stream->page) > 0) {
        return 0;
    }
    return stream->last || atomic_load(&request->context->draining) ? REQUEST_END : REQUEST_WAIT;
}

/* The next event's frame. As next_page. */
static int next_frame(struct request *request, struct event_stream *stream)
{
    if (stream->page == NULL || stream->next >= json_array_size(stream->page)) {
        int rc = next_page(request, stream);
        if (rc != 0) {
            return rc;
        }
    }
    const json_t *event = json_array_get(stream->page, stream->next++);
    stream->after = json_integer_value(json_object_get(event, "seq"));
    free(stream->frame);
    stream->frame_used = 0;
    stream->frame = stream_frame_event(event, stream->format, &stream->frame_size);
    return stream->frame != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for an event");
}

static size_t stream_put_text(char *buffer, const char *text)
{
    size_t size = strlen(text);
    memcpy(buffer, text, size);
    return size;
}

static int event_fill(struct request *request, void *state, char *buffer, size_t capacity, size_t *size)
{
    struct event_stream *stream = state;
    size_t used = 0;
    int rc = 0;
    if (!stream->started) {
        stream->started = true;
        used = stream->format == STREAM_SSE ? stream_put_text(buffer, "retry: 3000\n\n") : 0;
    }
    while (rc == 0 && used < capacity) {
        size_t left = stream->frame != NULL ? stream->frame_size - stream->frame_used : 0;
        if (left == 0) {
            rc = next_frame(request, stream);
            continue;
        }
        size_t part = left < capacity - used ? left : capacity - used;
        memcpy(buffer + used, stream->frame + stream->frame_used, part);
        stream->frame_used += part;
        used += part;
    }
    int64_t now = clock_monotonic_ms();
    if (used == 0 && rc == REQUEST_WAIT && now >= stream->heartbeat_ms) {
        used = stream_put_text(buffer, stream->format == STREAM_SSE ? ":\n\n" : "\n");
    }
    if (used > 0 && rc >= 0) { /* the next call returns the rc that stopped us */
        stream->heartbeat_ms = now + HEARTBEAT_MS;
        *size = used;
        return 0;
    }
    request->waiter.deadline_ms = stream->heartbeat_ms;
    return rc;
}

static void event_close(void *state)
{
    struct event_stream *stream = state;
    json_decref(stream->page);
    free(stream->frame);
    free(stream);
}

static const struct reply_stream event_ops = {event_fill, event_close};

int stream_events(struct request *request, const char *job, int64_t after, enum stream_format format)
{
    struct event_stream *stream;
    TRY(mem_new(&stream));
    (void)snprintf(stream->job, sizeof(stream->job), "%s", job);
    stream->after = after;
    stream->format = format;
    stream->heartbeat_ms = clock_monotonic_ms() + HEARTBEAT_MS;
    notifier_watch(request->context->notifier, &request->waiter, job);
    reply_stream_take(request, 200, format == STREAM_SSE ? "text/event-stream" : "application/x-ndjson", &event_ops,
                      stream, -1);
    reply_header(&request->reply, "Cache-Control", "no-store");
    reply_header(&request->reply, "X-Accel-Buffering", "no");
    return 0;
}
