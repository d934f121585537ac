/* Webhooks of a project, and what was sent to them. */

#include "jobs/service.h"

#include "base/err.h"
#include "base/mem.h"
#include "jobs/webhooks.h"
#include "webhooks/sign.h"

#include <string.h>

#define PREVIOUS_SECRET_SECONDS 86400 /* for which one that was replaced signs as well */

_Static_assert(SIGN_SECRET_SIZE <= WEBHOOK_SECRET_SIZE, "a secret does not fit into its column");
_Static_assert(WEBHOOK_URL_SIZE == POLICY_URL_SIZE, "a URL that is checked can be stored");

/* Whether the daemon would send there: what is wrong goes to errors. */
static int webhook_check_url(struct service *service, const char *url, struct validation_errors *errors)
{
    AUTO(policy_target) struct policy_target target = {.url = NULL};

    int rc = policy_target(service->deliveries.policy, url, &target);
    if (rc != 0) {
        const struct err_record why = *err_last();
        validation_add(errors, rc, "/url", "%s", why.message);
        validation_hint(errors, "%s", why.hint);
    }
    return validation_raise(errors);
}

static struct webhook_row webhook_row_of(const struct webhook_request *request)
{
    return (struct webhook_row){.name = request->name,
                                .url = request->url,
                                .events = request->events,
                                .every_job = request->jobs == WEBHOOK_JOBS_ALL,
                                .disabled = request->disabled,
                                .disabled_reason = request->disabled ? "by request" : NULL};
}

int service_webhook_create(struct service *service, const struct principal *who, const json_t *body,
                           struct validation_errors *errors, char **secret, json_t **webhook)
{
    AUTO(webhook_request) struct webhook_request request = {.events = NULL};
    char made[SIGN_SECRET_SIZE], id[ID_SIZE];

    TRY(webhook_create_parse(body, &request, errors));
    TRY(webhook_check_url(service, request.url, errors));
    TRY(sign_secret_new(made));
    id_new("wh", id);
    struct webhook_row row = webhook_row_of(&request);
    row.id = id;
    row.project = who->project;
    row.secret = made;
    row.created_at = clock_unix_seconds();
    TRY(store_webhook_create(service->store, &row, WEBHOOKS_PER_PROJECT));
    TRY(store_webhook_get(service->store, who->project, id, webhook));
    int rc = mem_strdup(secret, made);
    explicit_bzero(made, sizeof(made));
    return rc;
}

int service_webhook_get(struct service *service, const struct principal *who, const char *id, json_t **webhook)
{
    return store_webhook_get(service->store, who->project, id, webhook);
}

int service_webhook_list(struct service *service, const struct principal *who, const struct page *page, json_t **list)
{
    struct page own = *page;

    own.project = who->project;
    return store_webhook_list(service->store, &own, list);
}

int service_webhook_change(struct service *service, const struct principal *who, const char *id, const json_t *body,
                           struct validation_errors *errors, json_t **webhook)
{
    AUTO(webhook_request) struct webhook_request request = {.events = NULL};
    unsigned set = 0;

    TRY(webhook_change_parse(body, &request, &set, errors));
    if ((set & WEBHOOK_SET_URL) != 0) {
        TRY(webhook_check_url(service, request.url, errors));
    }
    struct webhook_row row = webhook_row_of(&request);
    row.id = id;
    row.project = who->project;
    return store_webhook_change(service->store, &row, set, webhook);
}

int service_webhook_rotate(struct service *service, const struct principal *who, const char *id, char **secret,
                           json_t **webhook)
{
    char made[SIGN_SECRET_SIZE];

    TRY(sign_secret_new(made));
    const struct webhook_row row = {.id = id,
                                    .project = who->project,
                                    .secret = made,
                                    .previous_until = clock_unix_seconds() + PREVIOUS_SECRET_SECONDS};
    TRY(store_webhook_change(service->store, &row, WEBHOOK_SET_SECRET, webhook));
    int rc = mem_strdup(secret, made);
    explicit_bzero(made, sizeof(made));
    return rc;
}

int service_webhook_delete(struct service *service, const struct principal *who, const char *id)
{
    return store_webhook_delete(service->store, who->project, id);
}

int service_webhook_test(struct service *service, const struct principal *who, const char *id, json_t **delivery)
{
    AUTO_JSON json_t *webhook = NULL;
    AUTO_JSON json_t *body = webhook_test_message(id);
    AUTO(policy_target) struct policy_target target = {.url = NULL};
    char message[ID_SIZE];

    if (body == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a message to a webhook");
    }
    TRY(store_webhook_get(service->store, who->project, id, &webhook));
    int rc = policy_target(service->deliveries.policy, json_string_value(json_object_get(webhook, "url")), &target);
    if (rc != 0) { /* the daemon sent there when the webhook was made */
        return rc == ERR_INVALID_PARAMETER ? err_raise(ERR_WEBHOOK_HOST, "%s", err_last()->message) : rc;
    }
    id_new("msg", message);
    TRY(store_delivery_create(service->store, id, message, WEBHOOK_TEST, body));
    return store_delivery_get(service->store, id, message, delivery);
}

/* ERR_NOT_FOUND when the project has no such webhook. */
static int webhook_check(struct service *service, const struct principal *who, const char *id)
{
    AUTO_JSON json_t *webhook = NULL;

    return store_webhook_get(service->store, who->project, id, &webhook);
}

int service_delivery_get(struct service *service, const struct principal *who, const char *webhook, const char *id,
                         json_t **delivery)
{
    TRY(webhook_check(service, who, webhook));
    return store_delivery_get(service->store, webhook, id, delivery);
}

int service_delivery_list(struct service *service, const struct principal *who, const char *webhook,
                          const struct page *page, json_t **list)
{
    struct page own = *page;

    TRY(webhook_check(service, who, webhook));
    own.project = NULL; /* the webhook's */
    own.webhook = webhook;
    return store_delivery_list(service->store, &own, list);
}
