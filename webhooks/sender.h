#pragma once
/* Messages on their way to receivers, several at once, by one thread.
 *
 * An answer counts by its status alone. Nothing of what a receiver says is kept: a message must not become a way to
 * read what only the daemon can reach. */

#include "base/cleanup.h"
#include "webhooks/policy.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sender;

struct sender_message {
    const char *url, *id, *body;
    size_t size; /* of body */
    int64_t timestamp;
    const char *secrets[2];               /* the second one may be "" */
    const char *traceparent, *tracestate; /* "" = none */
};

struct sender_outcome {
    int status;          /* of the answer; 0: there was none */
    const char *error;   /* why it was not delivered, a fixed text; NULL where the status says all */
    int64_t retry_after; /* seconds that the receiver asks for; 0: it does not */
    double seconds;      /* that it took */
};

/* policy: for as long as the sender is there. ca_file: certificates in place of the system's, or NULL. Before threads
 * that use libcurl start. */
int sender_new(const struct policy *policy, const char *ca_file, struct sender **out);
/* Nothing is on its way any more; what was has no outcome. */
void sender_drop(struct sender *sender);
void sender_free(struct sender *sender);
CLEANUP_FREE(sender, struct sender, sender_free)

/* Begin to send; data comes back with the outcome. Everything in it is copied but the body, which must last until then.
 * As policy_target, or ERR_HOST_OUT_OF_MEMORY: it was not begun. */
int sender_post(struct sender *sender, const struct sender_message *message, void *data);
/* Move what is on its way, for up to timeout_ms, or until something can be done or sender_wake was called. */
int sender_wait(struct sender *sender, int timeout_ms);
/* The next message that has ended; false: none has. */
bool sender_ended(struct sender *sender, void **data, struct sender_outcome *outcome);
/* Any thread. */
void sender_wake(struct sender *sender);
