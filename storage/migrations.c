/* The schema, as numbered steps that are only ever appended to. Each runs once, in one transaction with the row that
 * records it; a database from a newer build is refused before anything is written.
 *
 * jobs.priority is a column so that the claim is one index look-up; the columns of jobs are listed again in
 * sqlite_job_columns.c. job_counts is kept by
 * triggers: a live COUNT over a million jobs is far too slow to be polled. */

#include "base/err.h"
#include "base/ids.h"
#include "storage/sqlite.h"

/* Of the step that turned documents into columns. */
/* clang-format off */
#define INTEGER_COLUMN(name) "ALTER TABLE jobs ADD COLUMN " name " INTEGER NOT NULL DEFAULT 0;"
#define RECORD_COLUMNS(set)                \
    INTEGER_COLUMN(set "_records")         \
    INTEGER_COLUMN(set "_tokens")          \
    INTEGER_COLUMN(set "_bytes")           \
    INTEGER_COLUMN(set "_ready")           \
    INTEGER_COLUMN(set "_sequences")       \
    INTEGER_COLUMN(set "_sequence_length") \
    "ALTER TABLE jobs ADD COLUMN " set "_digest TEXT;"
#define INTEGER_VALUE(name, document, path) " " name " = COALESCE(json_extract(" document ", '" path "'), 0)"
#define RECORD_VALUES(set, path)                                                      \
    INTEGER_VALUE(set "_records", "calibration", path ".records") ","                 \
    INTEGER_VALUE(set "_tokens", "calibration", path ".tokens") ","                   \
    INTEGER_VALUE(set "_bytes", "calibration", path ".bytes") ","                     \
    INTEGER_VALUE(set "_ready", "calibration", path ".ready") ","                     \
    INTEGER_VALUE(set "_sequences", "calibration", path ".sequences") ","             \
    INTEGER_VALUE(set "_sequence_length", "calibration", path ".sequence_length") "," \
    " " set "_digest = json_extract(calibration, '" path ".digest')"
/* clang-format on */

/* Each: statements, NULL-terminated. */
static const char *const step_tables[] = {
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
    NULL,
};

static const char *const step_projects[] = {
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
    NULL,
};

static const char *const step_project_indexes[] = {
    /* Lists are of a project, so the indexes of their filters begin with it. */
    "DROP INDEX jobs_status;"
    "DROP INDEX jobs_model;"
    "DROP INDEX jobs_method;"
    "CREATE INDEX jobs_project_model ON jobs(project, model, id);"
    "CREATE INDEX jobs_project_method ON jobs(project, method, id);",
    NULL,
};

static const char *const step_columns[] = {
    /* Progress, memory, checkpoint and the counts of records are columns; metadata has an index; counts are of a
     * project. A document that is damaged counts as absent. */
    "CREATE TABLE job_metadata ("
    " project TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, job TEXT NOT NULL REFERENCES jobs(id) ON DELETE"
    " CASCADE, PRIMARY KEY (project, key, value, job)) STRICT, WITHOUT ROWID;"
    "CREATE INDEX job_metadata_job ON job_metadata(job);"
    "INSERT INTO job_metadata SELECT jobs.project, m.key, m.atom, jobs.id FROM jobs,"
    " json_each(CASE WHEN json_valid(jobs.request) THEN jobs.request ELSE '{}' END, '$.metadata') AS m"
    " WHERE m.type = 'text';"
    "DROP TRIGGER jobs_counted;"
    "DROP TRIGGER jobs_moved;"
    "DROP TRIGGER jobs_uncounted;"
    "DROP TABLE job_counts;"
    "CREATE TABLE job_counts (project TEXT NOT NULL, status TEXT NOT NULL, n INTEGER NOT NULL,"
    " PRIMARY KEY (project, status)) STRICT, WITHOUT ROWID;"
    "INSERT INTO job_counts SELECT project, status, COUNT(*) FROM jobs GROUP BY project, status;"
    "CREATE TRIGGER jobs_counted AFTER INSERT ON jobs BEGIN"
    " INSERT INTO job_counts VALUES (new.project, new.status, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;"
    "CREATE TRIGGER jobs_moved AFTER UPDATE OF status ON jobs WHEN old.status <> new.status BEGIN"
    " UPDATE job_counts SET n = n - 1 WHERE project = old.project AND status = old.status;"
    " INSERT INTO job_counts VALUES (new.project, new.status, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;"
    "CREATE TRIGGER jobs_uncounted AFTER DELETE ON jobs BEGIN"
    " UPDATE job_counts SET n = n - 1 WHERE project = old.project AND status = old.status; END;"
    "UPDATE jobs SET progress = NULL WHERE NOT json_valid(progress);"
    "UPDATE jobs SET memory = NULL WHERE NOT json_valid(memory);"
    "UPDATE jobs SET checkpoint = NULL WHERE NOT json_valid(checkpoint);"
    "UPDATE jobs SET calibration = NULL WHERE NOT json_valid(calibration);",
    /* clang-format off */
    RECORD_COLUMNS("calibration")
    RECORD_COLUMNS("evaluation")
    INTEGER_COLUMN("progress_known")
    INTEGER_COLUMN("progress_block")
    "ALTER TABLE jobs ADD COLUMN progress_step TEXT;"
    "ALTER TABLE jobs ADD COLUMN progress_fraction REAL NOT NULL DEFAULT 0;"
    INTEGER_COLUMN("layers_done")
    INTEGER_COLUMN("layers_total")
    INTEGER_COLUMN("modules_done")
    INTEGER_COLUMN("modules_total")
    INTEGER_COLUMN("tokens_calibrated")
    "ALTER TABLE jobs ADD COLUMN elapsed_seconds REAL NOT NULL DEFAULT 0;"
    INTEGER_COLUMN("eta_seconds")
    "ALTER TABLE jobs ADD COLUMN estimated_finish_at INTEGER;"
    INTEGER_COLUMN("source_bytes")
    INTEGER_COLUMN("artifact_bytes")
    INTEGER_COLUMN("gpu_peak_bytes")
    INTEGER_COLUMN("host_peak_bytes")
    INTEGER_COLUMN("estimated_gpu_bytes")
    INTEGER_COLUMN("checkpoint_blocks")
    "ALTER TABLE jobs ADD COLUMN checkpoint_saved_at INTEGER;"
    INTEGER_COLUMN("charged")
    INTEGER_COLUMN("checkpoint_attempt")
    "ALTER TABLE jobs ADD COLUMN phases TEXT;"
    "ALTER TABLE jobs ADD COLUMN checkpoint_device TEXT;"
    "UPDATE jobs SET"
    RECORD_VALUES("calibration", "$") ","
    RECORD_VALUES("evaluation", "$.evaluation")
    " WHERE calibration IS NOT NULL;",
    "UPDATE jobs SET progress_known = 1,"
    INTEGER_VALUE("progress_block", "progress", "$.block") ","
    " progress_step = json_extract(progress, '$.step'),"
    " progress_fraction = COALESCE(json_extract(progress, '$.fraction'), 0),"
    INTEGER_VALUE("layers_done", "progress", "$.layers_done") ","
    INTEGER_VALUE("layers_total", "progress", "$.layers_total") ","
    INTEGER_VALUE("modules_done", "progress", "$.modules_done") ","
    INTEGER_VALUE("modules_total", "progress", "$.modules_total") ","
    INTEGER_VALUE("tokens_calibrated", "progress", "$.tokens_calibrated") ","
    " elapsed_seconds = COALESCE(json_extract(progress, '$.elapsed_seconds'), 0),"
    INTEGER_VALUE("eta_seconds", "progress", "$.eta_seconds") ","
    " estimated_finish_at = json_extract(progress, '$.estimated_finish_at')"
    " WHERE progress IS NOT NULL;"
    "UPDATE jobs SET"
    INTEGER_VALUE("source_bytes", "memory", "$.source_bytes") ","
    INTEGER_VALUE("artifact_bytes", "memory", "$.artifact_bytes") ","
    INTEGER_VALUE("gpu_peak_bytes", "memory", "$.gpu_peak_bytes") ","
    INTEGER_VALUE("host_peak_bytes", "memory", "$.host_peak_bytes") ","
    INTEGER_VALUE("estimated_gpu_bytes", "memory", "$.estimated_gpu_bytes")
    " WHERE memory IS NOT NULL;"
    "UPDATE jobs SET"
    " checkpoint_blocks = COALESCE(json_extract(checkpoint, '$.layer') + 1, 0),"
    " checkpoint_saved_at = json_extract(checkpoint, '$.saved_at'),"
    INTEGER_VALUE("charged", "checkpoint", "$.charged") ","
    INTEGER_VALUE("checkpoint_attempt", "checkpoint", "$.attempt") ","
    " phases = json_extract(checkpoint, '$.phases'),"
    " checkpoint_device = json_extract(checkpoint, '$.device')"
    " WHERE checkpoint IS NOT NULL;",
    /* clang-format on */
    "ALTER TABLE jobs DROP COLUMN progress;"
    "ALTER TABLE jobs DROP COLUMN memory;"
    "ALTER TABLE jobs DROP COLUMN checkpoint;"
    "ALTER TABLE jobs DROP COLUMN calibration;"
    "CREATE INDEX objects_project_model ON objects(project, kind, model, id);"
    "CREATE INDEX objects_project_job ON objects(project, kind, job, id);",
    NULL,
};

static const char *const step_traces[] = {
    /* The trace of the request that made a job. */
    "ALTER TABLE jobs ADD COLUMN traceparent TEXT;"
    "ALTER TABLE jobs ADD COLUMN tracestate TEXT;",
    NULL,
};

static const char *const step_keys[] = {
    "CREATE TABLE api_keys ("
    " id TEXT PRIMARY KEY NOT NULL, sha256 TEXT NOT NULL UNIQUE, project TEXT NOT NULL, name TEXT NOT NULL,"
    " scope TEXT NOT NULL CHECK (scope IN ('read', 'write', 'admin')), created_at INTEGER NOT NULL,"
    " expires_at INTEGER, revoked_at INTEGER, last_used_at INTEGER) STRICT;"
    "CREATE INDEX api_keys_project ON api_keys(project, id);",
    NULL,
};

/* What an object's body says of the size of a blob: a file's own, or that of the file in its list. */
#define STORED_OBJECT "objects AS o WHERE o.kind = blob_refs.kind AND o.id = blob_refs.id AND json_valid(o.body)"
#define STORED_BYTES                                                                                      \
    "COALESCE((SELECT json_extract(o.body, '$.bytes') FROM " STORED_OBJECT                                \
    " AND json_extract(o.body, '$.sha256') = blob_refs.sha256),"                                          \
    " (SELECT MAX(json_extract(f.value, '$.bytes')) FROM objects AS o, json_each(o.body, '$.files') AS f" \
    "  WHERE o.kind = blob_refs.kind AND o.id = blob_refs.id AND json_valid(o.body)"                      \
    "  AND json_extract(f.value, '$.sha256') = blob_refs.sha256), 0)"

static const char *const step_quotas[] = {
    /* What a project may have, and how many bytes it has. A blob counts once in each project that refers to it; one
     * that only an unfinished upload names is not stored yet, but being uploaded. */
    "CREATE TABLE quotas ("
    " project TEXT PRIMARY KEY NOT NULL, max_queued_jobs INTEGER, max_running_jobs INTEGER, max_stored_bytes INTEGER,"
    " max_upload_bytes INTEGER, updated_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE project_bytes ("
    " project TEXT PRIMARY KEY NOT NULL, stored INTEGER NOT NULL DEFAULT 0, uploading INTEGER NOT NULL DEFAULT 0"
    ") STRICT, WITHOUT ROWID;"
    "CREATE TABLE project_blobs ("
    " project TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, n INTEGER NOT NULL,"
    " PRIMARY KEY (project, sha256)) STRICT, WITHOUT ROWID;"
    "ALTER TABLE jobs ADD COLUMN reserved_bytes INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE blob_refs ADD COLUMN project TEXT NOT NULL DEFAULT 'default';"
    "ALTER TABLE blob_refs ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE objects ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;"
    "UPDATE objects SET bytes = COALESCE(json_extract(body, '$.bytes'), 0) WHERE kind = 'upl' AND json_valid(body);"
    "UPDATE blob_refs SET bytes = " STORED_BYTES ","
    " project = COALESCE((SELECT o.project FROM objects AS o WHERE o.kind = blob_refs.kind AND o.id = blob_refs.id),"
    " 'default');"
    "INSERT INTO project_blobs SELECT project, sha256, MAX(bytes), COUNT(*) FROM blob_refs WHERE kind <> 'upl'"
    " GROUP BY project, sha256;"
    "INSERT INTO project_bytes (project, stored) SELECT project, SUM(bytes) FROM project_blobs GROUP BY project;"
    "INSERT INTO project_bytes (project, uploading) SELECT project, SUM(bytes) FROM objects"
    " WHERE kind = 'upl' AND status IS NOT 'completed' GROUP BY project"
    " ON CONFLICT DO UPDATE SET uploading = excluded.uploading;",
    "CREATE TRIGGER blobs_referred AFTER INSERT ON blob_refs WHEN new.kind <> 'upl' BEGIN"
    " INSERT INTO project_blobs VALUES (new.project, new.sha256, new.bytes, 1) ON CONFLICT DO UPDATE SET n = n + 1;"
    " END;"
    "CREATE TRIGGER blobs_released AFTER DELETE ON blob_refs WHEN old.kind <> 'upl' BEGIN"
    " UPDATE project_blobs SET n = n - 1 WHERE project = old.project AND sha256 = old.sha256;"
    " DELETE FROM project_blobs WHERE project = old.project AND sha256 = old.sha256 AND n < 1; END;"
    "CREATE TRIGGER bytes_stored AFTER INSERT ON project_blobs BEGIN"
    " INSERT INTO project_bytes (project, stored) VALUES (new.project, new.bytes)"
    " ON CONFLICT DO UPDATE SET stored = stored + excluded.stored; END;"
    "CREATE TRIGGER bytes_removed AFTER DELETE ON project_blobs BEGIN"
    " UPDATE project_bytes SET stored = stored - old.bytes WHERE project = old.project; END;"
    "CREATE TRIGGER uploads_begun AFTER INSERT ON objects WHEN new.kind = 'upl' AND new.status IS NOT 'completed' BEGIN"
    " INSERT INTO project_bytes (project, uploading) VALUES (new.project, new.bytes)"
    " ON CONFLICT DO UPDATE SET uploading = uploading + excluded.uploading; END;"
    "CREATE TRIGGER uploads_completed AFTER UPDATE OF status ON objects"
    " WHEN new.kind = 'upl' AND old.status IS NOT 'completed' AND new.status IS 'completed' BEGIN"
    " UPDATE project_bytes SET uploading = uploading - old.bytes WHERE project = old.project;"
    " END;"
    "CREATE TRIGGER uploads_deleted AFTER DELETE ON objects WHEN old.kind = 'upl' AND old.status IS NOT 'completed'"
    " BEGIN UPDATE project_bytes SET uploading = uploading - old.bytes"
    " WHERE project = old.project; END;",
    NULL,
};

static const char *const step_signatures[] = {
    /* Artifacts say whether they are signed. */
    "UPDATE objects SET body = json_set(body, '$.signature', NULL) WHERE kind = 'art' AND json_valid(body)"
    " AND json_type(body, '$.signature') IS NULL;",
    NULL,
};

static const char *const step_pairs[] = {
    /* Lists by two filters that few jobs of many match both. The last is for walks over the jobs of all projects. */
    "CREATE INDEX jobs_project_status_method ON jobs(project, status, method, id);"
    "CREATE INDEX jobs_project_status_model ON jobs(project, status, model, id);"
    "CREATE INDEX jobs_project_model_method ON jobs(project, model, method, id);"
    "CREATE INDEX jobs_status ON jobs(status, id);",
    NULL,
};

static const char *const step_webhooks[] = {
    "CREATE TABLE webhooks ("
    " id TEXT PRIMARY KEY NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL, url TEXT NOT NULL, events TEXT,"
    " every_job INTEGER NOT NULL, secret TEXT NOT NULL, previous_secret TEXT, previous_until INTEGER,"
    " created_at INTEGER NOT NULL, disabled_at INTEGER, disabled_reason TEXT) STRICT;"
    "CREATE INDEX webhooks_project ON webhooks(project, id);"
    "CREATE TABLE deliveries ("
    " id TEXT PRIMARY KEY NOT NULL, webhook TEXT NOT NULL REFERENCES webhooks(id) ON DELETE CASCADE,"
    " job TEXT REFERENCES jobs(id) ON DELETE CASCADE, type TEXT NOT NULL,"
    " status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),"
    " once INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL,"
    " next_at INTEGER NOT NULL, last_at INTEGER, finished_at INTEGER, status_code INTEGER, error TEXT,"
    " body TEXT NOT NULL) STRICT;" /* last: it is large, and rarely read with the others */
    "CREATE INDEX deliveries_webhook ON deliveries(webhook, id);"
    "CREATE INDEX deliveries_job ON deliveries(job);"
    "CREATE INDEX deliveries_due ON deliveries(webhook, next_at, id) WHERE status = 'pending';"
    "CREATE INDEX deliveries_next ON deliveries(next_at) WHERE status = 'pending';"
    "CREATE INDEX deliveries_ended ON deliveries(created_at) WHERE status <> 'pending';",
    NULL,
};

/* Webhooks with a message that failed. */
static const char *const step_tried[] = {
    "CREATE INDEX deliveries_tried ON deliveries(webhook) WHERE status = 'pending' AND attempts > 0;",
    NULL,
};

static const char *const step_gates[] = {
    /* Outcomes of the rungs of a job's quality gate. */
    "ALTER TABLE jobs ADD COLUMN gate TEXT;",
    NULL,
};

static const char *const step_disk[] = {
    /* What a job is expected to have on disk at most, next to the part of it that is its artifact's. */
    "ALTER TABLE jobs ADD COLUMN disk_bytes INTEGER NOT NULL DEFAULT 0;"
    "UPDATE jobs SET disk_bytes = reserved_bytes;",
    NULL,
};

static const char *const *const steps[] = {
    step_tables,     step_projects, step_project_indexes, step_columns, step_traces, step_keys, step_quotas,
    step_signatures, step_pairs,    step_webhooks,        step_tried,   step_gates,  step_disk};

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
    for (const char *const *text = steps[step]; rc == 0 && *text != NULL; text++) {
        rc = sqlite_script(state, *text);
    }
    if (rc == 0) {
        rc = sqlite_run(state, NULL, "INSERT INTO schema_version (version, applied_at) VALUES (?, ?)", "ii", step + 1,
                        clock_unix_seconds());
    }
    return sqlite_end(state, rc);
}

int migrations_apply_to(struct state *state, int64_t newest)
{
    int64_t version = 0, before;

    TRY(sqlite_script(state, "CREATE TABLE IF NOT EXISTS schema_version ("
                             " version INTEGER PRIMARY KEY NOT NULL, applied_at INTEGER NOT NULL) STRICT"));
    TRY(read_version(state, &version));
    if (version > STEP_COUNT) {
        return err_raise(ERR_CONFIG, "the database has schema %lld and this build knows %lld; run a newer build",
                         (long long)version, (long long)STEP_COUNT);
    }
    for (before = version; version < newest; version++) {
        int rc = migration_apply(state, version);
        if (rc != 0) {
            return err_pass(rc, "migrate the database to schema %lld", (long long)version + 1);
        }
    }
    /* The log has each page that a step wrote, and keeps its size: at worst several times that of the database. */
    return version > before ? sqlite_script(state, "PRAGMA wal_checkpoint(TRUNCATE)") : 0;
}

int migrations_check(struct state *state)
{
    int64_t version = 0;

    TRY(read_version(state, &version));
    if (version != STEP_COUNT) {
        return err_raise(ERR_CONFIG,
                         "the database has schema %lld and this build has %lld; use the build of the daemon that runs",
                         (long long)version, (long long)STEP_COUNT);
    }
    return 0;
}

int migrations_apply(struct state *state)
{
    return migrations_apply_to(state, STEP_COUNT);
}
