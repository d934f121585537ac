/* Databases of older schemas: each opens in this build and says what it said. */

#include "storage/sqlite.h"
#include "tests/unit/storage/support.h"

#include <sys/stat.h>

#define FINISHED "job_01M8K02DRN6H3FHZGTST7QJ2ZN"
#define WAITING "job_01M8K02DZ964JWQM23MBB69JEQ"
#define DAMAGED "job_01M8K02DZD7AJG1XH24AZGFQ18"

/* Rows as builds of these schemas wrote them. */
static const char rows[] =
    "INSERT INTO jobs (id, status, phase, name, project, model, method, request, progress, memory, result, warnings,"
    " checkpoint, calibration, worker, attempt, fence, priority, created_at, queued_at, started_at, finished_at)"
    " VALUES ('" FINISHED "', 'succeeded', NULL, 'n', 'default', 'mdl_1', 'gptq',"
    " '{\"priority\":2,\"metadata\":{\"team\":\"search\",\"size\":7}}',"
    " '{\"block\":null,\"step\":\"exporting\",\"fraction\":1,\"layers_done\":4,\"layers_total\":5,"
    "\"modules_done\":28,\"modules_total\":35,\"tokens_calibrated\":192,\"elapsed_seconds\":0.041,"
    "\"eta_seconds\":0,\"estimated_finish_at\":1795933943}',"
    " '{\"source_bytes\":82496,\"artifact_bytes\":42715,\"gpu_peak_bytes\":null,\"host_peak_bytes\":24784896,"
    "\"estimated_gpu_bytes\":12591104}', '{\"artifact_id\":\"art_1\"}', '[]',"
    " '{\"layer\":3,\"saved_at\":1795933942,\"charged\":1,\"attempt\":2,"
    "\"phases\":{\"load\":{\"seconds\":0.5,\"flops\":0.0}},\"device\":\"abacus\"}',"
    " '{\"records\":12,\"tokens\":432,\"bytes\":1776,\"ready\":true,\"sequences\":6,\"sequence_length\":32,"
    "\"digest\":\"70d4\",\"evaluation\":{\"sequences\":2,\"sequence_length\":16,\"digest\":\"7fa3\"}}',"
    " 'cpu', 1, 1, 2, 1795933940, 1795933941, 1795933942, 1795933943);"
    "INSERT INTO jobs (id, status, project, method, request, calibration, created_at) VALUES ('" WAITING
    "', 'awaiting_calibration', 'default', 'rtn', '{\"metadata\":{}}',"
    " '{\"records\":5,\"tokens\":180,\"bytes\":740}', 1795933945);"
    "INSERT INTO jobs (id, status, project, method, request, progress, memory, checkpoint, calibration, created_at)"
    " VALUES ('" DAMAGED "', 'queued', 'default', 'rtn', '{\"metadata\":null}', '{', '', '[', 'x', 1795933946);"
    "INSERT INTO blocks VALUES ('" FINISHED "', 0, '{\"index\":0}');"
    "INSERT INTO events VALUES ('" FINISHED "', 1, 'status', 1, NULL);"
    "UPDATE jobs SET seq = 1 WHERE id = '" FINISHED "';"
    "INSERT INTO objects (kind, id, created_at, body) VALUES"
    " ('art', 'art_1', 1, '{\"id\":\"art_1\",\"bits_per_weight\":4.150000000000001,\"created_at\":1}'),"
    " ('mdl', 'mdl_1', 1, '{\"id\":\"mdl_1\",\"created_at\":1}'), ('art', 'art_2', 1, '{');";

static void make_old(const char *dir, int64_t version)
{
    char path[512];
    struct state state = {.db = NULL};

    snprintf(path, sizeof(path), "%s/quantd.db", dir);
    ck_assert_int_eq(sqlite3_open(path, &state.db), SQLITE_OK);
    ck_assert_rc_ok(migrations_apply_to(&state, version));
    ck_assert_rc_ok(sqlite_script(&state, rows));
    if (version == 1) { /* it knew no projects */
        ck_assert_rc_ok(sqlite_script(&state, "UPDATE jobs SET project = NULL"));
    }
    for (int i = 0; i < SQLITE_STATEMENTS; i++) {
        sqlite3_finalize(state.statements[i]);
    }
    ck_assert_int_eq(sqlite3_close(state.db), SQLITE_OK);
}

static void check_finished(struct store *store)
{
    struct job_row job;

    ck_assert_rc_ok(store_job_get(store, "default", FINISHED, &job));
    ck_assert_int_eq(job.status, STATUS_SUCCEEDED);
    ck_assert_int_eq(job.priority, 2);
    ck_assert_int_eq(job.finished_at, 1795933943);
    ck_assert_str_eq(text_at(job.result, "artifact_id"), "art_1");
    const struct job_progress *p = &job.progress;
    ck_assert(p->known && p->fraction == 1 && p->elapsed_seconds == 0.041);
    ck_assert_int_eq(p->block, 0);
    ck_assert_str_eq(p->step, "exporting");
    ck_assert_int_eq(p->layers_done, 4);
    ck_assert_int_eq(p->layers_total, 5);
    ck_assert_int_eq(p->modules_done, 28);
    ck_assert_int_eq(p->modules_total, 35);
    ck_assert_int_eq(p->tokens_calibrated, 192);
    ck_assert_int_eq(p->eta_seconds, 0);
    ck_assert_int_eq(p->estimated_finish_at, 1795933943);
    ck_assert_mem_eq(&job.memory, (&(struct job_memory){82496, 42715, 0, 24784896, 12591104}), sizeof(job.memory));
    ck_assert_int_eq(job.checkpoint.blocks, 4);
    ck_assert_int_eq(job.checkpoint.saved_at, 1795933942);
    ck_assert_int_eq(job.checkpoint.charged, 1);
    ck_assert_int_eq(job.checkpoint.attempt, 2);
    assert_json(job.checkpoint.phases, "{'load': {'seconds': 0.5, 'flops': 0.0}}");
    ck_assert_str_eq(job.checkpoint.device, "abacus");
    ck_assert_int_eq(job.calibration.records, 12);
    ck_assert_int_eq(job.calibration.tokens, 432);
    ck_assert_int_eq(job.calibration.bytes, 1776);
    ck_assert(job.calibration.ready && !job.evaluation.ready);
    ck_assert_int_eq(job.calibration.sequences, 6);
    ck_assert_int_eq(job.calibration.sequence_length, 32);
    ck_assert_str_eq(job.calibration.digest, "70d4");
    ck_assert_int_eq(job.evaluation.sequences, 2);
    ck_assert_int_eq(job.evaluation.sequence_length, 16);
    ck_assert_str_eq(job.evaluation.digest, "7fa3");
    job_row_deinit(&job);
    ck_assert_int_eq(check_events(store, FINISHED), 1);
}

/* An artifact says that it is not signed; its numbers keep their digits. */
static void check_artifact(struct store *store)
{
    json_t *body;

    ck_assert_rc_ok(store_object_get(store, "default", "art", "art_1", &body));
    ck_assert(json_is_null(json_object_get(body, "signature")));
    ck_assert_double_eq(json_number_value(json_object_get(body, "bits_per_weight")), 4.150000000000001);
    json_decref(body);
    ck_assert_rc_ok(store_object_get(store, "default", "mdl", "mdl_1", &body));
    ck_assert_ptr_null(json_object_get(body, "signature"));
    json_decref(body);
}

static void check_others(struct store *store)
{
    struct job_row job;

    ck_assert_rc_ok(store_job_get(store, "default", WAITING, &job));
    ck_assert_int_eq(job.status, STATUS_AWAITING_CALIBRATION);
    ck_assert_int_eq(job.calibration.records, 5);
    ck_assert_ptr_null(job.calibration.digest);
    ck_assert(!job.progress.known);
    ck_assert_int_eq(job.checkpoint.blocks, 0);
    ck_assert_int_eq(job.memory.source_bytes, 0);
    ck_assert_int_eq(job.queued_at, 0);
    job_row_deinit(&job);
    ck_assert_rc_ok(store_job_get(store, "default", DAMAGED, &job)); /* what cannot be read is not there */
    ck_assert(!job.progress.known);
    ck_assert_int_eq(job.calibration.records, 0);
    job_row_deinit(&job);
}

/* Indexes, counts and what refers to jobs came along. */
static void check_rest(struct store *store)
{
    struct page page = {.limit = 9, .project = "default", .metadata_key = "team", .metadata_value = "search"};
    int64_t counts[STATUS_COUNT];
    struct job_list list;
    json_t *blocks;
    char id[ID_SIZE];

    ck_assert_rc_ok(store_job_list(store, &page, &list));
    ck_assert_uint_eq(list.count, 1);
    ck_assert_str_eq(list.rows[0].id, FINISHED);
    job_list_deinit(&list);
    ck_assert_rc_ok(store_blocks_list(store, FINISHED, &blocks));
    ck_assert_uint_eq(json_array_size(blocks), 1);
    json_decref(blocks);
    add_job(store, 0, 1, id);
    ck_assert_rc_ok(store_job_delete(store, WAITING));
    ck_assert_rc_ok(store_job_delete(store, FINISHED));
    ck_assert_rc_ok(store_job_counts(store, "default", counts));
    for (int i = 0; i < STATUS_COUNT; i++) {
        ck_assert_int_eq(counts[i], i == STATUS_QUEUED ? 2 : 0);
    }
    ck_assert_rc_ok(store_job_list(store, &page, &list));
    ck_assert_uint_eq(list.count, 1); /* the new one; the other went with its job */
    job_list_deinit(&list);
}

static void open_old(int64_t version)
{
    struct bench bench;

    scratch_make(bench.dir);
    make_old(bench.dir, version);
    bench_open(&bench);
    check_finished(bench.store);
    check_artifact(bench.store);
    check_others(bench.store);
    bench_reopen(&bench);
    check_finished(bench.store);
    check_rest(bench.store);
    bench_deinit(&bench);
}

START_TEST(schema_1_opens)
{
    open_old(1);
}
END_TEST

START_TEST(schema_2_opens)
{
    open_old(2);
}
END_TEST

START_TEST(schema_3_opens)
{
    open_old(3);
}
END_TEST

/* Pages of all steps are in the database, and not in a log that keeps its size. */
START_TEST(new_log_is_empty)
{
    struct bench bench;
    struct stat log;
    char path[600];

    scratch_make(bench.dir);
    bench_open(&bench);
    snprintf(path, sizeof(path), "%s/quantd.db-wal", bench.dir);
    ck_assert_int_eq(stat(path, &log), 0);
    ck_assert_int_eq(log.st_size, 0);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("migrations", schema_1_opens, schema_2_opens, schema_3_opens, new_log_is_empty)
