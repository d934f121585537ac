/* The state machine of a job: one table, and every other move is refused.
 *
 *   awaiting_calibration -> queued -> running -> succeeded | failed
 *                                       running -> queued (requeue), running -> cancelling -> cancelled
 *
 * A move is one store transaction that names the state it leaves, so two actors cannot both make it. */

#include "jobs/job.h"

#include "base/err.h"
#include "jobs/jobs.h"
#include "storage/storage.h"

#include <stddef.h>
#include <string.h>

#define MOVE_TRIES 8 /* the status may change between looking and moving; it can do so only a few times */

const struct job_transition job_transitions[] = {
    {"awaiting_calibration", JOB_COMPLETE, "queued"},
    {"awaiting_calibration", JOB_CANCEL, "cancelled"},
    {"queued", JOB_CLAIM, "running"},
    {"queued", JOB_CANCEL, "cancelled"},
    {"running", JOB_REQUEUE, "queued"},
    {"running", JOB_CANCEL, "cancelling"},
    {"running", JOB_SUCCEED, "succeeded"},
    {"running", JOB_FAIL, "failed"},
    {"cancelling", JOB_STOPPED, "cancelled"},
    {NULL, JOB_COMPLETE, NULL},
};

const char *job_first_state(bool streams_calibration)
{
    return streams_calibration ? "awaiting_calibration" : "queued";
}

const char *job_next(const char *from, enum job_event event)
{
    for (const struct job_transition *row = job_transitions; row->from != NULL; row++) {
        if (row->event == event && strcmp(row->from, from) == 0) {
            return row->to;
        }
    }
    return NULL;
}

bool job_is_terminal(const char *status)
{
    return strcmp(status, "succeeded") == 0 || strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0;
}

/* The state that `event` leaves, where there is only one; else NULL. */
static const char *job_only_from(enum job_event event)
{
    const char *from = NULL;

    for (const struct job_transition *row = job_transitions; row->from != NULL; row++) {
        if (row->event == event) {
            if (from != NULL) {
                return NULL;
            }
            from = row->from;
        }
    }
    return from;
}

/* A success has no reason: what it made stands in its place. */
static json_t *job_status_data(const char *to, const char *from, const char *reason, const json_t *made)
{
    json_t *data = made != NULL ? json_pack("{s:s, s:s?}", "status", to, "from", from)
                                : json_pack("{s:s, s:s?, s:s?}", "status", to, "from", from, "reason", reason);

    if (data != NULL && made != NULL && json_object_update(data, (json_t *)made) != 0) {
        json_decref(data);
        return NULL;
    }
    return data;
}

/* The columns that follow from a move. */
static int job_set_columns(json_t *columns, const char *to, enum job_event event, const char *reason)
{
    json_int_t now = clock_unix_seconds();
    int rc = json_object_set_new(columns, "status", json_string(to));

    if (event == JOB_SUCCEED) {
        rc |= json_object_set_new(columns, "status_reason", json_null());
    } else if (reason != NULL) {
        rc |= json_object_set_new(columns, "status_reason", json_string(reason));
    }
    if (job_is_terminal(to)) {
        rc |= json_object_set_new(columns, "finished_at", json_integer(now));
    }
    if (event == JOB_CANCEL) {
        rc |= json_object_set_new(columns, "cancelled_at", json_integer(now));
    }
    if (event == JOB_COMPLETE) {
        rc |= json_object_set_new(columns, "queued_at", json_integer(now));
    }
    if (event == JOB_REQUEUE) {
        rc |= json_object_set_new(columns, "worker", json_null());
    }
    if (job_is_terminal(to) || event == JOB_REQUEUE) {
        rc |= json_object_set_new(columns, "phase", json_null());
    }
    return rc != 0 ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job's columns") : 0;
}

static int job_move_from(struct store *store, const char *id, const char *from, enum job_event event,
                         const struct job_change *change, json_t **row)
{
    const char *to = job_next(from, event);

    if (to == NULL) {
        return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s", from);
    }
    json_t *columns = change->columns != NULL ? json_copy(change->columns) : json_object();
    json_t *data = job_status_data(to, from, change->reason, change->made);
    int rc = columns == NULL || data == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to move a job")
                                             : job_set_columns(columns, to, event, change->reason);
    if (rc == 0) {
        rc = change->artifact != NULL ? store_artifact_publish(store, id, from, change->fence, change->artifact,
                                                               columns, "status", data, row)
                                      : store_job_update(store, id, from, change->fence, columns, "status", data, row);
    }
    json_decref(columns);
    json_decref(data);
    return rc;
}

/* From whichever state the job is in. */
static int job_move_any(struct store *store, const char *id, enum job_event event, const struct job_change *change,
                        json_t **row)
{
    int rc = 0;

    for (int i = 0; i < MOVE_TRIES; i++) {
        struct store_status found;
        TRY(store_job_status(store, NULL, id, &found));
        if (job_next(found.status, event) == NULL) {
            return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s", found.status);
        }
        rc = job_move_from(store, id, found.status, event, change, row);
        if (rc != ERR_JOB_STATE_CONFLICT) {
            return rc;
        }
    }
    return rc;
}

int job_move(struct store *store, const char *id, enum job_event event, const struct job_change *change, json_t **row)
{
    const char *from = job_only_from(event);
    int rc =
        from != NULL ? job_move_from(store, id, from, event, change, row) : job_move_any(store, id, event, change, row);

    json_decref(change->columns);
    json_decref(change->made);
    return rc;
}

int job_claim(struct store *store, const char *worker, json_t **row)
{
    const char *from = job_only_from(JOB_CLAIM);

    return store_job_claim(store, from, job_next(from, JOB_CLAIM), worker, row);
}

int job_create(struct store *store, json_t *row, bool streams_calibration, const struct idempotency_key *idempotency)
{
    const char *status = job_first_state(streams_calibration);
    json_t *data = job_status_data(status, NULL, NULL, NULL);
    json_t *queued_at = streams_calibration ? json_null() : json_incref(json_object_get(row, "created_at"));
    bool set = json_object_set_new(row, "status", json_string(status)) == 0 &&
               json_object_set_new(row, "queued_at", queued_at) == 0;
    int rc = data == NULL || !set ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job")
                                  : store_job_create(store, row, "status", data, idempotency);
    json_decref(data);
    return rc;
}
