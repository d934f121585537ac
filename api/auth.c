/* Authentication and scopes.
 *
 * A request carries its key in the Authorization header and nowhere else: not in the query, which ends up in logs, and
 * not in a cookie, which a browser would send for another site. Keys are compared by their SHA-256: looked up in the
 * store by a worker, or found in a small cache, where the digests are compared in constant time.
 *
 * The cache has a fixed size: a digest has one set of places, and the oldest of the set gives way. Only keys that the
 * store has accepted are in it, so guesses cannot displace them. */

#include "api/auth.h"

#include "api/request.h"
#include "api/routes.h"
#include "base/err.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SETS 256
#define WAYS 4

enum bearer bearer_parse(const char *value, const char **key)
{
    static const char scheme[] = "Bearer ";

    if (value == NULL) {
        return BEARER_NONE;
    }
    if (strncasecmp(value, scheme, sizeof(scheme) - 1) != 0) {
        return BEARER_MALFORMED;
    }
    const char *text = value + strlen(scheme);
    text += strspn(text, " ");
    size_t size = strcspn(text, " \t");
    if (!key_text_valid(text, size) || text[size + strspn(text + size, " \t")] != '\0') {
        return BEARER_MALFORMED;
    }
    *key = text;
    return BEARER_KEY;
}

struct place {
    char sha256[DIGEST_HEX_SIZE]; /* "" = free */
    struct key_grant grant;
    int64_t since_ms;
};

struct auth_cache {
    pthread_mutex_t lock;
    int64_t cleared_ms;
    struct place places[SETS][WAYS];
};

struct auth_cache *auth_cache_new(void)
{
    struct auth_cache *cache = calloc(1, sizeof(*cache));

    if (cache != NULL) {
        cache->cleared_ms = -1;
        pthread_mutex_init(&cache->lock, NULL);
    }
    return cache;
}

void auth_cache_free(struct auth_cache *cache)
{
    if (cache != NULL) {
        pthread_mutex_destroy(&cache->lock);
        free(cache);
    }
}

static struct place *set_of(struct auth_cache *cache, const char *sha256)
{
    const char first[3] = {sha256[0], sha256[1], '\0'};

    return cache->places[strtoul(first, NULL, 16) % SETS];
}

/* In constant time. */
static bool same_digest(const char *a, const char *b)
{
    unsigned char different = 0;

    for (size_t i = 0; i < DIGEST_HEX_SIZE; i++) {
        different |= (unsigned char)(a[i] ^ b[i]);
    }
    return different == 0;
}

void auth_cache_put(struct auth_cache *cache, const char sha256[DIGEST_HEX_SIZE], const struct key_grant *grant,
                    int64_t now_ms)
{
    pthread_mutex_lock(&cache->lock);
    struct place *set = set_of(cache, sha256), *to = &set[0];
    for (int i = 0; i < WAYS; i++) {
        if (same_digest(set[i].sha256, sha256)) {
            to = &set[i];
            break;
        }
        to = set[i].since_ms < to->since_ms ? &set[i] : to;
    }
    if (now_ms > cache->cleared_ms) {
        to->grant = *grant;
        to->since_ms = now_ms;
        memcpy(to->sha256, sha256, DIGEST_HEX_SIZE);
    }
    pthread_mutex_unlock(&cache->lock);
}

bool auth_cache_get(struct auth_cache *cache, const char sha256[DIGEST_HEX_SIZE], struct key_grant *grant,
                    int64_t now_ms)
{
    bool found = false;

    pthread_mutex_lock(&cache->lock);
    const struct place *set = set_of(cache, sha256);
    for (int i = 0; i < WAYS; i++) {
        if (same_digest(set[i].sha256, sha256) && now_ms - set[i].since_ms < AUTH_CACHE_MS) {
            *grant = set[i].grant;
            found = true;
        }
    }
    pthread_mutex_unlock(&cache->lock);
    return found;
}

void auth_cache_clear(struct auth_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    memset(cache->places, 0, sizeof(cache->places));
    cache->cleared_ms = clock_monotonic_ms();
    pthread_mutex_unlock(&cache->lock);
}

/* --- requests */

void request_forget_keys(struct request *request)
{
    if (request->context->keys != NULL) {
        auth_cache_clear(request->context->keys);
    }
}

static void identify(struct request *request, const struct key_grant *grant)
{
    request->grant = *grant;
    request->principal = (struct principal){.project = request->grant.project, .name = request->grant.id};
    request->who = &request->principal;
}

static int auth_key_of(const struct request *request, char sha256[DIGEST_HEX_SIZE])
{
    const char *key = NULL;

    switch (bearer_parse(request_header(request, "Authorization"), &key)) {
    case BEARER_KEY:
        digest_bytes(key, KEY_TEXT_LENGTH, sha256);
        return 0;
    case BEARER_NONE:
        return err_set_hint(err_raise(ERR_INVALID_API_KEY, "this daemon needs an API key"),
                            "send the header Authorization: Bearer qd_...");
    case BEARER_MALFORMED:
        break;
    }
    return err_set_hint(err_raise(ERR_INVALID_API_KEY, "the Authorization header is not an API key of this daemon"),
                        "send Authorization: Bearer and the key: \"qd_\" and 52 characters");
}

static int check_scope(const struct request *request)
{
    static const char *const names[] = {"read", "write", "admin"};
    int needed = (int)request->route->scope - (int)ROUTE_SCOPE_READ;

    return request->grant.scope >= needed
               ? 0
               : err_set_hint(err_raise(ERR_INSUFFICIENT_SCOPE,
                                        "this operation needs the scope \"%s\", and the key has \"%s\"", names[needed],
                                        names[request->grant.scope]),
                              "use a key with the scope \"%s\"", names[needed]);
}

int auth_check(struct request *request)
{
    char sha256[DIGEST_HEX_SIZE] = "";
    struct key_grant grant;
    struct auth_cache *cache = request->context->keys;

    if (cache == NULL || request->route->scope == ROUTE_SCOPE_NONE) {
        return 0;
    }
    if (request->who != &request->principal) { /* not looked up yet */
        TRY(auth_key_of(request, sha256));
        if (!auth_cache_get(cache, sha256, &grant, clock_monotonic_ms())) {
            return REQUEST_WAIT;
        }
        if (grant.expires_at != 0 && grant.expires_at <= clock_unix_seconds()) {
            return REQUEST_WAIT; /* the store says why it is refused */
        }
        identify(request, &grant);
    }
    return check_scope(request);
}

int auth_look_up(struct request *request)
{
    char sha256[DIGEST_HEX_SIZE] = "";
    struct key_grant grant;
    int64_t begun_ms = clock_monotonic_ms(); /* a revocation from here on must not be undone by what was read before */

    TRY(auth_key_of(request, sha256));
    TRY(service_key_authenticate(request->context->service, sha256, &grant));
    auth_cache_put(request->context->keys, sha256, &grant, begun_ms);
    identify(request, &grant);
    return 0;
}
