/* A request's steps as plain sequential code on a worker.
 *
 * open, feed* and finish for streamed bodies; parse, then replay or run for the others; fill for streamed replies.
 * Failures become problem documents here, in one place, and the server then discards the rest of a body that is still
 * arriving before it sends the reply. */

#include "api/auth.h"
#include "api/header.h"
#include "api/reply.h"
#include "api/routes.h"
#include "base/cleanup.h"
#include "base/digest.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define JSON_DEPTH_MAX 32

struct request *request_new(struct request_context *context)
{
    AUTO_FREE struct request *request = calloc(1, sizeof(*request));
    AUTO_FREE struct request_scratch *scratch = calloc(1, sizeof(*scratch));
    if (request == NULL || scratch == NULL) {
        return NULL;
    }
    request->context = context;
    request->who = &principal_local;
    request->scratch = MOVE(scratch);
    request->started_ms = clock_monotonic_ms();
    return MOVE(request);
}

bool request_holds_resources(const struct request *request)
{
    return request->sink != NULL || request->reply.stream != NULL;
}

int request_stream(struct request *request)
{
    struct request_context *context = request->context;
    request->streams = true;
    if (atomic_fetch_add(&context->streams, 1) < context->streams_max) {
        return 0;
    }
    request->reply.close = true; /* the client should not hold a connection while it waits */
    return err_raise(ERR_QUEUE_FULL, "%d uploads and downloads are in progress, which is the limit; try again later",
                     context->streams_max);
}

void request_free(struct request *request)
{
    if (request->streams) {
        (void)atomic_fetch_sub(&request->context->streams, 1);
    }
    if (request->sink != NULL) {
        request->route->sink->abort(request->sink);
    }
    reply_clear(&request->reply);
    for (int i = 0; i < REQUEST_CAPTURES; i++) {
        free(request->captures[i]);
    }
    json_decref(request->json);
    json_decref(request->extra);
    free(request->state);
    free(request->scratch);
    free(request->method);
    free(request->path);
    free(request->body);
    free(request->out);
    free(request);
}

static int parse_body(struct request *request)
{
    if (request->route->body == ROUTE_BODY_NONE || (request->route->body == ROUTE_BODY_MAYBE && !request->body_size)) {
        return 0;
    }
    TRY(json_parse(request->body, request->body_size, JSON_DEPTH_MAX, &request->json));
    return json_is_object(request->json) ? 0 : err_raise(ERR_INVALID_JSON, "the body must be a JSON object");
}

const struct idempotency_key *request_idempotency_key(const struct request *request)
{
    return request->idempotency.key != NULL ? &request->idempotency : NULL;
}

/* Respond with the object that was created under the key when the daemon crashed before it had responded. */
static int replay_made(struct request *request, const char *id)
{
    json_t *job = NULL;
    TRY(service_job_get(request->context->service, request->who, id, &job));
    TRY(reply_created_take(request, request->route->path, job));
    reply_header(&request->reply, "Idempotency-Replayed", "true");
    return 0;
}

/* Send the response of the first request with this key. */
static int replay(struct request *request, const json_t *response)
{
    const char *made = json_string_value(json_object_get(response, "id"));
    if (made != NULL) {
        return replay_made(request, made);
    }
    const char *location = json_string_value(json_object_get(response, "location"));
    int status = (int)json_integer_value(json_object_get(response, "status"));
    TRY(reply_json_take(request, status, json_incref(json_object_get(response, "body"))));
    if (location != NULL) {
        reply_header(&request->reply, "Location", "%s", location);
    }
    reply_header(&request->reply, "Idempotency-Replayed", "true");
    return 0;
}

/* Store the response under the key. The object exists by now: the response is valid even when this fails. */
static void request_store_response(struct request *request, const struct idempotency_key *key, const char *digest)
{
    json_t *body = json_loadb(request->reply.body, request->reply.size, 0, NULL);
    AUTO_JSON json_t *response = json_pack("{s:s, s:i, s:o?, s:s?}", "digest", digest, "status", request->reply.status,
                                           "body", body, "location", reply_location(&request->reply));
    if (service_idempotency_finish(request->context->service, key, response) < 0) {
        log_err(LOG_WARN, "cannot store the response of an idempotency key", NULL);
    }
}

void request_scope(const struct request *request, char out[REQUEST_SCOPE_SIZE])
{
    (void)snprintf(out, REQUEST_SCOPE_SIZE, "%s %s", request->route->method, request->route->path);
}

int request_idempotent(struct request *request, const char *digest, int (*create)(struct request *request))
{
    const char *key = request_header(request, "Idempotency-Key");
    if (key == NULL) {
        return create(request);
    }
    char scope[REQUEST_SCOPE_SIZE];
    request_scope(request, scope);
    AUTO_JSON json_t *response = NULL;
    struct service *service = request->context->service;
    const struct idempotency_key scoped = {request->who->project, scope, key};
    int rc = service_idempotency_reserve(service, &scoped, digest, &response);
    if (rc != 0) {
        return rc < 0 ? rc : replay(request, response);
    }
    request->idempotency = scoped;
    rc = create(request);
    request->idempotency = (struct idempotency_key){0};
    if (rc < 0) {
        struct err_record record;
        err_take(&record);
        (void)service_idempotency_release(service, &scoped);
        err_restore(&record);
        return rc;
    }
    request_store_response(request, &scoped, digest);
    return 0;
}

const char *request_scheme(const struct request *request)
{
    const char *given = request->context->trust_proxy ? request_header(request, "X-Forwarded-Proto") : NULL;
    size_t size = given != NULL ? strcspn(given, " \t,") : 0; /* of several proxies the first one met the client */
    bool https = given != NULL ? size == 5 && strncasecmp(given, "https", size) == 0 : request->context->tls;
    return https ? "https" : "http";
}

int request_offer(const struct request *request)
{
    const struct route *route = request->route;
    bool offers = route->produces != NULL && (route->flags & ROUTE_ANY_ACCEPT) == 0;
    int offer = offers ? header_negotiate(request_header(request, "Accept"), route->produces) : 0;
    if (offer >= 0) {
        return offer;
    }
    char types[128] = "";
    for (const char *const *type = route->produces; *type != NULL; type++) {
        size_t used = strlen(types);
        (void)snprintf(types + used, sizeof(types) - used, "%s%s", used > 0 ? ", " : "", *type);
    }
    return err_raise(ERR_NOT_ACCEPTABLE,
                     "none of the content types of this route is acceptable according to Accept: %s", types);
}

static int handle(struct request *request)
{
    if (request->json == NULL) {
        TRY(parse_body(request));
    }
    if ((request->route->flags & ROUTE_IDEMPOTENT) == 0 || request->route->body == ROUTE_BODY_NONE) {
        /* without a body the handler knows what tells requests apart */
        int rc = request->route->handle(request);
        /* GET changes nothing and may still be refused now, so that an absent object is 404 for any Accept. */
        bool offers = rc == 0 && request->reply.status == 200 && strcmp(request->route->method, "GET") == 0;
        return offers && request_offer(request) < 0 ? ERR_NOT_ACCEPTABLE : rc;
    }
    char digest[DIGEST_HEX_SIZE];
    digest_bytes(request->body, request->body_size, digest);
    return request_idempotent(request, digest, request->route->handle);
}

static int feed(struct request *request)
{
    int rc = request->body_size > 0 ? request->route->sink->feed(request->sink, request->body, request->body_size) : 0;
    request->body_size = 0;
    if (rc < 0) {
        struct err_record record;
        err_take(&record);
        request->route->sink->abort(request->sink);
        request->sink = NULL;
        err_restore(&record);
    }
    return rc;
}

static int finish(struct request *request)
{
    TRY(feed(request));
    void *sink = request->sink;
    request->sink = NULL;
    return request->route->sink->finish_take(request, sink);
}

static int fill(struct request *request)
{
    if (request->out == NULL) {
        TRY(mem_buffer(&request->out, REQUEST_BUFFER_SIZE));
    }
    request->out_used = request->out_size = 0;
    return request->reply.stream->fill(request, request->reply.state, request->out, REQUEST_BUFFER_SIZE,
                                       &request->out_size);
}

int request_work(struct request *request)
{
    struct err_record
        earlier; /* clear the record of an earlier request, so that it is not used for a code without a record */
    int rc = 0;
    err_take(&earlier);
    switch (request->step) {
    case REQUEST_AUTHENTICATE:
        rc = auth_look_up(request);
        break;
    case REQUEST_OPEN:
        rc = request->route->sink->open(request, &request->sink);
        break;
    case REQUEST_FEED:
        rc = feed(request);
        break;
    case REQUEST_HANDLE:
        rc = request->route->body == ROUTE_BODY_SINK ? finish(request) : handle(request);
        break;
    case REQUEST_FILL:
        rc = fill(request);
        request->out_rc = rc;
        if (rc < 0) {
            log_err(LOG_WARN, "streaming a response failed", NULL);
        }
        return rc == REQUEST_WAIT ? REQUEST_WAIT : 0;
    case REQUEST_DISPOSE:
        request_free(request);
        return 0;
    }
    if (rc < 0) {
        reply_problem(request, rc, 0);
        request->discard = true;
    }
    return rc == REQUEST_WAIT ? REQUEST_WAIT : 0;
}
