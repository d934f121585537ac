/* What belongs to a job: events, finished blocks with their report rows, and its result once its artifact is deleted.
 *
 * An event's number comes from its job's row in the same transaction as the change it tells, so numbers are gapless and
 * a stream that resumes after number n misses nothing. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"

#include <stdio.h>
#include <string.h>

int sqlite_event_add(struct state *state, struct state_args *args, const char *job, const char *type,
                     const json_t *data)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "UPDATE jobs SET seq = seq + 1 WHERE id = ? RETURNING seq", "t", job);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_job_missing(job);
    }
    int64_t seq = sqlite3_column_int64(row, 0);
    TRY(sqlite_next(state, row));
    TRY(sqlite_run(state, NULL, "INSERT INTO events (job, seq, type, created_at, data) VALUES (?, ?, ?, ?, ?)", "titij",
                   job, seq, type, clock_unix_seconds(), data));
    args->announced = true;
    snprintf(args->job, sizeof(args->job), "%s", job);
    return 0;
}

int sqlite_event_append(struct state *state, struct state_args *args)
{
    TRY(sqlite_begin(state));
    return sqlite_end(state, sqlite_event_add(state, args, args->id, args->event, args->event_data));
}

/* Every row through to_json into a new array. Takes over from a sqlite_first that answered rc. */
static int sqlite_events_collect(struct state *state, int rc, sqlite3_stmt *row,
                                 int (*to_json)(sqlite3_stmt *row, json_t **out), json_t **out)
{
    json_t *list = json_array();

    for (; rc > 0; rc = sqlite_next(state, row)) {
        json_t *item = NULL;
        rc = to_json(row, &item);
        if (rc == 0) {
            rc = sqlite_append_take(list, item);
        }
        if (rc != 0) {
            sqlite_done(row);
            break;
        }
    }
    if (rc != 0) {
        json_decref(list);
        return rc;
    }
    *out = list;
    return 0;
}

static int event_to_json(sqlite3_stmt *row, json_t **out)
{
    json_t *data;

    int rc = sqlite_column_json(row, 3, &data);
    if (rc != 0) {
        return rc;
    }
    *out = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "object", "event", "seq", sqlite_column_int_json(row, 0), "type",
                     sqlite_column_text_json(row, 1), "created_at", sqlite_column_int_json(row, 2), "traceparent",
                     sqlite_column_text_json(row, 4), "data", data);
    return *out != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an event");
}

int sqlite_events_list(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row,
                          "SELECT seq, type, created_at, data, (SELECT traceparent FROM jobs WHERE id = events.job)"
                          " FROM events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?",
                          "tii", args->id, args->after, args->limit > 0 ? (int64_t)args->limit : (int64_t)-1);
    return sqlite_events_collect(state, rc, row, event_to_json, args->out);
}

/* What the row says and `block` does not stays. */
static int replace_block(struct state *state, struct state_args *args, int64_t number)
{
    int64_t changes = 0;

    TRY(sqlite_run(state, &changes, "UPDATE blocks SET body = json_patch(body, ?) WHERE job = ? AND number = ?", "jti",
                   args->block, args->update->id, number));
    return changes == 1
               ? 0
               : err_raise(ERR_NOT_FOUND, "job %s has no block %lld to replace", args->update->id, (long long)number);
}

static int add_block(struct state *state, struct state_args *args, int64_t number)
{
    const char *job = args->update->id;
    size_t i;
    json_t *layer;

    if (json_is_true(json_object_get(args->block, "again"))) {
        return replace_block(state, args, number);
    }
    TRY(sqlite_run(state, NULL, "INSERT INTO blocks (job, number, body) VALUES (?, ?, ?)", "tij", job, number,
                   args->block));
    json_array_foreach((json_t *)args->layers, i, layer)
    {
        TRY(sqlite_run(state, NULL, "INSERT INTO layers (job, block, body) VALUES (?, ?, ?)", "tij", job, number,
                       layer));
    }
    return 0;
}

static int commit_block(struct state *state, struct state_args *args, int64_t number)
{
    const struct job_update *update = args->update;

    TRY(sqlite_job_set(state, update));
    TRY(add_block(state, args, number));
    return update->event != NULL ? sqlite_event_add(state, args, update->id, update->event, update->event_data) : 0;
}

int sqlite_block_commit(struct state *state, struct state_args *args)
{
    int64_t number = 0;

    int rc = json_get_int(args->block, "index", 0, INT64_MAX, &number);
    if (rc <= 0) {
        return rc < 0 ? rc : err_raise(ERR_INTERNAL, "a block without index cannot be stored");
    }
    TRY(sqlite_begin(state));
    return sqlite_end(state, commit_block(state, args, number));
}

int sqlite_blocks_list(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT body FROM blocks WHERE job = ? ORDER BY number", "t", args->id);
    return sqlite_events_collect(state, rc, row, sqlite_first_json, args->out);
}

int sqlite_layers_list(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT body FROM layers WHERE job = ? ORDER BY n", "t", args->id);
    return sqlite_events_collect(state, rc, row, sqlite_first_json, args->out);
}

int sqlite_blocks_clear(struct state *state, struct state_args *args)
{
    return sqlite_run(state, NULL, "DELETE FROM blocks WHERE job = ? AND number >= ?", "ti", args->id, args->after);
}

/* A job's result; ERR_NOT_FOUND when there is no such job. */
static int select_result(struct state *state, const char *id, json_t **result)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT result FROM jobs WHERE id = ?", "t", id);
    if (rc <= 0) {
        return rc < 0 ? rc : sqlite_job_missing(id);
    }
    rc = sqlite_first_json(row, result);
    sqlite_done(row);
    return rc;
}

/* The job that made an artifact says that it is gone. A job that is gone itself has nothing to say. */
static int tell_job(struct state *state, struct state_args *args, const json_t *artifact)
{
    const char *id = json_get_string(artifact, "job_id");
    json_int_t now = clock_unix_seconds();
    AUTO_JSON json_t *result = NULL;

    int rc = id != NULL ? select_result(state, id, &result) : ERR_NOT_FOUND;
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? 0 : rc;
    }
    const char *made = json_get_string(result, "artifact_id");
    if (made == NULL || strcmp(made, args->id) != 0) {
        return 0;
    }
    AUTO_JSON json_t *event = json_pack("{s:s, s:I}", "artifact_id", args->id, "deleted_at", now);
    bool set = json_object_set_new(result, "artifact_id", json_null()) == 0 &&
               json_object_set_new(result, "artifact_deleted_at", json_integer(now)) == 0;
    if (event == NULL || !set) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a deletion");
    }
    const struct job_row row = {.result = result};
    TRY(sqlite_job_set(
        state, &(struct job_update){.id = id, .from = STATUS_ANY, .fence = -1, .set = JOB_SET_RESULT, .row = &row}));
    return sqlite_event_add(state, args, id, "artifact", event);
}

static int delete_artifact(struct state *state, struct state_args *args)
{
    AUTO_JSON json_t *artifact = NULL;
    struct state_args get = {.project = args->project, .kind = "art", .id = args->id, .out = &artifact};

    TRY(sqlite_object_get(state, &get));
    TRY(tell_job(state, args, artifact));
    return sqlite_object_delete(state, &get);
}

int sqlite_artifact_delete(struct state *state, struct state_args *args)
{
    TRY(sqlite_begin(state));
    return sqlite_end(state, delete_artifact(state, args));
}
