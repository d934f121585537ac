/* The store's calls for webhooks and their messages. */

#include "storage/store_call.h"

int store_webhook_create(struct store *store, const struct webhook_row *webhook, int64_t max)
{
    return store_run(store, store_state(store)->webhook_create, (struct state_args){.webhook = webhook, .after = max});
}

int store_webhook_get(struct store *store, const char *project, const char *id, json_t **webhook)
{
    return store_run(store, store_state(store)->webhook_get,
                     (struct state_args){.project = project, .id = id, .out = webhook});
}

int store_webhook_list(struct store *store, const struct page *page, json_t **list)
{
    return store_run(store, store_state(store)->webhook_list, (struct state_args){.page = page, .out = list});
}

int store_webhook_change(struct store *store, const struct webhook_row *webhook, unsigned set, json_t **after)
{
    return store_run(store, store_state(store)->webhook_change,
                     (struct state_args){.webhook = webhook, .set = set, .out = after});
}

int store_webhook_delete(struct store *store, const char *project, const char *id)
{
    return store_run_ending(store, store_state(store)->webhook_delete,
                            (struct state_args){.project = project, .id = id});
}

int store_delivery_create(struct store *store, const char *webhook, const char *id, const char *type,
                          const json_t *body)
{
    return store_run(store, store_state(store)->delivery_create,
                     (struct state_args){.kind = webhook, .id = id, .event = type, .body = body});
}

int store_delivery_get(struct store *store, const char *webhook, const char *id, json_t **delivery)
{
    return store_run(store, store_state(store)->delivery_get,
                     (struct state_args){.kind = webhook, .id = id, .out = delivery});
}

int store_delivery_list(struct store *store, const struct page *page, json_t **list)
{
    return store_run(store, store_state(store)->delivery_list, (struct state_args){.page = page, .out = list});
}

int store_delivery_due(struct store *store, int64_t now, int per_webhook, int limit, struct delivery_list *list)
{
    int64_t each = per_webhook;

    return store_run(store, store_state(store)->delivery_due,
                     (struct state_args){.after = now, .counts = &each, .limit = limit, .deliveries = list});
}

int store_delivery_end(struct store *store, const struct delivery_attempt *attempt)
{
    return store_run_ending(store, store_state(store)->delivery_end, (struct state_args){.attempt = attempt});
}

int store_delivery_sweep(struct store *store, int64_t cutoff, int limit, int64_t *removed)
{
    return store_run_ending(store, store_state(store)->delivery_sweep,
                            (struct state_args){.after = cutoff, .limit = limit, .counts = removed});
}
