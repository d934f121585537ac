#pragma once
/* The server's own view of connections and requests; inside the api floor only, and with the HTTP library in sight.
 * Loop thread unless a line says otherwise. */

#include "api/guard.h"
#include "api/relay.h"
#include "api/request.h"
#include "api/routes.h"
#include "api/worker.h"

#include <microhttpd.h>
#include <pthread.h>

/* A body that is refused but no longer than this is read to its end, so that the connection lives on. */
#define SERVER_DISCARD_MAX ((int64_t)1 << 20)

enum connection_state {
    CONNECTION_FRESH,  /* accepted, no request line yet */
    CONNECTION_IDLE,   /* kept alive, no request line yet */
    CONNECTION_HEAD,   /* header lines are arriving */
    CONNECTION_BODY,   /* the body is arriving */
    CONNECTION_BUSY,   /* suspended: a worker has the request, or it is parked */
    CONNECTION_REPLY,  /* the reply goes out */
    CONNECTION_LINGER, /* the reply is out ahead of the body: what still comes is dropped for a moment */
};

#define CONNECTION_CLIENT_SIZE 56 /* "[address]:port" */

/* One TCP connection. */
struct connection {
    struct connection *next, *previous;
    struct api *api;
    struct request *request; /* the one on it now, or NULL */
    struct relay *relay;     /* the client's side; NULL when it is gone */
    int fd;                  /* the HTTP library's */
    enum connection_state state;
    int64_t since_ms; /* when it got there; in CONNECTION_REPLY: when the client last took something */
    char client[CONNECTION_CLIENT_SIZE]; /* its address and port, for the log */
    bool cut;                            /* shut down by us; the library closes it soon */
};

enum server_phase {
    SERVER_HEAD,    /* nothing looked at yet */
    SERVER_OPENING, /* the sink is being opened */
    SERVER_BODY,    /* taking the body */
    SERVER_ANSWER,  /* the reply stands, or is in the making */
    SERVER_SENDING, /* the HTTP library has the reply */
    SERVER_LINGER,  /* the reply went out by itself, see send_early */
};

/* The last step ended a wait: run it again. Beside REQUEST_WAIT and REQUEST_END. */
#define SERVER_AGAIN 3

struct api {
    struct request_context context;
    struct MHD_Daemon *daemon;
    struct worker_pool *workers, *admit_workers, *heavy_workers; /* of ROUTE_ADMITS and ROUTE_HEAVY */
    struct guard_hosts hosts;
    char *host;
    char **allowed;
    struct connection *connections;
    struct relays relays;
    struct relay *attaching;                /* while the HTTP library is given a connection: its relay */
    atomic_int unsent;                      /* relays that hold something the client does not take; any thread */
    struct request *backlog, **backlog_end; /* handed over when the workers have room */
    pthread_mutex_t lock;
    struct request *returned; /* under lock: back from workers and waits, newest first */
    atomic_int open;          /* requests that live; any thread */
    int64_t sweep_ms;         /* next look at the deadlines */
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
/* The bytes of the request that is arriving are no HTTP: answer so, once, and end the connection. False: not now, a
 * worker has the request; server_after_step comes back to it. */
bool server_refuse(struct connection *connection, int status, const char *detail);

/* access.c: a peer's address as the log has it; the line of connection->request, which is over. */
void access_client(const struct sockaddr *address, char out[CONNECTION_CLIENT_SIZE]);
void access_log(const struct connection *connection, bool complete);

/* send.c: give the finished reply to the HTTP library. MHD_NO: the connection must close. */
enum MHD_Result send_reply(struct connection *connection);
/* send.c: write the reply to the socket by ourselves, ahead of the rest of the body, and end our direction. */
void send_early(struct connection *connection);

/* sweeper.c: cut connections that are past their deadlines; the time of the next look. */
int64_t sweeper_run(struct api *api, int64_t now_ms);
void sweeper_set(struct connection *connection, enum connection_state state);
