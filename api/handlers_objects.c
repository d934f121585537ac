/* Objects whose stored JSON is what clients get. */

#include "api/handlers_objects.h"

#include "api/reply.h"

const char *handlers_object_id(struct request *request, const char *kind)
{
    const char *id = request->captures[0];
    if (!id_valid(id, kind)) {
        err_raise(ERR_NOT_FOUND, "there is no object with this id");
        return NULL;
    }
    return id;
}

int handlers_object_get(struct request *request, const char *kind)
{
    const char *id = handlers_object_id(request, kind);
    json_t *body = NULL;
    int rc = id != NULL ? engine_object_get(request->context->engine, request->who, kind, id, &body) : ERR_NOT_FOUND;
    return rc < 0 ? rc : reply_object_take(request, body);
}

int handlers_object_list(struct request *request, const char *kind)
{
    struct page page;
    json_t *list = NULL;
    query_page(&request->scratch->query, &page);
    int rc = engine_object_list(request->context->engine, request->who, kind, &page, &list);
    return rc < 0 ? rc : reply_object_take(request, list);
}

int handlers_object_delete(struct request *request, const char *kind,
                           int (*delete_object)(struct engine *engine, const struct principal *who, const char *id))
{
    const char *id = handlers_object_id(request, kind);
    int rc = id != NULL ? delete_object(request->context->engine, request->who, id) : ERR_NOT_FOUND;
    return rc < 0 ? rc : reply_empty(request, 204);
}
