/* Calibration records streamed into a job. The service tokenizes and stores them as they arrive; this file passes bytes
 * on and makes replies from the service's results: 409 with next_offset when the client's offset is another one, 422
 * with the counts when the set was declared complete too early. */

#include "api/handlers.h"

#include "api/reply.h"

#include <stdlib.h>

struct calibration_sink {
    struct service_upload *upload;
    bool complete;
};

/* Add the offset to continue at to a 409. */
static void add_next_offset(struct request *request, const char *id)
{
    struct err_record record;
    err_take(&record);
    json_t *job = NULL;
    if (service_job_get(request->context->service, request->who, id, &job) == 0) {
        const json_t *records = json_object_get(json_object_get(job, "calibration"), "records");
        request->extra = json_pack("{s:I}", "next_offset", json_integer_value(records));
        json_decref(job);
    }
    err_restore(&record);
}

static int calibration_open(struct request *request, void **state)
{
    const char *id = request->captures[0];
    struct calibration_sink *sink = calloc(1, sizeof(*sink));
    if (sink == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    const struct query *query = &request->scratch->query;
    sink->complete = query_int(query, "complete", 0) == 1;
    int rc =
        service_upload_open(request->context->service, request->who, id, query_int(query, "offset", -1), &sink->upload);
    if (rc < 0) {
        free(sink);
        if (rc == ERR_OFFSET_MISMATCH) {
            add_next_offset(request, id);
        }
        return rc;
    }
    *state = sink;
    return 0;
}

static int calibration_feed(void *state, const char *data, size_t size)
{
    struct calibration_sink *sink = state;
    return service_upload_feed(sink->upload, data, size);
}

static void calibration_abort(void *state)
{
    struct calibration_sink *sink = state;
    service_upload_abort(sink->upload);
    free(sink);
}

static int calibration_finish_take(struct request *request, void *state)
{
    struct calibration_sink *sink = state;
    json_t *answer = NULL;
    int rc = service_upload_end_take(sink->upload, sink->complete, &answer);
    free(sink);
    if (rc < 0) {
        request->extra = answer;
        return rc;
    }
    return reply_json_take(request, 200, answer);
}

const struct request_sink handlers_create_calibration_sink = {calibration_open, calibration_feed,
                                                              calibration_finish_take, calibration_abort};
