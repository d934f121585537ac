/* SQLite as the state store: one connection, WAL, synchronous=FULL, so that a committed transaction survives power
 * loss.
 *
 * After an unclean stop (a WAL file with frames is still there) the database is checked before it is trusted. Requests
 * that were being answered when the last daemon stopped will never be, so their idempotency keys are freed. */

#include "storage/sqlite.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SQLITE_FILE_PATH_MAX 4096
#define SQLITE_BUSY_MS 5000

static bool stopped_uncleanly(const char *path)
{
    char wal[SQLITE_FILE_PATH_MAX + 8];
    struct stat info;

    snprintf(wal, sizeof(wal), "%s-wal", path);
    return stat(wal, &info) == 0 && info.st_size > 0;
}

static int quick_check(struct state *state)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "PRAGMA quick_check(1)", "");
    if (rc <= 0) {
        return rc;
    }
    const char *answer = (const char *)sqlite3_column_text(row, 0);
    if (answer == NULL || strcmp(answer, "ok") != 0) {
        rc = err_raise(ERR_STORAGE, "the database is damaged: %s", answer == NULL ? "no answer" : answer);
    } else {
        rc = 0;
    }
    sqlite_done(row);
    return rc;
}

static int set_up(struct state *state, bool beside, bool unclean)
{
    sqlite3_busy_timeout(state->db, SQLITE_BUSY_MS);
    sqlite3_extended_result_codes(state->db, 1);
    TRY(sqlite_script(state, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                             "PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF"));
    if (beside) {
        return migrations_check(state);
    }
    if (unclean) {
        TRY(quick_check(state));
    }
    TRY(migrations_apply(state));
    return sqlite_run(state, NULL, "DELETE FROM idempotency WHERE response IS NULL", "");
}

static void state_close(struct state *state)
{
    for (int i = 0; i < SQLITE_STATEMENTS; i++) {
        sqlite3_finalize(state->statements[i]);
    }
    sqlite3_close(state->db);
    free(state);
}

/* For the daemon's user alone: secrets of webhooks are in it. Its log takes the mode over. What fails here, fails again
 * when SQLite opens it. */
static void keep_private(const char *path)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd >= 0) {
        (void)fchmod(fd, 0600);
    }
}

static int state_open(const char *data_dir, bool beside, struct state **out)
{
    char path[SQLITE_FILE_PATH_MAX];
    struct state *state = calloc(1, sizeof(*state));

    if (state == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the database");
    }
    int rc = fs_path(path, sizeof(path), "%s/quantd.db", data_dir);
    if (rc == 0) {
        bool unclean = stopped_uncleanly(path);
        if (!beside) {
            keep_private(path);
        }
        int answer = sqlite3_open_v2(
            path, &state->db, SQLITE_OPEN_READWRITE | (beside ? 0 : SQLITE_OPEN_CREATE) | SQLITE_OPEN_FULLMUTEX, NULL);
        rc = answer != SQLITE_OK ? sqlite_raise(state, answer, "open") : set_up(state, beside, unclean);
    }
    if (rc != 0) {
        state_close(state);
        return err_pass(rc, "open the database %s", path);
    }
    *out = state;
    return 0;
}

static int state_ready(struct state *state, struct state_args *args)
{
    (void)args;
    return sqlite_run(state, NULL, "SELECT version FROM schema_version LIMIT 1", "");
}

const struct state_ops state_sqlite = {
    .name = "sqlite",
    .open = state_open,
    .close = state_close,
    .blob_referenced = sqlite_blob_referenced,
    .ready = state_ready,
    .object_put = sqlite_object_put,
    .object_replace = sqlite_object_replace,
    .object_get = sqlite_object_get,
    .object_delete = sqlite_object_delete,
    .object_list = sqlite_object_list,
    .job_create = sqlite_job_create,
    .job_get = sqlite_job_get,
    .job_status = sqlite_job_status,
    .job_list = sqlite_job_list,
    .job_update = sqlite_job_update,
    .job_claim = sqlite_job_claim,
    .job_delete = sqlite_job_delete,
    .job_ahead = sqlite_job_ahead,
    .job_counts = sqlite_job_counts,
    .events_list = sqlite_events_list,
    .event_append = sqlite_event_append,
    .block_commit = sqlite_block_commit,
    .blocks_list = sqlite_blocks_list,
    .layers_list = sqlite_layers_list,
    .blocks_clear = sqlite_blocks_clear,
    .artifact_delete = sqlite_artifact_delete,
    .idempotency_reserve = sqlite_idempotency_reserve,
    .idempotency_known = sqlite_idempotency_known,
    .idempotency_finish = sqlite_idempotency_finish,
    .idempotency_release = sqlite_idempotency_release,
    .key_create = sqlite_key_create,
    .key_find = sqlite_key_find,
    .key_get = sqlite_key_get,
    .key_list = sqlite_key_list,
    .key_revoke = sqlite_key_revoke,
    .key_count = sqlite_key_count,
    .quota_get = sqlite_quota_get,
    .quota_set = sqlite_quota_set,
    .project_list = sqlite_project_list,
    .webhook_create = sqlite_webhook_create,
    .webhook_get = sqlite_webhook_get,
    .webhook_list = sqlite_webhook_list,
    .webhook_change = sqlite_webhook_change,
    .webhook_delete = sqlite_webhook_delete,
    .delivery_create = sqlite_delivery_create,
    .delivery_get = sqlite_delivery_get,
    .delivery_list = sqlite_delivery_list,
    .delivery_due = sqlite_delivery_due,
    .delivery_end = sqlite_delivery_end,
    .delivery_sweep = sqlite_delivery_sweep,
};
