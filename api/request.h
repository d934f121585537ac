#pragma once
/* A request and its reply.
 *
 * A request has one owner at any time: the loop thread while its connection runs, a worker while it is suspended. It is
 * handed over by the workers' queue and given back by the list of returned requests, so no member needs a lock.
 * Handlers use this header and do not depend on the HTTP library. */

#include "api/notifier.h"
#include "api/query.h"
#include "base/err.h"
#include "base/ids.h"
#include "base/trace.h"
#include "base/validation.h"
#include "jobs/jobs.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REQUEST_ID_SIZE 129
#define REQUEST_CAPTURES 2
#define REQUEST_BUFFER_SIZE                                                                  \
    ((size_t)256 << 10) /* streamed bodies, either way: all that one request holds in memory \
                         */
#define REPLY_HEADERS_MAX 12

struct request;
struct route;
struct auth_cache;

/* Shared by all handlers. */
struct request_context {
    struct service *service;
    struct notifier *notifier;
    struct auth_cache *keys; /* NULL: no key is needed */
    bool tls, trust_proxy;   /* of the listening socket; a proxy says how its client sent a request */
    atomic_bool draining;
    _Atomic int64_t certificate_ends_at; /* Unix seconds, with tls */
    atomic_int streams;                  /* uploads and downloads of files in progress */
    int streams_max;
};

/* Returned by a handler or fill: suspend until the watched job has an event, or until request->waiter.deadline_ms. */
#define REQUEST_WAIT 1
/* Returned by a fill when nothing follows. */
#define REQUEST_END 2

struct reply_stream {
    /* Put 1..capacity bytes at buffer. 0, REQUEST_WAIT, REQUEST_END, or negative: the connection breaks. */
    int (*fill)(struct request *request, void *state, char *buffer, size_t capacity, size_t *size);
    void (*close)(void *state);
};

struct reply {
    int status; /* 0 = none yet */
    char *body; /* malloc'ed or NULL */
    size_t size;
    const char *content_type;
    struct {
        const char *name;
        char *value;
    } headers[REPLY_HEADERS_MAX];
    int header_count;
    const struct reply_stream *stream; /* instead of body */
    void *state;                       /* the stream's, owned */
    int64_t length;                    /* of the stream; -1 = not known */
    bool close;                        /* the connection ends with this reply */
};

/* Receiver of a streamed request body. Called on workers, one call at a time. */
struct request_sink {
    int (*open)(struct request *request, void **state);
    int (*feed)(void *state, const char *data, size_t size);
    /* Frees state, whatever it returns. */
    int (*finish_take)(struct request *request, void *state);
    void (*abort)(void *state);
};

/* Freed when the reply starts: a stream that lasts for hours should not hold it. */
struct request_scratch {
    struct query query;
    struct validation_errors errors;
};

enum request_step { REQUEST_AUTHENTICATE, REQUEST_OPEN, REQUEST_FEED, REQUEST_HANDLE, REQUEST_FILL, REQUEST_DISPOSE };

/* The operation of another route that a request ran: an agent's tool. */
struct request_call {
    const struct route *route; /* NULL: none */
    int status;
    char object[96]; /* its id or path; "" = none */
};

struct request {
    struct request_context *context;
    const struct principal *who;
    struct principal principal; /* of the key, once who points here */
    struct key_grant grant;
    void *mhd;        /* the HTTP library's connection */
    void *connection; /* the server\'s: struct connection */
    const struct route *route;
    char id[REQUEST_ID_SIZE];
    struct trace trace; /* the caller's */
    char *method;
    char *path;                       /* raw, without the query */
    char *query;                      /* within path's memory; NULL = none */
    char *captures[REQUEST_CAPTURES]; /* decoded, in the pattern's order */
    struct request_scratch *scratch;
    struct reply reply;
    json_t *json;  /* parsed body, or NULL */
    json_t *extra; /* more members for a problem document, or NULL */
    void *state;   /* a handler's, between waits; freed with free() */
    struct waiter waiter;

    struct idempotency_key idempotency; /* while create runs under a key */
    struct request_call call;           /* what the request called, for the audit log */

    enum request_step step;
    int phase;            /* the server's, as the next two */
    int result;           /* of the last step */
    struct request *next; /* in a list of the server */
    int64_t started_ms;
    int64_t body_length; /* announced; -1 = chunked */
    int64_t body_seen, body_fed_ms;
    int64_t bytes_out;                                  /* of the reply's body, handed to the HTTP library */
    int64_t body_since_ms, body_paused_ms, body_marked; /* the window in which its speed is measured */
    char *body;                                         /* received and not fed yet */
    size_t body_size, body_capacity;
    bool nested;   /* runs the handler of another route, which the request's headers are not for */
    bool declared; /* the request states the length or coding of its body */
    bool streams;  /* counts among context->streams */
    bool discard;  /* the reply is known already: discard the rest of the body */
    bool expects;  /* the client waits for 100 or a final status before it sends its body */
    void *sink;    /* state of route->sink */
    char *out;     /* made by fill and not sent yet */
    size_t out_size, out_used;
    int out_rc; /* of the last fill */
};

struct request *request_new(struct request_context *context);
/* Closes what is open, which may block: on a worker, or once they have ended. */
void request_free(struct request *request);
/* auth.c: a key was revoked; requests look up their keys again. Any thread. */
void request_forget_keys(struct request *request);
/* True when request_free would do more than free memory. */
bool request_holds_resources(const struct request *request);
/* A header of the request, or NULL. Provided by the server; worker or loop, whoever owns the request. */
const char *request_header(const struct request *request, const char *name);
/* "http" or "https": how the client reaches the service, for URLs made from its Host header. Threads as for
 * request_header. */
const char *request_scheme(const struct request *request);
/* Count the request as an upload or download of a file, until it is freed. At the limit: ERR_QUEUE_FULL, and the
 * connection ends. Loop thread, so that a flood of downloads does not even reach the workers. */
int request_stream(struct request *request);
/* Index of the route's content type that Accept prefers; 0 when the route has none; ERR_NOT_ACCEPTABLE. Threads as for
 * request_header. */
int request_offer(const struct request *request);
/* Run the step in request->step; worker thread. Returns 0, or REQUEST_WAIT to be parked. */
int request_work(struct request *request);
/* Run create at most once per Idempotency-Key of the request: a repeat with the same digest of the input gets
 * the response of the first. Without a key it only calls create. Worker thread. */
/* What Idempotency-Keys of the route are distinct by. */
#define REQUEST_SCOPE_SIZE 128
void request_scope(const struct request *request, char out[REQUEST_SCOPE_SIZE]);
int request_idempotent(struct request *request, const char *digest, int (*create)(struct request *request));
/* The key under which create runs, so that the store can tie it to the new object; NULL without one. */
const struct idempotency_key *request_idempotency_key(const struct request *request);
