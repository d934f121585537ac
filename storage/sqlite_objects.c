/* Objects: JSON bodies by (kind, id). The members that lists filter by are repeated as columns, and every SHA-256 that
 * a body names is a row of blob_refs, so that garbage collection asks one index instead of parsing bodies. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/json.h"
#include "storage/blob.h"

/* holder: {"sha256","bytes"}. The project's bytes are counted by triggers. */
static int add_reference(struct state *state, const char *project, const char *kind, const char *id,
                         const json_t *holder)
{
    const char *sha256 = json_get_string(holder, "sha256");
    json_int_t bytes = json_integer_value(json_object_get(holder, "bytes"));

    if (sha256 == NULL || !blob_sha256_valid(sha256)) {
        return 0;
    }
    return sqlite_run(state, NULL,
                      "INSERT INTO blob_refs (sha256, kind, id, project, bytes) VALUES (?, ?, ?, ?, ?)"
                      " ON CONFLICT DO NOTHING",
                      "tttti", sha256, kind, id, project, (int64_t)bytes);
}

static const char *either(const json_t *body, const char *name, const char *other)
{
    const char *value = json_get_string(body, name);

    return value != NULL ? value : json_get_string(body, other);
}

int sqlite_object_store(struct state *state, const char *project, const char *kind, const json_t *body)
{
    const char *id = json_get_string(body, "id");
    int64_t created_at = 0, bytes = json_integer_value(json_object_get(body, "bytes"));
    size_t i;
    json_t *file;

    int rc = json_get_int(body, "created_at", 0, INT64_MAX, &created_at);
    if (rc < 0) {
        return rc;
    }
    if (id == NULL || kind == NULL || project == NULL || rc == 0) {
        return err_raise(ERR_INTERNAL, "an object without project, kind, id or created_at cannot be stored");
    }
    TRY(sqlite_run(
        state, NULL,
        "INSERT INTO objects (project, kind, id, status, method, model, purpose, job, created_at, bytes, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET status = excluded.status,"
        " method = excluded.method, model = excluded.model, purpose = excluded.purpose, job = excluded.job,"
        " created_at = excluded.created_at, bytes = excluded.bytes, body = excluded.body",
        "ttttttttiij", project, kind, id, json_get_string(body, "status"), json_get_string(body, "method"),
        either(body, "model", "model_id"), json_get_string(body, "purpose"), either(body, "job", "job_id"), created_at,
        bytes, body));
    TRY(sqlite_run(state, NULL, "DELETE FROM blob_refs WHERE kind = ? AND id = ?", "tt", kind, id));
    TRY(add_reference(state, project, kind, id, body));
    json_array_foreach(json_object_get(body, "files"), i, file)
    {
        TRY(add_reference(state, project, kind, id, file));
    }
    return 0;
}

int sqlite_object_put(struct state *state, struct state_args *args)
{
    TRY(sqlite_begin(state));
    return sqlite_end(state, sqlite_object_store(state, args->project, args->kind, args->body));
}

/* 1 when the project (NULL: any) has the object, 0 when it has not. */
static int object_exists(struct state *state, const char *project, const char *kind, const char *id)
{
    sqlite3_stmt *row;

    int rc =
        sqlite_first(state, &row, "SELECT 1 FROM objects WHERE kind = ? AND id = ? AND project = COALESCE(?, project)",
                     "ttt", kind, id, project);
    if (rc > 0) {
        sqlite_done(row);
    }
    return rc;
}

static int replace_existing(struct state *state, const struct state_args *args)
{
    const char *id = json_get_string(args->body, "id");

    int rc = object_exists(state, args->project, args->kind, id);
    if (rc == 0) {
        return err_raise(ERR_NOT_FOUND, "there is no \"%.80s\"", id != NULL ? id : "");
    }
    return rc < 0 ? rc : sqlite_object_store(state, args->project, args->kind, args->body);
}

int sqlite_object_replace(struct state *state, struct state_args *args)
{
    TRY(sqlite_begin(state));
    return sqlite_end(state, replace_existing(state, args));
}

int sqlite_object_get(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row,
                          "SELECT body FROM objects WHERE kind = ? AND id = ? AND project = COALESCE(?, project)",
                          "ttt", args->kind, args->id, args->project);
    if (rc > 0) {
        rc = sqlite_first_json(row, args->out);
        sqlite_done(row);
        return rc;
    }
    return rc < 0 ? rc : err_raise(ERR_NOT_FOUND, "there is no \"%.80s\"", args->id);
}

int sqlite_object_delete(struct state *state, struct state_args *args)
{
    int64_t changes = 0;

    int rc =
        sqlite_run(state, &changes, "DELETE FROM objects WHERE kind = ? AND id = ? AND project = COALESCE(?, project)",
                   "ttt", args->kind, args->id, args->project);
    return rc != 0 || changes > 0 ? rc : err_raise(ERR_NOT_FOUND, "there is no \"%.80s\"", args->id);
}

int sqlite_blob_referenced(struct state *state, const char *sha256)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT 1 FROM blob_refs WHERE sha256 = ? LIMIT 1", "t", sha256);
    if (rc > 0) {
        sqlite_done(row);
    }
    return rc;
}
