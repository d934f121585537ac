/* The threads that run handlers. Their stacks have a fixed size of 1 MiB: JSON of the allowed depth fits several times
 * over. Signals are blocked, so that they go to the loop thread. */

#include "api/worker.h"

#include "base/err.h"
#include "base/queue.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#define WORKER_STACK ((size_t)1 << 20)

struct worker_pool {
    struct queue *queue;
    void (*work)(void *data, void *item);
    void *data;
    int count;
    pthread_t threads[];
};

static void *worker_worker_main(void *argument)
{
    struct worker_pool *pool = argument;
    for (void *item = queue_pop(pool->queue, -1); item != NULL; item = queue_pop(pool->queue, -1)) {
        pool->work(pool->data, item);
    }
    return NULL;
}

static int start_threads(struct worker_pool *pool, int threads)
{
    pthread_attr_t attributes;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, WORKER_STACK);
    int failed = 0;
    while (pool->count < threads && failed == 0) {
        failed = pthread_create(&pool->threads[pool->count], &attributes, worker_worker_main, pool);
        pool->count += failed == 0;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed == 0 ? 0 : err_raise_errno(failed, "cannot start a worker thread");
}

int worker_pool_new(int threads, size_t capacity, void (*work)(void *data, void *item), void *data,
                    struct worker_pool **out)
{
    struct worker_pool *pool = calloc(1, sizeof(*pool) + (size_t)threads * sizeof(pthread_t));
    struct queue *queue = queue_new(capacity);
    if (pool == NULL || queue == NULL) {
        queue_free(queue);
        free(pool);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the worker threads");
    }
    pool->queue = queue;
    pool->work = work;
    pool->data = data;
    int rc = start_threads(pool, threads);
    if (rc < 0) {
        worker_pool_free(pool);
        return rc;
    }
    *out = pool;
    return 0;
}

bool worker_pool_push(struct worker_pool *pool, void *item)
{
    return queue_try_push(pool->queue, item);
}

void worker_pool_free(struct worker_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    queue_close(pool->queue);
    for (int i = 0; i < pool->count; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    queue_free(pool->queue);
    free(pool);
}
