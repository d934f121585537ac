/* Moves bytes between a client's socket and one end of a socket pair, whose other end the HTTP library has.
 *
 * Nothing is buffered here. Bytes are examined in the kernel's buffer (MSG_PEEK), as many as the other side accepts are
 * passed on, and only those are removed: backpressure is left to TCP, and thousands of idle or slow connections need no
 * memory here. The library only gets bytes that the frame has accepted, and none of the next request before the
 * response to the previous one is complete: when that response ends the connection, whatever follows is discarded.
 *
 * A client without a request needs no pair: it is parked, with its own socket alone, until more bytes
 * arrive. So thousands of clients that ask now and then take about one descriptor each, and hardly any memory.
 *
 * Both sockets are polled edge-triggered. Any event makes the relay ready, and bytes of a ready one are moved in both
 * directions until the kernel returns EAGAIN or its share of the iteration is used up.
 *
 * At the end, when the library has closed its side and its last byte was sent, our direction is shut down, and what the
 * client still sends is discarded for a moment, because a reset could overtake the response.
 *
 * With TLS (tls.h) the client's bytes are those within, peeked and removed in the same way; OpenSSL has at most one
 * record of each direction in memory, and only while there is traffic. A client that speaks HTTP where TLS is expected
 * is told so. */

#include "api/relay.h"

#include "api/counters.h"
#include "api/server.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define SHARE ((size_t)512 << 10) /* of one connection in one iteration, per direction */

void relay_kick(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;
    if (!relay->ready) {
        relay->ready = true;
        relay->ready_next = relays->ready;
        relays->ready = relay;
    }
}

static void set_blocked(struct relay *relay, bool blocked)
{
    if (relay->blocked != blocked) {
        relay->blocked = blocked;
        (void)atomic_fetch_add(&relay->api->unsent, blocked ? 1 : -1);
    }
}

/* Closing alone would not end the events of a socket: a process that is being started has copies of all descriptors for
 * a moment, and they keep it watched. */
static void close_watched(struct relays *relays, int fd)
{
    (void)epoll_ctl(relays->epoll, EPOLL_CTL_DEL, fd, NULL);
    close(fd);
}

/* One of three descriptors is left. */
void relay_close_inner(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;

    if (relay->connection != NULL) {
        relay->connection->relay = NULL;
        relay->connection = NULL;
    }
    if (relay->inner >= 0) {
        close_watched(relays, relay->inner);
        relay->inner = -1;
        relays->attached--;
        relays->unattached++;
        relays->freed = true;
    }
}

bool relay_park(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;
    char byte;

    if (recv(relay->inner, &byte, 1, MSG_PEEK) >= 0 || errno != EAGAIN) {
        return false;
    }
    relay_close_inner(relay);
    relays->unattached--;
    relays->parked++;
    relay->parked = true;
    relay_kick(relay); /* what arrived before is not announced again */
    return true;
}

static bool forget(struct relay **list, struct relay *relay)
{
    for (struct relay **at = list; *at != NULL; at = &(*at)->ready_next) {
        if (*at == relay) {
            *at = relay->ready_next;
            return true;
        }
    }
    return false;
}

static void forget_put_off(struct relays *relays, struct relay *relay)
{
    (void)forget(&relays->put_off, relay);
    relays->put_off_end = &relays->put_off;
    while (*relays->put_off_end != NULL) {
        relays->put_off_end = &(*relays->put_off_end)->ready_next;
    }
}

void relay_drop(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;

    set_blocked(relay, false);
    relay_close_inner(relay);
    *(relay->parked ? &relays->parked : &relays->unattached) -= 1;
    if (relay->previous != NULL) {
        relay->previous->next = relay->next;
    } else {
        relays->all = relay->next;
    }
    if (relay->next != NULL) {
        relay->next->previous = relay->previous;
    }
    if (relay->ready && !forget(&relays->ready, relay)) {
        forget_put_off(relays, relay);
    }
    if (relay->waits) {
        relays_stop_waiting(relay);
    }
    if (relay->shaken && relay->tls != NULL) {
        (void)tls_end(relay->tls);
    }
    tls_forget(relay->tls);
    close_watched(relays, relay->client);
    free(relay);
}

void relay_end(struct relay *relay)
{
    relay->input_stopped = relay->inner_ended = true;
    relay_close_inner(relay);
    if (relay->parked) {
        relay->parked = false;
        relay->api->relays.parked--;
        relay->api->relays.unattached++;
    }
    if (relay->shaken && relay->tls != NULL && !tls_end(relay->tls)) {
        set_blocked(relay, true); /* relay_pump tries again */
        return;
    }
    tls_forget(relay->tls);
    relay->tls = NULL;
    set_blocked(relay, false);
    (void)shutdown(relay->client, SHUT_WR);
    relay->ended_ms = clock_monotonic_ms();
    relay_kick(relay);
}

/* --- the handshake */

bool relay_shakes(const struct relay *relay)
{
    return relay->tls != NULL && !relay->shaken && !relay->waits;
}

/* The client speaks HTTP: say what it should do instead, in what it understands. */
static void answer_plain(struct relay *relay)
{
    static const char body[] =
        "This port speaks HTTPS, and the request was sent unencrypted. Use https:// in the URL.\n";
    char text[512];
    int size = snprintf(text, sizeof(text),
                        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
                        "Cache-Control: no-store\r\nContent-Length: %zu\r\n\r\n%s",
                        strlen(body), body);

    (void)send(relay->client, text, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void log_handshake(const struct relay *relay, const char *why)
{
    char client[CONNECTION_CLIENT_SIZE] = "";

    access_client((const struct sockaddr *)&relay->address, client);
    log_info("TLS handshake failed", LOG_S("client", client), LOG_S("reason", why));
}

/* Continue it; true when it is complete. False with *broken: the connection has ended. */
static bool shake(struct relay *relay, bool *broken)
{
    const char *why = NULL;

    *broken = relay->connection == NULL && !relay->rejected; /* the deadline of its first request has passed */
    if (*broken) {
        return false;
    }
    enum tls_handshake step = tls_shake(relay->tls, &why);
    if (step == TLS_WAIT) {
        return false;
    }
    if (step == TLS_COMPLETE) {
        relay->shaken = true;
        counters_handshake(true);
        if (relay->rejected) {
            relays_reject(relay);
        }
        return !relay->rejected;
    }
    if (step == TLS_PLAIN) {
        answer_plain(relay);
        why = "the client speaks HTTP without TLS";
    }
    if (why != NULL) { /* else it left: a probe of the port, a load balancer */
        counters_handshake(false);
        log_handshake(relay, why);
    }
    relay_end(relay);
    return false;
}

/* --- both directions */

/* No further request is accepted, and the library sees the end of its input. */
static void stop_input(struct relay *relay)
{
    relay->input_stopped = true;
    (void)shutdown(relay->inner, SHUT_WR);
    relay_kick(relay);
}

void relay_next(struct relay *relay)
{
    if (relay->frame.state == FRAME_DONE) {
        frame_next(&relay->frame);
        relay_kick(relay);
    } else {
        stop_input(relay); /* answered before its end: what follows is the rest of it */
    }
}

void relay_detach(struct relay *relay)
{
    relay->connection = NULL;
    relay->input_stopped = true;
    relay_kick(relay);
}

enum step { STEP_MORE, STEP_WAIT, STEP_BROKEN };

static enum step failed(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? STEP_WAIT : STEP_BROKEN;
}

ssize_t relay_send(struct relay *relay, const void *data, size_t size)
{
    return relay->tls != NULL ? tls_write(relay->tls, data, size) : send(relay->client, data, size, MSG_NOSIGNAL);
}

static ssize_t relay_peek(struct relay *relay, void *data, size_t size)
{
    return relay->tls != NULL ? tls_peek(relay->tls, data, size) : recv(relay->client, data, size, MSG_PEEK);
}

/* Remove bytes that were peeked. */
static enum step relay_consume(struct relay *relay, size_t size)
{
    while (relay->tls != NULL && size > 0) {
        ssize_t got = tls_read(relay->tls, relay->api->relays.scratch, size < RELAY_PIECE ? size : RELAY_PIECE);
        if (got <= 0) {
            return STEP_BROKEN;
        }
        size -= (size_t)got;
    }
    /* For TCP, MSG_TRUNC removes bytes without copying them. */
    return size > 0 && recv(relay->client, NULL, size, MSG_TRUNC) < 0 ? failed() : STEP_MORE;
}

/* One part from the client. */
static enum step move_in(struct relay *relay, size_t *moved)
{
    if (relay->client_ended || (!relay->input_stopped && relay->frame.state == FRAME_DONE)) {
        return STEP_WAIT;
    }
    char *piece = relay->api->relays.scratch;
    ssize_t got = relay_peek(relay, piece, RELAY_PIECE);
    if (got < 0) {
        return failed();
    }
    if (got == 0) {
        relay->client_ended = true;
        (void)shutdown(relay->inner, SHUT_WR);
        return STEP_WAIT;
    }
    *moved += (size_t)got;
    if (relay->input_stopped) {
        return relay_consume(relay, (size_t)got);
    }
    struct frame ahead = relay->frame;
    size_t passed = frame_feed(&ahead, piece, (size_t)got);
    if (ahead.state == FRAME_REFUSED) {
        relay->frame = ahead;
        relay->input_stopped = relay->refused = true;
        return STEP_MORE;
    }
    ssize_t sent = send(relay->inner, piece, passed, MSG_NOSIGNAL);
    if (sent < 0 && failed() == STEP_WAIT) {
        return STEP_WAIT;
    }
    if (sent < 0) { /* the library has closed its side; its last bytes are still to be sent */
        relay->input_stopped = true;
        return STEP_MORE;
    }
    if ((size_t)sent < passed) {
        (void)frame_feed(&relay->frame, piece, (size_t)sent);
    } else {
        relay->frame = ahead;
    }
    relay->asked = true;
    return relay_consume(relay, (size_t)sent);
}

/* One part from the library. */
static enum step move_out(struct relay *relay, size_t *moved)
{
    if (relay->inner_ended) {
        return STEP_WAIT;
    }
    char *piece = relay->api->relays.scratch;
    ssize_t got = recv(relay->inner, piece, RELAY_PIECE, MSG_PEEK);
    if (got < 0 && failed() == STEP_WAIT) {
        set_blocked(relay, false);
        return STEP_WAIT;
    }
    if (got <= 0) { /* an error: it closed with unread input */
        set_blocked(relay, false);
        relay->inner_ended = true;
        return STEP_WAIT;
    }
    ssize_t sent = relay_send(relay, piece, (size_t)got);
    if (sent < 0) {
        set_blocked(relay, failed() == STEP_WAIT);
        return failed();
    }
    relay->moved_ms = clock_monotonic_ms();
    *moved += (size_t)sent;
    return recv(relay->inner, piece, (size_t)sent, 0) < 0 ? STEP_BROKEN : STEP_MORE;
}

/* A parked client; false when it has ended. */
static bool pump_parked(struct relay *relay)
{
    ssize_t got = relay_peek(relay, relay->api->relays.scratch, 1);

    if (got > 0) {
        relays_return(relay);
    }
    return got > 0 || (got < 0 && failed() == STEP_WAIT);
}

bool relay_pump(struct relay *relay)
{
    size_t in = 0, out = 0;
    enum step step;
    bool broken = false;

    if (relay->waits) {
        return true;
    }
    if (relay->parked) {
        return pump_parked(relay);
    }
    if (relay_shakes(relay) && !shake(relay, &broken)) {
        return !broken;
    }
    while ((step = move_in(relay, &in)) == STEP_MORE && in < SHARE) {
    }
    if (relay->refused && relay->connection != NULL &&
        server_refuse(relay->connection, relay->frame.status, relay->frame.detail)) {
        relay->refused = false;
    }
    bool more = step == STEP_MORE;
    if (step == STEP_BROKEN) {
        return false;
    }
    while ((step = move_out(relay, &out)) == STEP_MORE && out < SHARE) {
    }
    if (step == STEP_BROKEN) {
        return false;
    }
    if (relay->inner_ended && relay->ended_ms == 0) {
        relay_end(relay);
    }
    if (relay->ended_ms != 0 && relay->client_ended) {
        return false;
    }
    if (more || step == STEP_MORE) {
        relay_kick(relay);
    }
    return true;
}
