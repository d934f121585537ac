/* A request from its first line to the end of its reply: the callbacks of the HTTP library.
 *
 * The library calls on_request when the header is complete, for each piece of the body, and once more when the body is
 * complete; a reply may be queued in the first call (then the connection closes) or in the last. request->phase is
 * the current state. Nothing here blocks: work that may is handed to a worker, and the connection is suspended until it
 * is done, so that the library calls nothing. (For chunked bodies it may still offer the next chunk that it has already
 * read: CONNECTION_BUSY declines it.)
 *
 * The guard checks every request first, on the undecoded target: the library decodes escapes before it calls us. */

#include "api/server.h"

#include "api/auth.h"
#include "api/reply.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define FEED_AFTER_MS 200 /* a slow body is fed as it arrives, a fast one in full buffers */
#define BODY_FIRST ((size_t)4 << 10)

/* The library dropped a request before on_request, such as when its memory for the connection ran out. */
static void drop_unseen(struct connection *connection)
{
    struct request *request = connection->request;

    if (request == NULL) {
        return;
    }
    request->mhd = NULL;
    access_log(connection, false);
    connection->request = NULL;
    request->connection = NULL;
    api_release(connection->api, request);
}

void server_on_connection(void *data, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct api *api = data;
    struct connection *connection = *socket_context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        connection = calloc(1, sizeof(*connection));
        if (connection == NULL || info == NULL) {
            free(connection);
            return; /* without a record, its first request line closes it */
        }
        connection->api = api;
        connection->relay = api->attaching;
        if (connection->relay != NULL) {
            connection->relay->connection = connection;
        }
        connection->fd = info->connect_fd;
        info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
        if (info != NULL) {
            access_client(info->client_addr, connection->client);
        }
        sweeper_set(connection, CONNECTION_FRESH);
        connection->next = api->connections;
        if (api->connections != NULL) {
            api->connections->previous = connection;
        }
        api->connections = connection;
        *socket_context = connection;
    } else if (connection != NULL) {
        drop_unseen(connection);
        if (connection->previous != NULL) {
            connection->previous->next = connection->next;
        } else {
            api->connections = connection->next;
        }
        if (connection->next != NULL) {
            connection->next->previous = connection->previous;
        }
        *socket_context = NULL;
        if (connection->relay != NULL) {
            relay_detach(connection->relay);
        }
        free(connection);
    }
}

/* A new request on the connection; NULL when out of memory. */
static struct request *start(struct connection *connection, const char *path)
{
    struct request *request = request_new(&connection->api->context);
    if (request == NULL) {
        return NULL;
    }
    request->path = strdup(path);
    if (request->path == NULL) {
        request_free(request);
        return NULL;
    }
    id_new("req", request->id);
    request->connection = connection;
    connection->request = request;
    atomic_fetch_add(&connection->api->open, 1);
    return request;
}

void *server_on_target(void *data, const char *uri, struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct connection *connection = info != NULL ? info->socket_context : NULL;
    struct request *request = connection != NULL ? start(connection, uri != NULL ? uri : "") : NULL;
    if (request != NULL) {
        request->mhd = mhd;
        sweeper_set(connection, CONNECTION_HEAD);
    }
    return request;
}

/* Use the client's X-Request-Id when it is short and consists of safe characters. */
static void use_client_id(struct request *request)
{
    const char *given = request_header(request, "X-Request-Id");
    size_t size = given != NULL ? strlen(given) : 0;
    if (size > 0 && size < REQUEST_ID_SIZE &&
        strspn(given, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/+=@-") == size) {
        memcpy(request->id, given, size + 1);
    }
}

/* The reply is known before the body has ended. */
static enum MHD_Result server_reply_early(struct connection *connection, bool first)
{
    struct request *request = connection->request;
    int64_t left = request->body_length < 0 ? INT64_MAX : request->body_length - request->body_seen;
    request->discard = true;
    request->phase = SERVER_ANSWER;
    if (first && (request->reply.close || (request->expects && left > 0))) {
        return send_reply(connection);
    }
    if (left > SERVER_DISCARD_MAX) {
        send_early(connection);
    }
    return MHD_YES;
}

/* Without the right key, or too often. */
static void refuse_sender(struct request *request, int rc)
{
    reply_problem(request, rc, 0);
    if (rc == ERR_INSUFFICIENT_SCOPE) {
        reply_header(&request->reply, "WWW-Authenticate",
                     "Bearer realm=\"quantd\", error=\"insufficient_scope\", scope=\"%s\"",
                     routes_scope_name(request->route->scope));
    }
}

/* Its sender is known: check it, and receive its body. */
static enum MHD_Result enter(struct connection *connection)
{
    struct request *request = connection->request;
    int rc = admit_key_rate(connection);
    rc = rc < 0 ? rc : admit_request(request);
    if (rc < 0) {
        reply_problem(request, rc, 0);
        return server_reply_early(connection, true);
    }
    request->phase = SERVER_BODY;
    if (request->route->body == ROUTE_BODY_SINK) {
        request->phase = SERVER_OPENING;
        api_hand_over(connection, REQUEST_OPEN);
    }
    return MHD_YES;
}

static enum MHD_Result begin(struct connection *connection, const char *method, const char *version)
{
    struct request *request = connection->request;
    request->method = strdup(method);
    if (request->method == NULL) {
        return MHD_NO;
    }
    use_client_id(request);
    trace_read(request_header(request, "traceparent"), request_header(request, "tracestate"), &request->trace);
    request->body_since_ms = request->body_fed_ms = clock_monotonic_ms();
    sweeper_set(connection, CONNECTION_BODY);
    if (admit_head(connection, version) < 0) {
        return server_reply_early(connection, true);
    }
    char *allow = NULL;
    int rc = admit_route(request, &allow);
    if (rc < 0) {
        refuse_sender(request, rc);
        if (allow != NULL) {
            reply_header(&request->reply, "Allow", "%s", allow);
            free(allow);
        }
        return server_reply_early(connection, true);
    }
    if (rc == REQUEST_WAIT) {
        request->phase = SERVER_KEY;
        api_hand_over(connection, REQUEST_AUTHENTICATE);
        return MHD_YES;
    }
    return enter(connection);
}

/* Grow the buffer for `more` bytes; false when out of memory. */
static bool server_reserve_body(struct request *request, size_t more)
{
    size_t need = request->body_size + more;
    size_t capacity = request->body_capacity > 0 ? request->body_capacity : BODY_FIRST;
    if (request->route->body == ROUTE_BODY_SINK) {
        capacity = REQUEST_BUFFER_SIZE;
    }
    while (capacity < need) {
        capacity *= 2;
    }
    if (capacity == request->body_capacity) {
        return true;
    }
    char *body = realloc(request->body, capacity);
    if (body != NULL) {
        request->body = body;
        request->body_capacity = capacity;
    }
    return body != NULL;
}

static enum MHD_Result take_body(struct connection *connection, const char *data, size_t *size)
{
    struct request *request = connection->request;
    const struct route *route = request->route;
    bool sink = route->body == ROUTE_BODY_SINK;
    size_t part = *size;
    if (sink && part > REQUEST_BUFFER_SIZE - request->body_size) {
        part = REQUEST_BUFFER_SIZE - request->body_size;
    }
    int rc = 0;
    if ((int64_t)part > route->body_max - request->body_seen) {
        rc = err_raise(ERR_PAYLOAD_TOO_LARGE, "the body is larger than the %lld bytes that this route allows",
                       (long long)route->body_max);
    } else if (!server_reserve_body(request, part)) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the body");
    }
    if (rc < 0) {
        reply_problem(request, rc, 0);
        return server_reply_early(connection, false);
    }
    memcpy(request->body + request->body_size, data, part);
    request->body_size += part;
    request->body_seen += (int64_t)part;
    *size -= part;
    int64_t now = clock_monotonic_ms();
    if (sink && (request->body_size == REQUEST_BUFFER_SIZE || now - request->body_fed_ms >= FEED_AFTER_MS)) {
        request->body_fed_ms = now;
        api_hand_over(connection, REQUEST_FEED);
    }
    return MHD_YES;
}

/* The body is complete. */
static enum MHD_Result server_run_handler(struct connection *connection)
{
    struct request *request = connection->request;
    request->phase = SERVER_ANSWER;
    if ((request->route->flags & ROUTE_INLINE) == 0) {
        api_hand_over(connection, REQUEST_HANDLE);
        return MHD_YES;
    }
    request->step = REQUEST_HANDLE;
    (void)request_work(request);
    return send_reply(connection);
}

/* More of a body whose reply is known already. */
static enum MHD_Result discard_body(struct connection *connection, size_t *size)
{
    struct request *request = connection->request;
    request->body_seen += (int64_t)*size;
    *size = 0;
    if (request->phase == SERVER_ANSWER && request->body_length < 0 && request->body_seen > SERVER_DISCARD_MAX) {
        send_early(connection);
    }
    return MHD_YES;
}

/* The key was looked up. The library calls again only for bytes of a body: without one, this call is the last. */
static enum MHD_Result after_key(struct connection *connection)
{
    struct request *request = connection->request;
    int rc = request->discard ? 0 : auth_check(request);
    if (rc < 0) {
        refuse_sender(request, rc);
        request->discard = true;
    }
    enum MHD_Result result = request->discard ? server_reply_early(connection, true) : enter(connection);
    if (request->body_length != 0 || result == MHD_NO) {
        return result;
    }
    return request->phase == SERVER_BODY     ? server_run_handler(connection)
           : request->phase == SERVER_ANSWER ? send_reply(connection)
                                             : result;
}

enum MHD_Result server_on_request(void *data, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **context)
{
    struct request *request = *context;
    if (request == NULL) {
        return MHD_NO; /* there was not enough memory for it */
    }
    struct connection *connection = request->connection;
    if (connection->state == CONNECTION_BUSY) {
        return MHD_YES;
    }
    switch ((enum server_phase)request->phase) {
    case SERVER_HEAD:
        return begin(connection, method, version);
    case SERVER_KEY:
        return after_key(connection);
    case SERVER_OPENING:
        if (request->discard) {
            return server_reply_early(connection, true);
        }
        request->phase = SERVER_BODY;
        return MHD_YES;
    case SERVER_BODY:
        return *upload_size > 0 ? take_body(connection, upload, upload_size) : server_run_handler(connection);
    case SERVER_ANSWER:
        return *upload_size > 0 ? discard_body(connection, upload_size) : send_reply(connection);
    case SERVER_LINGER:
        return *upload_size > 0 ? discard_body(connection, upload_size) : MHD_NO;
    case SERVER_SENDING:
        break;
    }
    return MHD_YES;
}

void server_after_step(struct connection *connection)
{
    struct request *request = connection->request;
    int64_t paused = clock_monotonic_ms() - connection->since_ms;
    bool body = request->phase == SERVER_KEY || request->phase == SERVER_OPENING || request->phase == SERVER_BODY;
    if (body) {
        request->body_paused_ms += paused;
    }
    sweeper_set(connection, body ? CONNECTION_BODY : CONNECTION_REPLY);
    if (request->phase == SERVER_BODY && request->discard) {
        (void)server_reply_early(connection, false);
    }
    if (connection->relay != NULL && connection->relay->refused) {
        relay_kick(connection->relay);
    }
}

bool server_refuse(struct connection *connection, int status, const char *detail)
{
    if (connection->state == CONNECTION_BUSY) {
        return false;
    }
    struct request *request = connection->request;
    bool unknown = request == NULL; /* there was not even a request line */
    request = unknown ? start(connection, "") : request;
    if (request != NULL && request->phase != SERVER_SENDING && request->phase != SERVER_LINGER) {
        if (request->reply.status == 0) {
            int code = status == 413 ? ERR_PAYLOAD_TOO_LARGE : ERR_BAD_REQUEST;
            request->path[strcspn(request->path, "?")] = '\0';
            request->reply.close = true;
            reply_problem(request, err_raise(code, "%s", detail), status);
        }
        send_early(connection);
    }
    if (request != NULL && unknown) {
        access_log(connection, true);
        connection->request = NULL;
        api_release(connection->api, request);
    }
    connection->cut = true;
    (void)shutdown(connection->fd, SHUT_RDWR);
    return true;
}

void server_on_completed(void *data, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode how)
{
    struct api *api = data;
    struct request *request = *context;
    if (request == NULL) {
        return;
    }
    struct connection *connection = request->connection;
    assert(connection->state != CONNECTION_BUSY || api->closing);
    *context = NULL;
    access_log(connection, how == MHD_REQUEST_TERMINATED_COMPLETED_OK || request->phase == SERVER_LINGER);
    connection->request = NULL;
    sweeper_set(connection, CONNECTION_IDLE);
    if (connection->relay != NULL) {
        relay_next(connection->relay);
    }
    request->mhd = NULL;
    request->connection = NULL;
    api_release(api, request);
}
