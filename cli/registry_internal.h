#pragma once
/* What registry.c and registry_auth.c share. */

#include "cli/registry.h"

#define REGISTRY_URL_MAX 1024

/* Headers of an answer. */
struct registry_headers {
    char location[HTTP_PATH_MAX], challenge[HTTP_PATH_MAX], digest[128];
};

struct registry {
    struct registry_options options;
    const char *name; /* of the registry, for messages */
    struct http *http;
    struct http *other;              /* an upload that the registry has sent elsewhere; NULL: none so far */
    char *authorization;             /* a header; NULL: none is needed, as far as known */
    struct registry_headers headers; /* of the last answer */
    bool reached;                    /* it has answered */
    bool again;                      /* the last failure */
    int64_t pause;
};

/* A URL's "scheme://host:port", and what follows. base may be NULL. STATUS_SERVER when it is not one. */
int registry_split_url(const char *base, const char *url, char origin[REGISTRY_URL_MAX], char path[HTTP_PATH_MAX]);
/* Connect to another origin that the registry has named. STATUS_SERVER if it must not be talked to, which needs TLS if
 * the registry has it, or if credentials follow (secret) to another host. */
int registry_connect(const struct registry *registry, const char *origin, bool secret, struct http **out);
/* Answer the challenge of the last answer, 401: sets registry->authorization. */
int registry_authenticate(struct registry *registry);
/* The exit status for an answer that is not what was asked for, with the registry's own words. */
int registry_refused(struct registry *registry, const char *what, const struct http_answer *answer);
