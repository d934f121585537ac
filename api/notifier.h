#pragma once
/* Wakes requests that wait for events of a job: SSE streams and long polls. Any thread.
 *
 * A waiter watches before it reads the store, so that an event between the read and the parking is not lost: parking
 * fails when something happened since the watch or the last park. */

#include "base/ids.h"

#include <stdbool.h>
#include <stdint.h>

struct notifier;

struct waiter {
    struct waiter *next, *previous;
    char job[ID_SIZE];
    int64_t deadline_ms; /* monotonic; set before parking; 0 = only an event ends it */
    bool watching, notified, parked;
};

/* wake is called without the lock, on the thread that notifies; the waiter is no longer parked. */
struct notifier *notifier_new(void (*wake)(void *data, struct waiter *waiter), void *data);
void notifier_free(struct notifier *notifier);
void notifier_watch(struct notifier *notifier, struct waiter *waiter, const char *job);
void notifier_unwatch(struct notifier *notifier, struct waiter *waiter); /* not while parked */
/* False when something has happened since: continue at once. After true another thread may own the waiter. */
bool notifier_park(struct notifier *notifier, struct waiter *waiter);
void notifier_notify(struct notifier *notifier,
                     const char *job); /* NULL = all waiters, for the last time: parking fails afterwards */
/* Wake the waiters whose deadline has passed; returns the next deadline, or -1. */
int64_t notifier_expire(struct notifier *notifier, int64_t now_ms);
