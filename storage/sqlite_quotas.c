/* Quotas of projects. What a project has is counted by triggers (migrations.c), in the commits that change it; only the
 * bytes that open jobs reserve are added up when they are asked for, since there are never many of those. */

#include "storage/sqlite.h"

#include "base/err.h"

/* NULL is QUOTA_UNSET. */
static int64_t quota_column(sqlite3_stmt *row, int column)
{
    return sqlite3_column_type(row, column) == SQLITE_NULL ? QUOTA_UNSET : sqlite3_column_int64(row, column);
}

static int quota_read_limits(struct state *state, const char *project, struct quota_row *quota)
{
    sqlite3_stmt *row;

    for (int i = 0; i < QUOTA_COUNT; i++) {
        quota->limits[i] = QUOTA_UNSET;
    }
    int rc = sqlite_first(state, &row,
                          "SELECT max_queued_jobs, max_running_jobs, max_stored_bytes, max_upload_bytes, updated_at"
                          " FROM quotas WHERE project = ?",
                          "t", project);
    if (rc > 0) {
        for (int i = 0; i < QUOTA_COUNT; i++) {
            quota->limits[i] = quota_column(row, i);
        }
        quota->updated_at = sqlite3_column_int64(row, QUOTA_COUNT);
        sqlite_done(row);
        rc = 0;
    }
    return rc;
}

static int quota_read_use(struct state *state, const char *project, struct quota_row *quota)
{
    static const char use[] = "SELECT"
                              " (SELECT COALESCE(SUM(n), 0) FROM job_counts WHERE project = ?1"
                              "  AND status IN ('awaiting_calibration', 'queued', 'paused')),"
                              " (SELECT COALESCE(SUM(n), 0) FROM job_counts WHERE project = ?1"
                              "  AND status IN ('running', 'pausing', 'cancelling')),"
                              " COALESCE((SELECT stored FROM project_bytes WHERE project = ?1), 0),"
                              " COALESCE((SELECT uploading FROM project_bytes WHERE project = ?1), 0),"
                              " (SELECT COALESCE(SUM(reserved_bytes), 0) FROM jobs WHERE project = ?1 AND status IN"
                              "  ('awaiting_calibration', 'queued', 'paused', 'running', 'pausing', 'cancelling')),"
                              " (SELECT COALESCE(SUM(disk_bytes - CASE WHEN layers_total > 0"
                              "  THEN (disk_bytes - reserved_bytes) * layers_done / layers_total ELSE 0 END), 0)"
                              "  FROM jobs WHERE status IN"
                              "  ('awaiting_calibration', 'queued', 'paused', 'running', 'pausing', 'cancelling'))";
    sqlite3_stmt *row;

    int rc = sqlite_first(state, &row, use, "t", project);
    if (rc > 0) {
        for (int i = 0; i < QUOTA_COUNT; i++) {
            quota->used[i] = sqlite3_column_int64(row, i);
        }
        quota->reserved_bytes = sqlite3_column_int64(row, QUOTA_COUNT);
        quota->disk_bytes = sqlite3_column_int64(row, QUOTA_COUNT + 1);
        sqlite_done(row);
        rc = 0;
    }
    return rc;
}

int sqlite_quota_get(struct state *state, struct state_args *args)
{
    struct quota_row quota = {.updated_at = 0};

    TRY(quota_read_limits(state, args->project, &quota));
    TRY(quota_read_use(state, args->project, &quota));
    *args->quota = quota;
    return 0;
}

int sqlite_quota_set(struct state *state, struct state_args *args)
{
    const int64_t *limits = args->limits;

    _Static_assert(QUOTA_COUNT == 4, "the statement has four columns");
    return sqlite_run(state, NULL,
                      "INSERT INTO quotas (project, max_queued_jobs, max_running_jobs, max_stored_bytes,"
                      " max_upload_bytes, updated_at) VALUES (?, NULLIF(?, -1), NULLIF(?, -1), NULLIF(?, -1),"
                      " NULLIF(?, -1), ?) ON CONFLICT DO UPDATE SET max_queued_jobs = excluded.max_queued_jobs,"
                      " max_running_jobs = excluded.max_running_jobs, max_stored_bytes = excluded.max_stored_bytes,"
                      " max_upload_bytes = excluded.max_upload_bytes, updated_at = excluded.updated_at",
                      "tiiiii", args->project, limits[QUOTA_QUEUED_JOBS], limits[QUOTA_RUNNING_JOBS],
                      limits[QUOTA_STORED_BYTES], limits[QUOTA_UPLOAD_BYTES], clock_unix_seconds());
}
