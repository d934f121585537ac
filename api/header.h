#pragma once
/* HTTP header values, read strictly and without allocation. Pure functions: any thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* RFC 9110 token characters only, and at least one. */
bool header_is_token(const char *text, size_t size);
/* No control character except tab. */
bool header_is_value(const char *text, size_t size);
/* Content-Type `value` names `type` ("application/json"), with any parameters except a charset other than UTF-8. */
bool header_media_type_is(const char *value, const char *type);
/* Index of the offer that Accept prefers (the first of equals), or -1 when it accepts none. NULL or "" accepts all. */
int header_negotiate(const char *accept, const char *const *offers);
/* Whether Accept-Encoding allows the coding ("gzip"): by its name, or else by a star. NULL allows none. */
bool header_accepts_coding(const char *value, const char *coding);
/* If-None-Match / If-Match list against a quoted strong tag; weak: W/ is ignored (RFC 9110 §8.8.3.2). */
bool header_etag_matches(const char *list, const char *etag, bool weak);

enum header_range {
    HEADER_RANGE_NONE, /* none, malformed, another unit or several parts: the complete body is sent */
    HEADER_RANGE_ONE,
    HEADER_RANGE_UNSATISFIABLE,
};
/* One byte range of a body of `size` bytes; *first and *last (inclusive) are set for HEADER_RANGE_ONE. */
enum header_range header_range_parse(const char *value, int64_t size, int64_t *first, int64_t *last);
/* Seconds of "wait=N" in a Prefer header (RFC 7240), at most max; 0 when there is none. */
int64_t header_prefer_wait(const char *value, int64_t max);
/* Undo percent-encoding into out[capacity], NUL-terminated. False: bad escape, control byte or NUL, no capacity. plus:
 * '+' is a blank (query strings). */
bool header_percent_decode(const char *text, size_t size, bool plus, char *out, size_t capacity);
/* Decimal digits only, to the end of the text, no overflow. */
bool header_parse_u63(const char *text, size_t size, int64_t *out);
