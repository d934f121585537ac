#pragma once
/* Rates of requests: a token bucket for each sender, in a table of fixed size. One thread at a time. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUCKET_ID_SIZE 40
#define BUCKET_BURST_SECONDS 2 /* of the rate that may come at once */

struct buckets;
/* per_second > 0; NULL when out of memory. */
struct buckets *buckets_new(int64_t per_second);
void buckets_free(struct buckets *buckets);
/* Take a token of the sender whose id these bytes are, at most BUCKET_ID_SIZE of them. False: there is none yet. */
bool buckets_take(struct buckets *buckets, const void *id, size_t size, int64_t now_ms);
