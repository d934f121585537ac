/* A ring under one mutex with two conditions; waits use the monotonic clock, so that clock steps do not matter. */

#include "base/queue.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t filled, freed;
    size_t capacity, first, count;
    bool closed;
    void *items[];
};

static void cond_init_monotonic(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

struct queue *queue_new(size_t capacity)
{
    if (capacity == 0 || capacity > ((size_t)1 << 30)) {
        return NULL;
    }
    struct queue *queue = calloc(1, sizeof(*queue) + capacity * sizeof(void *));
    if (queue != NULL) {
        queue->capacity = capacity;
        pthread_mutex_init(&queue->lock, NULL);
        cond_init_monotonic(&queue->filled);
        cond_init_monotonic(&queue->freed);
    }
    return queue;
}

void queue_free(struct queue *queue)
{
    if (queue == NULL) {
        return;
    }
    pthread_cond_destroy(&queue->filled);
    pthread_cond_destroy(&queue->freed);
    pthread_mutex_destroy(&queue->lock);
    free(queue);
}

/* With the lock held and capacity for one. */
static void queue_put(struct queue *queue, void *item)
{
    queue->items[(queue->first + queue->count) % queue->capacity] = item;
    queue->count++;
    pthread_cond_signal(&queue->filled);
}

bool queue_push(struct queue *queue, void *item)
{
    pthread_mutex_lock(&queue->lock);
    while (!queue->closed && queue->count == queue->capacity) {
        pthread_cond_wait(&queue->freed, &queue->lock);
    }
    bool taken = !queue->closed;
    if (taken) {
        queue_put(queue, item);
    }
    pthread_mutex_unlock(&queue->lock);
    return taken;
}

bool queue_try_push(struct queue *queue, void *item)
{
    pthread_mutex_lock(&queue->lock);
    bool taken = !queue->closed && queue->count < queue->capacity;
    if (taken) {
        queue_put(queue, item);
    }
    pthread_mutex_unlock(&queue->lock);
    return taken;
}

static struct timespec deadline_in(int timeout_ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += timeout_ms / 1000;
    at.tv_nsec += (long)(timeout_ms % 1000) * 1000000L;
    if (at.tv_nsec >= 1000000000L) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000L;
    }
    return at;
}

void *queue_pop(struct queue *queue, int timeout_ms)
{
    struct timespec deadline = deadline_in(timeout_ms > 0 ? timeout_ms : 0);
    void *item = NULL;
    int rc = 0;

    pthread_mutex_lock(&queue->lock);
    while (queue->count == 0 && !queue->closed && rc == 0 && timeout_ms != 0) {
        rc = timeout_ms < 0 ? pthread_cond_wait(&queue->filled, &queue->lock)
                            : pthread_cond_timedwait(&queue->filled, &queue->lock, &deadline);
    }
    if (queue->count > 0) {
        item = queue->items[queue->first];
        queue->first = (queue->first + 1) % queue->capacity;
        queue->count--;
        pthread_cond_signal(&queue->freed);
    }
    pthread_mutex_unlock(&queue->lock);
    return item;
}

void queue_close(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    pthread_cond_broadcast(&queue->filled);
    pthread_cond_broadcast(&queue->freed);
    pthread_mutex_unlock(&queue->lock);
}
