/* Events of one job: a page of JSON, or a stream that follows the job to its end. */

#include "api/handlers.h"

#include "api/header.h"
#include "api/reply.h"
#include "api/stream.h"
#include "base/cleanup.h"

#include <string.h>

/* The event to continue after: Last-Event-ID (which browsers send when they reconnect) or ?after=. */
static int64_t start_after(struct request *request)
{
    const char *last = request_header(request, "Last-Event-ID");
    int64_t after = query_int(&request->scratch->query, "after", 0);
    if (last != NULL && last[0] != '\0') {
        (void)header_parse_u63(last, strlen(last), &after); /* it has been checked */
    }
    return after;
}

static int reply_page(struct request *request, const char *job, int64_t after)
{
    int limit = (int)query_int(&request->scratch->query, "limit", 20);
    json_t *events = NULL;
    int rc = service_job_events(request->context->service, request->who, job, after, limit + 1, &events, NULL);
    if (rc < 0) {
        return rc;
    }
    bool more = json_array_size(events) > (size_t)limit;
    if (more) {
        json_array_remove(events, (size_t)limit);
    }
    size_t count = json_array_size(events);
    json_t *first = count > 0 ? json_incref(json_object_get(json_array_get(events, 0), "seq")) : json_null();
    json_t *last = count > 0 ? json_incref(json_object_get(json_array_get(events, count - 1), "seq")) : json_null();
    return reply_object_take(request, json_pack("{s:s, s:o, s:o, s:o, s:b}", "object", "list", "data", events,
                                                "first_id", first, "last_id", last, "has_more", more));
}

int handlers_list_job_events(struct request *request)
{
    const char *id = request->captures[0];
    TRY(service_job_check(request->context->service, request->who, id));
    int offer = request_offer(request);
    if (offer < 0) {
        return offer;
    }
    int64_t after = start_after(request);
    if (offer == 0) {
        return reply_page(request, id, after);
    }
    return stream_events(request, id, after, offer == 1 ? STREAM_SSE : STREAM_NDJSON);
}
