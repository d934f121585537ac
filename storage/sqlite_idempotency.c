/* Idempotency keys: the first request reserves its key, finishes it with the response, and every later one with the
 * same body is answered from here for a day. What was made under a key is known from the commit that made it: a daemon
 * that dies before the answer does not make it twice. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/ids.h"

#include <string.h>

#define IDEMPOTENCY_SECONDS ((int64_t)24 * 3600)

/* 1 = *response set. */
static int sqlite_key_judge(sqlite3_stmt *row, const char *digest, json_t **response)
{
    if (strcmp((const char *)sqlite3_column_text(row, 0), digest) != 0) {
        return err_raise(ERR_IDEMPOTENCY_KEY_REUSED, "this key came with another body before");
    }
    if (sqlite3_column_type(row, 1) == SQLITE_NULL) {
        return err_raise(ERR_IDEMPOTENCY_IN_PROGRESS, "the first request with this key has not been answered yet");
    }
    TRY(sqlite_column_json(row, 1, response));
    return 1;
}

static int sqlite_key_reserve(struct state *state, struct state_args *args, json_t **response)
{
    const struct idempotency_key *key = args->key;
    sqlite3_stmt *row;
    int64_t now = clock_unix_seconds();

    TRY(sqlite_run(state, NULL, "DELETE FROM idempotency WHERE created_at < ?", "i", now - IDEMPOTENCY_SECONDS));
    int rc = sqlite_first(state, &row,
                          "SELECT digest, response FROM idempotency WHERE project = ? AND scope = ? AND key = ?", "ttt",
                          key->project, key->scope, key->key);
    if (rc > 0) {
        rc = sqlite_key_judge(row, args->digest, response);
        sqlite_done(row);
        return rc;
    }
    TRY(rc);
    return sqlite_run(state, NULL,
                      "INSERT INTO idempotency (project, scope, key, digest, created_at) VALUES (?, ?, ?, ?, ?)",
                      "tttti", key->project, key->scope, key->key, args->digest, now);
}

int sqlite_idempotency_reserve(struct state *state, struct state_args *args)
{
    json_t *response = NULL;

    int rc = sqlite_begin(state);
    if (rc != 0) {
        return rc;
    }
    rc = sqlite_end(state, sqlite_key_reserve(state, args, &response));
    if (rc == 1) {
        *args->out = response;
    } else {
        json_decref(response);
    }
    return rc;
}

int sqlite_idempotency_known(struct state *state, struct state_args *args)
{
    const struct idempotency_key *key = args->key;
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row,
                          "SELECT COUNT(*) FROM idempotency WHERE project = ? AND scope = ? AND key = ? AND"
                          " created_at >= ?",
                          "ttti", key->project, key->scope, key->key, clock_unix_seconds() - IDEMPOTENCY_SECONDS);
    if (rc > 0) {
        *args->counts = sqlite3_column_int64(row, 0);
        sqlite_done(row);
        rc = 0;
    }
    return rc;
}

int sqlite_idempotency_made(struct state *state, const struct idempotency_key *key, const char *id)
{
    json_t *response = json_pack("{s:s}", "id", id);
    int rc =
        response == NULL
            ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a response")
            : sqlite_run(state, NULL, "UPDATE idempotency SET response = ? WHERE project = ? AND scope = ? AND key = ?",
                         "jttt", response, key->project, key->scope, key->key);
    json_decref(response);
    return rc;
}

int sqlite_idempotency_finish(struct state *state, struct state_args *args)
{
    const struct idempotency_key *key = args->key;
    int64_t changes = 0;

    int rc =
        sqlite_run(state, &changes, "UPDATE idempotency SET response = ? WHERE project = ? AND scope = ? AND key = ?",
                   "jttt", args->body, key->project, key->scope, key->key);
    return rc != 0 || changes > 0 ? rc : err_raise(ERR_NOT_FOUND, "this key was not reserved");
}

int sqlite_idempotency_release(struct state *state, struct state_args *args)
{
    const struct idempotency_key *key = args->key;

    return sqlite_run(state, NULL,
                      "DELETE FROM idempotency WHERE project = ? AND scope = ? AND key = ? AND response IS NULL", "ttt",
                      key->project, key->scope, key->key);
}
