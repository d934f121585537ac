#pragma once
/* Who waits for which job's events: SSE streams and long polls. Any thread.
 *
 * A waiter watches before it reads the store, so that an event between the read and the parking is not lost: parking
 * fails when something happened since the watch or the last park. */

#include "base/ids.h"

#include <stdbool.h>
#include <stdint.h>

struct hub;

struct waiter {
    struct waiter *next, *previous;
    char job[ID_SIZE];
    int64_t deadline_ms; /* monotonic; set before parking; 0 = only an event ends it */
    bool watching, notified, parked;
};

/* wake is called with the hub unlocked, on the thread that caused it; the waiter is parked no more. */
struct hub *hub_new(void (*wake)(void *data, struct waiter *waiter), void *data);
void hub_free(struct hub *hub);
void hub_watch(struct hub *hub, struct waiter *waiter, const char *job);
void hub_unwatch(struct hub *hub, struct waiter *waiter); /* not while parked */
/* False: something happened, go on at once. After true another thread may own the waiter. */
bool hub_park(struct hub *hub, struct waiter *waiter);
void hub_notify(struct hub *hub, const char *job); /* NULL = everybody, for good: nobody parks after it */
/* Wake those whose deadline is past; the next deadline, or -1. */
int64_t hub_expire(struct hub *hub, int64_t now_ms);
