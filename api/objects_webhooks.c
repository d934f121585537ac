/* Webhooks, deliveries and what receivers get. */

#include "api/schema_rows.h"

static const char *const webhook_jobs[] = {"all", "named", NULL};
#define WEBHOOK_MEMBERS                                                                                                \
    ID(id, "wh"), CONST(object, "webhook"), MEMBER(name, STRING), MEMBER(url, STRING),                                 \
        MEMBER(jobs, ENUM, .choices = webhook_jobs,                                                                    \
               HELP("all: it is told of every job of the project; named: of those whose webhook_id names it.")),       \
        MEMBER(events, STRINGS, NULLABLE, HELP("Types of messages that it gets; null: all.")), MEMBER(disabled, BOOL), \
        MEMBER(disabled_at, TIME, NULLABLE), MEMBER(disabled_reason, STRING, NULLABLE), MEMBER(created_at, TIME)
static const struct schema_row webhook_rows[] = {WEBHOOK_MEMBERS, END};
const struct schema schema_webhook = {
    .name = "Webhook", .help = "A receiver of messages, without its secret.", .rows = webhook_rows};
static const struct schema_row new_webhook_rows[] = {
    WEBHOOK_MEMBERS, MEMBER(secret, STRING, HELP("What signatures are checked with. Shown only once.")), END};
const struct schema schema_new_webhook = {
    .name = "NewWebhook", .help = "A webhook with a secret that was just made.", .rows = new_webhook_rows};
PAGE(schema_webhook_list, "WebhookList", schema_webhook, "wh");

const char *const schema_delivery_statuses[] = {"pending", "delivered", "failed", NULL};
static const struct schema_row delivery_rows[] = {
    ID(id, "msg"),
    CONST(object, "webhook.delivery"),
    ID(webhook_id, "wh"),
    ID(job_id, "job", NULLABLE),
    MEMBER(type, STRING),
    MEMBER(status, ENUM, .choices = schema_delivery_statuses),
    MEMBER(attempts, INT),
    MEMBER(created_at, TIME),
    MEMBER(last_attempt_at, TIME, NULLABLE),
    MEMBER(next_attempt_at, TIME, NULLABLE, HELP("While it is pending.")),
    MEMBER(finished_at, TIME, NULLABLE),
    MEMBER(response_status, INT, NULLABLE, HELP("Of the last answer; null where there was none.")),
    MEMBER(error, STRING, NULLABLE, HELP("Why the last attempt did not deliver it.")),
    END};
const struct schema schema_delivery = {.name = "WebhookDelivery",
                                       .help =
                                           "A message to a webhook; its id is the header webhook-id of each attempt.",
                                       .rows = delivery_rows};
PAGE(schema_delivery_list, "WebhookDeliveryList", schema_delivery, "msg");

/* --- what receivers get */

static const struct schema_row told_rows[] = {OBJECT(job, schema_job), END};
static const struct schema schema_told = {.name = "WebhookMessageData", .rows = told_rows};
static const struct schema_row message_rows[] = {
    MEMBER(type, STRING), MEMBER(timestamp, STRING, HELP("When the job got this status (RFC 3339).")),
    OBJECT(data, schema_told), END};
const struct schema schema_webhook_message = {
    .name = "WebhookMessage", .help = "What a webhook is told of a job.", .rows = message_rows};
