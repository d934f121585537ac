/* API keys, for administrators: of all projects. The text of a key is in the answer that made it, and in no log, list
 * or table; the route therefore takes no Idempotency-Key, whose answers are stored. */

#include "api/handlers.h"

#include "api/reply.h"
#include "base/cleanup.h"

#include <stdlib.h>
#include <string.h>

int handlers_create_api_key(struct request *request)
{
    char *text = NULL;
    json_t *key = NULL;
    TRY(service_key_create(request->context->service, request->json, &request->scratch->errors, &text, &key));
    json_object_set_new(key, "key", json_string(text));
    explicit_bzero(text, strlen(text));
    free(text);
    return reply_created_take(request, "/v1/api_keys", key);
}

int handlers_list_api_keys(struct request *request)
{
    struct page page;
    json_t *list = NULL;
    query_page(&request->scratch->query, &page);
    int rc = service_key_list(request->context->service, &page, &list);
    return rc < 0 ? rc : reply_object_take(request, list);
}

int handlers_get_api_key(struct request *request)
{
    json_t *key = NULL;
    int rc = service_key_get(request->context->service, request->captures[0], &key);
    return rc < 0 ? rc : reply_object_take(request, key);
}

int handlers_delete_api_key(struct request *request)
{
    TRY(service_key_revoke(request->context->service, request->captures[0]));
    request_forget_keys(request);
    return reply_empty(request, 204);
}
