#pragma once
/* HTTP over libcurl: one server, its URL as a prefix of every path, connections that are kept.
 *
 * TLS certificates are verified unless the user said --insecure; redirects are never followed, and only http and https
 * are spoken. An answer that is collected is bounded; a transfer on which nothing moves ends. A failure returns
 * STATUS_UNREACHABLE or STATUS_SERVER with its sentence in the error record, which never has the key. One thread. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_ANSWER_MAX ((size_t)256 << 20)
#define HTTP_PATH_MAX 8192

struct http;

/* What to do about a server that cannot be reached, whose certificate is not trusted, and that does not use TLS. */
struct http_hints {
    const char *away, *untrusted, *unencrypted;
};

struct http_options {
    const char *url, *key, *ca_file; /* key, ca_file: may be NULL */
    const struct http_hints *hints;  /* NULL: those of quantd */
    bool insecure;
    int64_t idle_seconds; /* nothing moved for so long: the transfer ends */
};

/* ERR_CONFIG when the URL is not one of a server, or when a key would travel unencrypted to another host. */
int http_open(const struct http_options *options, struct http **out);
void http_close(struct http *http);
CLEANUP_FREE(http, struct http, http_close)
const char *http_url(const struct http *http);
/* Whether a URL's host is this host. */
bool http_is_loopback(const char *host);

struct http_call {
    const char *method, *path;  /* path with its query, percent-encoded; begins with a slash */
    const char *const *headers; /* more headers, NULL-terminated; or NULL */
    bool repeatable;            /* sent again by client_patient when the server is busy; every GET is */
    const char *type;           /* Content-Type of the body; NULL = there is no body */
    const void *body;           /* in memory, size bytes */
    size_t size;
    int file; /* > 0: the body is size bytes of this file from its position offset, instead of memory */
    int64_t offset;
    /* Put up to space bytes of the body at buffer, *given of them, instead of memory or file. HTTP_PAUSE: none now. */
    int (*give)(void *context, char *buffer, size_t space, size_t *given);
    /* Bytes of a 2xx answer as they arrive, instead of collecting them. Not 0 ends the transfer, which then returns
     * that value. */
    int (*take)(void *context, const char *data, size_t size);
    /* Each header of the answer, its name in lower case. May be NULL. */
    void (*header)(void *context, const char *name, const char *value);
    /* How far a body has been sent. May be NULL. */
    void (*sent)(void *context, int64_t bytes);
    /* About once a second while the transfer runs. May be NULL. */
    void (*tick)(void *context);
    void *context;
};

struct http_answer {
    long status;
    char type[128];                               /* media type, lower case, without parameters */
    int64_t range_first, range_last, range_total; /* of Content-Range; -1 = none */
    int64_t retry_after;                          /* seconds, or -1 */
    char *body;                                   /* NUL-terminated; NULL if take got it */
    size_t size;
};
void http_answer_deinit(struct http_answer *answer);
CLEANUP_DEINIT(http_answer, struct http_answer, http_answer_deinit)

/* 0 when a complete answer arrived, of whatever status. */
int http_call(struct http *http, const struct http_call *call, struct http_answer *answer);

/* What take and give return to be called again later, with the same bytes. */
#define HTTP_PAUSE 1000

/* What get receives is the body of put, of put->size bytes, through a buffer of fixed size: neither side waits in
 * memory or on disk for the other. get->take sees the bytes before they are passed on. 0 when put was answered, or when
 * get was answered with another status than 2xx (then answer->status is 0, and put was broken off). */
int http_pipe(struct http *from, const struct http_call *get, struct http_answer *got, struct http *to,
              const struct http_call *put, struct http_answer *answer);

/* Several transfers at once. next fills a call for a free slot, or leaves *has false when there is nothing (more) to do
 * now; done gets each answer with the call's rc. What they return, if not 0, ends everything. Calls and what they point
 * to belong to the caller until done. */
struct http_many {
    int slots;
    int (*next)(void *context, int slot, struct http_call *call, bool *has);
    int (*done)(void *context, int slot, int rc, const struct http_answer *answer);
    void *context;
};
#define HTTP_SLOTS_MAX 32
int http_many(struct http *http, const struct http_many *many);

/* Append text to out, percent-encoded but for unreserved characters and those in keep. */
int http_escape(char *out, size_t size, const char *text, const char *keep);
