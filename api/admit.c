/* Whether a request is admitted: its header (guard.h), its route, how often its sender asks, and what the route's row
 * says of bodies, types and queries. Nothing of the body has been read by then. */

#include "api/server.h"

#include "api/auth.h"
#include "api/header.h"
#include "api/reply.h"
#include "base/params.h"

#include <string.h>
#include <strings.h>
#include <sys/socket.h>

/* Blanks after a value do not belong to it (RFC 9110, 5.5). The library keeps them, in the memory of the connection,
 * where they are cut off once for all readers; Connection it reads itself, with the size that it knows. Returns the
 * size. */
static size_t admit_cut_blanks(const char *name, const char *value, size_t size)
{
    size_t left = size;
    while (left > 0 && (value[left - 1] == ' ' || value[left - 1] == '\t')) {
        left--;
    }
    if (left < size && strcasecmp(name, "Connection") != 0) {
        ((char *)value)[left] = '\0';
        return left;
    }
    return size;
}

static enum MHD_Result admit_gather(void *data, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                    const char *value, size_t value_size)
{
    struct guard_request *out = data;
    if (out->header_count == GUARD_HEADERS_MAX) {
        out->overflow = true;
        return MHD_NO;
    }
    out->headers[out->header_count++] =
        (struct guard_header){.name = name,
                              .value = value != NULL ? value : "",
                              .name_size = name_size,
                              .value_size = value != NULL ? admit_cut_blanks(name, value, value_size) : 0};
    return MHD_YES;
}

int admit_head(struct connection *connection, const char *version)
{
    struct request *request = connection->request;
    struct guard_request facts = {.method = request->method, .version = version, .uri = request->path};
    struct guard_verdict verdict;
    (void)MHD_get_connection_values_n(request->mhd, MHD_HEADER_KIND, admit_gather, &facts);
    int rc = guard_check(&facts, &connection->api->hosts, &verdict);
    request->body_length = verdict.length;
    request->declared = verdict.declared;
    request->expects = verdict.expects;
    char *query = strchr(request->path, '?');
    if (rc < 0) {
        if (query != NULL) {
            *query = '\0';
        }
        reply_problem(request, err_raise(rc, "%s", verdict.detail), verdict.status);
        request->reply.close = verdict.framing;
    }
    return rc;
}

static bool takes_type(const struct request *request)
{
    const char *type = request_header(request, "Content-Type");
    for (const char *const *accepts = request->route->accepts; accepts != NULL && *accepts != NULL; accepts++) {
        if (header_media_type_is(type, *accepts)) {
            return true;
        }
    }
    return request->route->accepts == NULL;
}

/* Refuse the Content-Type, listing those that the route supports. */
static int refuse_type(const struct request *request)
{
    const char *const *accepts = request->route->accepts;
    const char *given = request_header(request, "Content-Type");
    char types[160] = "none";
    if (accepts != NULL) {
        params_join(accepts, types, sizeof(types));
    }
    int rc = err_raise(ERR_UNSUPPORTED_MEDIA_TYPE, "the Content-Type is %s%.80s%s; this route supports %s",
                       given != NULL ? "\"" : "missing", given != NULL ? given : "", given != NULL ? "\"" : "", types);
    return err_set_hint(rc, "send the header Content-Type: %s", accepts != NULL ? accepts[0] : types);
}

static void check_header(void *data, const struct query_row *row)
{
    struct request *request = data;
    const char *value = request_header(request, row->name);
    if (value != NULL) {
        query_check_header(row, value, &request->scratch->errors);
    }
}

static int refuse_rate(const char *what)
{
    return err_set_hint(err_raise(ERR_RATE_LIMITED, "there are too many requests of one %s", what),
                        "wait as long as Retry-After says; Prefer: wait and event streams save requests");
}

/* The rate of the client's address; of an IPv6 address, that of its /64. */
static int check_address_rate(const struct connection *connection)
{
    const struct relay *relay = connection->relay;
    struct buckets *rates = connection->api->address_rates;
    if (rates == NULL || relay == NULL) {
        return 0;
    }
    bool six = relay->address.ss_family == AF_INET6;
    const void *id = six ? (const void *)&((const struct sockaddr_in6 *)&relay->address)->sin6_addr
                         : (const void *)&((const struct sockaddr_in *)&relay->address)->sin_addr;
    return buckets_take(rates, id, six ? 8 : 4, clock_monotonic_ms()) ? 0 : refuse_rate("address");
}

int admit_key_rate(const struct connection *connection)
{
    const struct request *request = connection->request;
    struct buckets *rates = connection->api->key_rates;
    if (rates == NULL || request->who != &request->principal) {
        return 0;
    }
    const char *id = request->grant.id;
    return buckets_take(rates, id, strlen(id), clock_monotonic_ms()) ? 0 : refuse_rate("key");
}

int admit_route(struct request *request, char **allow)
{
    request->query = strchr(request->path, '?');
    if (request->query != NULL) {
        *request->query++ = '\0';
    }
    TRY(routes_match(request->method, request->path, &request->route, request->captures, allow));
    if (request->route->scope != ROUTE_SCOPE_NONE) {
        TRY(check_address_rate(request->connection));
    }
    return auth_check(request);
}

int admit_request(struct request *request)
{
    const struct route *route = request->route;
    if ((route->flags & ROUTE_NEW_WORK) != 0 && atomic_load(&request->context->draining)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down and accepts no new work");
    }
    if (request->body_length > route->body_max) {
        return err_raise(ERR_PAYLOAD_TOO_LARGE, "the body is larger than the %lld bytes that this route allows",
                         (long long)route->body_max);
    }
    bool expected = route->body == ROUTE_BODY_JSON || route->body == ROUTE_BODY_SINK;
    if (expected && !request->declared) { /* a body sent anyway would be taken for a request */
        request->reply.close = true;
        return err_raise(ERR_LENGTH_REQUIRED,
                         "this route needs a body: send Content-Length or Transfer-Encoding: chunked");
    }
    if (strcmp(route->method, "GET") != 0 && request_offer(request) < 0) { /* before anything is changed */
        return ERR_NOT_ACCEPTABLE;
    }
    if ((expected || request->body_length != 0) && !takes_type(request)) {
        return refuse_type(request);
    }
    (void)query_parse(route->query, request->query, &request->scratch->query, &request->scratch->errors);
    routes_each_header(route, check_header, request);
    int rc = validation_raise(&request->scratch->errors);
    return rc == 0 && (route->flags & ROUTE_STREAMS) != 0 ? request_stream(request) : rc;
}
