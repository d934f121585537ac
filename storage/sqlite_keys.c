/* API keys, found by the SHA-256 of their text. The digest never leaves this file: what clients see is built without
 * it. The text of a key has 256 random bits, so a search for its digest in an index reveals nothing by its duration. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>

#define USE_SECONDS 60 /* last_used_at is written once in this time */

const char sqlite_key_body[] =
    "json_object('id', id, 'object', 'api_key', 'name', name, 'project', project, 'scope', scope, 'created_at',"
    " created_at, 'expires_at', expires_at, 'last_used_at', last_used_at, 'revoked_at', revoked_at)";

static int key_missing(const char *id)
{
    return err_raise(ERR_NOT_FOUND, "there is no \"%.80s\"", id);
}

int sqlite_key_create(struct state *state, struct state_args *args)
{
    const struct key_row *key = args->key_new;

    return sqlite_run(state, NULL,
                      "INSERT INTO api_keys (id, sha256, project, name, scope, created_at, expires_at)"
                      " VALUES (?, ?, ?, ?, ?, ?, NULLIF(?, 0))",
                      "tttttii", key->id, args->digest, key->project, key->name, key->scope, key->created_at,
                      key->expires_at);
}

static void key_copy_text(sqlite3_stmt *row, int column, char *out, size_t size)
{
    const unsigned char *text = sqlite3_column_text(row, column);

    (void)snprintf(out, size, "%s", text != NULL ? (const char *)text : "");
}

/* Its last use is only for people to see: that it cannot be stored, as on a full disk, keeps nobody out. */
static void note_use(struct state *state, const char *id, int64_t now)
{
    if (sqlite_run(state, NULL, "UPDATE api_keys SET last_used_at = ? WHERE id = ?", "it", now, id) < 0) {
        log_err(LOG_DEBUG, "the use of a key was not stored", NULL);
    }
}

int sqlite_key_find(struct state *state, struct state_args *args)
{
    int64_t now = clock_unix_seconds();
    struct key_row key = {.created_at = 0};
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row,
                          "SELECT id, project, name, scope, created_at, COALESCE(expires_at, 0),"
                          " COALESCE(revoked_at, 0), COALESCE(last_used_at, 0) FROM api_keys WHERE sha256 = ?",
                          "t", args->digest);
    if (rc <= 0) {
        return rc < 0 ? rc : err_raise(ERR_NOT_FOUND, "there is no such key");
    }
    key_copy_text(row, 0, key.id, sizeof(key.id));
    key_copy_text(row, 1, key.project, sizeof(key.project));
    key_copy_text(row, 2, key.name, sizeof(key.name));
    key_copy_text(row, 3, key.scope, sizeof(key.scope));
    key.created_at = sqlite3_column_int64(row, 4);
    key.expires_at = sqlite3_column_int64(row, 5);
    key.revoked_at = sqlite3_column_int64(row, 6);
    int64_t used = sqlite3_column_int64(row, 7);
    sqlite_done(row);
    bool valid = key.revoked_at == 0 && (key.expires_at == 0 || key.expires_at > now);
    if (valid && (used + USE_SECONDS <= now || used > now)) {
        note_use(state, key.id, now);
    }
    *args->key_row = key;
    return 0;
}

int sqlite_key_get(struct state *state, struct state_args *args)
{
    struct sqlite_query query = {0};
    sqlite3_stmt *row;

    sqlite_query_add(&query, "SELECT ");
    sqlite_query_add(&query, sqlite_key_body);
    sqlite_query_add(&query, " FROM api_keys WHERE id = ?");
    sqlite_query_text(&query, args->id);
    int rc = sqlite_query_first(state, &query, &row);
    if (rc <= 0) {
        return rc < 0 ? rc : key_missing(args->id);
    }
    rc = sqlite_first_json(row, args->out);
    sqlite_done(row);
    return rc;
}

int sqlite_key_revoke(struct state *state, struct state_args *args)
{
    int64_t changes = 0;

    TRY(sqlite_run(state, &changes, "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, ?) WHERE id = ?", "it",
                   clock_unix_seconds(), args->id));
    return changes > 0 ? 0 : key_missing(args->id);
}

int sqlite_key_count(struct state *state, struct state_args *args)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row,
                          "SELECT COUNT(*) FROM api_keys WHERE revoked_at IS NULL AND COALESCE(expires_at > ?, 1)", "i",
                          clock_unix_seconds());
    if (rc > 0) {
        *args->counts = sqlite3_column_int64(row, 0);
        sqlite_done(row);
        rc = 0;
    }
    return rc;
}
