/* Objects whose stored JSON is what clients get. */

#include "api/handlers_objects.h"

#include "api/reply.h"
#include "base/cleanup.h"

#include <string.h>

#define DIGEST_FIELD "sha-256=:"

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

static const char *stated_digest(const struct request *request)
{
    const char *value = request_header(request, "Content-Digest");
    const char *stated = value != NULL ? strstr(value, DIGEST_FIELD) : NULL;
    return stated != NULL ? stated + strlen(DIGEST_FIELD) : NULL;
}

bool handlers_states_digest(const struct request *request)
{
    return stated_digest(request) != NULL;
}

int handlers_check_digest(const struct request *request, const char *sha256)
{
    const char *stated = stated_digest(request);
    char digest[DIGEST_BASE64_SIZE];

    if (stated == NULL) {
        return 0;
    }
    digest_base64(sha256, digest);
    size_t length = strlen(digest);
    if (strncmp(stated, digest, length) == 0 && stated[length] == ':') {
        return 0;
    }
    int rc = err_raise(ERR_DIGEST_MISMATCH, "the body's SHA-256 is %s, not what Content-Digest states", sha256);
    return err_set_param(rc, "Content-Digest");
}
