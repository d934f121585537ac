#pragma once
/* What is not kept for ever: jobs that wait for a calibration that does not come expire, and what has been kept for as
 * long as the configuration says is deleted. A thread of its own, since a runner's may run one job for days. */

#include "jobs/retention.h"

#include <pthread.h>
#include <stdbool.h>

struct service;

struct sweep {
    struct retention retention;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* monotonic clock */
    bool started, stop;
    bool news;       /* a job was made that may expire */
    int64_t look_ms; /* of the thread alone, monotonic: when to look again without news */
    pthread_t thread;
};

/* Of a zeroed service: what sweep_close releases. */
void sweep_init(struct sweep *sweep);
int sweep_start(struct service *service);
/* A job was made that may expire. Any thread; returns at once. */
void sweep_wake(struct sweep *sweep);
/* Returns when the thread has ended. Again is fine. */
void sweep_stop(struct sweep *sweep);
void sweep_close(struct sweep *sweep);
