#pragma once
/* Messages to webhooks, from the store to their receivers: a thread of its own, which is the only one that waits for
 * them. */

#include "webhooks/policy.h"
#include "webhooks/sender.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct service;
struct service_config;

struct deliveries {
    struct policy *policy;
    struct sender *sender;
    pthread_t thread;
    bool started;
    atomic_bool news;     /* there may be a message that is due */
    _Atomic int64_t stop; /* in monotonic milliseconds, when to give up what is on its way; 0 = go on */
};

/* Of a zeroed service. ERR_CONFIG when a host of the configuration is none. */
int deliveries_open(struct service *service, const struct service_config *config);
int deliveries_start(struct service *service);
/* What is on its way may end within grace_ms; the rest is sent when the daemon runs again. Once more: fine. */
void deliveries_stop(struct service *service, int64_t grace_ms);
void deliveries_close(struct service *service);
