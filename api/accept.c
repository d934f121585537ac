/* Admission of connections.
 *
 * A connection beyond the limits waits for up to a second, holding only its own socket: in a flood of requests that are
 * refused, capacity becomes free every millisecond. Where descriptors for requests are short, idle connections are
 * parked; where there are too many connections, the one that has been idle for longest is closed. After a second
 * without it the client gets 503. Connections that wait and those that linger after their end are not attached to the
 * HTTP library, and their number is limited. */

#include "api/limits.h"
#include "api/server.h"
#include "base/log.h"

#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 128
#define PAIR_BUFFER (64 << 10) /* kernel buffer between us and the library, per direction */
#define SEND_AHEAD (128 << 10) /* unsent bytes in the kernel, so that a slow client does not hold megabytes */
#define WAIT_MS 1000
#define LINGER_MS 2000
#define STALL_MS 60000     /* the library has finished, and the client does not read the rest */
#define FRESH_MS 1000      /* a connection without a request yet is not closed for another before this, */
#define IDLE_MS 100        /* and an idle one after a response not before this */
#define ADMIT_MS 50        /* interval at which idle connections are searched for waiting ones */
#define ADMIT_BATCH 32     /* waiting connections that find no capacity, until the others are left for later */
#define PARK_MS 500        /* a connection is parked when it has been idle for so long, */
#define PARK_BATCH 64      /* or earlier, so many at a time, when others need to be attached */
#define SHAKE_SECONDS .002 /* of a run, for handshakes: signatures of large keys must not hold up other connections */

static bool same_address(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    if (a->ss_family != b->ss_family) {
        return false;
    }
    if (a->ss_family == AF_INET6) { /* a /64 usually belongs to one customer */
        return memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr, 8) ==
               0;
    }
    return a->ss_family != AF_INET ||
           ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
}

/* Since when it has had no request; -1: it has one, or part of a response has not been sent. */
static int64_t idle_since(const struct relay *relay)
{
    const struct connection *connection = relay->connection;

    if (relay->parked) {
        return relay->waits ? -1 : relay->moved_ms;
    }
    bool idle = connection != NULL && !connection->cut && !relay_shakes(relay) &&
                (connection->state == CONNECTION_IDLE || connection->state == CONNECTION_FRESH);
    bool quiet = !relay->blocked && !relay->client_ended && !relay->input_stopped && relay->frame.state == FRAME_START;
    return idle && quiet ? connection->since_ms : -1;
}

/* Whether it can be closed for another, as it has had no request for a moment. */
static bool is_idle(const struct relay *relay, int64_t now_ms)
{
    int64_t since = idle_since(relay);

    return since >= 0 && now_ms - since > (relay->asked ? IDLE_MS : FRESH_MS);
}

/* Close the connection that has been idle for longest, of that address or (NULL) of any. */
static bool evict(struct relays *relays, const struct sockaddr_storage *address, bool attached)
{
    struct relay *oldest = NULL;
    int64_t now_ms = clock_monotonic_ms();

    for (struct relay *relay = relays->all; relay != NULL; relay = relay->next) {
        if ((!attached || relay->inner >= 0) && is_idle(relay, now_ms) &&
            (address == NULL || same_address(&relay->address, address)) &&
            (oldest == NULL || idle_since(relay) < idle_since(oldest))) {
            oldest = relay;
        }
    }
    if (oldest != NULL) {
        relay_drop(oldest);
    }
    return oldest != NULL;
}

/* Park up to `most` connections that have been idle for so long; false when there are none. */
static bool park(struct relays *relays, int64_t idle_ms, unsigned most)
{
    int64_t now_ms = clock_monotonic_ms();
    unsigned parked = 0;

    for (struct relay *relay = relays->all; relay != NULL && parked < most; relay = relay->next) {
        int64_t since = idle_since(relay);
        parked += !relay->parked && since >= 0 && now_ms - since >= idle_ms && relay_park(relay);
    }
    return parked > 0;
}

static bool may_be_open(struct relays *relays, const struct sockaddr_storage *address)
{
    unsigned same = 0;
    bool count = relays->attached + relays->parked >= relays->address_max; /* fewer of all are fewer of one */
    for (const struct relay *relay = relays->all; count && relay != NULL; relay = relay->next) {
        same += (relay->inner >= 0 || relay->parked) && same_address(&relay->address, address);
    }
    return (same < relays->address_max || evict(relays, address, false)) &&
           (relays->attached + relays->parked < relays->open_max || evict(relays, NULL, false));
}

/* Whether one more can be attached. A search that finds no idle one is not repeated for a moment: where all are busy,
 * it would take the time that they need. */
static bool may_be_attached(struct relays *relays)
{
    if (relays->attached < relays->attached_max) {
        return true;
    }
    if (clock_monotonic_ms() < relays->search_ms) {
        return false;
    }
    if (park(relays, 0, PARK_BATCH) || evict(relays, NULL, true)) {
        return true;
    }
    relays->search_ms = clock_monotonic_ms() + ADMIT_MS;
    return false;
}

static bool has_capacity(struct relays *relays, const struct relay *relay)
{
    return may_be_attached(relays) && (relay->parked || may_be_open(relays, &relay->address));
}

static bool watch(struct relays *relays, int fd, uint32_t events, void *data)
{
    struct epoll_event event = {.events = events, .data.ptr = data};
    return epoll_ctl(relays->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* --- admit or reject */

void relays_reject(struct relay *relay)
{
    char body[512], response[1024];

    if (relay_shakes(relay)) { /* first the handshake */
        relay->rejected = true;
        relay_close_inner(relay);
        relay_kick(relay);
        return;
    }
    int size = snprintf(body, sizeof(body),
                        "{\"type\":\"urn:quantd:error:queue_full\",\"title\":\"%s\",\"status\":503,"
                        "\"detail\":\"There are too many connections.\",\"instance\":null,\"code\":\"queue_full\","
                        "\"param\":null,\"hint\":null,\"request_id\":null,\"retryable\":true,\"errors\":[]}\n",
                        err_sentence(ERR_QUEUE_FULL));
    int length =
        snprintf(response, sizeof(response),
                 "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 5\r\n"
                 "Connection: close\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n%s",
                 size, body);

    (void)relay_send(relay, response, (size_t)length);
    relay_end(relay);
}

static void wait_for_capacity(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;

    relay->waiting_next = NULL;
    *relays->waiting_end = relay;
    relays->waiting_end = &relay->waiting_next;
    relay->waits = true;
}

void relays_return(struct relay *relay)
{
    relay->since_ms = clock_monotonic_ms();
    wait_for_capacity(relay);
    relay->api->relays.freed = true; /* it is attached when the events of this run have been handled */
}

void relays_stop_waiting(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;
    struct relay **at = &relays->waiting;

    while (*at != relay) {
        at = &(*at)->waiting_next;
    }
    *at = relay->waiting_next;
    if (*at == NULL) {
        relays->waiting_end = at;
    }
    relay->waits = false;
}

/* Attach it to the library; server_on_connection connects both sides. */
static void attach(struct relay *relay)
{
    struct api *api = relay->api;
    struct relays *relays = &api->relays;
    const int buffer = PAIR_BUFFER;
    int pair[2];

    relays_stop_waiting(relay);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
        relays_reject(relay);
        return;
    }
    if (!watch(relays, pair[0], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, relay)) {
        close(pair[0]);
        close(pair[1]);
        relays_reject(relay);
        return;
    }
    (void)setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    (void)setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    relay->inner = pair[0];
    relays->attached++;
    *(relay->parked ? &relays->parked : &relays->unattached) -= 1;
    relay->parked = false;
    api->attaching = relay;
    (void)MHD_add_connection(api->daemon, pair[1], (const struct sockaddr *)&relay->address, relay->address_size);
    api->attaching = NULL;
    if (relay->connection == NULL) { /* the library did not accept it and has closed its end */
        relays_reject(relay);
        return;
    }
    relay_kick(relay);
}

static void admit_waiting(struct relays *relays)
{
    struct relay *relay = relays->waiting;

    relays->freed = false;
    relays->admit_ms = clock_monotonic_ms() + ADMIT_MS;
    for (int refused = 0; refused < ADMIT_BATCH && relay != NULL && may_be_attached(relays);) {
        struct relay *next = relay->waiting_next;
        if (has_capacity(relays, relay)) {
            attach(relay);
        } else {
            refused++;
        }
        relay = next;
    }
}

/* At the limit: close the connection that has lingered for longest, or else reject the one that has waited longest.
 * Those that were parked have their place. */
static void drop_unattached(struct relays *relays)
{
    struct relay *oldest = NULL, *waiting = relays->waiting;

    for (struct relay *relay = relays->all; relay != NULL; relay = relay->next) {
        if (relay->inner < 0 && !relay->waits && !relay->parked &&
            (oldest == NULL || relay->ended_ms < oldest->ended_ms)) {
            oldest = relay;
        }
    }
    while (waiting != NULL && waiting->parked) {
        waiting = waiting->waiting_next;
    }
    if (oldest == NULL && waiting != NULL) {
        oldest = waiting;
        relays_stop_waiting(oldest);
        relays_reject(oldest);
    }
    if (oldest != NULL) {
        relay_drop(oldest);
    }
}

/* Add an accepted socket, which is owned from here: it is attached at once when there is capacity, or waits. */
static void add_client(struct api *api, int client, const struct sockaddr_storage *address, socklen_t size)
{
    struct relays *relays = &api->relays;
    const int one = 1, ahead = SEND_AHEAD;
    struct relay *relay = calloc(1, sizeof(*relay));

    struct ssl_st *tls = relay != NULL && api->tls != NULL ? tls_accept(api->tls, client) : NULL;

    if (relay == NULL || (tls == NULL && api->tls != NULL) ||
        !watch(relays, client, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, relay)) {
        tls_forget(tls);
        free(relay);
        close(client);
        return;
    }
    if (relays->unattached >= relays->unattached_max) {
        drop_unattached(relays);
    }
    *relay = (struct relay){
        .api = api, .client = client, .inner = -1, .tls = tls, .address = *address, .address_size = size};
    relay->since_ms = relay->moved_ms = clock_monotonic_ms();
    (void)setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    (void)setsockopt(client, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &ahead, sizeof(ahead));
    relay->next = relays->all;
    if (relays->all != NULL) {
        relays->all->previous = relay;
    }
    relays->all = relay;
    relays->unattached++;
    if (tls == NULL && may_be_open(relays, address)) {
        relay->parked = true; /* until its request arrives */
        relays->unattached--;
        relays->parked++;
        return;
    }
    wait_for_capacity(relay);
    if (has_capacity(relays, relay)) {
        attach(relay);
    }
}

static void listen_again(struct relays *relays, bool on)
{
    struct epoll_event event = {.events = on ? EPOLLIN : 0, .data.ptr = &relays->listener};
    if (epoll_ctl(relays->epoll, EPOLL_CTL_MOD, relays->listener, &event) == 0) {
        relays->paused = !on;
    }
}

/* Where the listener takes both families, clients of IPv4 have an address of IPv6 that holds theirs. They are not in
 * one /64 for that. */
static void unmap_address(struct sockaddr_storage *address, socklen_t *size)
{
    const struct sockaddr_in6 six = *(const struct sockaddr_in6 *)address;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = six.sin6_port};

    if (address->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six.sin6_addr)) {
        memcpy(&four.sin_addr, &six.sin6_addr.s6_addr[12], sizeof(four.sin_addr));
        memset(address, 0, sizeof(*address));
        memcpy(address, &four, sizeof(four));
        *size = sizeof(four);
    }
}

static void accept_all(struct api *api)
{
    struct relays *relays = &api->relays;
    struct sockaddr_storage address;

    for (int i = 0; i < EVENTS; i++) {
        socklen_t size = sizeof(address);
        memset(&address, 0, sizeof(address));
        int client = accept4(relays->listener, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            unmap_address(&address, &size);
            add_client(api, client, &address, size);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_warn("cannot accept a connection, waiting", LOG_S("reason", strerror(errno)),
                     LOG_I("connections", relays->attached + relays->parked));
            if (!evict(relays, NULL, false)) {
                listen_again(relays, false);
            }
        }
        return;
    }
}

/* --- the event loop */

int relays_open(struct api *api, int listener, int library, const struct limits *limits)
{
    struct relays *relays = &api->relays;

    relays->open_max = limits->connections;
    relays->attached_max = limits->attached;
    relays->address_max = limits->per_address;
    relays->unattached_max = limits->unattached;
    relays->listener = listener;
    relays->library = library;
    relays->put_off_end = &relays->put_off;
    relays->waiting_end = &relays->waiting;
    relays->scratch = malloc(RELAY_PIECE);
    relays->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (relays->scratch == NULL || relays->epoll < 0 || !watch(relays, listener, EPOLLIN, &relays->listener) ||
        !watch(relays, library, EPOLLIN, &relays->library)) {
        return err_raise_errno(errno, "cannot watch the listening socket");
    }
    return 0;
}

void relays_begin(struct api *api)
{
    struct relays *relays = &api->relays;
    struct relay **end = &relays->ready;

    relays->shake_until = clock_monotonic_seconds() + SHAKE_SECONDS;
    while (*end != NULL) {
        end = &(*end)->ready_next;
    }
    *end = relays->put_off; /* the newest first: if there are too many, not all of them wait until they are late */
    relays->put_off = NULL;
    relays->put_off_end = &relays->put_off;
}

bool relays_busy(const struct relays *relays)
{
    return relays->ready != NULL || relays->put_off != NULL;
}

static void put_off(struct relays *relays, struct relay *relay)
{
    relay->ready_next = NULL;
    *relays->put_off_end = relay;
    relays->put_off_end = &relay->ready_next;
}

bool relays_run(struct api *api)
{
    struct relays *relays = &api->relays;
    struct epoll_event events[EVENTS];
    bool incoming = false, other = false;

    int count = epoll_wait(relays->epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == &relays->listener) {
            incoming = true;
        } else if (events[i].data.ptr != &relays->library) {
            relay_kick(events[i].data.ptr);
        }
        other = other || events[i].data.ptr != &relays->library;
    }
    struct relay *ready = relays->ready;
    relays->ready = NULL;
    while (ready != NULL) {
        struct relay *relay = ready;
        ready = relay->ready_next;
        if (relay_shakes(relay) && clock_monotonic_seconds() > relays->shake_until) {
            put_off(relays, relay);
            continue;
        }
        relay->ready = false;
        if (!relay_pump(relay)) {
            relay_drop(relay);
        }
    }
    if (relays->freed || (relays->waiting != NULL &&
                          clock_monotonic_ms() >= relays->admit_ms)) { /* connections may be closed from here on: the
                                                                          events that refer to them have been handled */
        admit_waiting(relays);
    }
    if (incoming) {
        accept_all(api);
    }
    return other || relays->ready != NULL;
}

void relays_sweep(struct api *api, int64_t now_ms)
{
    struct relays *relays = &api->relays;

    if (relays->paused) {
        listen_again(relays, true);
    }
    admit_waiting(relays);
    (void)park(relays, PARK_MS, UINT_MAX);
    for (struct relay *relay = relays->all, *next; relay != NULL; relay = next) {
        next = relay->next;
        bool cut = relay->connection == NULL || relay->connection->cut;
        bool lingers = relay->ended_ms != 0 && now_ms - relay->ended_ms > LINGER_MS;
        bool left = relay->parked && !relay->waits &&
                    now_ms - relay->moved_ms > (relay->asked ? SERVER_IDLE_MS : SERVER_HEAD_MS);
        bool stalls =
            cut && !relay->parked && relay->ended_ms == 0 && !relay->waits && now_ms - relay->moved_ms > STALL_MS;
        bool silent = relay->rejected && relay_shakes(relay) && now_ms - relay->since_ms > WAIT_MS + LINGER_MS;
        if (lingers || left || stalls || silent) {
            relay_drop(relay);
        } else if (relay->waits && now_ms - relay->since_ms > WAIT_MS) {
            relays_stop_waiting(relay);
            relays_reject(relay);
        }
    }
}

void relays_close(struct api *api)
{
    struct relays *relays = &api->relays;

    while (relays->all != NULL) {
        struct relay *relay = relays->all;
        (void)relay_pump(relay);
        relay_drop(relay);
    }
    if (relays->epoll > 0) {
        close(relays->epoll);
    }
    free(relays->scratch);
    relays->scratch = NULL;
}
