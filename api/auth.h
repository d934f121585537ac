#pragma once
/* Who sends a request: the one place where keys are read and scopes are checked. */

#include "base/digest.h"
#include "jobs/jobs.h"

#include <stdbool.h>
#include <stdint.h>

struct request;

enum bearer { BEARER_NONE, BEARER_MALFORMED, BEARER_KEY };

/* The key of an Authorization header, KEY_TEXT_LENGTH bytes at *key, within value: "Bearer", one or more blanks and a
 * key's text, and nothing after it but blanks. Pure: any thread. */
enum bearer bearer_parse(const char *value, const char **key);

/* Keys that were looked up a moment ago, by digest. Any thread. */
struct auth_cache;
struct auth_cache *auth_cache_new(void); /* NULL when out of memory */
void auth_cache_free(struct auth_cache *cache);
void auth_cache_put(struct auth_cache *cache, const char sha256[DIGEST_HEX_SIZE], const struct key_grant *grant,
                    int64_t now_ms);
/* False: not there, or too old: a key that another process revokes is valid for AUTH_CACHE_MS at most. */
bool auth_cache_get(struct auth_cache *cache, const char sha256[DIGEST_HEX_SIZE], struct key_grant *grant,
                    int64_t now_ms);
/* A key was revoked: forget them all. What is being looked up meanwhile is not added. */
void auth_cache_clear(struct auth_cache *cache);
#define AUTH_CACHE_MS 2000

/* 0: request->who is set. REQUEST_WAIT: the key must be looked up first, by auth_look_up on a worker.
 * ERR_INVALID_API_KEY, ERR_INSUFFICIENT_SCOPE. After routing; loop thread. */
int auth_check(struct request *request);
/* Look up the key of the request. Worker. */
int auth_look_up(struct request *request);
