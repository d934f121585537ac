/* Moves of jobs. A move is one store transaction that names the state it leaves, so two actors cannot both make it. */

#include "jobs/job.h"

#include "base/err.h"
#include "base/log.h"
#include "base/trace.h"
#include "jobs/metrics.h"
#include "jobs/webhooks.h"

#include <stddef.h>

#define MOVE_TRIES 8 /* the status may change between looking and moving; it can do so only a few times */

/* The state that `event` leaves, where there is only one; else STATUS_NONE. */
static enum job_status job_only_from(enum job_event event)
{
    enum job_status from = STATUS_NONE;

    for (const struct job_transition *row = job_transitions; row->from != STATUS_NONE; row++) {
        if (row->event == event) {
            if (from != STATUS_NONE) {
                return STATUS_NONE;
            }
            from = row->from;
        }
    }
    return from;
}

/* A success has no reason: what it made stands in its place. */
static json_t *job_status_data(enum job_status to, enum job_status from, const char *reason, const json_t *made)
{
    const char *left = from != STATUS_NONE ? job_status_name(from) : NULL;
    json_t *data = made != NULL
                       ? json_pack("{s:s, s:s?}", "status", job_status_name(to), "from", left)
                       : json_pack("{s:s, s:s?, s:s?}", "status", job_status_name(to), "from", left, "reason", reason);

    if (data != NULL && made != NULL && json_object_update(data, (json_t *)made) != 0) {
        json_decref(data);
        return NULL;
    }
    return data;
}

/* The columns that follow from a move; returns which. */
static unsigned job_follow(struct job_row *row, enum job_status to, enum job_event event, const char *reason)
{
    int64_t now = clock_unix_seconds();
    unsigned set = JOB_SET_STATUS;

    row->status = to;
    if (event == JOB_SUCCEED || reason != NULL) {
        row->status_reason = event == JOB_SUCCEED ? NULL : reason;
        set |= JOB_SET_STATUS_REASON;
    }
    if (job_status_is_final(to)) {
        row->finished_at = now;
        set |= JOB_SET_FINISHED_AT;
    }
    if (event == JOB_CANCEL) {
        row->cancelled_at = now;
        set |= JOB_SET_CANCELLED_AT;
    }
    if (event == JOB_COMPLETE || event == JOB_RETRY) {
        row->queued_at = now;
        set |= JOB_SET_QUEUED_AT;
    }
    if (event == JOB_RETRY) {
        row->finished_at = row->cancelled_at = 0;
        row->error = NULL;
        row->worker = NULL;
        set |= JOB_SET_FINISHED_AT | JOB_SET_CANCELLED_AT | JOB_SET_ERROR | JOB_SET_WORKER;
    }
    if (event == JOB_REQUEUE) {
        row->worker = NULL;
        set |= JOB_SET_WORKER;
    }
    if (job_status_is_final(to) || event == JOB_REQUEUE) {
        row->phase = NULL;
        set |= JOB_SET_PHASE;
    }
    return set;
}

/* The one log line of a change of status. */
static void log_status(const struct job_row *job, enum job_status from, const char *reason)
{
    char trace[TRACE_ID_SIZE];
    bool failed = job->status == STATUS_FAILED;

    trace_id(job->traceparent, trace);
    LOG_AT(failed ? LOG_WARN : LOG_INFO, "job status", LOG_S("job", job->id),
           LOG_S("from", from != STATUS_NONE ? job_status_name(from) : NULL), LOG_S("to", job_status_name(job->status)),
           LOG_I("attempt", job->attempt), LOG_S("reason", reason),
           LOG_S("error", json_string_value(json_object_get(job->error, "message"))),
           trace[0] != '\0' ? LOG_S("trace_id", trace) : LOG_END, LOG_END);
}

static int job_move_from(struct store *store, const char *id, enum job_status from, enum job_event event,
                         const struct job_change *change, struct job_row *after)
{
    enum job_status to = job_next(from, event);
    struct job_row row = {0};

    if (to == STATUS_NONE) {
        return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s", job_status_name(from));
    }
    AUTO_JSON json_t *data = job_status_data(to, from, change->reason, change->made);
    if (data == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to move a job");
    }
    if (change->row != NULL) {
        row = *change->row;
    }
    const struct job_update update = {
        .id = id,
        .from = from,
        .fence = change->fence,
        .set = change->set | job_follow(&row, to, event, change->reason),
        .row = &row,
        .event = "status",
        .event_data = data,
        .artifact = change->artifact,
        .message = webhook_type_of(to),
        .message_body = webhook_message,
    };
    AUTO(job_row) struct job_row moved = {0};
    after = after != NULL ? after : &moved;
    int rc = store_job_update(store, &update, after);
    if (rc == 0) {
        log_status(after, from, change->reason);
    }
    if (rc == 0 && job_status_is_final(to)) {
        metrics_job_finished(after->method, to);
    }
    return rc;
}

/* From whichever state the job is in. */
static int job_move_any(struct store *store, const char *id, enum job_event event, const struct job_change *change,
                        struct job_row *after)
{
    int rc = 0;

    for (int i = 0; i < MOVE_TRIES; i++) {
        struct store_status found;
        TRY(store_job_status(store, NULL, id, &found));
        if (job_next(found.status, event) == STATUS_NONE) {
            return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s", job_status_name(found.status));
        }
        rc = job_move_from(store, id, found.status, event, change, after);
        if (rc != ERR_JOB_STATE_CONFLICT) {
            return rc;
        }
    }
    return rc;
}

int job_move(struct store *store, const char *id, enum job_event event, const struct job_change *change,
             struct job_row *after)
{
    enum job_status from = job_only_from(event);

    return from != STATUS_NONE ? job_move_from(store, id, from, event, change, after)
                               : job_move_any(store, id, event, change, after);
}

int job_claim(struct store *store, const char *worker, const char *others, struct job_row *job)
{
    enum job_status from = job_only_from(JOB_CLAIM);

    TRY(store_job_claim(store, from, job_next(from, JOB_CLAIM), worker, others, job));
    metrics_job_claimed(job);
    log_status(job, from, NULL);
    return 0;
}

int job_create(struct store *store, const struct job_row *job, bool streams_calibration,
               const struct idempotency_key *idempotency)
{
    struct job_row row = *job;

    row.status = job_first_state(streams_calibration);
    row.queued_at = streams_calibration ? 0 : row.created_at;
    AUTO_JSON json_t *data = job_status_data(row.status, STATUS_NONE, NULL, NULL);
    if (data == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    TRY(store_job_create(store, &row, "status", data, idempotency));
    log_status(&row, STATUS_NONE, NULL);
    return 0;
}
