#pragma once
/* The relay between clients and the HTTP library: accepts connections, passes on what frame.h allows, one request at a
 * time, and carries responses back. Internal to api/; loop thread. */

#include "api/frame.h"
#include "api/tls.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define RELAY_PIECE ((size_t)64 << 10) /* bytes examined at a time */

struct api;
struct connection;
struct limits;

/* One client. It waits for capacity, is attached to the library by a socket pair, whose other end the library has, and
 * lingers after its end. Before its first request, and from a moment after each, it is parked: it keeps its own socket
 * alone, and is attached again when the next request arrives. With TLS the handshake follows when it is attached, and a
 * client that lingers is one without TLS: nothing more is sent to it. */
struct relay {
    struct relay *next, *previous;
    struct relay *ready_next;   /* in the list of those with work to do, or of those whose handshake is put off */
    struct relay *waiting_next; /* in the list of those that wait for capacity, oldest first */
    struct api *api;
    struct connection *connection; /* the library's side; NULL before and after it exists */
    int client, inner;             /* inner: -1 while it waits, is parked or lingers */
    struct ssl_st *tls;            /* NULL: none, or no longer */
    struct frame frame;
    struct sockaddr_storage address;
    socklen_t address_size;
    int64_t since_ms;   /* when it was accepted, or asked again after it was parked */
    int64_t moved_ms;   /* when the client last received something */
    int64_t ended_ms;   /* when the last byte was sent; 0 = not yet */
    bool waits;         /* for capacity */
    bool parked;        /* has no request that the library knows, and a place among the open ones */
    bool asked;         /* has sent bytes of a request */
    bool ready;         /* in one of the lists */
    bool shaken;        /* the handshake is complete */
    bool rejected;      /* gets its answer as soon as that is so */
    bool input_stopped; /* input from the client is discarded: no further request is handled */
    bool refused;       /* the frame was refused, and the library's side does not know yet */
    bool blocked;       /* the client does not read what there is for it */
    bool client_ended, inner_ended;
};

struct relays {
    struct relay *all, *ready, *waiting, **waiting_end;
    struct relay *put_off, **put_off_end; /* handshakes for the next run */
    double shake_until;                   /* of this run: no further handshake after that time */
    unsigned attached, parked;            /* to the library; without a request */
    unsigned unattached;                  /* others with only their own socket */
    unsigned open_max, address_max;       /* attached and parked ones, of all and of one address */
    unsigned attached_max, unattached_max;
    int epoll, listener, library; /* library: its epoll descriptor */
    int64_t admit_ms;             /* when to try to admit those that wait */
    int64_t search_ms;            /* when to search for idle ones again */
    bool paused;                  /* no descriptor to accept with: wait for the next sweep */
    bool freed;                   /* there may be capacity for one that waits */
    char *scratch;
};

/* accept.c: watch the listening socket and the library. */
int relays_open(struct api *api, int listener, int library, const struct limits *limits);
/* Before the first relays_run of a run. */
void relays_begin(struct api *api);
/* Take events and move bytes; true when there may be more to do at once. */
bool relays_run(struct api *api);
/* Whether there is work that needs no event. */
bool relays_busy(const struct relays *relays);
/* Deadlines; now and then. */
void relays_sweep(struct api *api, int64_t now_ms);
/* The library has stopped: send its last bytes, and close everything. */
void relays_close(struct api *api);
/* A parked client sends something: attach it as soon as there is capacity. */
void relays_return(struct relay *relay);
/* Remove it from the list of those that wait for capacity. */
void relays_stop_waiting(struct relay *relay);
/* Respond 503 without involving the library. */
void relays_reject(struct relay *relay);

/* relay.c: move bytes in both directions as far as possible; false when the connection has ended. */
bool relay_pump(struct relay *relay);
/* The response is complete: accept the next request. */
void relay_next(struct relay *relay);
/* Its connection has changed: examine it soon. */
void relay_kick(struct relay *relay);
/* The library has closed its side. */
void relay_detach(struct relay *relay);
/* Whether its handshake is due. */
bool relay_shakes(const struct relay *relay);
/* Send bytes to the client, as send does. */
ssize_t relay_send(struct relay *relay, const void *data, size_t size);
/* The library's side has ended. */
void relay_close_inner(struct relay *relay);
/* Detach one without a request; false when bytes are still on their way to the client. */
bool relay_park(struct relay *relay);
/* Nothing more will be sent: shut down our direction, and linger. */
void relay_end(struct relay *relay);
/* Close it at once. */
void relay_drop(struct relay *relay);
