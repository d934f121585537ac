/* Waiters in one list under one mutex.
 *
 * A notification searches the list: a few thousand waiters cost microseconds, and a job has at most a few events per
 * second. Waiters to wake are collected under the lock and woken without it, because waking takes another lock. A woken
 * waiter stays in the list; only its owner removes it. */

#include "api/notifier.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct notifier {
    pthread_mutex_t lock;
    struct waiter *first;
    bool closed; /* all waiters were woken for the last time: parking fails from now on */
    void (*wake)(void *data, struct waiter *waiter);
    void *data;
};

struct notifier *notifier_new(void (*wake)(void *data, struct waiter *waiter), void *data)
{
    struct notifier *notifier = calloc(1, sizeof(*notifier));
    if (notifier != NULL) {
        pthread_mutex_init(&notifier->lock, NULL);
        notifier->wake = wake;
        notifier->data = data;
    }
    return notifier;
}

void notifier_free(struct notifier *notifier)
{
    if (notifier != NULL) {
        pthread_mutex_destroy(&notifier->lock);
        free(notifier);
    }
}

void notifier_watch(struct notifier *notifier, struct waiter *waiter, const char *job)
{
    pthread_mutex_lock(&notifier->lock);
    if (!waiter->watching) {
        (void)snprintf(waiter->job, sizeof(waiter->job), "%s", job);
        waiter->watching = true;
        waiter->previous = NULL;
        waiter->next = notifier->first;
        if (notifier->first != NULL) {
            notifier->first->previous = waiter;
        }
        notifier->first = waiter;
    }
    waiter->notified = false;
    pthread_mutex_unlock(&notifier->lock);
}

void notifier_unwatch(struct notifier *notifier, struct waiter *waiter)
{
    pthread_mutex_lock(&notifier->lock);
    if (waiter->watching) {
        if (waiter->previous != NULL) {
            waiter->previous->next = waiter->next;
        } else {
            notifier->first = waiter->next;
        }
        if (waiter->next != NULL) {
            waiter->next->previous = waiter->previous;
        }
        waiter->watching = false;
    }
    pthread_mutex_unlock(&notifier->lock);
}

bool notifier_park(struct notifier *notifier, struct waiter *waiter)
{
    pthread_mutex_lock(&notifier->lock);
    bool parked = waiter->watching && !waiter->notified && !notifier->closed;
    waiter->notified = false;
    waiter->parked = parked;
    pthread_mutex_unlock(&notifier->lock);
    return parked;
}

/* Wake those past now_ms, or (now_ms 0) those of the job, in batches, because wake is called without the lock. */
static void wake_all(struct notifier *notifier, const char *job, int64_t now_ms)
{
    struct waiter *batch[64];
    size_t count;
    do {
        count = 0;
        pthread_mutex_lock(&notifier->lock);
        for (struct waiter *at = notifier->first; at != NULL && count < sizeof(batch) / sizeof(batch[0]);
             at = at->next) {
            bool hit = now_ms != 0 ? at->parked && at->deadline_ms != 0 && at->deadline_ms <= now_ms
                                   : job == NULL || strcmp(at->job, job) == 0;
            if (hit && at->parked) {
                at->parked = false;
                batch[count++] = at;
            } else if (hit && now_ms == 0) {
                at->notified = true;
            }
        }
        pthread_mutex_unlock(&notifier->lock);
        for (size_t i = 0; i < count; i++) {
            notifier->wake(notifier->data, batch[i]);
        }
    } while (count == sizeof(batch) / sizeof(batch[0]));
}

void notifier_notify(struct notifier *notifier, const char *job)
{
    if (job == NULL) {
        pthread_mutex_lock(&notifier->lock);
        notifier->closed = true;
        pthread_mutex_unlock(&notifier->lock);
    }
    wake_all(notifier, job, 0);
}

int64_t notifier_expire(struct notifier *notifier, int64_t now_ms)
{
    wake_all(notifier, NULL, now_ms);
    int64_t next = -1;
    pthread_mutex_lock(&notifier->lock);
    for (struct waiter *at = notifier->first; at != NULL; at = at->next) {
        if (at->parked && at->deadline_ms != 0 && (next < 0 || at->deadline_ms < next)) {
            next = at->deadline_ms;
        }
    }
    pthread_mutex_unlock(&notifier->lock);
    return next;
}
