#pragma once
/* One request on its way through the floor, and the reply that it gets.
 *
 * A request has one owner at any time: the loop thread while its connection runs, a worker while it is suspended. The
 * hand-over is the worker queue one way and the resume the other, so no member needs a lock. Handlers see this header
 * and know no HTTP library. */

#include "api/notifier.h"
#include "api/query.h"
#include "base/err.h"
#include "base/ids.h"
#include "base/validation.h"
#include "jobs/jobs.h"
#include "storage/storage.h"

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

/* What handlers share. */
struct request_context {
    struct engine *engine;
    struct store *store;
    struct notifier *notifier;
    atomic_bool draining;
    atomic_int streams; /* files that are sent or taken now */
    int streams_max;
};

/* A handler or fill says so instead of 0: suspend until the watched job has an event or request->waiter.deadline_ms. */
#define REQUEST_WAIT 1
/* A fill says so when nothing follows. */
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

/* Where a streamed request body goes. All on workers, one call at a time. */
struct request_sink {
    int (*open)(struct request *request, void **state);
    int (*feed)(void *state, const char *data, size_t size);
    /* Frees state, whatever it returns. */
    int (*finish_take)(struct request *request, void *state);
    void (*abort)(void *state);
};

/* Kept only until the reply starts: a stream that lasts for hours should not hold it. */
struct request_scratch {
    struct query query;
    struct validation_errors errors;
};

enum request_step { REQUEST_OPEN, REQUEST_FEED, REQUEST_HANDLE, REQUEST_FILL, REQUEST_DISPOSE };

struct request {
    struct request_context *context;
    void *mhd;        /* the HTTP library's connection */
    void *connection; /* the server\'s: struct connection */
    const struct route *route;
    char id[REQUEST_ID_SIZE];
    char *method;
    char *path;                       /* raw, without the query */
    char *captures[REQUEST_CAPTURES]; /* decoded, in the pattern's order */
    struct request_scratch *scratch;
    struct reply reply;
    json_t *json;  /* parsed body, or NULL */
    json_t *extra; /* more members for a problem document, or NULL */
    void *state;   /* a handler's, between waits; freed with free() */
    struct waiter waiter;

    struct store_idempotency idempotency; /* while create runs under a key */

    enum request_step step;
    int phase;            /* the server's, as the next two */
    int result;           /* what the last step said */
    struct request *next; /* in a list of the server */
    int64_t started_ms;
    int64_t body_length; /* announced; -1 = chunked */
    int64_t body_seen, body_fed_ms;
    int64_t bytes_out;                                  /* of the reply's body, handed to the HTTP library */
    int64_t body_since_ms, body_paused_ms, body_marked; /* the window in which its speed is measured */
    char *body;                                         /* what has arrived and is not fed */
    size_t body_size, body_capacity;
    bool declared; /* the request says how long its body is */
    bool streams;  /* counts among context->streams */
    bool discard;  /* the reply stands already: swallow the rest of the body */
    bool expects;  /* the client waits for 100 or a final status before it sends its body */
    void *sink;    /* state of route->sink */
    char *out;     /* what fill made and the loop has not sent */
    size_t out_size, out_used;
    int out_rc; /* last word of fill */
};

struct request *request_new(struct request_context *context);
/* Closes what is open (may block: workers, or after they ended). */
void request_free(struct request *request);
/* True when request_free would do more than free memory. */
bool request_holds_resources(const struct request *request);
/* A header of the request, or NULL. Provided by the server; worker or loop, whoever owns the request. */
const char *request_header(const struct request *request, const char *name);
/* A file is to be sent or taken: ERR_QUEUE_FULL, and the connection ends, when as many are under way as may be. Counted
 * until the request is freed. Loop thread, so that a flood of downloads does not even reach the workers. */
int request_stream(struct request *request);
/* Which of the route's content types Accept likes best; 0 when the route names none, ERR_NOT_ACCEPTABLE. As
 * request_header. */
int request_offer(const struct request *request);
/* Run the step that request->step names; worker thread. 0, or REQUEST_WAIT: it wants to be parked. */
int request_work(struct request *request);
/* Run create at most once per Idempotency-Key of the request: a repeat with the same digest of the input is answered
 * with the first answer. Without a key: plain create. Worker thread. */
int request_idempotent(struct request *request, const char *digest, int (*create)(struct request *request));
/* The key under which create runs, for a store that can tie it to what is made; NULL without one. */
const struct store_idempotency *request_idempotency_key(const struct request *request);
