/* Jobs as rows. One list of columns words the INSERT, the SELECT, what a patch may set, and how each becomes JSON.
 *
 * Every change names the status and the fence that it expects; a change that matches no row is a conflict and changes
 * nothing. What a status means, and which follows on which, is the callers' business. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"

#include <string.h>

/* X(column, type): t = text, i = integer, j = JSON. id first. priority is not here: it is derived from request. */
/* clang-format off */
#define JOB_COLUMNS(X)                                                                                \
    X(id, 't') X(status, 't') X(status_reason, 't') X(phase, 't') X(name, 't') X(project, 't')        \
    X(model, 't') X(method, 't') X(request, 'j') X(progress, 'j') X(memory, 'j') X(result, 'j')       \
    X(error, 'j') X(warnings, 'j') X(checkpoint, 'j') X(calibration, 'j') X(worker, 't')              \
    X(attempt, 'i') X(fence, 'i') X(seq, 'i') X(created_at, 'i') X(queued_at, 'i') X(started_at, 'i') \
    X(finished_at, 'i') X(cancelled_at, 'i')
/* clang-format on */

static const struct column {
    const char *name;
    char type;
    const char *assignment; /* ", name = ?" */
} columns[] = {
#define X(name, type) {#name, type, ", " #name " = ?"},
    JOB_COLUMNS(X)
#undef X
};

#define COLUMN_COUNT ((int)(sizeof(columns) / sizeof(columns[0])))

/* "id, status, ..., priority": the rows' own columns and the one that only the claim reads. */
#define X(name, type) #name ", "
static const char select_list[] = JOB_COLUMNS(X) "priority";
#undef X
#define X(name, type) "?, "
static const char insert_marks[] = JOB_COLUMNS(X) "?";
#undef X

static int job_to_json(sqlite3_stmt *row, json_t **out)
{
    json_t *job = json_object();

    for (int i = 0; i < COLUMN_COUNT; i++) {
        json_t *value = NULL;
        int rc = 0;
        if (columns[i].type == 'j') {
            rc = sqlite_column_json(row, i, &value);
        } else {
            value = columns[i].type == 't' ? sqlite_column_text_json(row, i) : sqlite_column_int_json(row, i);
        }
        if (rc == 0 && json_object_set_new(job, columns[i].name, value) != 0) {
            rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
        }
        if (rc != 0) {
            json_decref(job);
            return rc;
        }
    }
    *out = job;
    return 0;
}

/* Add one column's value, checked against its type. */
static int sqlite_jobs_add_value(struct sqlite_query *query, const struct column *column, const json_t *value)
{
    if (value == NULL || json_is_null(value)) {
        sqlite_query_text(query, NULL);
        return 0;
    }
    if (column->type == 'j') {
        sqlite_query_json(query, value);
    } else if (column->type == 't' && json_is_string(value)) {
        sqlite_query_text(query, json_string_value(value));
    } else if (column->type == 'i' && json_is_integer(value)) {
        sqlite_query_int(query, json_integer_value(value));
    } else {
        return err_raise(ERR_INTERNAL, "job column %s cannot hold a JSON value of type %d", column->name,
                         (int)json_typeof(value));
    }
    return 0;
}

static int64_t priority_of(const json_t *request)
{
    return json_integer_value(json_object_get(request, "priority"));
}

int sqlite_job_missing(const char *id)
{
    return err_raise(ERR_NOT_FOUND, "there is no job \"%.80s\"", id);
}

/* The row of a job of the project; NULL = of any. */
static int select_job(struct state *state, const char *project, const char *id, json_t **job)
{
    struct sqlite_query query = {0};
    sqlite3_stmt *row;

    sqlite_query_add(&query, "SELECT ");
    sqlite_query_add(&query, select_list);
    sqlite_query_add(&query, " FROM jobs WHERE id = ? AND project = COALESCE(?, project)");
    sqlite_query_text(&query, id);
    sqlite_query_text(&query, project);
    int rc = sqlite_query_first(state, &query, &row);
    if (rc > 0) {
        rc = job_to_json(row, job);
        sqlite_done(row);
        return rc;
    }
    return rc < 0 ? rc : sqlite_job_missing(id);
}

static int select_status(struct state *state, const char *project, const char *id, struct store_status *out)
{
    sqlite3_stmt *row;

    int rc =
        sqlite_first(state, &row, "SELECT status, fence, seq FROM jobs WHERE id = ? AND project = COALESCE(?, project)",
                     "tt", id, project);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_job_missing(id);
    }
    snprintf(out->status, sizeof(out->status), "%s", (const char *)sqlite3_column_text(row, 0));
    out->fence = sqlite3_column_int64(row, 1);
    out->seq = sqlite3_column_int64(row, 2);
    sqlite_done(row);
    return 0;
}

static int insert_job(struct state *state, const json_t *job)
{
    static const int64_t zero = 0;
    struct sqlite_query query = {0};

    sqlite_query_add(&query, "INSERT INTO jobs (");
    sqlite_query_add(&query, select_list);
    sqlite_query_add(&query, ") VALUES (");
    sqlite_query_add(&query, insert_marks);
    sqlite_query_add(&query, ")");
    for (int i = 0; i < COLUMN_COUNT; i++) {
        const struct column *column = &columns[i];
        const json_t *value = json_object_get(job, column->name);
        bool missing = value == NULL || json_is_null(value);
        if (strcmp(column->name, "seq") == 0) {
            sqlite_query_int(&query, zero);
        } else if (missing && strcmp(column->name, "created_at") == 0) {
            sqlite_query_int(&query, clock_unix_seconds());
        } else if (missing && (strcmp(column->name, "attempt") == 0 || strcmp(column->name, "fence") == 0)) {
            sqlite_query_int(&query, zero);
        } else {
            int rc = sqlite_jobs_add_value(&query, column, value);
            if (rc != 0) {
                return rc;
            }
        }
    }
    sqlite_query_int(&query, priority_of(json_object_get(job, "request")));
    return sqlite_query_run(state, &query, NULL);
}

int sqlite_job_create(struct state *state, struct state_args *args)
{
    const char *id = json_get_string(args->body, "id");

    if (id == NULL || json_get_string(args->body, "status") == NULL || json_get_string(args->body, "project") == NULL) {
        return err_raise(ERR_INTERNAL, "a job without id, status or project cannot be stored");
    }
    int rc = sqlite_begin(state);
    if (rc != 0) {
        return rc;
    }
    rc = insert_job(state, args->body);
    if (rc == 0 && args->event != NULL) {
        rc = sqlite_event_add(state, args, id, args->event, args->event_data);
    }
    if (rc == 0 && args->key != NULL) {
        rc = sqlite_idempotency_made(state, args->key, id);
    }
    return sqlite_end(state, rc);
}

int sqlite_job_get(struct state *state, struct state_args *args)
{
    return select_job(state, args->project, args->id, args->out);
}

int sqlite_job_status(struct state *state, struct state_args *args)
{
    return select_status(state, args->project, args->id, args->status);
}

int sqlite_job_list(struct state *state, struct state_args *args)
{
    return sqlite_list(state, NULL, select_list, args->page, job_to_json, args->out);
}

static const struct column *find_patchable(const char *name)
{
    for (int i = 0; i < COLUMN_COUNT; i++) {
        if (strcmp(columns[i].name, name) == 0) {
            return strcmp(name, "id") == 0 || strcmp(name, "seq") == 0 ? NULL : &columns[i];
        }
    }
    return NULL;
}

/* No row matched: say whether that is because there is no such job or because it has moved on. */
static int conflict(struct state *state, const char *id, const char *from, int64_t fence)
{
    struct store_status found;

    int rc = select_status(state, NULL, id, &found);
    if (rc != 0) {
        return rc;
    }
    return from != NULL && strcmp(found.status, from) != 0
               ? err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s and not %s", found.status, from)
               : err_raise(ERR_JOB_STATE_CONFLICT, "the job is at fence %lld and not %lld", (long long)found.fence,
                           (long long)fence);
}

int sqlite_job_patch(struct state *state, const char *id, const char *from, int64_t fence, const json_t *patch)
{
    struct sqlite_query query = {0};
    const char *name;
    json_t *value;
    int64_t changes = 0;

    sqlite_query_add(&query, "UPDATE jobs SET id = id");
    json_object_foreach((json_t *)patch, name, value)
    {
        const struct column *column = find_patchable(name);
        if (column == NULL) {
            return err_raise(ERR_INTERNAL, "\"%.64s\" is no job column that can be set", name);
        }
        sqlite_query_add(&query, column->assignment);
        int rc = sqlite_jobs_add_value(&query, column, value);
        if (rc != 0) {
            return rc;
        }
    }
    if (json_object_get(patch, "request") != NULL) {
        sqlite_query_add(&query, ", priority = ?");
        sqlite_query_int(&query, priority_of(json_object_get(patch, "request")));
    }
    sqlite_query_add(&query, " WHERE id = ?");
    sqlite_query_text(&query, id);
    if (from != NULL) {
        sqlite_query_add(&query, " AND status = ?");
        sqlite_query_text(&query, from);
    }
    if (fence >= 0) {
        sqlite_query_add(&query, " AND fence = ?");
        sqlite_query_int(&query, fence);
    }
    int rc = sqlite_query_run(state, &query, &changes);
    return rc != 0 || changes > 0 ? rc : conflict(state, id, from, fence);
}

/* The artifact belongs to its job's project. */
static int store_artifact(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT project FROM jobs WHERE id = ?", "t", args->id);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_job_missing(args->id);
    }
    rc = sqlite_object_store(state, (const char *)sqlite3_column_text(row, 0), "art", args->body);
    sqlite_done(row);
    return rc;
}

int sqlite_job_update(struct state *state, struct state_args *args)
{
    json_t *job = NULL;

    int rc = sqlite_begin(state);
    if (rc != 0) {
        return rc;
    }
    rc = sqlite_job_patch(state, args->id, args->from, args->fence, args->patch);
    if (rc == 0 && args->body != NULL) {
        rc = store_artifact(state, args);
    }
    if (rc == 0 && args->event != NULL) {
        rc = sqlite_event_add(state, args, args->id, args->event, args->event_data);
    }
    if (rc == 0 && args->out != NULL) {
        rc = select_job(state, NULL, args->id, &job);
    }
    rc = sqlite_end(state, rc);
    if (rc != 0) {
        json_decref(job);
    } else if (args->out != NULL) {
        *args->out = job;
    }
    return rc;
}

static int claim(struct state *state, struct state_args *args, json_t **job)
{
    static const char next[] =
        "UPDATE jobs SET status = ?, status_reason = NULL, attempt = attempt + 1, fence = fence + 1,"
        " started_at = COALESCE(started_at, ?), worker = ? WHERE id = (SELECT id FROM jobs WHERE status = ?"
        " ORDER BY priority DESC, queued_at, id LIMIT 1) RETURNING id, attempt, fence";
    sqlite3_stmt *row;
    char id[ID_SIZE];

    int rc = sqlite_first(state, &row, next, "titt", args->to, clock_unix_seconds(), args->worker, args->from);
    if (rc <= 0) {
        return rc < 0 ? rc : err_raise(ERR_NOT_FOUND, "no job waits");
    }
    snprintf(id, sizeof(id), "%s", (const char *)sqlite3_column_text(row, 0));
    json_t *data = json_pack("{s:s, s:s, s:I, s:I, s:s?}", "status", args->to, "from", args->from, "attempt",
                             (json_int_t)sqlite3_column_int64(row, 1), "fence",
                             (json_int_t)sqlite3_column_int64(row, 2), "worker", args->worker);
    /* Stepped to its end: RETURNING has made the change already, but an open statement would hold the commit up. */
    rc = sqlite_next(state, row);
    rc = rc < 0 ? rc : sqlite_event_add(state, args, id, "status", data);
    json_decref(data);
    return rc != 0 ? rc : select_job(state, NULL, id, job);
}

int sqlite_job_claim(struct state *state, struct state_args *args)
{
    json_t *job = NULL;

    int rc = sqlite_begin(state);
    if (rc != 0) {
        return rc;
    }
    rc = sqlite_end(state, claim(state, args, &job));
    if (rc != 0) {
        json_decref(job);
        return rc;
    }
    *args->out = job;
    return 0;
}

int sqlite_job_delete(struct state *state, struct state_args *args)
{
    int64_t changes = 0;

    int rc = sqlite_run(state, &changes, "DELETE FROM jobs WHERE id = ?", "t", args->id);
    return rc != 0 || changes > 0 ? rc : sqlite_job_missing(args->id);
}

int sqlite_job_counts(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;
    json_t *counts = json_object();

    int rc = sqlite_first(state, &row, "SELECT status, n FROM job_counts WHERE n > 0 ORDER BY status", "");
    for (; rc > 0; rc = sqlite_next(state, row)) {
        if (json_object_set_new(counts, (const char *)sqlite3_column_text(row, 0),
                                json_integer(sqlite3_column_int64(row, 1))) != 0) {
            sqlite_done(row);
            rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for counts");
            break;
        }
    }
    if (rc != 0) {
        json_decref(counts);
        return rc;
    }
    *args->out = counts;
    return 0;
}
