/* Projects and their quotas, for administrators. */

#include "api/handlers.h"

#include "api/reply.h"
#include "base/err.h"

int handlers_list_projects(struct request *request)
{
    struct page page;
    json_t *list = NULL;

    query_page(&request->scratch->query, &page);
    page.ascending = true;
    TRY(service_project_list(request->context->service, &page, &list));
    return reply_object_take(request, list);
}

int handlers_get_quota(struct request *request)
{
    json_t *quota = NULL;

    TRY(service_quota_get(request->context->service, request->captures[0], &quota));
    return reply_object_take(request, quota);
}

int handlers_set_quota(struct request *request)
{
    json_t *quota = NULL;

    TRY(service_quota_set(request->context->service, request->captures[0], request->json, &request->scratch->errors,
                          &quota));
    return reply_json_take(request, 200, quota);
}
