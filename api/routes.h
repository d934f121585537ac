#pragma once
/* The route table: routing, validation and documentation come from the same row of api/route_rows.def. */

#include "api/query.h"
#include "api/request.h"
#include "api/schema.h"

enum route_scope { /* none is 0: a row must say one */
                   ROUTE_SCOPE_NONE = 1,
                   ROUTE_SCOPE_READ,
                   ROUTE_SCOPE_WRITE,
                   ROUTE_SCOPE_ADMIN,
};

enum route_tag {
    ROUTE_TAG_SERVICE,
    ROUTE_TAG_MODELS,
    ROUTE_TAG_FILES,
    ROUTE_TAG_JOBS,
    ROUTE_TAG_ARTIFACTS,
    ROUTE_TAG_KEYS,
    ROUTE_TAG_PROJECTS,
    ROUTE_TAG_WEBHOOKS
};

enum route_body {
    ROUTE_BODY_NONE,  /* empty */
    ROUTE_BODY_MAYBE, /* empty or JSON */
    ROUTE_BODY_JSON,
    ROUTE_BODY_SINK, /* streamed into route->sink */
};

enum route_reply {
    ROUTE_REPLY_VALUE,    /* 200 */
    ROUTE_REPLY_OBJECT,   /* 200 with a strong ETag, or 304 */
    ROUTE_REPLY_CREATED,  /* 201 with Location */
    ROUTE_REPLY_ACCEPTED, /* 202 */
    ROUTE_REPLY_DELETED,  /* 204 */
    ROUTE_REPLY_MESSAGE,  /* 200, or 202 without a body */
    ROUTE_REPLY_APPENDED, /* 204, or 201 with Location for the last piece of an upload */
    ROUTE_REPLY_BYTES,    /* a file: 200, 206, 304, and its preconditions */
};

#define ROUTE_INLINE 1u      /* handled on the loop thread: uses nothing that may block */
#define ROUTE_IDEMPOTENT 2u  /* accepts Idempotency-Key */
#define ROUTE_NEW_WORK 4u    /* refused while draining */
#define ROUTE_HEAVY 8u       /* computes: has workers of its own, so that the others stay available */
#define ROUTE_STREAMS 16u    /* sends or receives a file: their number is limited by descriptors */
#define ROUTE_ADMITS 32u     /* may read and check a complete checkpoint: has workers of its own, too */
#define ROUTE_MADE 128u      /* the bytes of its reply are made as they are sent: it has no Repr-Digest */
#define ROUTE_ANY_ACCEPT 64u /* Accept is not looked at */

struct route {
    const char *method; /* GET rows answer HEAD too */
    const char *path;   /* "/v1/x/{x_id}"; a final "{path*}" matches the rest, slashes included */
    const char *operation, *summary;
    enum route_tag tag;
    enum route_scope scope;
    int (*handle)(struct request *request);
    enum route_body body;
    int64_t body_max; /* bytes */
    const struct request_sink *sink;
    const char *const *accepts;   /* content types of the body */
    const struct schema *request; /* of a JSON body */
    enum route_reply reply;
    const struct schema *answer;     /* of a JSON reply; NULL = none */
    const char *const *produces;     /* content types of the reply, the default first; NULL = no body */
    const struct query_row *query;   /* NULL = no parameters */
    const struct query_row *headers; /* that the handler reads, beyond those of its other members; or NULL */
    const int *errors;               /* codes of the handler, 0 at the end, in addition to those that follow; or NULL */
    unsigned flags;
};

/* The complete table; ends with a row whose method is NULL. */
extern const struct route routes_table[];

/* An argument: what a part of a path in braces may be. */
struct route_argument {
    const char *name;
    const char *kind;    /* an id with this prefix, or NULL */
    const char *pattern; /* of any other, or NULL */
    const char *help;
};
/* "none", "read", "write" or "admin". */
const char *routes_scope_name(enum route_scope scope);
/* By the name in the braces, size bytes of it, without "*". Never NULL for a path of the table. */
const struct route_argument *routes_argument(const char *name, size_t size);

/* Every header that the row reads: those of its members and its own. */
void routes_each_header(const struct route *route, void (*each)(void *data, const struct query_row *header),
                        void *data);
/* Every error that the row can answer with: those of HTTP and of its members, and its own. May repeat one. */
void routes_each_error(const struct route *route, void (*each)(void *data, int code), void *data);

/* Find the row of method and raw path. 0; ERR_NOT_FOUND when no row has the path, or an argument cannot be one;
 * ERR_METHOD_NOT_ALLOWED with *allow (malloc'ed) the list for the Allow header. captures[] are malloc'ed. Any thread.
 */
int routes_match(const char *method, const char *path, const struct route **route, char *captures[REQUEST_CAPTURES],
                 char **allow);
