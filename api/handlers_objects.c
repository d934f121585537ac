/* Objects whose stored JSON is what clients get. */

#include "api/handlers_objects.h"

#include "api/reply.h"
#include "base/cleanup.h"

int handlers_object_get(struct request *request, const char *kind)
{
    json_t *body = NULL;
    TRY(service_object_get(request->context->service, request->who, kind, request->captures[0], &body));
    return reply_object_take(request, body);
}

int handlers_object_list(struct request *request, const char *kind)
{
    struct page page;
    json_t *list = NULL;
    query_page(&request->scratch->query, &page);
    int rc = service_object_list(request->context->service, request->who, kind, &page, &list);
    return rc < 0 ? rc : reply_object_take(request, list);
}

int handlers_object_delete(struct request *request,
                           int (*delete_object)(struct service *service, const struct principal *who, const char *id))
{
    TRY(delete_object(request->context->service, request->who, request->captures[0]));
    return reply_empty(request, 204);
}
