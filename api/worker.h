#pragma once
/* A pool of threads that take items from one bounded queue. */

#include <stdbool.h>
#include <stddef.h>

struct worker_pool;

int worker_pool_new(int threads, size_t capacity, void (*work)(void *data, void *item), void *data,
                    struct worker_pool **out);
/* Any thread; never blocks. False when full or closed. */
bool worker_pool_push(struct worker_pool *pool, void *item);
/* Stops accepting items, works through the queue, joins and frees. NULL is accepted. */
void worker_pool_free(struct worker_pool *pool);
