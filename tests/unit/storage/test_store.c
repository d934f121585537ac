/* The store's promises on blocks, publication, idempotency and objects, and on threads that share it. */

#include "tests/unit/storage/support.h"

#include <pthread.h>
#include <stdatomic.h>

static const struct idempotency_key key_a = {"default", "POST /a", "k"}, key_b = {"default", "POST /b", "k"},
                                    key_c = {"default", "POST /c", "k"};

START_TEST(blocks_are_one_transaction)
{
    struct bench bench;
    char id[ID_SIZE];
    struct job_row job;
    json_t *list;
    json_t *block = json_of("{'index': 0, 'file': 'b0', 'sha256': 'x', 'chains': {'float': 'y'}}");
    json_t *layers = json_of("[{'index': 1, 'module': 'q'}, {'index': 0, 'module': 'k'}]");

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    job = claim_job(bench.store);
    job_row_deinit(&job);
    ck_assert_int_eq(commit_block(bench.store, id, 2, block, layers), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(commit_block(bench.store, id, 1, block, layers));
    ck_assert_int_eq(check_events(bench.store, id), 3);
    ck_assert_int_eq(commit_block(bench.store, id, 1, block, layers), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(check_events(bench.store, id), 3); /* all of it was undone */
    ck_assert_rc_ok(store_blocks_list(bench.store, id, &list));
    assert_json_take(list, "[{'index': 0, 'file': 'b0', 'sha256': 'x', 'chains': {'float': 'y'}}]");
    ck_assert_rc_ok(store_layers_list(bench.store, id, &list));
    assert_json_take(list, "[{'index': 1, 'module': 'q'}, {'index': 0, 'module': 'k'}]"); /* as given */
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    ck_assert_int_eq(job.checkpoint.blocks, 1);
    job_row_deinit(&job);
    json_object_del(block, "index");
    ck_assert_int_eq(commit_block(bench.store, id, 1, block, layers), ERR_INTERNAL);
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
    ck_assert_rc_ok(commit_block(bench.store, id, 1, block, layers));
    ck_assert_rc_ok(store_job_delete(bench.store, id)); /* all goes with the job */
    ck_assert_rc_ok(store_layers_list(bench.store, id, &list));
    assert_json_take(list, "[]");
    ck_assert_rc_ok(store_events_list(bench.store, id, 0, 0, &list));
    assert_json_take(list, "[]");
    json_decref(block);
    json_decref(layers);
    bench_deinit(&bench);
}
END_TEST

static int publish_job(struct store *store, const char *id, int64_t fence, const json_t *artifact)
{
    return move_job(store, id, STATUS_RUNNING, fence, STATUS_SUCCEEDED, artifact);
}

START_TEST(publication_happens_once)
{
    struct bench bench;
    char id[ID_SIZE];
    struct job_row job;
    json_t *got;
    json_t *artifact = json_of("{'id': 'art_1', 'created_at': 5, 'files': []}");
    json_t *bad = json_of("{'id': 'art_1'}");

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    ck_assert_int_eq(publish_job(bench.store, id, 0, artifact), ERR_JOB_STATE_CONFLICT); /* not running */
    job = claim_job(bench.store);
    job_row_deinit(&job);
    ck_assert_int_eq(publish_job(bench.store, id, 0, artifact), ERR_JOB_STATE_CONFLICT); /* an old fence */
    ck_assert_int_eq(publish_job(bench.store, id, 1, bad), ERR_INTERNAL);
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    ck_assert_int_eq(job.status, STATUS_RUNNING); /* undone with the artifact */
    job_row_deinit(&job);
    ck_assert_int_eq(store_object_get(bench.store, "default", "art", "art_1", &got), ERR_NOT_FOUND);
    ck_assert_rc_ok(publish_job(bench.store, id, 1, artifact));
    ck_assert_int_eq(publish_job(bench.store, id, 1, artifact), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(store_object_get(bench.store, "default", "art", "art_1", &got));
    ck_assert(json_equal(got, artifact));
    json_decref(got);
    ck_assert_int_eq(check_events(bench.store, id), 3);
    json_decref(artifact);
    json_decref(bad);
    bench_deinit(&bench);
}
END_TEST

struct race {
    struct store *store;
    const char *id;
    const json_t *artifact;
    int rc;
};

static void *publish(void *data)
{
    struct race *race = data;
    race->rc = publish_job(race->store, race->id, 1, race->artifact);
    return NULL;
}

/* A cancellation and a publication at once: exactly one wins, and the artifact is there only if it did. */
START_TEST(cancellation_races_publication)
{
    struct bench bench;
    json_t *got;

    bench_init(&bench);
    for (int i = 0; i < 40; i++) {
        char id[ID_SIZE], art[ID_SIZE];
        pthread_t thread;
        id_new("art", art);
        json_t *artifact = json_pack("{s:s, s:i}", "id", art, "created_at", 1);
        add_job(bench.store, 0, 1, id);
        struct job_row job = claim_job(bench.store);
        job_row_deinit(&job);
        struct race race = {bench.store, id, artifact, 0};
        pthread_create(&thread, NULL, publish, &race);
        int rc = move_job(bench.store, id, STATUS_RUNNING, -1, STATUS_CANCELLED, NULL);
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
    const struct job_row job = {.id = id, .status = STATUS_QUEUED, .project = "default"};
    ck_assert_rc_ok(store_job_create(bench.store, &job, NULL, NULL, &key_a));
    bench_reopen(&bench); /* died before it answered: the key is not free, and says what it made */
    ck_assert_int_eq(store_idempotency_reserve(bench.store, &key_a, "d1", &got), 1);
    ck_assert_str_eq(text_at(got, "id"), id);
    json_decref(got);
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
    struct job_row job;
    struct job_list list;

    for (int i = 0; i < ROUNDS; i++) {
        char id[ID_SIZE];
        add_job(shared->store, i % 3, i, id);
        ck_assert_rc_ok(store_event_append(shared->store, id, "log", NULL));
        int rc = store_job_claim(shared->store, STATUS_QUEUED, STATUS_RUNNING, "w", "[]", &job);
        if (rc == 0) {
            ck_assert_int_eq(job.fence, 1); /* nobody else got it */
            ck_assert_rc_ok(publish_job(shared->store, job.id, 1, NULL));
            atomic_fetch_add(&shared->claimed, 1);
            job_row_deinit(&job);
        } else {
            ck_assert_int_eq(rc, ERR_NOT_FOUND);
        }
        ck_assert_int_eq(publish_job(shared->store, "job_none", -1, NULL), ERR_NOT_FOUND);
        ck_assert_ptr_nonnull(strstr(err_last()->message, "job_none")); /* each thread its own record */
        ck_assert_rc_ok(store_job_list(shared->store, &(struct page){.limit = 10}, &list));
        job_list_deinit(&list);
    }
    return NULL;
}

START_TEST(threads_share_one_store)
{
    struct bench bench;
    pthread_t threads[HAMMERS];
    int64_t counts[STATUS_COUNT];

    bench_init(&bench);
    struct hammer shared = {.store = bench.store};
    for (int i = 0; i < HAMMERS; i++) {
        pthread_create(&threads[i], NULL, hammer, &shared);
    }
    for (int i = 0; i < HAMMERS; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_eq(atomic_load(&shared.claimed), HAMMERS * ROUNDS);
    ck_assert_rc_ok(store_job_counts(bench.store, NULL, counts));
    ck_assert_int_eq(counts[STATUS_SUCCEEDED], HAMMERS * ROUNDS);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("store", blocks_are_one_transaction, publication_happens_once, cancellation_races_publication,
          idempotency_keys_replay, a_key_knows_its_job_from_the_commit_on, objects_are_replaced_and_deleted,
          threads_share_one_store)
