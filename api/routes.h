#pragma once
/* The route table: routing, validation and documentation come from the same row. */

#include "api/query.h"
#include "api/request.h"

enum route_body {
    ROUTE_BODY_NONE,  /* empty */
    ROUTE_BODY_MAYBE, /* empty or JSON */
    ROUTE_BODY_JSON,
    ROUTE_BODY_SINK, /* streamed into route->sink */
};

#define ROUTE_INLINE 1u     /* handled on the loop thread: uses nothing that may block */
#define ROUTE_IDEMPOTENT 2u /* accepts Idempotency-Key */
#define ROUTE_NEW_WORK 4u   /* refused while draining */
#define ROUTE_HEAVY 8u      /* computes: has workers of its own, so that the others stay available */
#define ROUTE_ADMITS 32u    /* may read and check a complete checkpoint: has workers of its own, too */
#define ROUTE_STREAMS 16u   /* sends or receives a file: their number is limited by descriptors */

struct route {
    const char *method; /* GET rows answer HEAD too */
    const char *path;   /* "/v1/x/{id}"; a final "{path*}" matches the rest, slashes included */
    int (*handle)(struct request *request);
    enum route_body body;
    int64_t body_max; /* bytes */
    const struct request_sink *sink;
    const char *const *accepts; /* content types of the body */
    const char *const
        *produces; /* content types of the response, the default first; NULL = no body, or arbitrary bytes */
    const struct query_row *query; /* NULL = no parameters */
    unsigned flags;
    const char *summary;
};

/* The complete table; ends with a row whose method is NULL. */
extern const struct route routes_table[];

/* Find the row of method and raw path. 0; ERR_NOT_FOUND when no row has the path; ERR_METHOD_NOT_ALLOWED with *allow
 * (malloc'ed) the list for the Allow header. captures[] are malloc'ed. Any thread. */
int routes_match(const char *method, const char *path, const struct route **route, char *captures[REQUEST_CAPTURES],
                 char **allow);
