/* Opening: one owner, the newest schema or none, a damaged file, and what the database is told about durability. */

#include "tests/unit/storage/support.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static sqlite3 *open_raw(const struct bench *bench)
{
    char path[512];
    sqlite3 *db;

    snprintf(path, sizeof(path), "%s/quantd.db", bench->dir);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    return db;
}

static void run_raw(const struct bench *bench, const char *sql)
{
    sqlite3 *db = open_raw(bench);

    ck_assert_int_eq(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

START_TEST(a_second_open_fails_at_once)
{
    struct bench bench;
    struct store *second = NULL;

    bench_init(&bench);
    const struct store_config config = {.data_dir = bench.dir};
    int64_t begin = clock_monotonic_ms();
    ck_assert_int_eq(store_open(&config, &second), ERR_CONFIG);
    ck_assert_int_lt(clock_monotonic_ms() - begin, 1000);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "another daemon holds"));
    ck_assert_ptr_null(second);
    pid_t child = fork(); /* and from another process */
    if (child == 0) {
        _exit(store_open(&config, &second) == ERR_CONFIG ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_rc_ok(store_ready(bench.store)); /* the first is none the worse */
    bench_reopen(&bench);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_newer_schema_is_refused)
{
    struct bench bench;
    char id[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    store_close(bench.store);
    run_raw(&bench, "INSERT INTO schema_version VALUES (999, 1)");
    const struct store_config config = {.data_dir = bench.dir};
    struct store *store = NULL;
    ck_assert_int_eq(store_open(&config, &store), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "schema 999"));
    ck_assert_ptr_null(store);
    run_raw(&bench, "DELETE FROM schema_version WHERE version = 999");
    bench_open(&bench); /* untouched meanwhile, and the lock was given back */
    ck_assert_int_eq(check_events(bench.store, id), 1);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_damaged_database_is_refused)
{
    struct bench bench;
    char path[512];
    struct store *store = NULL;

    scratch_make(bench.dir);
    snprintf(path, sizeof(path), "%s/quantd.db", bench.dir);
    ck_assert_rc_ok(fs_write_atomic(path, "this is no database, and long enough to be looked at", 52));
    const struct store_config config = {.data_dir = bench.dir};
    ck_assert_int_eq(store_open(&config, &store), ERR_STORAGE);
    ck_assert_ptr_null(store);
    scratch_remove(bench.dir);
}
END_TEST

START_TEST(unknown_rows_and_relative_paths_are_refused)
{
    struct store *store = NULL;
    char dir[256];

    scratch_make(dir);
    ck_assert_int_eq(store_open(&(struct store_config){.data_dir = dir, .state = "oracle"}, &store), ERR_CONFIG);
    ck_assert_int_eq(store_open(&(struct store_config){.data_dir = dir, .blobs = "tape"}, &store), ERR_CONFIG);
    ck_assert_int_eq(store_open(&(struct store_config){.data_dir = "relative"}, &store), ERR_CONFIG);
    ck_assert_int_eq(store_open(&(struct store_config){.data_dir = NULL}, &store), ERR_CONFIG);
    ck_assert_ptr_null(store);
    store_close(NULL);
    scratch_remove(dir);
}
END_TEST

START_TEST(the_database_is_in_wal_mode)
{
    struct bench bench;
    sqlite3_stmt *row;

    bench_init(&bench);
    sqlite3 *db = open_raw(&bench);
    ck_assert_int_eq(sqlite3_prepare_v2(db, "PRAGMA journal_mode", -1, &row, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(row), SQLITE_ROW);
    ck_assert_str_eq((const char *)sqlite3_column_text(row, 0), "wal");
    sqlite3_finalize(row);
    sqlite3_close(db);
    bench_deinit(&bench);
}
END_TEST

/* How the database finds the rows of a query, in its words; *sorted: it sorts them. */
static void plan_of(sqlite3 *db, const char *query, char *out, size_t size, bool *sorted)
{
    char sql[512];
    sqlite3_stmt *row;

    out[0] = '\0';
    *sorted = false;
    snprintf(sql, sizeof(sql), "EXPLAIN QUERY PLAN SELECT %s DESC LIMIT 21", query);
    ck_assert_int_eq(sqlite3_prepare_v2(db, sql, -1, &row, NULL), SQLITE_OK);
    while (sqlite3_step(row) == SQLITE_ROW) {
        const char *line = (const char *)sqlite3_column_text(row, 3);
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s; ", line);
        *sorted = *sorted || strstr(line, "TEMP B-TREE") != NULL || strncmp(line, "SCAN", 4) == 0;
    }
    sqlite3_finalize(row);
}

/* The queries that sqlite_list.c builds, and what each finds its rows by. */
START_TEST(lists_of_a_project_have_an_index_for_each_filter)
{
    static const char *const queries[][2] = {
        {"* FROM jobs WHERE project=? ORDER BY id", "(project=?)"},
        {"* FROM jobs WHERE project=? AND id<? ORDER BY id", "(project=? AND id<?)"},
        {"* FROM jobs WHERE project=? AND id>? AND created_at>? ORDER BY id", "(project=? AND id>?)"},
        {"* FROM jobs WHERE project=? AND status=? AND id<? ORDER BY id", "(project=? AND status=? AND id<?)"},
        {"* FROM jobs WHERE project=? AND model=? AND id<? ORDER BY id", "(project=? AND model=? AND id<?)"},
        {"* FROM jobs WHERE project=? AND method=? AND id<? ORDER BY id", "(project=? AND method=? AND id<?)"},
        {"* FROM (SELECT job FROM job_metadata WHERE key=? AND value=? AND project=?) AS m CROSS JOIN jobs ON"
         " jobs.id = m.job WHERE project=? AND m.job<? ORDER BY m.job",
         "(project=? AND key=? AND value=? AND job<?)"},
        {"* FROM objects WHERE kind=? AND project=? AND id<? ORDER BY id", "(project=? AND kind=? AND id<?)"},
        {"* FROM objects WHERE kind=? AND project=? AND job=? AND id<? ORDER BY id",
         "(project=? AND kind=? AND job=? AND id<?)"},
    };
    struct bench bench;
    char plan[512];
    bool sorted;

    bench_init(&bench);
    sqlite3 *db = open_raw(&bench);
    for (size_t i = 0; i < sizeof(queries) / sizeof(queries[0]); i++) {
        plan_of(db, queries[i][0], plan, sizeof(plan), &sorted);
        ck_assert_msg(strstr(plan, queries[i][1]) != NULL && !sorted, "%s: %s", queries[i][0], plan);
    }
    sqlite3_close(db);
    bench_deinit(&bench);
}
END_TEST

START_TEST(damaged_rows_are_an_error_and_no_crash)
{
    static const char *const damages[] = {"request = '{broken'", "phases = '[1'", "status = 'lost'"};
    struct bench bench;
    char id[ID_SIZE], sql[128];
    struct job_row job = {.id = NULL};
    struct job_list list = {.rows = NULL};
    struct store_status status;

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        snprintf(sql, sizeof(sql), "UPDATE jobs SET %s", damages[i]);
        run_raw(&bench, sql);
        ck_assert_int_eq(store_job_get(bench.store, NULL, id, &job), ERR_STORAGE);
        ck_assert_int_eq(store_job_list(bench.store, &(struct page){.limit = 5}, &list), ERR_STORAGE);
        ck_assert_ptr_null(job.id);
        ck_assert_ptr_null(list.rows);
        run_raw(&bench, "UPDATE jobs SET request = NULL, phases = NULL");
    }
    ck_assert_int_eq(store_job_status(bench.store, NULL, id, &status), ERR_STORAGE);
    run_raw(&bench, "UPDATE jobs SET status = 'queued'"); /* statements were given back: the store goes on */
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    job_row_deinit(&job);
    bench_deinit(&bench);
}
END_TEST

static void limit_files(rlim_t bytes)
{
    struct rlimit limit;

    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

#define FULL_DISK_KEYS 8 /* their uses need more space than is left */

static void full_disk_key(int number, char id[ID_SIZE], char sha256[DIGEST_HEX_SIZE])
{
    (void)snprintf(id, ID_SIZE, "key_%026d", number);
    (void)snprintf(sha256, DIGEST_HEX_SIZE, "%064d", number);
}

/* No file may grow: writes fail as on a full disk, nothing is done partly, and once there is space again the store
 * continues. Meanwhile keys let their holders in. */
START_TEST(a_full_disk_is_survived)
{
    struct bench bench;
    struct blob_writer *writer;
    char id[ID_SIZE], sha256[DIGEST_HEX_SIZE];
    json_t *data = json_pack("{s:o}", "text", json_sprintf("%02000d", 1));
    int64_t acknowledged = 1;
    int rc = 0;

    signal(SIGXFSZ, SIG_IGN);
    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    for (int i = 0; i < FULL_DISK_KEYS; i++) {
        struct key_row key = {.project = "default", .name = "", .scope = "read", .created_at = 1};
        full_disk_key(i, key.id, sha256);
        ck_assert_rc_ok(store_key_create(bench.store, &key, sha256));
    }
    limit_files((rlim_t)256 << 10);
    for (int i = 0; rc == 0 && i < 2000; i++) {
        rc = store_event_append(bench.store, id, "log", data);
        acknowledged += rc == 0;
    }
    ck_assert_msg(rc == ERR_DISK_FULL, "%d %s", rc, err_last()->trace);
    for (int i = 0; i < FULL_DISK_KEYS; i++) {
        char key_id[ID_SIZE];
        struct key_row found;
        full_disk_key(i, key_id, sha256);
        ck_assert_rc_ok(store_key_find(bench.store, sha256, &found));
        ck_assert_str_eq(found.id, key_id);
    }
    ck_assert_rc_ok(blob_writer_new(bench.store, &writer));
    for (rc = 0; rc == 0;) {
        rc = blob_writer_write(writer, sha256, sizeof(sha256));
    }
    ck_assert_int_eq(rc, ERR_DISK_FULL);
    blob_writer_abort(writer);
    limit_files(RLIM_INFINITY);
    ck_assert_rc_ok(store_event_append(bench.store, id, "log", data));
    ck_assert_int_eq(check_events(bench.store, id), acknowledged + 1);
    bench_reopen(&bench);
    ck_assert_int_eq(check_events(bench.store, id), acknowledged + 1);
    json_decref(data);
    bench_deinit(&bench);
}
END_TEST

/* More different statements than the cache holds. */
START_TEST(the_statement_cache_turns_over)
{
    static const unsigned sets[] = {JOB_SET_STATUS_REASON, JOB_SET_PHASE,    JOB_SET_NAME,   JOB_SET_WORKER,
                                    JOB_SET_PRIORITY,      JOB_SET_PROGRESS, JOB_SET_RECORDS};
    struct bench bench;
    char id[ID_SIZE], text[16];
    struct job_row job;
    const struct job_row change = {.status_reason = text, .phase = text, .name = text, .worker = text};

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    for (unsigned set = 0; set < 128; set++) {
        struct job_update update = {.id = id, .from = STATUS_ANY, .fence = -1, .row = &change, .event = "log"};
        for (unsigned i = 0; i < 7; i++) {
            update.set |= (set >> i & 1) != 0 ? sets[i] : 0;
        }
        snprintf(text, sizeof(text), "%u", set);
        ck_assert_rc_ok(store_job_update(bench.store, &update, NULL));
    }
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    ck_assert_str_eq(job.worker, "127");
    job_row_deinit(&job);
    ck_assert_int_eq(check_events(bench.store, id), 129);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("sqlite", a_second_open_fails_at_once, a_newer_schema_is_refused, a_damaged_database_is_refused,
          unknown_rows_and_relative_paths_are_refused, the_database_is_in_wal_mode,
          lists_of_a_project_have_an_index_for_each_filter, damaged_rows_are_an_error_and_no_crash,
          a_full_disk_is_survived, the_statement_cache_turns_over)
