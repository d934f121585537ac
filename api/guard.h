#pragma once
/* What a request must be before anything routes it: well-framed, for this host, from no other site, of bounded size.
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
    const char *method, *version, *uri; /* uri: raw, as it stood on the request line */
    struct guard_header headers[GUARD_HEADERS_MAX];
    size_t header_count;
    bool overflow; /* more header lines than fit above */
};

struct guard_hosts {
    bool any_address;           /* bound beyond loopback: IP literals are fine, they cannot be rebound */
    const char *listen;         /* the address that is bound */
    const char *const *allowed; /* NULL-terminated or NULL */
};

struct guard_verdict {
    int code;           /* negative err code; 0 = passed */
    int status;         /* HTTP status, when it is not the code's own; else 0 */
    bool framing;       /* the end of the request is in doubt: the connection must close */
    const char *detail; /* static text */
    /* when passed: */
    int64_t length; /* Content-Length; -1 = chunked; 0 = none or empty */
    bool declared;  /* there was a length or a coding at all */
    bool expects;   /* Expect: 100-continue */
};

/* Framing, header syntax, target syntax, sizes, Host, Origin. Returns verdict->code. */
int guard_check(const struct guard_request *request, const struct guard_hosts *hosts, struct guard_verdict *verdict);
/* Is this Host (or Origin authority) value one that we serve? Sets *malformed for a value that is no host at all. */
bool guard_host_allowed(const struct guard_hosts *hosts, const char *value, bool *malformed);
