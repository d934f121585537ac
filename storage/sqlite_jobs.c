/* Jobs as rows. Every change names the status and the fence that it expects; a change that matches no row is a conflict
 * and changes nothing. What a status means, and which follows on which, is the callers' business. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/ids.h"

#include <stdio.h>
#include <string.h>

int sqlite_job_missing(const char *id)
{
    return err_raise(ERR_NOT_FOUND, "there is no job \"%.80s\"", id);
}

int sqlite_job_select(struct state *state, const char *project, const char *id, struct job_row *job)
{
    struct sqlite_query query = {0};
    sqlite3_stmt *row;

    sqlite_query_add(&query, "SELECT ");
    sqlite_query_add(&query, sqlite_job_columns());
    sqlite_query_add(&query, " FROM jobs WHERE id = ? AND project = COALESCE(?, project)");
    sqlite_query_text(&query, id);
    sqlite_query_text(&query, project);
    int rc = sqlite_query_first(state, &query, &row);
    if (rc > 0) {
        rc = sqlite_job_read(row, job);
        sqlite_done(row);
        return rc;
    }
    return rc < 0 ? rc : sqlite_job_missing(id);
}

static int select_status(struct state *state, const char *project, const char *id, struct store_status *out)
{
    sqlite3_stmt *row;
    enum job_status status;

    int rc =
        sqlite_first(state, &row, "SELECT status, fence, seq FROM jobs WHERE id = ? AND project = COALESCE(?, project)",
                     "tt", id, project);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_job_missing(id);
    }
    rc = sqlite_column_status(row, 0, &status);
    if (rc == 0) {
        *out = (struct store_status){
            .status = status, .fence = sqlite3_column_int64(row, 1), .seq = sqlite3_column_int64(row, 2)};
    }
    sqlite_done(row);
    return rc;
}

/* What lists filter by: each member of the request's metadata with its value. */
static int index_metadata(struct state *state, const char *id)
{
    TRY(sqlite_run(state, NULL, "DELETE FROM job_metadata WHERE job = ?", "t", id));
    return sqlite_run(state, NULL,
                      "INSERT INTO job_metadata (project, key, value, job) SELECT jobs.project, m.key, m.atom, jobs.id"
                      " FROM jobs, json_each(jobs.request, '$.metadata') AS m WHERE jobs.id = ? AND m.type = 'text'",
                      "t", id);
}

static int insert_job(struct state *state, const struct job_row *job)
{
    struct sqlite_query query = {0};
    struct job_row row = *job;

    row.seq = 0;
    row.created_at = job->created_at != 0 ? job->created_at : clock_unix_seconds();
    sqlite_query_add(&query, "INSERT INTO jobs (");
    sqlite_query_add(&query, sqlite_job_columns());
    sqlite_query_add(&query, ") VALUES (");
    sqlite_query_add(&query, sqlite_job_marks());
    sqlite_query_add(&query, ")");
    sqlite_job_bind(&query, &row);
    TRY(sqlite_query_run(state, &query, NULL));
    return index_metadata(state, job->id);
}

static int job_create_in(struct state *state, struct state_args *args)
{
    const struct job_row *job = args->job_new;

    TRY(insert_job(state, job));
    if (args->event != NULL) {
        TRY(sqlite_event_add(state, args, job->id, args->event, args->event_data));
    }
    return args->key != NULL ? sqlite_idempotency_made(state, args->key, job->id) : 0;
}

int sqlite_job_create(struct state *state, struct state_args *args)
{
    const struct job_row *job = args->job_new;

    if (job->id == NULL || job->project == NULL || (unsigned)job->status >= STATUS_COUNT) {
        return err_raise(ERR_INTERNAL, "a job without id, status or project cannot be stored");
    }
    TRY(sqlite_begin(state));
    return sqlite_end(state, job_create_in(state, args));
}

int sqlite_job_get(struct state *state, struct state_args *args)
{
    return sqlite_job_select(state, args->project, args->id, args->row);
}

int sqlite_job_status(struct state *state, struct state_args *args)
{
    return select_status(state, args->project, args->id, args->status);
}

/* No row matched: say whether that is because there is no such job or because it has moved on. */
static int conflict(struct state *state, const struct job_update *update)
{
    struct store_status found = {.status = STATUS_NONE};

    TRY(select_status(state, NULL, update->id, &found));
    return update->from != STATUS_ANY && found.status != update->from
               ? err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s and not %s", job_status_name(found.status),
                           job_status_name(update->from))
               : err_raise(ERR_JOB_STATE_CONFLICT, "the job is at fence %lld and not %lld", (long long)found.fence,
                           (long long)update->fence);
}

int sqlite_job_set(struct state *state, const struct job_update *update)
{
    struct sqlite_query query = {0};
    int64_t changes = 0;

    sqlite_query_add(&query, "UPDATE jobs SET id = id");
    if (update->set != 0) {
        sqlite_job_assign(&query, update->set, update->row);
    }
    sqlite_query_add(&query, " WHERE id = ?");
    sqlite_query_text(&query, update->id);
    if (update->from != STATUS_ANY) {
        sqlite_query_add(&query, " AND status = ?");
        sqlite_query_text(&query, job_status_name(update->from));
    }
    if (update->fence >= 0) {
        sqlite_query_add(&query, " AND fence = ?");
        sqlite_query_int(&query, update->fence);
    }
    TRY(sqlite_query_run(state, &query, &changes));
    if (changes == 0) {
        return conflict(state, update);
    }
    return (update->set & JOB_SET_REQUEST) != 0 ? index_metadata(state, update->id) : 0;
}

/* The artifact belongs to its job's project. */
static int publish_artifact(struct state *state, const struct job_update *update)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT project FROM jobs WHERE id = ?", "t", update->id);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_job_missing(update->id);
    }
    rc = sqlite_object_store(state, (const char *)sqlite3_column_text(row, 0), "art", update->artifact);
    sqlite_done(row);
    return rc;
}

static int update_job(struct state *state, struct state_args *args, struct job_row *after)
{
    const struct job_update *update = args->update;

    TRY(sqlite_job_set(state, update));
    if (update->clears_blocks) {
        TRY(sqlite_run(state, NULL, "DELETE FROM blocks WHERE job = ?", "t", update->id));
    }
    if (update->artifact != NULL) {
        TRY(publish_artifact(state, update));
    }
    if (update->event != NULL) {
        TRY(sqlite_event_add(state, args, update->id, update->event, update->event_data));
    }
    if (update->message != NULL) {
        TRY(sqlite_delivery_announce(state, args));
    }
    return args->row != NULL ? sqlite_job_select(state, NULL, update->id, after) : 0;
}

/* Hand a row to the caller once its transaction is committed. */
static int give_row(int rc, struct job_row *job, struct job_row *out)
{
    if (rc != 0 || out == NULL) {
        job_row_deinit(job);
        return rc;
    }
    *out = *job;
    return 0;
}

int sqlite_job_update(struct state *state, struct state_args *args)
{
    struct job_row job = {0};

    TRY(sqlite_begin(state));
    return give_row(sqlite_end(state, update_job(state, args, &job)), &job, args->row);
}

/* How many jobs a project may run that says nothing of that. */
static int64_t default_running(const struct state_args *args)
{
    int64_t most = args->limits[QUOTA_RUNNING_JOBS];

    return most != QUOTA_UNSET ? most : INT64_MAX;
}

#define WANTED_DEVICE "json_extract(CASE WHEN json_valid(request) THEN request END, '$.resources.device')"

static int claim(struct state *state, struct state_args *args, struct job_row *job)
{
    static const char next[] =
        "UPDATE jobs SET status = ?, status_reason = NULL, attempt = attempt + 1, fence = fence + 1,"
        " started_at = COALESCE(started_at, ?), worker = ? WHERE id = (SELECT id FROM jobs WHERE status = ?"
        " AND (COALESCE(" WANTED_DEVICE ", 'auto') IN ('auto', '', ?)"
        " OR " WANTED_DEVICE " NOT IN (SELECT value FROM json_each(COALESCE(?, json_array(" WANTED_DEVICE ")))))"
        " AND project NOT IN (SELECT c.project FROM job_counts AS c LEFT JOIN quotas AS q ON q.project = c.project"
        " GROUP BY c.project HAVING SUM(c.n) FILTER (WHERE c.status IN ('running', 'pausing', 'cancelling')) >="
        " COALESCE(q.max_running_jobs, ?) OR COALESCE(q.max_running_jobs, ?) = 0)"
        " ORDER BY priority DESC, queued_at, id LIMIT 1) RETURNING id, attempt, fence";
    int64_t most = default_running(args);
    const char *from = job_status_name(args->from), *to = job_status_name(args->to);
    sqlite3_stmt *row;
    char id[ID_SIZE];

    int rc = sqlite_first(state, &row, next, "tittttii", to, clock_unix_seconds(), args->worker, from, args->worker,
                          args->others, most, most);
    if (rc <= 0) {
        return rc < 0 ? rc : err_raise(ERR_NOT_FOUND, "no job waits");
    }
    snprintf(id, sizeof(id), "%s", (const char *)sqlite3_column_text(row, 0));
    AUTO_JSON json_t *data = json_pack("{s:s, s:s, s:I, s:I, s:s?}", "status", to, "from", from, "attempt",
                                       (json_int_t)sqlite3_column_int64(row, 1), "fence",
                                       (json_int_t)sqlite3_column_int64(row, 2), "worker", args->worker);
    /* Stepped to its end: RETURNING has made the change already, but an open statement would hold the commit up. */
    TRY(sqlite_next(state, row));
    TRY(sqlite_event_add(state, args, id, "status", data));
    return sqlite_job_select(state, NULL, id, job);
}

int sqlite_job_claim(struct state *state, struct state_args *args)
{
    struct job_row job = {0};

    TRY(sqlite_begin(state));
    return give_row(sqlite_end(state, claim(state, args, &job)), &job, args->row);
}

int sqlite_job_delete(struct state *state, struct state_args *args)
{
    int64_t changes = 0;

    TRY(sqlite_run(state, &changes, "DELETE FROM jobs WHERE id = ?", "t", args->id));
    return changes > 0 ? 0 : sqlite_job_missing(args->id);
}

int sqlite_job_ahead(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc =
        sqlite_first(state, &row,
                     "SELECT COUNT(*) FROM jobs AS other, jobs AS own WHERE own.id = ? AND other.status = own.status"
                     " AND (other.priority > own.priority OR (other.priority = own.priority AND"
                     " (other.queued_at < own.queued_at OR (other.queued_at = own.queued_at AND other.id < own.id))))"
                     " AND COALESCE((SELECT max_running_jobs FROM quotas WHERE project = other.project), ?) > 0",
                     "ti", args->id, default_running(args));
    if (rc > 0) {
        *args->counts = sqlite3_column_int64(row, 0);
        sqlite_done(row);
        return 0;
    }
    return rc;
}

int sqlite_job_counts(struct state *state, struct state_args *args)
{
    int64_t counts[STATUS_COUNT] = {0};
    sqlite3_stmt *row;
    enum job_status status;

    int rc = sqlite_first(state, &row, "SELECT status, n FROM job_counts WHERE project = COALESCE(?, project)", "t",
                          args->project);
    for (; rc > 0; rc = sqlite_next(state, row)) {
        rc = sqlite_column_status(row, 0, &status);
        if (rc != 0) {
            sqlite_done(row);
            return rc;
        }
        counts[status] += sqlite3_column_int64(row, 1);
    }
    if (rc == 0) {
        memcpy(args->counts, counts, sizeof(counts));
    }
    return rc;
}
