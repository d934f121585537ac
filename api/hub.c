/* Waiters in one list under one mutex.
 *
 * A notification walks the list: a few thousand waiters cost microseconds, and events are at most a few a second per
 * job. Woken waiters are gathered under the lock and woken after it, because waking pushes into another mailbox. A
 * woken waiter stays linked; only its owner unlinks it. */

#include "api/hub.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hub {
    pthread_mutex_t lock;
    struct waiter *first;
    bool closed; /* everybody was told to go: nobody parks any more */
    void (*wake)(void *data, struct waiter *waiter);
    void *data;
};

struct hub *hub_new(void (*wake)(void *data, struct waiter *waiter), void *data)
{
    struct hub *hub = calloc(1, sizeof(*hub));
    if (hub != NULL) {
        pthread_mutex_init(&hub->lock, NULL);
        hub->wake = wake;
        hub->data = data;
    }
    return hub;
}

void hub_free(struct hub *hub)
{
    if (hub != NULL) {
        pthread_mutex_destroy(&hub->lock);
        free(hub);
    }
}

void hub_watch(struct hub *hub, struct waiter *waiter, const char *job)
{
    pthread_mutex_lock(&hub->lock);
    if (!waiter->watching) {
        (void)snprintf(waiter->job, sizeof(waiter->job), "%s", job);
        waiter->watching = true;
        waiter->previous = NULL;
        waiter->next = hub->first;
        if (hub->first != NULL) {
            hub->first->previous = waiter;
        }
        hub->first = waiter;
    }
    waiter->notified = false;
    pthread_mutex_unlock(&hub->lock);
}

void hub_unwatch(struct hub *hub, struct waiter *waiter)
{
    pthread_mutex_lock(&hub->lock);
    if (waiter->watching) {
        if (waiter->previous != NULL) {
            waiter->previous->next = waiter->next;
        } else {
            hub->first = waiter->next;
        }
        if (waiter->next != NULL) {
            waiter->next->previous = waiter->previous;
        }
        waiter->watching = false;
    }
    pthread_mutex_unlock(&hub->lock);
}

bool hub_park(struct hub *hub, struct waiter *waiter)
{
    pthread_mutex_lock(&hub->lock);
    bool parked = waiter->watching && !waiter->notified && !hub->closed;
    waiter->notified = false;
    waiter->parked = parked;
    pthread_mutex_unlock(&hub->lock);
    return parked;
}

/* Unpark those past now_ms, or (now_ms 0) those of the job; a bounded batch a round, because wake runs without the
 * lock. */
static void wake_all(struct hub *hub, const char *job, int64_t now_ms)
{
    struct waiter *batch[64];
    size_t count;
    do {
        count = 0;
        pthread_mutex_lock(&hub->lock);
        for (struct waiter *at = hub->first; at != NULL && count < sizeof(batch) / sizeof(batch[0]); at = at->next) {
            bool hit = now_ms != 0 ? at->parked && at->deadline_ms != 0 && at->deadline_ms <= now_ms
                                   : job == NULL || strcmp(at->job, job) == 0;
            if (hit && at->parked) {
                at->parked = false;
                batch[count++] = at;
            } else if (hit && now_ms == 0) {
                at->notified = true;
            }
        }
        pthread_mutex_unlock(&hub->lock);
        for (size_t i = 0; i < count; i++) {
            hub->wake(hub->data, batch[i]);
        }
    } while (count == sizeof(batch) / sizeof(batch[0]));
}

void hub_notify(struct hub *hub, const char *job)
{
    if (job == NULL) {
        pthread_mutex_lock(&hub->lock);
        hub->closed = true;
        pthread_mutex_unlock(&hub->lock);
    }
    wake_all(hub, job, 0);
}

int64_t hub_expire(struct hub *hub, int64_t now_ms)
{
    wake_all(hub, NULL, now_ms);
    int64_t next = -1;
    pthread_mutex_lock(&hub->lock);
    for (struct waiter *at = hub->first; at != NULL; at = at->next) {
        if (at->parked && at->deadline_ms != 0 && (next < 0 || at->deadline_ms < next)) {
            next = at->deadline_ms;
        }
    }
    pthread_mutex_unlock(&hub->lock);
    return next;
}
