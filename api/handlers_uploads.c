/* Resumable uploads, by the headers of draft-ietf-httpbis-resumable-upload: a POST says how long the file is, each
 * PATCH adds a piece at the offset that the upload has, and the one with Upload-Complete: ?1 turns it into a file. */

#include "api/handlers.h"

#include "api/handlers_objects.h"
#include "api/reply.h"
#include "base/cleanup.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_MAX ((int64_t)1 << 42) /* of a file: 4 TiB */

/* --- headers */

static int refuse_missing(const char *name, const char *what)
{
    int rc = err_raise(ERR_MISSING_PARAMETER, "the header \"%s\" is missing; it is %s", name, what);
    return err_set_param(rc, name);
}

static int read_number_header(const struct request *request, const char *name, const char *what, int64_t *out)
{
    const char *text = request_header(request, name);

    if (text == NULL) {
        return refuse_missing(name, what);
    }
    size_t digits = strspn(text, "0123456789");
    int64_t value = digits > 0 && digits <= 15 && text[digits] == '\0' ? strtoll(text, NULL, 10) : -1;
    if (value < 0 || value > LENGTH_MAX) {
        int rc = err_raise(ERR_INVALID_PARAMETER, "the header \"%s\" is \"%.40s\"; it must be 0 to %lld, %s", name,
                           text, (long long)LENGTH_MAX, what);
        return err_set_param(rc, name);
    }
    *out = value;
    return 0;
}

static int refuse_complete(const char *text, const char *allowed)
{
    int rc =
        err_raise(ERR_INVALID_PARAMETER, "the header \"Upload-Complete\" is \"%.40s\"; it must be %s", text, allowed);
    return err_set_param(rc, "Upload-Complete");
}

/* --- one upload */

static int upload_create(struct request *request)
{
    const struct query *query = &request->scratch->query;
    int64_t length = 0;
    json_t *object = NULL;

    TRY(read_number_header(request, "Upload-Length", "the number of bytes of the file", &length));
    TRY(service_transfer_create(request->context->service, request->who, query_text(query, "purpose"),
                                query_text(query, "name"), length, &object));
    return reply_created_take(request, "/v1/uploads", object);
}

int handlers_create_upload(struct request *request)
{
    const struct query *query = &request->scratch->query;
    const char *name = query_text(query, "name"), *length = request_header(request, "Upload-Length");
    const char *complete = request_header(request, "Upload-Complete");
    char input[512], digest[DIGEST_HEX_SIZE];

    if (complete != NULL && strcmp(complete, "?0") != 0) {
        return refuse_complete(complete, "?0, since the bytes follow by PATCH");
    }
    int size = snprintf(input, sizeof(input), "%s %.40s %s", query_text(query, "purpose"), length != NULL ? length : "",
                        name != NULL ? name : "");
    digest_bytes(input, (size_t)size < sizeof(input) ? (size_t)size : sizeof(input) - 1, digest);
    return request_idempotent(request, digest, upload_create);
}

int handlers_list_uploads(struct request *request)
{
    return handlers_object_list(request, "upl");
}

int handlers_get_upload(struct request *request)
{
    json_t *object = NULL;

    TRY(service_object_get(request->context->service, request->who, "upl", request->captures[0], &object));
    long long offset = json_integer_value(json_object_get(object, "offset"));
    long long length = json_integer_value(json_object_get(object, "bytes"));
    const char *status = json_string_value(json_object_get(object, "status"));
    bool completed = status != NULL && strcmp(status, "completed") == 0;
    TRY(reply_json_take(request, 200, object));
    reply_header(&request->reply, "Upload-Offset", "%lld", offset);
    reply_header(&request->reply, "Upload-Length", "%lld", length);
    reply_header(&request->reply, "Upload-Complete", "?%d", completed ? 1 : 0);
    reply_header(&request->reply, "Cache-Control", "no-store");
    return 0;
}

int handlers_delete_upload(struct request *request)
{
    return handlers_object_delete(request, service_transfer_delete);
}

/* --- a piece */

struct piece_sink {
    struct service_transfer *transfer;
    bool complete, checked;
};

static int read_piece_headers(const struct request *request, struct piece_sink *sink, struct service_piece *piece)
{
    const char *complete = request_header(request, "Upload-Complete");

    TRY(read_number_header(request, "Upload-Offset", "the offset of the piece: that of HEAD", &piece->offset));
    if (complete == NULL) {
        return refuse_missing("Upload-Complete", "?1 with the last piece and ?0 with others");
    }
    if (strcmp(complete, "?0") != 0 && strcmp(complete, "?1") != 0) {
        return refuse_complete(complete, "?1 with the last piece and ?0 with others");
    }
    sink->complete = complete[1] == '1';
    sink->checked = piece->checked = handlers_states_digest(request);
    piece->announced = request->body_length;
    return 0;
}

/* Where to go on, in the problem document of a 409. */
static void add_next_offset_of(struct request *request)
{
    struct err_record record;
    json_t *object = NULL;

    err_take(&record);
    if (service_object_get(request->context->service, request->who, "upl", request->captures[0], &object) == 0) {
        request->extra = json_pack("{s:O}", "next_offset", json_object_get(object, "offset"));
        json_decref(object);
    }
    err_restore(&record);
}

static int piece_open(struct request *request, void **state)
{
    AUTO_FREE struct piece_sink *sink = NULL;
    struct service_piece piece = {0};

    TRY(mem_new(&sink));
    TRY(read_piece_headers(request, sink, &piece));
    int rc =
        service_transfer_open(request->context->service, request->who, request->captures[0], &piece, &sink->transfer);
    if (rc == ERR_OFFSET_MISMATCH) {
        add_next_offset_of(request);
    }
    TRY(rc);
    *state = MOVE(sink);
    return 0;
}

static int piece_feed(void *state, const char *data, size_t size)
{
    struct piece_sink *sink = state;
    return service_transfer_feed(sink->transfer, data, size);
}

static void piece_abort(void *state)
{
    struct piece_sink *sink = state;
    service_transfer_abort(sink->transfer);
    free(sink);
}

static int check_piece(struct request *request, const struct piece_sink *sink)
{
    char sha256[DIGEST_HEX_SIZE];

    if (!sink->checked) {
        return 0;
    }
    service_transfer_digest(sink->transfer, sha256);
    int rc = handlers_check_digest(request, sha256);
    if (rc != 0) {
        struct err_record record;
        err_take(&record);
        service_transfer_refuse(sink->transfer);
        err_restore(&record);
    }
    return rc;
}

static int piece_finish_take(struct request *request, void *state)
{
    AUTO_FREE struct piece_sink *sink = state;
    json_t *file = NULL;
    int64_t offset = 0;

    TRY(check_piece(request, sink));
    int rc = service_transfer_end_take(sink->transfer, sink->complete, &offset, &file);
    if (rc < 0) {
        request->extra = json_pack("{s:I}", "next_offset", (json_int_t)offset);
        return rc;
    }
    rc = file != NULL ? reply_created_take(request, "/v1/files", file) : reply_empty(request, 204);
    reply_header(&request->reply, "Upload-Offset", "%lld", (long long)offset);
    reply_header(&request->reply, "Upload-Complete", file != NULL ? "?1" : "?0");
    return rc;
}

const struct request_sink handlers_append_upload_sink = {piece_open, piece_feed, piece_finish_take, piece_abort};
