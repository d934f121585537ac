#pragma once
/* Shared by the resources: ids from the path, objects and pages from the store. */

#include "api/request.h"

/* captures[0] when it is an id of that kind; else NULL with ERR_NOT_FOUND raised. */
const char *handlers_object_id(struct request *request, const char *kind);
/* 200 with the stored object. */
int handlers_object_get(struct request *request, const char *kind);
/* 200 with a page of stored objects. */
int handlers_object_list(struct request *request, const char *kind);
/* 204 after delete_object. */
int handlers_object_delete(struct request *request, const char *kind,
                           int (*delete_object)(struct engine *engine, const struct principal *who, const char *id));
