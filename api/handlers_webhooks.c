/* Webhooks of the project. A secret is in the answer that made it, and in no log, list or table; the routes that make
 * one therefore take no Idempotency-Key, whose answers are stored. */

#include "api/handlers.h"

#include "api/handlers_objects.h"
#include "api/reply.h"
#include "base/cleanup.h"

#include <stdlib.h>
#include <string.h>

/* Into the webhook, whose only copy of it this is. */
static void show_secret_take(json_t *webhook, char *secret)
{
    json_object_set_new(webhook, "secret", json_string(secret));
    explicit_bzero(secret, strlen(secret));
    free(secret);
}

int handlers_create_webhook(struct request *request)
{
    char *secret = NULL;
    json_t *webhook = NULL;
    TRY(service_webhook_create(request->context->service, request->who, request->json, &request->scratch->errors,
                               &secret, &webhook));
    show_secret_take(webhook, secret);
    return reply_created_take(request, "/v1/webhooks", webhook);
}

int handlers_list_webhooks(struct request *request)
{
    struct page page;
    json_t *list = NULL;
    query_page(&request->scratch->query, &page);
    TRY(service_webhook_list(request->context->service, request->who, &page, &list));
    return reply_object_take(request, list);
}

int handlers_get_webhook(struct request *request)
{
    json_t *webhook = NULL;
    TRY(service_webhook_get(request->context->service, request->who, request->captures[0], &webhook));
    return reply_object_take(request, webhook);
}

int handlers_update_webhook(struct request *request)
{
    json_t *webhook = NULL;
    TRY(service_webhook_change(request->context->service, request->who, request->captures[0], request->json,
                               &request->scratch->errors, &webhook));
    return reply_json_take(request, 200, webhook);
}

int handlers_delete_webhook(struct request *request)
{
    return handlers_object_delete(request, service_webhook_delete);
}

int handlers_rotate_webhook_secret(struct request *request)
{
    char *secret = NULL;
    json_t *webhook = NULL;
    TRY(service_webhook_rotate(request->context->service, request->who, request->captures[0], &secret, &webhook));
    show_secret_take(webhook, secret);
    return reply_json_take(request, 200, webhook);
}

int handlers_test_webhook(struct request *request)
{
    json_t *delivery = NULL;
    TRY(service_webhook_test(request->context->service, request->who, request->captures[0], &delivery));
    return reply_json_take(request, 202, delivery);
}

int handlers_list_webhook_deliveries(struct request *request)
{
    struct page page;
    json_t *list = NULL;
    query_page(&request->scratch->query, &page);
    TRY(service_delivery_list(request->context->service, request->who, request->captures[0], &page, &list));
    return reply_object_take(request, list);
}

int handlers_get_webhook_delivery(struct request *request)
{
    json_t *delivery = NULL;
    TRY(service_delivery_get(request->context->service, request->who, request->captures[0], request->captures[1],
                             &delivery));
    return reply_object_take(request, delivery);
}
