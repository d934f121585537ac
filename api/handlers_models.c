/* Registered checkpoints. */

#include "api/handlers.h"

#include "api/handlers_objects.h"
#include "api/reply.h"

int handlers_create_model(struct request *request)
{
    json_t *model = NULL;
    int rc = service_model_register(request->context->service, request->who, request->json, &request->scratch->errors,
                                    &model);
    return rc < 0 ? rc : reply_created_take(request, "/v1/models", model);
}

int handlers_list_models(struct request *request)
{
    return handlers_object_list(request, "mdl");
}

int handlers_get_model(struct request *request)
{
    return handlers_object_get(request, "mdl");
}

int handlers_delete_model(struct request *request)
{
    return handlers_object_delete(request, service_model_delete);
}
