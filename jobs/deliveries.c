/* The thread that delivers. It keeps nothing that must last: a message is pending in the store until its outcome is, so
 * a daemon that is killed in between sends it again, under the same id.
 *
 * At most DELIVERIES_SLOTS messages are on their way, DELIVERIES_OWN of them of one project, and DELIVERIES_EACH to one
 * webhook: the store gives the oldest of each webhook, and those that are on their way are the oldest, so that one
 * which does not answer takes up its own places only. Messages to webhooks that failed have half of the slots: a
 * hundred receivers that do not answer must not stand before one that does. */

#include "jobs/deliveries.h"

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "jobs/metrics.h"
#include "jobs/service.h"
#include "jobs/webhooks.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define DELIVERIES_SLOTS 16
#define DELIVERIES_OWN 8
#define DELIVERIES_EACH 2
#define DELIVERIES_LOOK (4 * DELIVERIES_SLOTS) /* read at a time: some of them are on their way, or have to wait */
#define WAIT_MS_MAX 60000                      /* a clock that is set meanwhile is noticed */
#define IDLE_MS 600000                         /* nothing is pending */
#define RETRY_MS 5000                          /* after the store failed */
#define SENDER_FAILED_MS 1000

struct run {
    struct service *service;
    struct delivery_row *slots[DELIVERIES_SLOTS];
    int count;
    int64_t look_ms; /* monotonic: when to look for what is due */
};

/* Of all slots, and of those of its project, half are for messages to webhooks that failed. */
static bool has_place(const struct run *run, const struct delivery_row *row)
{
    int again = 0, own = 0, own_again = 0;

    for (int i = 0; i < DELIVERIES_SLOTS; i++) {
        const struct delivery_row *other = run->slots[i];
        bool same = other != NULL && strcmp(other->project, row->project) == 0;
        again += other != NULL && other->again;
        own += same;
        own_again += same && other->again;
    }
    return own < DELIVERIES_OWN && (!row->again || (again < DELIVERIES_SLOTS / 2 && own_again < DELIVERIES_OWN / 2));
}

static void delivery_row_free(struct delivery_row *row)
{
    free(row->body);
    explicit_bzero(row, sizeof(*row));
    free(row);
}

static bool on_its_way(const struct run *run, const char *id)
{
    for (int i = 0; i < DELIVERIES_SLOTS; i++) {
        if (run->slots[i] != NULL && strcmp(run->slots[i]->id, id) == 0) {
            return true;
        }
    }
    return false;
}

/* --- outcomes */

static uint64_t random_bits(void)
{
    uint64_t bits = 0;

    (void)!getrandom(&bits, sizeof(bits), 0);
    return bits;
}

static void describe_failure(const struct sender_outcome *outcome, char out[96])
{
    if (outcome->status == 0) {
        (void)snprintf(out, 96, "%s", outcome->error);
    } else {
        (void)snprintf(out, 96, "the receiver answered %d%s%s", outcome->status, outcome->error != NULL ? "; " : "",
                       outcome->error != NULL ? outcome->error : "");
    }
}

/* Into the store. A failure of it is not one of the message, which stays as it was. */
static int deliveries_settle(struct service *service, const struct delivery_row *row,
                             const struct sender_outcome *outcome)
{
    bool delivered = outcome->status >= 200 && outcome->status <= 299;
    char error[96];
    struct delivery_attempt attempt = {.id = row->id,
                                       .status = DELIVERY_DELIVERED,
                                       .at = clock_unix_seconds(),
                                       .status_code = outcome->status,
                                       .gone = outcome->status == 410};

    if (!delivered) {
        describe_failure(outcome, error);
        attempt.error = error;
        attempt.next_at = row->once || attempt.gone ? -1
                                                    : webhook_next_try(row->created_at, attempt.at, row->attempts + 1,
                                                                       outcome->retry_after, random_bits());
        attempt.status = attempt.next_at > 0 ? DELIVERY_PENDING : DELIVERY_FAILED;
    }
    int rc = store_delivery_end(service->store, &attempt);
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? 0 : rc; /* deleted or given up meanwhile */
    }
    metrics_webhook_attempt(attempt.status, outcome->seconds);
    log_set_trace(row->traceparent);
    LOG_AT(attempt.status == DELIVERY_FAILED ? LOG_WARN : LOG_INFO, "webhook", LOG_S("webhook", row->webhook),
           LOG_S("delivery", row->id), LOG_S("type", row->type), LOG_S("outcome", delivery_status_name(attempt.status)),
           LOG_I("attempt", row->attempts + 1), LOG_I("status", outcome->status), LOG_F("seconds", outcome->seconds),
           LOG_S("reason", attempt.error), LOG_END);
    log_set_trace(NULL);
    return 0;
}

static void deliveries_failed(struct run *run, const char *what)
{
    log_err(LOG_WARN, what, NULL);
    run->look_ms = clock_monotonic_ms() + RETRY_MS;
    atomic_store(&run->service->deliveries.news, false);
}

/* The outcome of a message, which leaves its slot. */
static void end_take(struct run *run, struct delivery_row *row, const struct sender_outcome *outcome)
{
    for (int i = 0; i < DELIVERIES_SLOTS; i++) {
        run->slots[i] = run->slots[i] == row ? NULL : run->slots[i];
    }
    run->count--;
    run->look_ms = 0; /* another one may take the slot */
    if (deliveries_settle(run->service, row, outcome) != 0) {
        deliveries_failed(run, "the outcome of a message to a webhook was not stored: it is sent again");
    }
    delivery_row_free(row);
}

static void collect_outcomes(struct run *run)
{
    struct sender_outcome outcome;
    void *data;

    while (sender_ended(run->service->deliveries.sender, &data, &outcome)) {
        end_take(run, data, &outcome);
    }
}

/* --- what is due */

static void begin_take(struct run *run, struct delivery_row *row)
{
    const struct sender_message message = {
        .url = row->url,
        .id = row->id,
        .body = row->body,
        .size = strlen(row->body),
        .timestamp = clock_unix_seconds(),
        .secrets = {row->secret, row->previous},
        .traceparent = row->traceparent,
        .tracestate = row->tracestate,
    };
    int slot = 0;

    while (run->slots[slot] != NULL) {
        slot++;
    }
    run->slots[slot] = row;
    run->count++;
    int rc = sender_post(run->service->deliveries.sender, &message, row);
    if (rc != 0) { /* its host may not be one of the configuration any more */
        const struct sender_outcome outcome = {.error = rc == ERR_WEBHOOK_HOST || rc == ERR_INVALID_PARAMETER
                                                            ? "its URL is not one that this daemon sends to"
                                                            : "it could not be sent"};
        end_take(run, row, &outcome);
    }
}

static void take_due(struct run *run)
{
    AUTO(delivery_list) struct delivery_list list = {.rows = NULL};
    struct delivery_row *row;

    atomic_store(&run->service->deliveries.news, false);
    run->look_ms = clock_monotonic_ms() + IDLE_MS;
    if (store_delivery_due(run->service->store, clock_unix_seconds(), DELIVERIES_EACH, DELIVERIES_LOOK, &list) != 0) {
        deliveries_failed(run, "messages to webhooks were not read");
        return;
    }
    if (list.next_at != 0) {
        int64_t wait = list.next_at - clock_unix_seconds();
        wait = wait < 0 ? 0 : wait < WAIT_MS_MAX / 1000 ? wait * 1000 : WAIT_MS_MAX;
        run->look_ms = clock_monotonic_ms() + wait;
    }
    for (size_t i = 0; i < list.count && run->count < DELIVERIES_SLOTS; i++) {
        if (!has_place(run, &list.rows[i]) || on_its_way(run, list.rows[i].id) || mem_new(&row) != 0) {
            continue;
        }
        *row = list.rows[i];
        list.rows[i].body = NULL;
        begin_take(run, row);
    }
}

static int wait_ms(const struct run *run, int64_t stop)
{
    int64_t until = stop != 0 ? stop : run->look_ms;
    int64_t wait = until - clock_monotonic_ms();

    return wait < 0 ? 0 : wait > IDLE_MS ? IDLE_MS : (int)wait;
}

static void *deliveries_main(void *data)
{
    struct run run = {.service = data};
    struct deliveries *deliveries = &run.service->deliveries;
    int64_t stop;

    while ((stop = atomic_load(&deliveries->stop)) == 0 || (run.count > 0 && clock_monotonic_ms() < stop)) {
        if (stop == 0 && (atomic_load(&deliveries->news) || clock_monotonic_ms() >= run.look_ms)) {
            take_due(&run);
        }
        if (sender_wait(deliveries->sender, wait_ms(&run, stop)) != 0) {
            deliveries_failed(&run, "messages to webhooks are not sent");
            (void)poll(NULL, 0, SENDER_FAILED_MS);
        }
        collect_outcomes(&run);
    }
    sender_drop(deliveries->sender); /* before the bodies that it may still send */
    for (int i = 0; i < DELIVERIES_SLOTS; i++) {
        if (run.slots[i] != NULL) {
            delivery_row_free(run.slots[i]);
        }
    }
    return NULL;
}

/* --- the thread */

/* Storage thread. */
static void on_message(void *data)
{
    struct deliveries *deliveries = &((struct service *)data)->deliveries;

    atomic_store(&deliveries->news, true);
    sender_wake(deliveries->sender);
}

int deliveries_open(struct service *service, const struct service_config *config)
{
    struct deliveries *deliveries = &service->deliveries;

    TRY(policy_new(config->webhook_hosts, config->webhook_allow_private, &deliveries->policy));
    return sender_new(deliveries->policy, config->webhook_ca_file, &deliveries->sender);
}

int deliveries_start(struct service *service)
{
    struct deliveries *deliveries = &service->deliveries;

    TRY(store_on_message(service->store, on_message, service));
    int failed = pthread_create(&deliveries->thread, NULL, deliveries_main, service);
    if (failed != 0) {
        return err_raise_errno(failed, "cannot start the thread of webhooks");
    }
    deliveries->started = true;
    return 0;
}

void deliveries_stop(struct service *service, int64_t grace_ms)
{
    struct deliveries *deliveries = &service->deliveries;

    if (!deliveries->started) {
        return;
    }
    (void)store_on_message(service->store, NULL, NULL);
    atomic_store(&deliveries->stop, clock_monotonic_ms() + grace_ms);
    sender_wake(deliveries->sender);
    (void)pthread_join(deliveries->thread, NULL);
    deliveries->started = false;
}

void deliveries_close(struct service *service)
{
    deliveries_stop(service, 0);
    sender_free(service->deliveries.sender);
    policy_free(service->deliveries.policy);
    service->deliveries.policy = NULL;
    service->deliveries.sender = NULL;
}
