/* Deadlines of connections.
 *
 * The HTTP library's own timeout counts idleness, which a client that sends one byte per second never reaches. Every
 * connection therefore has a state with a time limit of its own, and all are checked once a second; one that is late is
 * shut down, which the library notices as the end of its input. The time for which the client waits for us (suspended
 * for backpressure, or for a response) does not count. */

#include "api/server.h"

#include "api/reply.h"

#include <string.h>
#include <sys/socket.h>

#define SWEEP_MS 1000
#define LINGER_MS 2000
#define STALL_MS 60000 /* a reply of which the client reads nothing */
#define BODY_WINDOW_MS 10000
#define BYTES_PER_SECOND_MIN 1024 /* of a body, on average over a window */

void sweeper_set(struct connection *connection, enum connection_state state)
{
    connection->state = state;
    connection->since_ms = clock_monotonic_ms();
}

/* Time is divided into windows, without pauses of ours; each must bring the minimum. */
static bool body_is_late(struct request *request, int64_t now_ms)
{
    if (now_ms - request->body_since_ms - request->body_paused_ms < BODY_WINDOW_MS) {
        return false;
    }
    bool late = request->body_seen - request->body_marked < BODY_WINDOW_MS / 1000 * BYTES_PER_SECOND_MIN;
    request->body_since_ms = now_ms;
    request->body_paused_ms = 0;
    request->body_marked = request->body_seen;
    return late;
}

/* The library reads after an edge of epoll until a read is short. When the end of the input arrives together with the
 * last bytes, no further edge follows, and the connection would hang until it is late. */
static bool is_gone(const struct connection *connection, int64_t now_ms)
{
    char byte;
    bool reading = connection->state == CONNECTION_HEAD || connection->state == CONNECTION_BODY ||
                   connection->state == CONNECTION_LINGER;
    return reading && now_ms - connection->since_ms > SWEEP_MS &&
           recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static bool is_late(const struct connection *connection, int64_t now_ms)
{
    int64_t spent = now_ms - connection->since_ms;
    bool taking = connection->state == CONNECTION_IDLE ||
                  connection->state == CONNECTION_REPLY; /* what was sent counts until the client has read it */
    if (taking && connection->relay != NULL && connection->relay->moved_ms > connection->since_ms) {
        spent = now_ms - connection->relay->moved_ms;
    }
    switch (connection->state) {
    case CONNECTION_FRESH:
    case CONNECTION_HEAD:
        return spent > SERVER_HEAD_MS;
    case CONNECTION_IDLE:
        return spent > SERVER_IDLE_MS;
    case CONNECTION_BODY:
        return body_is_late(connection->request, now_ms);
    case CONNECTION_REPLY:
        return spent > STALL_MS + (int64_t)(connection->request->reply.size / BYTES_PER_SECOND_MIN) * 1000;
    case CONNECTION_LINGER:
        return spent > LINGER_MS;
    case CONNECTION_BUSY:
        break;
    }
    return false;
}

/* Send a response before the connection is cut, unless one is known already. */
static void answer_late(struct connection *connection)
{
    struct request *request = connection->request;
    request->path[strcspn(request->path, "?")] = '\0';
    if (request->reply.status == 0) {
        reply_problem(request, err_raise(ERR_REQUEST_TIMEOUT, "the request arrives too slowly"), 0);
    }
    send_early(connection);
}

int64_t sweeper_run(struct api *api, int64_t now_ms)
{
    for (struct connection *connection = api->connections; connection != NULL; connection = connection->next) {
        bool gone = !connection->cut && is_gone(connection, now_ms);
        if (connection->cut || (!gone && !is_late(connection, now_ms))) {
            continue;
        }
        if (!gone && (connection->state == CONNECTION_HEAD || connection->state == CONNECTION_BODY)) {
            answer_late(connection);
        }
        connection->cut = true;
        (void)shutdown(connection->fd, SHUT_RDWR);
    }
    relays_sweep(api, now_ms);
    return now_ms + SWEEP_MS;
}
