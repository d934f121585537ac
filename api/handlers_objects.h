#pragma once
/* Shared by the resources: objects and pages from the store. The id is captures[0]. */

#include "api/request.h"

/* 200 with the stored object. */
int handlers_object_get(struct request *request, const char *kind);
/* 200 with a page of stored objects. */
int handlers_object_list(struct request *request, const char *kind);
/* 204 after delete_object. */
int handlers_object_delete(struct request *request,
                           int (*delete_object)(struct service *service, const struct principal *who, const char *id));
/* Content-Digest: sha-256=:base64: must match when it is sent (RFC 9530); other algorithms are ignored. */
bool handlers_states_digest(const struct request *request);
int handlers_check_digest(const struct request *request, const char *sha256);
