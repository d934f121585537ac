#pragma once
/* The signature of an artifact. Within jobs/. */

#include "base/digest.h"
#include "base/params.h"

#include <jansson.h>

struct service;

/* Whether a job's artifact is to be signed. ERR_NO_SIGNING_KEY: it is, and there is no key. */
int signature_wanted(const struct service *service, enum params_switch sign, bool *wanted);
/* Sign the files of the artifact `id`, which lie in `directory`: the bundle joins them there and in the list. *member
 * is the artifact's "signature". */
int signature_add_file(const struct service *service, const char *id, const char *directory, json_t *files,
                       json_t **member);
/* A stored artifact's signature against the digests that were found: found is an object, path to SHA-256, with those of
 * files that are there. *answer is the member "signature" of a verification; null: the artifact is not signed. */
int signature_check(struct service *service, const json_t *artifact, const json_t *found, json_t **answer);
/* {"algorithm", "hint", "public_key"} of the daemon's key, or null. New reference. */
json_t *signature_key_json(const struct service *service);
