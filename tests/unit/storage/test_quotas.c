/* What a project has is counted as it changes; claims pass over projects that run as much as they may. */

#include "storage/sqlite.h"
#include "tests/unit/storage/support.h"

#define SHA_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define SHA_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static const int64_t none[QUOTA_COUNT] = {QUOTA_UNSET, QUOTA_UNSET, QUOTA_UNSET, QUOTA_UNSET};

static void check_use(struct store *store, const char *project, int64_t queued, int64_t running, int64_t stored,
                      int64_t uploading, int64_t reserved)
{
    struct quota_row quota;

    ck_assert_rc_ok(store_quota_get(store, project, &quota));
    ck_assert_int_eq(quota.used[QUOTA_QUEUED_JOBS], queued);
    ck_assert_int_eq(quota.used[QUOTA_RUNNING_JOBS], running);
    ck_assert_int_eq(quota.used[QUOTA_STORED_BYTES], stored);
    ck_assert_int_eq(quota.used[QUOTA_UPLOAD_BYTES], uploading);
    ck_assert_int_eq(quota.reserved_bytes, reserved);
}

static void put(struct store *store, const char *project, const char *kind, const char *body)
{
    json_t *object = json_of(body);
    ck_assert_rc_ok(store_object_put(store, project, kind, object));
    json_decref(object);
}

static void make_job(struct store *store, const char *project, int64_t queued_at, int64_t reserved, char id[ID_SIZE])
{
    const struct job_row job = {.id = id,
                                .project = project,
                                .status = STATUS_QUEUED,
                                .method = "rtn",
                                .model = "mdl_x",
                                .reserved_bytes = reserved,
                                .created_at = queued_at,
                                .queued_at = queued_at};
    id_new("job", id);
    ck_assert_rc_ok(store_job_create(store, &job, NULL, NULL, NULL));
}

START_TEST(limits_are_kept)
{
    const int64_t given[QUOTA_COUNT] = {3, 0, (int64_t)1 << 60, QUOTA_UNSET};
    struct quota_row quota;
    struct bench bench;

    bench_init(&bench);
    ck_assert_rc_ok(store_quota_get(bench.store, "search", &quota));
    ck_assert_int_eq(quota.updated_at, 0);
    ck_assert_mem_eq(quota.limits, none, sizeof(none));
    ck_assert_rc_ok(store_quota_set(bench.store, "search", given));
    bench_reopen(&bench);
    ck_assert_rc_ok(store_quota_get(bench.store, "search", &quota));
    ck_assert_mem_eq(quota.limits, given, sizeof(given));
    ck_assert_int_gt(quota.updated_at, 0);
    ck_assert_rc_ok(store_quota_set(bench.store, "search", none));
    ck_assert_rc_ok(store_quota_get(bench.store, "search", &quota));
    ck_assert_mem_eq(quota.limits, none, sizeof(none));
    bench_deinit(&bench);
}
END_TEST

/* The same bytes count once in a project, whoever refers to them, and again in another project. */
START_TEST(blobs_count_once)
{
    struct bench bench;

    bench_init(&bench);
    put(bench.store, "a", "file", "{'id': 'file_1', 'created_at': 1, 'bytes': 100, 'sha256': '" SHA_A "'}");
    put(bench.store, "a", "file", "{'id': 'file_2', 'created_at': 1, 'bytes': 100, 'sha256': '" SHA_A "'}");
    put(bench.store, "b", "file", "{'id': 'file_3', 'created_at': 1, 'bytes': 100, 'sha256': '" SHA_A "'}");
    put(bench.store, "a", "mdl",
        "{'id': 'mdl_1', 'created_at': 1, 'bytes': 9000, 'files': [{'bytes': 100, 'sha256': '" SHA_A
        "'}, {'bytes': 7, 'sha256': '" SHA_B "'}]}");
    check_use(bench.store, "a", 0, 0, 107, 0, 0);
    check_use(bench.store, "b", 0, 0, 100, 0, 0);
    ck_assert_rc_ok(store_object_delete(bench.store, "a", "file", "file_1"));
    ck_assert_rc_ok(store_object_delete(bench.store, "a", "file", "file_2"));
    check_use(bench.store, "a", 0, 0, 107, 0, 0);
    put(bench.store, "a", "mdl",
        "{'id': 'mdl_1', 'created_at': 1, 'bytes': 9000, 'files': [{'bytes': 7, 'sha256': '" SHA_B "'}]}");
    check_use(bench.store, "a", 0, 0, 7, 0, 0);
    ck_assert_rc_ok(store_object_delete(bench.store, "a", "mdl", "mdl_1"));
    check_use(bench.store, "a", 0, 0, 0, 0, 0);
    bench_reopen(&bench);
    check_use(bench.store, "b", 0, 0, 100, 0, 0);
    bench_deinit(&bench);
}
END_TEST

START_TEST(uploads_count_by_length)
{
    static const char begun[] =
        "{'id': 'upl_1', 'created_at': 1, 'status': 'in_progress', 'bytes': 50, 'sha256': null}";
    static const char named[] =
        "{'id': 'upl_1', 'created_at': 1, 'status': 'in_progress', 'bytes': 50, 'sha256': '" SHA_A "'}";
    static const char done[] = "{'id': 'upl_1', 'created_at': 1, 'status': 'completed', 'bytes': 50, 'sha256': null}";
    struct bench bench;

    bench_init(&bench);
    put(bench.store, "a", "upl", begun);
    put(bench.store, "a", "upl", begun); /* another offset */
    put(bench.store, "a", "upl", named);
    check_use(bench.store, "a", 0, 0, 0, 50, 0);
    put(bench.store, "a", "file", "{'id': 'file_1', 'created_at': 1, 'bytes': 50, 'sha256': '" SHA_A "'}");
    put(bench.store, "a", "upl", done);
    put(bench.store, "a", "upl", done);
    check_use(bench.store, "a", 0, 0, 50, 0, 0);
    ck_assert_rc_ok(store_object_delete(bench.store, "a", "upl", "upl_1"));
    check_use(bench.store, "a", 0, 0, 50, 0, 0);
    put(bench.store, "a", "upl", "{'id': 'upl_2', 'created_at': 1, 'status': 'in_progress', 'bytes': 8}");
    ck_assert_rc_ok(store_object_delete(bench.store, "a", "upl", "upl_2"));
    check_use(bench.store, "a", 0, 0, 50, 0, 0);
    bench_deinit(&bench);
}
END_TEST

START_TEST(open_jobs_reserve)
{
    char id[ID_SIZE];
    struct bench bench;

    bench_init(&bench);
    make_job(bench.store, "a", 1, 300, id);
    check_use(bench.store, "a", 1, 0, 0, 0, 300);
    struct job_row job = claim_job(bench.store);
    check_use(bench.store, "a", 0, 1, 0, 0, 300);
    json_t *artifact =
        json_of("{'id': 'art_1', 'created_at': 1, 'bytes': 280, 'files': [{'bytes': 280, 'sha256': '" SHA_A "'}]}");
    ck_assert_rc_ok(move_job(bench.store, id, STATUS_RUNNING, job.fence, STATUS_SUCCEEDED, artifact));
    check_use(bench.store, "a", 0, 0, 280, 0, 0);
    ck_assert_rc_ok(store_artifact_delete(bench.store, "a", "art_1"));
    check_use(bench.store, "a", 0, 0, 0, 0, 0);
    json_decref(artifact);
    job_row_deinit(&job);
    bench_deinit(&bench);
}
END_TEST

static void check_claim(struct store *store, const char *id)
{
    struct job_row job;

    if (id == NULL) {
        ck_assert_int_eq(store_job_claim(store, STATUS_QUEUED, STATUS_RUNNING, "w", "[]", &job), ERR_NOT_FOUND);
        return;
    }
    job = claim_job(store);
    ck_assert_str_eq(job.id, id);
    job_row_deinit(&job);
}

START_TEST(claims_pass_over)
{
    const int64_t one[QUOTA_COUNT] = {QUOTA_UNSET, 1, QUOTA_UNSET, QUOTA_UNSET};
    const int64_t forbidden[QUOTA_COUNT] = {QUOTA_UNSET, 0, QUOTA_UNSET, QUOTA_UNSET};
    char a[3][ID_SIZE], b[ID_SIZE], c[ID_SIZE];
    int64_t ahead;
    struct bench bench;

    bench_init(&bench);
    for (int i = 0; i < 3; i++) {
        make_job(bench.store, "a", 10 + i, 0, a[i]);
    }
    make_job(bench.store, "b", 20, 0, b);
    make_job(bench.store, "c", 5, 0, c); /* before all others */
    ck_assert_rc_ok(store_quota_set(bench.store, "a", one));
    ck_assert_rc_ok(store_quota_set(bench.store, "c", forbidden));
    ck_assert_rc_ok(store_job_ahead(bench.store, b, &ahead));
    ck_assert_int_eq(ahead, 3); /* c's is not in line */
    check_claim(bench.store, a[0]);
    check_claim(bench.store, b); /* a runs what it may */
    check_claim(bench.store, NULL);
    ck_assert_rc_ok(move_job(bench.store, a[0], STATUS_RUNNING, 1, STATUS_CANCELLING, NULL));
    check_claim(bench.store, NULL); /* it runs until it has stopped */
    ck_assert_rc_ok(move_job(bench.store, a[0], STATUS_CANCELLING, 1, STATUS_CANCELLED, NULL));
    check_claim(bench.store, a[1]);
    check_claim(bench.store, NULL);
    ck_assert_rc_ok(store_quota_set(bench.store, "a", none));
    check_claim(bench.store, a[2]);
    store_quota_defaults(bench.store, one); /* c's own says none */
    check_claim(bench.store, NULL);
    ck_assert_rc_ok(store_quota_set(bench.store, "c", none));
    check_claim(bench.store, c);
    bench_deinit(&bench);
}
END_TEST

START_TEST(projects_are_listed)
{
    const struct page first = {.limit = 2, .ascending = true};
    char id[ID_SIZE];
    json_t *list;
    struct bench bench;

    bench_init(&bench);
    ck_assert_rc_ok(store_quota_set(bench.store, "delta", none));
    make_job(bench.store, "alpha", 1, 0, id);
    put(bench.store, "beta", "file", "{'id': 'file_1', 'created_at': 1, 'bytes': 1, 'sha256': '" SHA_A "'}");
    const struct key_row key = {.id = "key_1", .project = "gamma", .name = "", .scope = "read", .created_at = 1};
    ck_assert_rc_ok(store_key_create(bench.store, &key, SHA_A));
    ck_assert_rc_ok(store_project_list(bench.store, &first, &list));
    assert_json(json_object_get(list, "data"), "[{'id': 'alpha'}, {'id': 'beta'}]");
    ck_assert(json_is_true(json_object_get(list, "has_more")));
    json_decref(list);
    const struct page next = {.limit = 2, .ascending = true, .after = "beta"};
    ck_assert_rc_ok(store_project_list(bench.store, &next, &list));
    assert_json(json_object_get(list, "data"), "[{'id': 'delta'}, {'id': 'gamma'}]");
    ck_assert(json_is_false(json_object_get(list, "has_more")));
    json_decref(list);
    bench_deinit(&bench);
}
END_TEST

/* A database from before there were quotas. */
START_TEST(old_bytes_are_counted)
{
    static const char rows[] =
        "INSERT INTO objects (project, kind, id, status, created_at, body) VALUES"
        " ('a', 'file', 'file_1', NULL, 1, '{\"bytes\":100,\"sha256\":\"" SHA_A "\"}'),"
        " ('a', 'mdl', 'mdl_1', NULL, 1, '{\"bytes\":9000,\"files\":[{\"bytes\":100,\"sha256\":\"" SHA_A
        "\"},{\"bytes\":7,\"sha256\":\"" SHA_B "\"}]}'),"
        " ('a', 'art', 'art_1', NULL, 1, '{'),"
        " ('b', 'upl', 'upl_1', 'in_progress', 1, '{\"bytes\":40}'), ('b', 'upl', 'upl_2', 'completed', 1,"
        " '{\"bytes\":41}');"
        "INSERT INTO blob_refs (sha256, kind, id) VALUES ('" SHA_A "', 'file', 'file_1'), ('" SHA_A
        "', 'mdl', 'mdl_1'), ('" SHA_B "', 'mdl', 'mdl_1'), ('" SHA_B "', 'art', 'art_1');";
    struct state state = {.db = NULL};
    struct bench bench;
    char path[512];

    scratch_make(bench.dir);
    snprintf(path, sizeof(path), "%s/quantd.db", bench.dir);
    ck_assert_int_eq(sqlite3_open(path, &state.db), SQLITE_OK);
    ck_assert_rc_ok(migrations_apply_to(&state, 6)); /* the last without them */
    ck_assert_rc_ok(sqlite_script(&state, rows));
    for (int i = 0; i < SQLITE_STATEMENTS; i++) {
        sqlite3_finalize(state.statements[i]);
    }
    ck_assert_int_eq(sqlite3_close(state.db), SQLITE_OK);
    bench_open(&bench);
    check_use(bench.store, "a", 0, 0, 107, 0, 0);
    check_use(bench.store, "b", 0, 0, 0, 40, 0);
    ck_assert_rc_ok(store_object_delete(bench.store, "a", "mdl", "mdl_1"));
    ck_assert_rc_ok(store_object_delete(bench.store, "b", "upl", "upl_1"));
    check_use(bench.store, "a", 0, 0, 107, 0, 0); /* the file and the artifact refer to both */
    check_use(bench.store, "b", 0, 0, 0, 0, 0);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("quotas", limits_are_kept, blobs_count_once, uploads_count_by_length, open_jobs_reserve, claims_pass_over,
          projects_are_listed, old_bytes_are_counted)
