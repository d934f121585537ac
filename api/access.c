/* The access log: one line per completed request with the client, the route, the status, the bytes received and sent,
 * and the duration. The query is left out: it is the client's and may be long. */

#include "api/audit.h"
#include "api/counters.h"
#include "api/reply.h"
#include "api/server.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define PATH_MAX_LOGGED 256

void access_client(const struct sockaddr *address, char out[CONNECTION_CLIENT_SIZE])
{
    char host[INET6_ADDRSTRLEN] = "";
    bool six = address->sa_family == AF_INET6;
    const struct sockaddr_in *v4 = (const void *)address;
    const struct sockaddr_in6 *v6 = (const void *)address;

    if ((six || address->sa_family == AF_INET) &&
        inet_ntop(address->sa_family, six ? (const void *)&v6->sin6_addr : (const void *)&v4->sin_addr, host,
                  sizeof(host)) != NULL) {
        (void)snprintf(out, CONNECTION_CLIENT_SIZE, "%s%s%s:%u", six ? "[" : "", host, six ? "]" : "",
                       ntohs(six ? v6->sin6_port : v4->sin_port));
    }
}

/* One line for each request that changes something, or was not let in: who, when, what, on which object, and the
 * status. An agent's call of a tool counts as a request of the tool's route. */
static void access_audit(const struct connection *connection, int status)
{
    const struct request *request = connection->request;
    const struct request_call *call = &request->call;
    int fd = connection->api->audit_fd;
    if (fd < 0 || request->route == NULL) {
        return;
    }
    const struct route *route = call->route != NULL ? call->route : request->route;
    const char *object = request->captures[0] != NULL ? request->captures[0] : reply_location(&request->reply);
    if (call->route != NULL) {
        object = call->object[0] != '\0' ? call->object : NULL;
        status = call->status;
    }
    bool changes = strcmp(route->method, "GET") != 0 && route->reply != ROUTE_REPLY_MESSAGE;
    if (!changes && status != 401 && status != 403) {
        return;
    }
    const struct audit_line line = {
        .request = request->id,
        .client = connection->client,
        .key = request->who == &request->principal ? request->grant.id : NULL,
        .project = request->who->project,
        .operation = route->operation,
        .object = object,
        .status = status,
    };
    if (!audit_write(fd, &line)) {
        log_warn("a line of the audit log was lost", LOG_S("request", request->id));
    }
}

void access_log(const struct connection *connection, bool complete)
{
    const struct request *request = connection->request;
    char path[PATH_MAX_LOGGED];
    int status = request->reply.status;
    const union MHD_ConnectionInfo *info =
        request->mhd != NULL ? MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_HTTP_STATUS) : NULL;

    if (status == 0 && info != NULL) { /* the library itself refused it */
        status = (int)info->http_status;
    }
    double seconds = (double)(clock_monotonic_ms() - request->started_ms) / 1000;
    counters_request(request->route, request->method, status, seconds);
    access_audit(connection, status);
    (void)snprintf(path, sizeof(path), "%.*s", (int)strcspn(request->path, "?"), request->path);
    log_set_trace(request->trace.parent);
    log_info("request", LOG_S("request", request->id), LOG_S("client", connection->client),
             LOG_S("key", request->who == &request->principal ? request->grant.id : NULL),
             LOG_S("method", request->method), LOG_S("route", request->route != NULL ? request->route->path : NULL),
             LOG_S("object", request->captures[0]), LOG_S("path", path), LOG_I("status", status),
             LOG_I("bytes_in", request->body_seen), LOG_I("bytes_out", request->bytes_out), LOG_F("seconds", seconds),
             LOG_S("end", complete ? "complete" : "aborted"));
    log_set_trace(NULL);
}
