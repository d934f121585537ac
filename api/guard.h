#pragma once
/* Checks of every request before it is routed: framing, host, origin and sizes.
 * Pure functions over the request's own text: any thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUARD_URI_MAX 4096      /* bytes of the request target */
#define GUARD_HEADERS_MAX 64    /* header lines */
#define GUARD_HEADER_BYTES 8192 /* names and values together */
#define GUARD_SEGMENT_MAX 256   /* bytes of one decoded path segment */

struct guard_header {
    const char *name, *value;
    size_t name_size, value_size;
};

struct guard_request {
    const char *method, *version, *uri; /* uri: as on the request line, undecoded */
    struct guard_header headers[GUARD_HEADERS_MAX];
    size_t header_count;
    bool overflow; /* more header lines than fit above */
};

struct guard_hosts {
    bool any_address;           /* not bound to loopback: IP literals are allowed, since they cannot be rebound */
    const char *listen;         /* the bound address */
    const char *const *allowed; /* NULL-terminated or NULL */
    bool (*names)(const void *data, const char *host); /* those of the certificate; NULL: none */
    const void *names_data;
};

struct guard_verdict {
    int code;           /* negative err code; 0 = passed */
    int status;         /* HTTP status, when it is not the code's own; else 0 */
    bool framing;       /* the end of the request is ambiguous: the connection must be closed */
    const char *detail; /* static text */
    /* when passed: */
    int64_t length; /* Content-Length; -1 = chunked; 0 = none or empty */
    bool declared;  /* the request has a Content-Length or a Transfer-Encoding */
    bool expects;   /* Expect: 100-continue */
};

/* Framing, header syntax, target syntax, sizes, Host, Origin. Returns verdict->code. */
int guard_check(const struct guard_request *request, const struct guard_hosts *hosts, struct guard_verdict *verdict);
/* Whether a Host header (or the authority of an Origin) is served. Sets *malformed when it is not a valid host. */
bool guard_host_allowed(const struct guard_hosts *hosts, const char *value, bool *malformed);
