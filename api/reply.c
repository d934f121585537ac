/* Replies.
 *
 * One function per kind of response, so that the rules for all responses are in one place: UTF-8 JSON with a final
 * newline, a strong ETag of exactly the bytes sent, `application/problem+json` for every error. An error of the daemon
 * itself (storage, internal) shows only its sentence and the request's id: file names and SQL belong in the log. */

#include "api/reply.h"

#include "api/header.h"
#include "base/digest.h"
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void reply_clear(struct reply *reply)
{
    free(reply->body);
    for (int i = 0; i < reply->header_count; i++) {
        free(reply->headers[i].value);
    }
    if (reply->stream != NULL) {
        reply->stream->close(reply->state);
    }
    *reply = (struct reply){0};
}

void reply_header(struct reply *reply, const char *name, const char *format, ...)
{
    char *value = NULL;
    va_list arguments;
    va_start(arguments, format);
    int size = vasprintf(&value, format, arguments);
    va_end(arguments);
    if (size < 0) {
        return;
    }
    if (reply->header_count == REPLY_HEADERS_MAX || !header_is_value(value, (size_t)size)) {
        free(value);
        return;
    }
    reply->headers[reply->header_count].name = name;
    reply->headers[reply->header_count++].value = value;
}

/* JSON text followed by a newline; malloc'ed. NULL when out of memory. */
static char *reply_dump(const json_t *value, size_t *size)
{
    size_t length = json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY);
    char *text = length > 0 ? malloc(length + 2) : NULL;
    if (text == NULL) {
        return NULL;
    }
    (void)json_dumpb(value, text, length, JSON_COMPACT | JSON_ENCODE_ANY);
    text[length] = '\n';
    text[length + 1] = '\0';
    *size = length + 1;
    return text;
}

int reply_text_take(struct request *request, int status, const char *content_type, char *body, size_t size)
{
    reply_clear(&request->reply);
    request->reply.status = status;
    request->reply.content_type = content_type;
    request->reply.body = body;
    request->reply.size = size;
    return 0;
}

int reply_json_take(struct request *request, int status, json_t *value)
{
    size_t size = 0;
    char *text = value != NULL ? reply_dump(value, &size) : NULL;
    json_decref(value);
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the response");
    }
    return reply_text_take(request, status, "application/json", text, size);
}

int reply_empty(struct request *request, int status)
{
    return reply_text_take(request, status, NULL, NULL, 0);
}

static void tag_bytes(const char *text, size_t size, char etag[80])
{
    char digest[DIGEST_HEX_SIZE];
    digest_bytes(text, size, digest);
    (void)snprintf(etag, 80, "\"%.32s\"", digest);
}

bool reply_etag(const json_t *value, char etag[80])
{
    size_t size;
    char *text = reply_dump(value, &size);
    if (text != NULL) {
        tag_bytes(text, size, etag);
    }
    free(text);
    return text != NULL;
}

int reply_object_take(struct request *request, json_t *value)
{
    TRY(reply_json_take(request, 200, value));
    return reply_tag(request);
}

int reply_tag(struct request *request)
{
    char etag[80];
    tag_bytes(request->reply.body, request->reply.size, etag);
    if (header_etag_matches(request_header(request, "If-None-Match"), etag, true)) {
        reply_empty(request, 304);
    }
    reply_header(&request->reply, "ETag", "%s", etag);
    reply_header(&request->reply, "Cache-Control", "private, no-cache");
    return 0;
}

int reply_created_take(struct request *request, const char *prefix, json_t *value)
{
    char id[ID_SIZE];
    (void)snprintf(id, sizeof(id), "%s", value != NULL ? json_string_value(json_object_get(value, "id")) : "");
    int rc = reply_json_take(request, 201, value);
    if (rc == 0) {
        reply_header(&request->reply, "Location", "%s/%s", prefix, id);
    }
    return rc;
}

const char *reply_location(const struct reply *reply)
{
    for (int i = 0; i < reply->header_count; i++) {
        if (strcmp(reply->headers[i].name, "Location") == 0) {
            return reply->headers[i].value;
        }
    }
    return NULL;
}

int reply_stream_take(struct request *request, int status, const char *content_type, const struct reply_stream *stream,
                      void *state, int64_t length)
{
    reply_clear(&request->reply);
    request->reply.status = status;
    request->reply.content_type = content_type;
    request->reply.stream = stream;
    request->reply.state = state;
    request->reply.length = length;
    return 0;
}

/* Whether the record's message is meant for the client, rather than about internals (files, SQL). A message with a hint
 * is: hints are only given to those who can act on them. */
static bool is_public(int code)
{
    const struct err_record *record = err_last();
    bool hinted = record->code == code && record->hint[0] != '\0';

    return err_http_status(code) < 500 || code == ERR_DRAINING || code == ERR_QUEUE_FULL || hinted;
}

static json_t *error_list(const struct validation_errors *errors)
{
    json_t *list = json_array();
    for (size_t i = 0; i < errors->count; i++) {
        const struct validation_error *error = &errors->items[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s?}", "code", err_api_code(error->code), "param",
                                              error->param, "detail", error->detail, "hint",
                                              error->hint[0] != '\0' ? error->hint : NULL));
    }
    if (errors->dropped > 0) {
        json_array_append_new(list, json_pack("{s:s, s:n, s:s, s:n}", "code", "invalid_parameter", "param", "detail",
                                              "there are more errors than are listed here", "hint"));
    }
    return list;
}

static json_t *problem_document(const struct request *request, int code, int status)
{
    struct err_record record = *err_last();
    bool known = record.code == code && is_public(code);
    const char *detail = known && record.message[0] != '\0' ? record.message : err_sentence(code);
    char type[96];
    (void)snprintf(type, sizeof(type), "urn:quantd:error:%s", err_api_code(code));
    json_t *problem =
        json_pack("{s:s, s:s, s:i, s:s, s:s?, s:s, s:o, s:s?, s:s, s:b}", "type", type, "title", err_sentence(code),
                  "status", status, "detail", detail, "instance", request->path, "code", err_api_code(code), "param",
                  known && record.param[0] != '\0' ? json_string(record.param) : json_null(), "hint",
                  known && record.hint[0] != '\0' ? record.hint : NULL, "request_id", request->id, "retryable",
                  err_retryable(code));
    if (problem == NULL) { /* some text is not valid UTF-8 */
        problem = json_pack("{s:s, s:s, s:i, s:s, s:s}", "type", type, "title", err_sentence(code), "status", status,
                            "code", err_api_code(code), "request_id", request->id);
    }
    if (request->scratch != NULL && request->scratch->errors.count > 0) {
        json_object_set_new(problem, "errors", error_list(&request->scratch->errors));
    }
    if (request->extra != NULL) {
        json_object_update_missing(problem, request->extra);
    }
    if (json_object_get(problem, "errors") == NULL) {
        json_object_set_new(problem, "errors", json_array());
    }
    return problem;
}

void reply_problem(struct request *request, int code, int status)
{
    status = status != 0 ? status : err_http_status(code);
    if (!is_public(code)) {
        log_err(LOG_ERROR, "request failed", NULL);
    }
    json_t *problem = problem_document(request, code, status);
    bool close = request->reply.close;
    if (reply_json_take(request, status, problem) < 0) {
        reply_text_take(request, status, NULL, NULL, 0);
    }
    request->reply.content_type = "application/problem+json";
    request->reply.close = close;
    reply_header(&request->reply, "Cache-Control", "no-store");
    if (status == 401) {
        reply_header(&request->reply, "WWW-Authenticate", "Bearer realm=\"quantd\"%s",
                     request_header(request, "Authorization") != NULL ? ", error=\"invalid_token\"" : "");
    }
    if (status == 429 || status == 503 || (status == 409 && err_retryable(code))) {
        int seconds = code == ERR_QUOTA_EXCEEDED ? 30 : code == ERR_DRAINING ? 10 : 2;
        reply_header(&request->reply, "Retry-After", "%d", seconds);
    }
}
