#pragma once
/* A thread pool of fixed size that runs numbered tasks: pool_run(pool, n, fn, ctx) calls fn(ctx, 0..n-1), each
 * once, and returns when all are done. The caller's thread works too. Which thread takes which task is free, so a
 * task's result may depend on its number alone: that is what keeps results equal for any thread count. */

#include "base/cleanup.h"

#include <stdint.h>

struct pool;

/* threads: workers including the caller; 0 = every core this process may use. NULL when out of memory. */
struct pool *pool_new(int threads);
void pool_free(struct pool *pool); /* NULL is fine; not while running */
int pool_threads(const struct pool *pool);
/* One run at a time per pool: a second caller waits for the first. A task must not run the same pool. */
void pool_run(struct pool *pool, int64_t tasks, void (*fn)(void *ctx, int64_t task), void *ctx);
/* In a task: this thread's number in [0, pool_threads), for scratch memory. 0 outside of any pool. */
int pool_worker(void);

CLEANUP_FREE(pool, struct pool, pool_free)
