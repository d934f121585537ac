#pragma once
/* A registry of the OCI distribution specification, as far as a push needs it: is a blob there, upload one, write a
 * manifest. A registry that wants to know who asks gets the credentials, or a token that they buy (its challenge says
 * which); they are sent to no other host. One thread. */

#include "cli/credentials.h"
#include "cli/http.h"
#include "cli/reference.h"

#include <stdbool.h>
#include <stdint.h>

struct registry;

struct registry_options {
    const struct reference *reference;
    const struct credentials *credentials; /* borrowed until registry_close */
    const char *ca_file;                   /* or NULL */
    bool plain_http, insecure;
    int64_t idle_seconds;
};

int registry_open(const struct registry_options *options, struct registry **out);
void registry_close(struct registry *registry);
CLEANUP_FREE(registry, struct registry, registry_close)

/* Whether a failure is one that may be over soon; if so *seconds is how long to wait. Asked after a call below failed.
 */
bool registry_again(const struct registry *registry, int64_t *seconds);

/* sha256: hex. */
int registry_has_blob(struct registry *registry, const char *sha256, bool *has);
/* size bytes of memory, or, if from is given, what get receives from there. */
struct registry_blob {
    const char *sha256;
    int64_t size;
    const void *bytes;
    struct http *from;
    const struct http_call *get;
    struct http_answer *got; /* of from; not 2xx: nothing was stored, and 0 is returned */
};
int registry_put_blob(struct registry *registry, const struct registry_blob *blob);
/* Under the tag of the reference. */
int registry_put_manifest(struct registry *registry, const char *type, const char *text, size_t size,
                          const char *sha256);
