#pragma once
/* A few threads that take items from one bounded mailbox. */

#include <stdbool.h>
#include <stddef.h>

struct worker_pool;

int worker_pool_new(int threads, size_t capacity, void (*work)(void *data, void *item), void *data,
                    struct worker_pool **out);
/* Any thread, never waits. False when full or closed. */
bool worker_pool_push(struct worker_pool *pool, void *item);
/* No more items; what is queued is still worked off. Joins and frees. NULL is fine. */
void worker_pool_free(struct worker_pool *pool);
