/* The schema, as numbered steps that are only ever appended to. Each runs once, in one transaction with the row that
 * records it; a database from a newer build is refused before anything is written.
 *
 * jobs.priority is request.priority, kept as a column so that the claim is one index look-up. job_counts is kept by
 * triggers: a live COUNT over a million jobs is far too slow to be polled. */

#include "base/err.h"
#include "base/ids.h"
#include "storage/sqlite.h"

static const char *const steps[] = {
    "CREATE TABLE jobs ("
    " id TEXT PRIMARY KEY NOT NULL, status TEXT NOT NULL, status_reason TEXT, phase TEXT, name TEXT, project TEXT,"
    " model TEXT, method TEXT, request TEXT, progress TEXT, memory TEXT, result TEXT, error TEXT, warnings TEXT,"
    " checkpoint TEXT, calibration TEXT, worker TEXT, attempt INTEGER NOT NULL DEFAULT 0,"
    " fence INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL DEFAULT 0, priority INTEGER NOT NULL DEFAULT 0,"
    " created_at INTEGER NOT NULL, queued_at INTEGER, started_at INTEGER, finished_at INTEGER, cancelled_at INTEGER"
    ") STRICT;"
    "CREATE INDEX jobs_claim ON jobs(status, priority DESC, queued_at, id);"
    "CREATE INDEX jobs_status ON jobs(status, id);"
    "CREATE INDEX jobs_model ON jobs(model, id);"
    "CREATE INDEX jobs_method ON jobs(method, id);"
    "CREATE TABLE job_counts (status TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TRIGGER jobs_counted AFTER INSERT ON jobs BEGIN"
    " INSERT INTO job_counts VALUES (new.status, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;"
    "CREATE TRIGGER jobs_moved AFTER UPDATE OF status ON jobs WHEN old.status <> new.status BEGIN"
    " UPDATE job_counts SET n = n - 1 WHERE status = old.status;"
    " INSERT INTO job_counts VALUES (new.status, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;"
    "CREATE TRIGGER jobs_uncounted AFTER DELETE ON jobs BEGIN"
    " UPDATE job_counts SET n = n - 1 WHERE status = old.status; END;"
    "CREATE TABLE events ("
    " job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, seq INTEGER NOT NULL, type TEXT NOT NULL,"
    " created_at INTEGER NOT NULL, data TEXT, PRIMARY KEY (job, seq)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE blocks ("
    " job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, number INTEGER NOT NULL, body TEXT NOT NULL,"
    " PRIMARY KEY (job, number)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE layers ("
    " n INTEGER PRIMARY KEY, job TEXT NOT NULL, block INTEGER NOT NULL, body TEXT NOT NULL,"
    " FOREIGN KEY (job, block) REFERENCES blocks(job, number) ON DELETE CASCADE) STRICT;"
    "CREATE INDEX layers_block ON layers(job, block);"
    "CREATE TABLE objects ("
    " kind TEXT NOT NULL, id TEXT NOT NULL, status TEXT, method TEXT, model TEXT, purpose TEXT, job TEXT,"
    " created_at INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)) STRICT;"
    "CREATE TABLE blob_refs ("
    " sha256 TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (sha256, kind, id),"
    " FOREIGN KEY (kind, id) REFERENCES objects(kind, id) ON DELETE CASCADE) STRICT, WITHOUT ROWID;"
    "CREATE INDEX blob_refs_object ON blob_refs(kind, id);"
    "CREATE TABLE idempotency ("
    " scope TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, created_at INTEGER NOT NULL, response TEXT,"
    " PRIMARY KEY (scope, key)) STRICT, WITHOUT ROWID;"
    "CREATE INDEX idempotency_age ON idempotency(created_at);",
    /* Every job, object and key belongs to a project. */
    "UPDATE jobs SET project = 'default' WHERE project IS NULL;"
    "CREATE INDEX jobs_project ON jobs(project, id);"
    "CREATE INDEX jobs_project_status ON jobs(project, status, id);"
    "ALTER TABLE objects ADD COLUMN project TEXT NOT NULL DEFAULT 'default';"
    "CREATE INDEX objects_project ON objects(project, kind, id);"
    "ALTER TABLE idempotency RENAME TO idempotency_of_all;"
    "CREATE TABLE idempotency ("
    " project TEXT NOT NULL, scope TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, created_at INTEGER NOT NULL,"
    " response TEXT, PRIMARY KEY (project, scope, key)) STRICT, WITHOUT ROWID;"
    "INSERT INTO idempotency SELECT 'default', scope, key, digest, created_at, response FROM idempotency_of_all;"
    "DROP TABLE idempotency_of_all;"
    "CREATE INDEX idempotency_age ON idempotency(created_at);",
    /* Lists are of a project, so the indexes of their filters begin with it. */
    "DROP INDEX jobs_status;"
    "DROP INDEX jobs_model;"
    "DROP INDEX jobs_method;"
    "CREATE INDEX jobs_project_model ON jobs(project, model, id);"
    "CREATE INDEX jobs_project_method ON jobs(project, method, id);",
};

#define STEP_COUNT ((int64_t)(sizeof(steps) / sizeof(steps[0])))

static int read_version(struct state *state, int64_t *version)
{
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, "SELECT COALESCE(MAX(version), 0) FROM schema_version", "");
    if (rc > 0) {
        *version = sqlite3_column_int64(row, 0);
        sqlite_done(row);
        return 0;
    }
    return rc;
}

static int migration_apply(struct state *state, int64_t step)
{
    int rc = sqlite_begin(state);

    if (rc != 0) {
        return rc;
    }
    rc = sqlite_script(state, steps[step]);
    if (rc == 0) {
        rc = sqlite_run(state, NULL, "INSERT INTO schema_version (version, applied_at) VALUES (?, ?)", "ii", step + 1,
                        clock_unix_seconds());
    }
    return sqlite_end(state, rc);
}

int migrations_apply(struct state *state)
{
    int64_t version = 0;

    int rc = sqlite_script(state, "CREATE TABLE IF NOT EXISTS schema_version ("
                                  " version INTEGER PRIMARY KEY NOT NULL, applied_at INTEGER NOT NULL) STRICT");
    rc = rc != 0 ? rc : read_version(state, &version);
    if (rc == 0 && version > STEP_COUNT) {
        return err_raise(ERR_CONFIG, "the database has schema %lld and this build knows %lld; run a newer build",
                         (long long)version, (long long)STEP_COUNT);
    }
    for (; rc == 0 && version < STEP_COUNT; version++) {
        rc = migration_apply(state, version);
        if (rc != 0) {
            rc = err_pass(rc, "migrate the database to schema %lld", (long long)version + 1);
        }
    }
    return rc;
}
