/* Moves bytes between a client's socket and one end of a socket pair, whose other end the HTTP library has.
 *
 * Nothing is buffered here. Bytes are examined in the kernel's buffer (MSG_PEEK), as many as the other side accepts are
 * passed on, and only those are removed: backpressure is left to TCP, and thousands of idle or slow connections need no
 * memory here. The library only gets bytes that the frame has accepted, and none of the next request before the
 * response to the previous one is complete: when that response ends the connection, whatever follows is discarded.
 *
 * Both sockets are polled edge-triggered. Any event makes the relay ready, and bytes of a ready one are moved in both
 * directions until the kernel returns EAGAIN or its share of the iteration is used up.
 *
 * At the end, when the library has closed its side and its last byte was sent, our direction is shut down, and what the
 * client still sends is discarded for a moment, because a reset could overtake the response. */

#include "api/relay.h"

#include "api/server.h"

#include <errno.h>
#include <stdlib.h>
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

/* The library's side has ended: one of three descriptors is left. */
static void close_inner(struct relay *relay)
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

static void forget(struct relay **list, struct relay *relay, bool waiting)
{
    for (struct relay **at = list; *at != NULL; at = waiting ? &(*at)->waiting_next : &(*at)->ready_next) {
        if (*at == relay) {
            *at = waiting ? relay->waiting_next : relay->ready_next;
            return;
        }
    }
}

void relay_drop(struct relay *relay)
{
    struct relays *relays = &relay->api->relays;

    set_blocked(relay, false);
    close_inner(relay);
    relays->unattached--;
    if (relay->previous != NULL) {
        relay->previous->next = relay->next;
    } else {
        relays->all = relay->next;
    }
    if (relay->next != NULL) {
        relay->next->previous = relay->previous;
    }
    if (relay->ready) {
        forget(&relays->ready, relay, false);
    }
    if (relay->waits) {
        forget(&relays->waiting, relay, true);
    }
    close_watched(relays, relay->client);
    free(relay);
}

void relay_end(struct relay *relay)
{
    (void)shutdown(relay->client, SHUT_WR);
    relay->ended_ms = clock_monotonic_ms();
    relay->input_stopped = relay->inner_ended = true;
    close_inner(relay);
    relay_kick(relay);
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

static enum step relay_consume(struct relay *relay, size_t size)
{
    /* For TCP, MSG_TRUNC removes bytes without copying them. */
    return recv(relay->client, NULL, size, MSG_TRUNC) < 0 ? failed() : STEP_MORE;
}

/* One part from the client. */
static enum step move_in(struct relay *relay, size_t *moved)
{
    if (relay->client_ended || (!relay->input_stopped && relay->frame.state == FRAME_DONE)) {
        return STEP_WAIT;
    }
    char *piece = relay->api->relays.scratch;
    ssize_t got = recv(relay->client, piece, RELAY_PIECE, MSG_PEEK);
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
    ssize_t sent = send(relay->client, piece, (size_t)got, MSG_NOSIGNAL);
    if (sent < 0) {
        set_blocked(relay, failed() == STEP_WAIT);
        return failed();
    }
    relay->moved_ms = clock_monotonic_ms();
    *moved += (size_t)sent;
    return recv(relay->inner, piece, (size_t)sent, 0) < 0 ? STEP_BROKEN : STEP_MORE;
}

bool relay_pump(struct relay *relay)
{
    size_t in = 0, out = 0;
    enum step step;

    if (relay->waits) {
        return true;
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
