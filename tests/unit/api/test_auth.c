/* The Authorization header, and the cache of keys. */

#include "../unit.h"
#include "api/auth.h"
#include "api/bucket.h"

#include <stdio.h>
#include <string.h>

#define KEY "qd_abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst"

START_TEST(test_auth_reads_bearer_keys)
{
    static const char *const good[] = {"Bearer " KEY, "bearer " KEY, "BEARER    " KEY, "Bearer " KEY " \t"};
    static const char *const bad[] = {"",
                                      "Bearer",
                                      "Bearer ",
                                      KEY,
                                      "Basic " KEY,
                                      "Bearer\t" KEY,
                                      "Bearer " KEY "a",
                                      "Bearer qd_abc",
                                      "Bearer " KEY "," KEY,
                                      "Bearer " KEY " x",
                                      "Bearer QD_abc",
                                      "Bearer qd_ABCDEFGHIJKLMNOPQRSTUVWXYZ234567abcdefghijklmnopqrst"};
    const char *key = NULL;

    ck_assert_int_eq(bearer_parse(NULL, &key), BEARER_NONE);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        key = NULL;
        ck_assert_int_eq(bearer_parse(good[i], &key), BEARER_KEY);
        ck_assert_int_eq(memcmp(key, KEY, KEY_TEXT_LENGTH), 0);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(bearer_parse(bad[i], &key), BEARER_MALFORMED);
    }
}
END_TEST

START_TEST(test_auth_cache_forgets)
{
    struct auth_cache *cache = auth_cache_new();
    struct key_grant grant = {.id = "key_1", .project = "p", .scope = 1}, found = {.scope = 0};
    char sha256[DIGEST_HEX_SIZE], other[DIGEST_HEX_SIZE];
    int64_t now = clock_monotonic_ms();

    digest_bytes("a", 1, sha256);
    digest_bytes("b", 1, other);
    auth_cache_put(cache, sha256, &grant, now);
    ck_assert(auth_cache_get(cache, sha256, &found, now + AUTH_CACHE_MS - 1));
    ck_assert_str_eq(found.id, "key_1");
    ck_assert(!auth_cache_get(cache, other, &found, now));
    ck_assert(!auth_cache_get(cache, sha256, &found, now + AUTH_CACHE_MS));
    auth_cache_clear(cache);
    ck_assert(!auth_cache_get(cache, sha256, &found, now));
    auth_cache_put(cache, sha256, &grant, now); /* looked up before the revocation */
    ck_assert(!auth_cache_get(cache, sha256, &found, now));
    auth_cache_put(cache, sha256, &grant, clock_monotonic_ms() + 1);
    ck_assert(auth_cache_get(cache, sha256, &found, clock_monotonic_ms() + 1));
    auth_cache_free(cache);
}
END_TEST

START_TEST(test_auth_cache_is_bounded)
{
    struct auth_cache *cache = auth_cache_new();
    struct key_grant grant = {.project = "p"}, found;
    char sha256[DIGEST_HEX_SIZE];
    int kept = 0;

    for (int i = 0; i < 5000; i++) {
        digest_bytes(&i, sizeof(i), sha256);
        (void)snprintf(grant.id, sizeof(grant.id), "key_%d", i);
        auth_cache_put(cache, sha256, &grant, 1000 + i / 100);
        ck_assert(auth_cache_get(cache, sha256, &found, 1000 + i / 100));
        ck_assert_str_eq(found.id, grant.id);
    }
    for (int i = 0; i < 5000; i++) {
        digest_bytes(&i, sizeof(i), sha256);
        kept += auth_cache_get(cache, sha256, &found, 1050);
    }
    ck_assert_int_ge(kept, 900);
    ck_assert_int_le(kept, 1024);
    auth_cache_free(cache);
}
END_TEST

START_TEST(test_auth_buckets_refill)
{
    struct buckets *buckets = buckets_new(2);
    int64_t now = 1000;
    int taken = 0;

    for (int i = 0; i < 10; i++) {
        taken += buckets_take(buckets, "a", 1, now);
    }
    ck_assert_int_eq(taken, 2 * BUCKET_BURST_SECONDS);
    ck_assert(buckets_take(buckets, "b", 1, now)); /* another sender */
    ck_assert(!buckets_take(buckets, "a", 1, now + 400));
    ck_assert(buckets_take(buckets, "a", 1, now + 600));
    ck_assert(!buckets_take(buckets, "a", 1, now + 600));
    for (int i = 1000; i < 100000; i++) { /* many senders displace each other, and nothing grows */
        ck_assert(buckets_take(buckets, &i, sizeof(i), now + i));
    }
    ck_assert(buckets_take(buckets, "a", 1, now + 200000));
    buckets_free(buckets);
}
END_TEST

UNIT_MAIN("auth", test_auth_buckets_refill, test_auth_reads_bearer_keys, test_auth_cache_forgets,
          test_auth_cache_is_bounded)
