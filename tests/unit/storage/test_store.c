/* The store's promises on jobs, events, blocks, publication and idempotency. */

#include "tests/unit/storage/support.h"

#include <pthread.h>
#include <stdatomic.h>

static const struct idempotency_key key_a = {"default", "POST /a", "k"}, key_b = {"default", "POST /b", "k"},
                                    key_c = {"default", "POST /c", "k"};

START_TEST(jobs_come_back_whole)
{
    struct bench bench;
    json_t *job, *got;
    struct store_status status;
    char id[ID_SIZE];

    bench_init(&bench);
    id_new("job", id);
    job = json_of("{'status': 'queued', 'status_reason': null, 'phase': 'loading', 'name': 'n', 'project': 'p',"
                  " 'model': 'mdl_1', 'method': 'gptq', 'request': {'priority': 3, 'x': [1, 2.5, '\\u00e9']},"
                  " 'progress': {'fraction': 0.1}, 'memory': null, 'result': null, 'error': {'code': 'x'},"
                  " 'warnings': [], 'checkpoint': null, 'calibration': {'records': 0}, 'worker': null, 'attempt': 2,"
                  " 'fence': 7, 'seq': 0, 'created_at': 11, 'queued_at': 12, 'started_at': null, 'finished_at': null,"
                  " 'cancelled_at': null}");
    json_object_set_new(job, "id", json_string(id));
    ck_assert_rc_ok(store_job_create(bench.store, job, NULL, NULL, NULL));
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &got));
    ck_assert(json_equal(job, got));
    json_decref(got);
    ck_assert_int_eq(store_job_create(bench.store, job, NULL, NULL, NULL), ERR_JOB_STATE_CONFLICT); /* twice */
    ck_assert_int_eq(store_job_get(bench.store, NULL, "job_none", &got), ERR_NOT_FOUND);
    ck_assert_int_eq(store_job_get(bench.store, "q", id, &got), ERR_NOT_FOUND); /* of another project */
    ck_assert_rc_ok(store_job_status(bench.store, "p", id, &status));
    ck_assert_str_eq(status.status, "queued");
    ck_assert_int_eq(status.fence, 7);
    ck_assert_int_eq(status.seq, 0);
    ck_assert_rc_ok(store_job_status(bench.store, NULL, id, &status));
    ck_assert_int_eq(store_job_status(bench.store, "q", id, &status), ERR_NOT_FOUND);
    ck_assert_int_eq(store_job_status(bench.store, NULL, "job_none", &status), ERR_NOT_FOUND);
    json_object_set_new(job, "id", json_integer(1));
    ck_assert_int_eq(store_job_create(bench.store, job, NULL, NULL, NULL), ERR_INTERNAL);
    json_object_set_new(job, "id", json_string("job_2"));
    json_object_set_new(job, "attempt", json_string("two"));
    ck_assert_int_eq(store_job_create(bench.store, job, NULL, NULL, NULL), ERR_INTERNAL);
    bench_reopen(&bench);
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &got));
    ck_assert_int_eq(int_at(got, "fence"), 7);
    json_decref(got);
    json_decref(job);
    bench_deinit(&bench);
}
END_TEST

START_TEST(updates_are_fenced)
{
    struct bench bench;
    json_t *job, *patch = json_of("{'status': 'running', 'phase': 'loading'}");
    char id[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    ck_assert_int_eq(store_job_update(bench.store, id, "running", -1, patch, "status", patch, NULL),
                     ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(store_job_update(bench.store, id, NULL, 1, patch, "status", patch, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(store_job_update(bench.store, "job_none", NULL, -1, patch, "status", patch, NULL), ERR_NOT_FOUND);
    ck_assert_int_eq(check_events(bench.store, id), 1); /* what fails tells nothing */
    ck_assert_rc_ok(store_job_update(bench.store, id, "queued", 0, patch, "status", patch, &job));
    ck_assert_str_eq(text_at(job, "status"), "running");
    ck_assert_int_eq(int_at(job, "seq"), 2);
    json_decref(job);
    json_decref(patch);
    patch = json_of("{'no_such_column': 1}");
    ck_assert_int_eq(store_job_update(bench.store, id, NULL, -1, patch, NULL, NULL, NULL), ERR_INTERNAL);
    json_decref(patch);
    patch = json_of("{'seq': 100}");
    ck_assert_int_eq(store_job_update(bench.store, id, NULL, -1, patch, NULL, NULL, NULL), ERR_INTERNAL);
    json_decref(patch);
    patch = json_of("{'phase': null, 'error': {'code': 'timeout'}}");
    ck_assert_rc_ok(store_job_update(bench.store, id, NULL, -1, patch, NULL, NULL, &job));
    ck_assert(json_is_null(json_object_get(job, "phase")));
    ck_assert_str_eq(text_at(json_object_get(job, "error"), "code"), "timeout");
    json_decref(job);
    json_decref(patch);
    ck_assert_int_eq(check_events(bench.store, id), 2);
    bench_deinit(&bench);
}
END_TEST

START_TEST(claims_go_by_priority_then_age)
{
    static const struct {
        int priority;
        int64_t queued_at;
    } rows[] = {{0, 5}, {2, 9}, {2, 7}, {0, 4}, {-1, 1}, {2, 9}};
    static const int order[] = {2, 1, 5, 3, 0, 4};
    struct bench bench;
    char ids[6][ID_SIZE];
    json_t *job;

    bench_init(&bench);
    for (int i = 0; i < 6; i++) {
        add_job(bench.store, rows[i].priority, rows[i].queued_at, ids[i]);
    }
    for (int i = 0; i < 6; i++) {
        ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "worker-1", &job));
        ck_assert_str_eq(text_at(job, "id"), ids[order[i]]);
        ck_assert_str_eq(text_at(job, "status"), "running");
        ck_assert_str_eq(text_at(job, "worker"), "worker-1");
        ck_assert_int_eq(int_at(job, "attempt"), 1);
        ck_assert_int_eq(int_at(job, "fence"), 1);
        ck_assert_int_gt(int_at(job, "started_at"), 0);
        json_decref(job);
    }
    ck_assert_int_eq(store_job_claim(bench.store, "queued", "running", "worker-1", &job), ERR_NOT_FOUND);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_second_claim_fences_the_first)
{
    struct bench bench;
    json_t *job, *events, *patch = json_of("{'status': 'queued', 'request': {'priority': 9}}");
    char id[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "a", &job));
    int64_t started_at = int_at(job, "started_at");
    json_decref(job);
    ck_assert_rc_ok(store_job_update(bench.store, id, "running", 1, patch, "status", NULL, NULL));
    ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "b", &job));
    ck_assert_int_eq(int_at(job, "attempt"), 2);
    ck_assert_int_eq(int_at(job, "fence"), 2);
    ck_assert_int_eq(int_at(job, "started_at"), started_at);
    json_decref(job);
    ck_assert_int_eq(store_job_update(bench.store, id, NULL, 1, patch, NULL, NULL, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(store_events_list(bench.store, id, 3, 0, &events));
    json_object_del(json_array_get(events, 0), "created_at");
    assert_json_take(events, "[{'object': 'event', 'seq': 4, 'type': 'status', 'data': {'status': 'running', 'from':"
                             " 'queued', 'attempt': 2, 'fence': 2, 'worker': 'b'}}]");
    json_decref(patch);
    bench_deinit(&bench);
}
END_TEST

START_TEST(counts_follow_every_move)
{
    struct bench bench;
    json_t *job, *counts;
    char a[ID_SIZE], b[ID_SIZE], c[ID_SIZE];

    bench_init(&bench);
    ck_assert_rc_ok(store_job_counts(bench.store, &counts));
    assert_json_take(counts, "{}");
    add_job(bench.store, 0, 1, a);
    add_job(bench.store, 0, 2, b);
    add_job(bench.store, 0, 3, c);
    ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "w", &job));
    json_decref(job);
    ck_assert_rc_ok(store_job_counts(bench.store, &counts));
    assert_json_take(counts, "{'queued': 2, 'running': 1}");
    ck_assert_rc_ok(store_job_delete(bench.store, b));
    ck_assert_int_eq(store_job_delete(bench.store, b), ERR_NOT_FOUND);
    ck_assert_rc_ok(store_job_delete(bench.store, a));
    ck_assert_rc_ok(store_job_counts(bench.store, &counts));
    assert_json_take(counts, "{'queued': 1}");
    bench_deinit(&bench);
}
END_TEST

START_TEST(events_are_read_from_anywhere)
{
    struct bench bench;
    json_t *events, *data;
    char id[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    for (int i = 2; i <= 10; i++) {
        data = json_pack("{s:i}", "n", i);
        ck_assert_rc_ok(store_event_append(bench.store, id, "progress", data));
        json_decref(data);
    }
    ck_assert_int_eq(check_events(bench.store, id), 10);
    ck_assert_rc_ok(store_events_list(bench.store, id, 4, 3, &events));
    ck_assert_uint_eq(json_array_size(events), 3);
    ck_assert_int_eq(int_at(json_array_get(events, 0), "seq"), 5);
    ck_assert_int_eq(int_at(json_object_get(json_array_get(events, 2), "data"), "n"), 7);
    json_decref(events);
    ck_assert_rc_ok(store_events_list(bench.store, id, 10, 0, &events));
    assert_json_take(events, "[]");
    ck_assert_rc_ok(store_events_list(bench.store, "job_none", 0, 0, &events));
    assert_json_take(events, "[]");
    ck_assert_int_eq(store_event_append(bench.store, "job_none", "log", NULL), ERR_NOT_FOUND);
    bench_deinit(&bench);
}
END_TEST

struct heard {
    int count;
    char last[ID_SIZE];
};

static void on_event(void *data, const char *job_id)
{
    struct heard *heard = data;
    heard->count++;
    snprintf(heard->last, sizeof(heard->last), "%s", job_id);
}

START_TEST(the_subscriber_hears_commits_only)
{
    struct bench bench;
    struct heard heard = {0};
    json_t *job, *patch = json_of("{'phase': 'x'}");
    char id[ID_SIZE];

    bench_init(&bench);
    store_on_event(bench.store, on_event, &heard);
    add_job(bench.store, 0, 1, id);
    ck_assert_int_eq(heard.count, 1);
    ck_assert_str_eq(heard.last, id);
    ck_assert_rc_ok(store_job_update(bench.store, id, NULL, -1, patch, NULL, NULL, NULL)); /* no event */
    ck_assert_int_eq(store_job_update(bench.store, id, "x", -1, patch, "status", NULL, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(heard.count, 1);
    heard.last[0] = '\0';
    ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "w", &job));
    json_decref(job);
    ck_assert_int_eq(heard.count, 2);
    ck_assert_str_eq(heard.last, id);
    json_decref(patch);
    bench_deinit(&bench);
}
END_TEST

START_TEST(blocks_are_one_transaction)
{
    struct bench bench;
    char id[ID_SIZE];
    json_t *list, *job;
    json_t *patch = json_of("{'checkpoint': {'layer': 0}, 'progress': {'fraction': 0.5}}");
    json_t *block = json_of("{'index': 0, 'file': 'b0', 'sha256': 'x', 'activations': {'float': 'y'}}");
    json_t *layers = json_of("[{'index': 1, 'module': 'q'}, {'index': 0, 'module': 'k'}]");

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "w", &job));
    json_decref(job);
    ck_assert_int_eq(store_block_commit(bench.store, id, 2, block, layers, patch, patch), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(store_block_commit(bench.store, id, 1, block, layers, patch, patch));
    ck_assert_int_eq(check_events(bench.store, id), 3);
    ck_assert_int_eq(store_block_commit(bench.store, id, 1, block, layers, patch, patch), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(check_events(bench.store, id), 3); /* all of it was undone */
    ck_assert_rc_ok(store_blocks_list(bench.store, id, &list));
    assert_json_take(list, "[{'index': 0, 'file': 'b0', 'sha256': 'x', 'activations': {'float': 'y'}}]");
    ck_assert_rc_ok(store_layers_list(bench.store, id, &list));
    assert_json_take(list, "[{'index': 1, 'module': 'q'}, {'index': 0, 'module': 'k'}]"); /* as given */
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    ck_assert_int_eq(int_at(json_object_get(job, "checkpoint"), "layer"), 0);
    json_decref(job);
    json_object_del(block, "index");
    ck_assert_int_eq(store_block_commit(bench.store, id, 1, block, layers, patch, patch), ERR_INTERNAL);
    ck_assert_rc_ok(store_blocks_clear(bench.store, id, 1)); /* from the second on: there is none */
    ck_assert_rc_ok(store_blocks_list(bench.store, id, &list));
    ck_assert_uint_eq(json_array_size(list), 1);
    json_decref(list);
    ck_assert_rc_ok(store_blocks_clear(bench.store, id, 0));
    ck_assert_rc_ok(store_blocks_list(bench.store, id, &list));
    assert_json_take(list, "[]");
    ck_assert_rc_ok(store_layers_list(bench.store, id, &list));
    assert_json_take(list, "[]");
    json_object_set_new(block, "index", json_integer(0));
    ck_assert_rc_ok(store_block_commit(bench.store, id, 1, block, layers, patch, patch));
    ck_assert_rc_ok(store_job_delete(bench.store, id)); /* all goes with the job */
    ck_assert_rc_ok(store_layers_list(bench.store, id, &list));
    assert_json_take(list, "[]");
    ck_assert_rc_ok(store_events_list(bench.store, id, 0, 0, &list));
    assert_json_take(list, "[]");
    json_decref(patch);
    json_decref(block);
    json_decref(layers);
    bench_deinit(&bench);
}
END_TEST

START_TEST(publication_happens_once)
{
    struct bench bench;
    char id[ID_SIZE];
    json_t *job, *got, *done = json_of("{'status': 'succeeded', 'result': {'artifact_id': 'art_1'}}");
    json_t *artifact = json_of("{'id': 'art_1', 'created_at': 5, 'files': []}");
    json_t *bad = json_of("{'id': 'art_1'}");

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    ck_assert_int_eq(store_artifact_publish(bench.store, id, "running", 0, artifact, done, "status", done, NULL),
                     ERR_JOB_STATE_CONFLICT); /* not running */
    ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "w", &job));
    json_decref(job);
    ck_assert_int_eq(store_artifact_publish(bench.store, id, "running", 0, artifact, done, "status", done, NULL),
                     ERR_JOB_STATE_CONFLICT); /* an old fence */
    ck_assert_int_eq(store_artifact_publish(bench.store, id, "running", 1, bad, done, "status", done, NULL),
                     ERR_INTERNAL);
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    ck_assert_str_eq(text_at(job, "status"), "running"); /* undone with the artifact */
    json_decref(job);
    ck_assert_int_eq(store_object_get(bench.store, "default", "art", "art_1", &got), ERR_NOT_FOUND);
    ck_assert_rc_ok(store_artifact_publish(bench.store, id, "running", 1, artifact, done, "status", done, NULL));
    ck_assert_int_eq(store_artifact_publish(bench.store, id, "running", 1, artifact, done, "status", done, NULL),
                     ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(store_object_get(bench.store, "default", "art", "art_1", &got));
    ck_assert(json_equal(got, artifact));
    json_decref(got);
    ck_assert_int_eq(check_events(bench.store, id), 3);
    json_decref(done);
    json_decref(artifact);
    json_decref(bad);
    bench_deinit(&bench);
}
END_TEST

struct race {
    struct store *store;
    const char *id;
    const json_t *done, *artifact;
    int rc;
};

static void *publish(void *data)
{
    struct race *race = data;
    race->rc = store_artifact_publish(race->store, race->id, "running", 1, race->artifact, race->done, "status",
                                      race->done, NULL);
    return NULL;
}

/* A cancellation and a publication at once: exactly one wins, and the artifact is there only if it did. */
START_TEST(cancellation_races_publication)
{
    struct bench bench;
    json_t *done = json_of("{'status': 'succeeded'}"), *cancelled = json_of("{'status': 'cancelled'}"), *job, *got;

    bench_init(&bench);
    for (int i = 0; i < 40; i++) {
        char id[ID_SIZE], art[ID_SIZE];
        pthread_t thread;
        id_new("art", art);
        json_t *artifact = json_pack("{s:s, s:i}", "id", art, "created_at", 1);
        add_job(bench.store, 0, 1, id);
        ck_assert_rc_ok(store_job_claim(bench.store, "queued", "running", "w", &job));
        json_decref(job);
        struct race race = {bench.store, id, done, artifact, 0};
        pthread_create(&thread, NULL, publish, &race);
        int rc = store_job_update(bench.store, id, "running", -1, cancelled, "status", cancelled, NULL);
        pthread_join(thread, NULL);
        ck_assert((rc == 0) != (race.rc == 0));
        ck_assert_int_eq(rc + race.rc, ERR_JOB_STATE_CONFLICT);
        int found = store_object_get(bench.store, "default", "art", art, &got);
        ck_assert_int_eq(found, race.rc == 0 ? 0 : ERR_NOT_FOUND);
        if (found == 0) {
            json_decref(got);
        }
        ck_assert_int_eq(check_events(bench.store, id), 3);
        json_decref(artifact);
    }
    json_decref(done);
    json_decref(cancelled);
    bench_deinit(&bench);
}
END_TEST

START_TEST(idempotency_keys_replay)
{
    struct bench bench;
    json_t *response = json_of("{'digest': 'd1', 'status': 201, 'body': {'id': 'job_1'}, 'location': '/v1/x'}");
    json_t *got = NULL;

    bench_init(&bench);
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 0);
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), ERR_IDEMPOTENCY_IN_PROGRESS);
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d2", &got), ERR_IDEMPOTENCY_KEY_REUSED);
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_b, "d2", &got), 0); /* another route */
    ck_assert_ptr_null(got);
    ck_assert_rc_ok(store_idempotency_finish(bench.store, &key_a, response));
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 1);
    ck_assert(json_equal(got, response));
    json_decref(got);
    got = NULL;
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d2", &got), ERR_IDEMPOTENCY_KEY_REUSED);
    ck_assert_rc_ok(store_idempotency_release(bench.store, &key_a)); /* an answered key stays */
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 1);
    json_decref(got);
    ck_assert_rc_ok(store_idempotency_release(bench.store, &key_b));
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_b, "d3", &got), 0);
    ck_assert_int_eq(store_idempotency_finish(bench.store, &key_c, response), ERR_NOT_FOUND);
    bench_reopen(&bench); /* what was answered lasts, what was not is free again */
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 1);
    json_decref(got);
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_b, "d4", &got), 0);
    json_decref(response);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_key_knows_its_job_from_the_commit_on)
{
    struct bench bench;
    char id[ID_SIZE];
    json_t *got = NULL;

    bench_init(&bench);
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 0);
    id_new("job", id);
    json_t *job = json_pack("{s:s, s:s, s:s}", "id", id, "status", "queued", "project", "default");
    ck_assert_rc_ok(store_job_create(bench.store, job, NULL, NULL, &key_a));
    bench_reopen(&bench); /* died before it answered: the key is not free, and says what it made */
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 1);
    ck_assert_str_eq(text_at(got, "id"), id);
    json_decref(got);
    json_decref(job);
    bench_deinit(&bench);
}
END_TEST

START_TEST(objects_are_replaced_and_deleted)
{
    struct bench bench;
    json_t *got, *body = json_of("{'id': 'mdl_1', 'created_at': 0, 'name': 'a'}");

    bench_init(&bench);
    ck_assert_rc_ok(store_object_put(bench.store, "default", "mdl", body));
    json_object_set_new(body, "name", json_string("b"));
    ck_assert_rc_ok(store_object_put(bench.store, "default", "mdl", body));
    ck_assert_rc_ok(store_object_get(bench.store, "default", "mdl", "mdl_1", &got));
    ck_assert(json_equal(got, body));
    json_decref(got);
    ck_assert_int_eq(store_object_get(bench.store, "default", "art", "mdl_1", &got), ERR_NOT_FOUND);
    ck_assert_rc_ok(store_object_delete(bench.store, "default", "mdl", "mdl_1"));
    ck_assert_int_eq(store_object_delete(bench.store, "default", "mdl", "mdl_1"), ERR_NOT_FOUND);
    json_object_del(body, "created_at");
    ck_assert_int_eq(store_object_put(bench.store, "default", "mdl", body), ERR_INTERNAL);
    json_decref(body);
    bench_deinit(&bench);
}
END_TEST

enum { HAMMERS = 2, ROUNDS = 60 };

struct hammer {
    struct store *store;
    _Atomic int claimed;
};

static void *hammer(void *data)
{
    struct hammer *shared = data;
    json_t *job, *list, *patch = json_of("{'status': 'succeeded'}");

    for (int i = 0; i < ROUNDS; i++) {
        char id[ID_SIZE];
        add_job(shared->store, i % 3, i, id);
        ck_assert_rc_ok(store_event_append(shared->store, id, "log", NULL));
        int rc = store_job_claim(shared->store, "queued", "running", "w", &job);
        if (rc == 0) {
            ck_assert_int_eq(int_at(job, "fence"), 1); /* nobody else got it */
            ck_assert_rc_ok(
                store_job_update(shared->store, text_at(job, "id"), "running", 1, patch, "status", patch, NULL));
            atomic_fetch_add(&shared->claimed, 1);
            json_decref(job);
        } else {
            ck_assert_int_eq(rc, ERR_NOT_FOUND);
        }
        ck_assert_int_eq(store_job_update(shared->store, "job_none", NULL, -1, patch, NULL, NULL, NULL), ERR_NOT_FOUND);
        ck_assert_ptr_nonnull(strstr(err_last()->message, "job_none")); /* each thread its own record */
        ck_assert_rc_ok(store_job_list(shared->store, &(struct page){.limit = 10}, &list));
        json_decref(list);
    }
    json_decref(patch);
    return NULL;
}

START_TEST(threads_share_one_store)
{
    struct bench bench;
    pthread_t threads[HAMMERS];
    json_t *counts;

    bench_init(&bench);
    struct hammer shared = {.store = bench.store};
    for (int i = 0; i < HAMMERS; i++) {
        pthread_create(&threads[i], NULL, hammer, &shared);
    }
    for (int i = 0; i < HAMMERS; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_eq(atomic_load(&shared.claimed), HAMMERS * ROUNDS);
    ck_assert_rc_ok(store_job_counts(bench.store, &counts));
    ck_assert_int_eq(int_at(counts, "succeeded"), HAMMERS * ROUNDS);
    json_decref(counts);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("store", jobs_come_back_whole, updates_are_fenced, claims_go_by_priority_then_age,
          a_second_claim_fences_the_first, counts_follow_every_move, events_are_read_from_anywhere,
          the_subscriber_hears_commits_only, blocks_are_one_transaction, publication_happens_once,
          cancellation_races_publication, idempotency_keys_replay, a_key_knows_its_job_from_the_commit_on,
          objects_are_replaced_and_deleted, threads_share_one_store)
