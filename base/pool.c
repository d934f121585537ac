/* The thread pool: a mutex for starting and ending a run, an atomic counter for tasks inside one.
 *
 * Workers sleep on a condition between runs: a daemon that waits for jobs must cost nothing. */

#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct pool {
    int threads;
    pthread_t *workers; /* threads - 1 of them */
    pthread_mutex_t run_lock;
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    uint64_t generation; /* of runs; workers wait for the next one */
    int busy;            /* workers still in this run */
    bool stop;
    int64_t tasks;
    void (*fn)(void *, int64_t);
    void *ctx;
    _Atomic int64_t next;
};

struct member {
    struct pool *pool;
    int number;
};

static _Thread_local int worker_number;

int pool_worker(void)
{
    return worker_number;
}

static void take_tasks(struct pool *pool)
{
    for (;;) {
        int64_t task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= pool->tasks) {
            return;
        }
        pool->fn(pool->ctx, task);
    }
}

static void *pool_worker_main(void *argument)
{
    struct member member = *(struct member *)argument;
    struct pool *pool = member.pool;
    uint64_t seen = 0;

    free(argument);
    worker_number = member.number;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->stop && pool->generation == seen) {
            pthread_cond_wait(&pool->begin, &pool->lock);
        }
        if (pool->stop) {
            break;
        }
        seen = pool->generation;
        pthread_mutex_unlock(&pool->lock);
        take_tasks(pool);
        pthread_mutex_lock(&pool->lock);
        if (--pool->busy == 0) {
            pthread_cond_signal(&pool->end);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static int usable_cores(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    return count > 0 ? count : 1;
}

struct pool *pool_new(int threads)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) {
        return NULL;
    }
    threads = threads > 0 ? threads : usable_cores();
    pool->workers = calloc((size_t)threads, sizeof(*pool->workers));
    pool->threads = 1;
    pthread_mutex_init(&pool->run_lock, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->begin, NULL);
    pthread_cond_init(&pool->end, NULL);
    for (int i = 1; pool->workers != NULL && i < threads; i++) {
        struct member *member = malloc(sizeof(*member));
        if (member == NULL) {
            break;
        }
        *member = (struct member){pool, i};
        if (pthread_create(&pool->workers[i - 1], NULL, pool_worker_main, member) != 0) {
            free(member);
            break; /* fewer threads give the same results, later */
        }
        pool->threads = i + 1;
    }
    if (pool->workers == NULL) {
        pool_free(pool);
        return NULL;
    }
    return pool;
}

void pool_free(struct pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->begin);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->threads - 1; i++) {
        pthread_join(pool->workers[i], NULL);
    }
    pthread_cond_destroy(&pool->begin);
    pthread_cond_destroy(&pool->end);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->run_lock);
    free(pool->workers);
    free(pool);
}

int pool_threads(const struct pool *pool)
{
    return pool->threads;
}

static void run_together(struct pool *pool, int64_t tasks, void (*fn)(void *ctx, int64_t task), void *ctx)
{
    pthread_mutex_lock(&pool->lock);
    pool->tasks = tasks;
    pool->fn = fn;
    pool->ctx = ctx;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->busy = pool->threads - 1;
    pool->generation++;
    pthread_cond_broadcast(&pool->begin);
    pthread_mutex_unlock(&pool->lock);
    take_tasks(pool);
    pthread_mutex_lock(&pool->lock);
    while (pool->busy > 0) {
        pthread_cond_wait(&pool->end, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
}

void pool_run(struct pool *pool, int64_t tasks, void (*fn)(void *ctx, int64_t task), void *ctx)
{
    /* The caller is worker 0 here, whatever its number in a pool whose task it may be running. */
    int outside = worker_number;

    worker_number = 0;
    pthread_mutex_lock(&pool->run_lock); /* also for one task: worker 0's scratch memory has one user */
    if (pool->threads == 1 || tasks <= 1) {
        for (int64_t i = 0; i < tasks; i++) {
            fn(ctx, i);
        }
    } else {
        run_together(pool, tasks, fn, ctx);
    }
    pthread_mutex_unlock(&pool->run_lock);
    worker_number = outside;
}
