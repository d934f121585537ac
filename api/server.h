#pragma once
/* The server's view of connections and requests, for use within api/ only; depends on the HTTP library. Loop thread
 * unless stated otherwise. */

#include "api/bucket.h"
#include "api/guard.h"
#include "api/relay.h"
#include "api/request.h"
#include "api/routes.h"
#include "api/worker.h"

#include <microhttpd.h>
#include <pthread.h>

/* The rest of a refused body is read and discarded up to this size, so that the connection can be used again. */
#define SERVER_DISCARD_MAX ((int64_t)1 << 20)

#define SERVER_HEAD_MS 10000 /* until the header of the first request, or of one that has begun, is complete */
#define SERVER_IDLE_MS 60000 /* between two requests */

enum connection_state {
    CONNECTION_FRESH,  /* accepted, no request line yet */
    CONNECTION_IDLE,   /* kept alive, no request line yet */
    CONNECTION_HEAD,   /* header lines are arriving */
    CONNECTION_BODY,   /* the body is arriving */
    CONNECTION_BUSY,   /* suspended: a worker has the request, or it is parked */
    CONNECTION_REPLY,  /* the reply is being sent */
    CONNECTION_LINGER, /* the reply was sent before the end of the body, whose rest is discarded for a moment */
};

#define CONNECTION_CLIENT_SIZE 56 /* "[address]:port" */

/* One TCP connection. */
struct connection {
    struct connection *next, *previous;
    struct api *api;
    struct request *request; /* the current one, or NULL */
    struct relay *relay;     /* the client's side; NULL once it has ended */
    int fd;                  /* the HTTP library's */
    enum connection_state state;
    int64_t since_ms; /* when it entered the state; in CONNECTION_REPLY: when the client last received something */
    char client[CONNECTION_CLIENT_SIZE]; /* its address and port, for the log */
    bool cut;                            /* shut down by us; the library closes it soon */
};

enum server_phase {
    SERVER_HEAD,    /* not examined yet */
    SERVER_KEY,     /* its key is being looked up */
    SERVER_OPENING, /* the sink is being opened */
    SERVER_BODY,    /* receiving the body */
    SERVER_ANSWER,  /* the reply is known, or being made */
    SERVER_SENDING, /* the HTTP library has the reply */
    SERVER_LINGER,  /* the reply was sent past the library, see send_early */
};

/* A wait has ended: run the step again. A result in addition to REQUEST_WAIT and REQUEST_END. */
#define SERVER_AGAIN 3

struct api {
    struct request_context context;
    struct MHD_Daemon *daemon;
    struct worker_pool *workers, *admit_workers, *heavy_workers; /* of ROUTE_ADMITS and ROUTE_HEAVY */
    struct guard_hosts hosts;
    struct tls *tls;                           /* of new connections; NULL: plain HTTP */
    struct buckets *key_rates, *address_rates; /* NULL: no limit */
    int audit_fd;                              /* -1 = none */
    char *host;
    char **allowed;
    struct connection *connections;
    struct relays relays;
    struct relay *attaching;                /* the relay of the connection that is being attached */
    atomic_int unsent;                      /* relays with bytes that the client does not read; any thread */
    struct request *backlog, **backlog_end; /* handed over when the workers' queue has capacity */
    pthread_mutex_t lock;
    struct request *returned; /* under lock: back from workers and waits, newest first */
    atomic_int open;          /* requests that exist; any thread */
    int64_t sweep_ms;         /* next check of the deadlines */
    int64_t deadline_ms;      /* of the waiters; -1 = none */
    bool closing;
    int fd;
    uint16_t port;
    void (*wake)(void *data);
    void *wake_data;
};

/* api.c: suspend the connection and let a worker run the step. */
void api_hand_over(struct connection *connection, enum request_step step);
/* api.c: the connection is done with the request. */
void api_release(struct api *api, struct request *request);

/* server.c: what the HTTP library calls, and what follows a step that failed while the body arrives. */
void *server_on_target(void *data, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result server_on_request(void *data, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **context);
void server_on_completed(void *data, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode how);
void server_on_connection(void *data, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what);
void server_after_step(struct connection *connection);
/* The request that is arriving is not well-formed: send one response and end the connection. False when a worker has
 * the request: server_after_step will try again. */
bool server_refuse(struct connection *connection, int status, const char *detail);

/* admit.c: each returns 0 or a raised error. The first replies to what it refuses. */
int admit_head(struct connection *connection, const char *version);
/* Find the route, and who asks; REQUEST_WAIT as auth_check. *allow: the methods of the path, the caller's to free. */
int admit_route(struct request *request, char **allow);
int admit_key_rate(const struct connection *connection);
/* Check the request against its route's row. */
int admit_request(struct request *request);

/* access.c: a client's address for the log; the access log line of connection->request, which has ended. */
void access_client(const struct sockaddr *address, char out[CONNECTION_CLIENT_SIZE]);
void access_log(const struct connection *connection, bool complete);

/* send.c: give the finished reply to the HTTP library. MHD_NO: the connection must close. */
enum MHD_Result send_reply(struct connection *connection);
/* send.c: write the reply directly to the socket, before the rest of the body, and shut down our direction. */
void send_early(struct connection *connection);

/* sweeper.c: cut connections that are past their deadlines; returns the time of the next check. */
int64_t sweeper_run(struct api *api, int64_t now_ms);
void sweeper_set(struct connection *connection, enum connection_state state);
