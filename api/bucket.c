/* A sender has one set of places; when all are taken, the one that was unused for longest gives way. A bucket that was
 * unused for BUCKET_BURST_SECONDS is full, as a new one is, so nothing is lost with it. */

#include "api/bucket.h"

#include <stdlib.h>
#include <string.h>

#define BUCKET_SETS 2048
#define BUCKET_WAYS 4

struct bucket {
    char id[BUCKET_ID_SIZE];
    double tokens;
    int64_t at_ms; /* 0 = never used */
};

struct buckets {
    double per_second;
    struct bucket places[BUCKET_SETS][BUCKET_WAYS];
};

struct buckets *buckets_new(int64_t per_second)
{
    struct buckets *buckets = calloc(1, sizeof(*buckets));

    if (buckets != NULL) {
        buckets->per_second = (double)per_second;
    }
    return buckets;
}

void buckets_free(struct buckets *buckets)
{
    free(buckets);
}

/* FNV-1a. */
static size_t bucket_hash(const char id[BUCKET_ID_SIZE])
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < BUCKET_ID_SIZE; i++) {
        hash = (hash ^ (unsigned char)id[i]) * 0x100000001b3u;
    }
    return (size_t)((hash ^ hash >> 32) % BUCKET_SETS);
}

bool buckets_take(struct buckets *buckets, const void *id, size_t size, int64_t now_ms)
{
    const double full = buckets->per_second * BUCKET_BURST_SECONDS;
    char key[BUCKET_ID_SIZE] = {0};
    struct bucket *found = NULL, *oldest;

    memcpy(key, id, size < sizeof(key) ? size : sizeof(key));
    struct bucket *set = buckets->places[bucket_hash(key)];
    oldest = &set[0];
    for (int i = 0; i < BUCKET_WAYS && found == NULL; i++) {
        found = set[i].at_ms != 0 && memcmp(set[i].id, key, sizeof(key)) == 0 ? &set[i] : NULL;
        oldest = set[i].at_ms < oldest->at_ms ? &set[i] : oldest;
    }
    if (found == NULL) {
        found = oldest;
        *found = (struct bucket){.tokens = full, .at_ms = now_ms};
        memcpy(found->id, key, sizeof(key));
    }
    if (now_ms > found->at_ms) {
        double tokens = found->tokens + (double)(now_ms - found->at_ms) / 1000 * buckets->per_second;
        found->tokens = tokens < full ? tokens : full;
        found->at_ms = now_ms;
    }
    if (found->tokens < 1) {
        return false;
    }
    found->tokens -= 1;
    return true;
}
