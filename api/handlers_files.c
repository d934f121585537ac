/* Data sets: a raw body goes into the blob store as it arrives and becomes an object when its last byte is durable.
 *
 * After a Content-Digest that does not match, or a broken connection, there is no object; the blob, if any, is
 * collected later. */

#include "api/handlers.h"

#include "api/handlers_objects.h"
#include "api/reply.h"
#include "api/stream.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct file_sink {
    struct blob_writer *writer;
    struct request *request;
    int64_t bytes, room; /* that arrived; that the project may store, as far as is known */
};

/* What file_create needs; request->state. */
struct file_facts {
    char sha256[DIGEST_HEX_SIZE];
    int64_t bytes;
};

/* A request that repeats an earlier one by its key gets that one's answer and stores nothing. */
static bool file_repeats(const struct request *request)
{
    const char *key = request_header(request, "Idempotency-Key");
    char scope[REQUEST_SCOPE_SIZE];
    struct err_record refused;
    bool known = false;

    if (key == NULL) {
        return false;
    }
    err_take(&refused);
    request_scope(request, scope);
    const struct idempotency_key scoped = {request->who->project, scope, key};
    int rc = service_idempotency_known(request->context->service, &scoped, &known);
    err_restore(&refused);
    return rc == 0 && known;
}

/* Early, so that nothing is sent in vain; what counts is the check with which the file is stored. */
static int file_find_room(struct file_sink *sink, int64_t bytes)
{
    struct request *request = sink->request;

    int rc = service_room(request->context->service, request->who, bytes, &sink->room);
    if (rc == ERR_QUOTA_EXCEEDED && file_repeats(request)) {
        sink->room = INT64_MAX;
        return 0;
    }
    return rc;
}

static int file_open(struct request *request, void **state)
{
    struct file_sink *sink = calloc(1, sizeof(*sink));
    if (sink == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    sink->request = request;
    int rc = file_find_room(sink, request->body_length);
    rc = rc < 0 ? rc : service_file_open(request->context->service, &sink->writer);
    if (rc < 0) {
        free(sink);
        return rc;
    }
    *state = sink;
    return 0;
}

static int file_feed(void *state, const char *data, size_t size)
{
    struct file_sink *sink = state;
    sink->bytes += (int64_t)size;
    if (sink->bytes > sink->room) {
        TRY(file_find_room(sink, sink->bytes));
    }
    return service_file_write(sink->writer, data, size);
}

static void file_abort(void *state)
{
    struct file_sink *sink = state;
    service_file_abort(sink->writer);
    free(sink);
}

static int file_create(struct request *request)
{
    const struct file_facts *facts = request->state;
    const struct query *query = &request->scratch->query;
    char id[ID_SIZE];
    id_new("file", id);
    const char *name = query_text(query, "name");
    json_t *file = json_pack("{s:s, s:s, s:s, s:s?, s:I, s:s, s:I}", "id", id, "object", "file", "purpose",
                             query_text(query, "purpose"), "name", name, "bytes", (json_int_t)facts->bytes, "sha256",
                             facts->sha256, "created_at", (json_int_t)clock_unix_seconds());
    int rc = file != NULL ? service_file_create(request->context->service, request->who, file)
                          : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a file object");
    if (rc < 0) {
        json_decref(file);
        return rc;
    }
    return reply_created_take(request, "/v1/files", file);
}

/* One object for each key: the same body under the same name and purpose. */
static int file_once(struct request *request, const struct file_facts *facts)
{
    const struct query *query = &request->scratch->query;
    const char *name = query_text(query, "name");
    char input[512], digest[DIGEST_HEX_SIZE];

    int size = snprintf(input, sizeof(input), "%s %s %s", facts->sha256, query_text(query, "purpose"),
                        name != NULL ? name : "");
    digest_bytes(input, (size_t)size, digest);
    return request_idempotent(request, digest, file_create);
}

static int file_finish_take(struct request *request, void *state)
{
    struct file_sink *sink = state;
    struct file_facts *facts = calloc(1, sizeof(*facts));
    if (facts == NULL) {
        file_abort(sink);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    request->state = facts;
    int rc = service_file_commit_take(sink->writer, facts->sha256, &facts->bytes);
    free(sink);
    if (rc < 0) {
        return rc;
    }
    rc = handlers_check_digest(request, facts->sha256);
    rc = rc < 0 ? rc : file_once(request, facts);
    service_file_let_go(request->context->service, facts->sha256); /* its object refers to it now, or there is none */
    return rc;
}

const struct request_sink handlers_create_file_sink = {file_open, file_feed, file_finish_take, file_abort};

int handlers_list_files(struct request *request)
{
    return handlers_object_list(request, "file");
}

int handlers_get_file(struct request *request)
{
    return handlers_object_get(request, "file");
}

int handlers_get_file_content(struct request *request)
{
    const char *id = request->captures[0];
    AUTO_JSON json_t *file = NULL;
    TRY(service_object_get(request->context->service, request->who, "file", id, &file));
    const char *sha256 = json_string_value(json_object_get(file, "sha256"));
    return sha256 != NULL ? stream_blob(request, sha256, "application/octet-stream", id, true)
                          : err_raise(ERR_INTERNAL, "file object %s has no digest", id);
}

int handlers_delete_file(struct request *request)
{
    return handlers_object_delete(request, service_file_delete);
}
