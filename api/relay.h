#pragma once
/* What stands between clients and the HTTP library: accepts connections, lets through what frame.h passes, one request
 * at a time, and carries answers back. Inside the api floor only; loop thread. */

#include "api/frame.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define RELAY_PIECE ((size_t)64 << 10) /* bytes that are looked at together */

struct api;
struct connection;
struct limits;

/* One client. It waits for room, is linked to the library by a pair of sockets, of which the library has the other end,
 * and lingers at the end. */
struct relay {
    struct relay *next, *previous;
    struct relay *ready_next;   /* in the list of those with something to do */
    struct relay *waiting_next; /* in the list of those that wait for room, oldest first */
    struct api *api;
    struct connection *connection; /* the library's side; NULL when there is none, or none any more */
    int client, inner;             /* inner: -1 while it waits or lingers */
    struct frame frame;
    struct sockaddr_storage address;
    socklen_t address_size;
    int64_t since_ms;   /* when it came */
    int64_t moved_ms;   /* when the client last took something */
    int64_t ended_ms;   /* when all that will ever be said was said; 0 = not yet */
    bool waits;         /* for room */
    bool ready;         /* in the list */
    bool input_stopped; /* what the client sends is dropped: no request of it will be answered */
    bool refused;       /* the frame was refused and the library's side has not been told */
    bool blocked;       /* the client does not take what there is for it */
    bool client_ended, inner_ended;
};

struct relays {
    struct relay *all, *ready, *waiting;
    unsigned attached, unattached; /* with the library, with their own socket alone */
    unsigned attached_max, unattached_max, address_max;
    int epoll, listener, library; /* library: its epoll descriptor */
    int64_t admit_ms;             /* when to look after those that wait */
    bool paused;                  /* no descriptor to accept with: wait for the next sweep */
    bool freed;                   /* there may be room for one that waits */
    char *scratch;
};

/* accept.c: watch the listening socket and the library. */
int relays_open(struct api *api, int listener, int library, const struct limits *limits);
/* Take events and move bytes; true when there may be more to do at once. */
bool relays_run(struct api *api);
/* Deadlines; now and then. */
void relays_sweep(struct api *api, int64_t now_ms);
/* The library has stopped: say what it said last, and close everything. */
void relays_close(struct api *api);

/* relay.c: move bytes both ways as far as it goes; false: the connection is over. */
bool relay_pump(struct relay *relay);
/* The answer to the request is complete: the next may come in. */
void relay_next(struct relay *relay);
/* Something of its connection's has changed: look at it soon. */
void relay_kick(struct relay *relay);
/* The library has closed its side. */
void relay_detach(struct relay *relay);
/* Nothing more will be said: end our direction, and linger. */
void relay_end(struct relay *relay);
/* Close it at once. */
void relay_drop(struct relay *relay);
