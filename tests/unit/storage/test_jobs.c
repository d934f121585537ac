/* The store's promises on jobs as rows, and on their events. */

#include "tests/unit/storage/support.h"

static void check_records(const struct job_records *found, const struct job_records *expected)
{
    ck_assert_int_eq(found->records, expected->records);
    ck_assert_int_eq(found->tokens, expected->tokens);
    ck_assert_int_eq(found->bytes, expected->bytes);
    ck_assert_int_eq(found->ready, expected->ready);
    ck_assert_int_eq(found->sequences, expected->sequences);
    ck_assert_int_eq(found->sequence_length, expected->sequence_length);
    ck_assert_pstr_eq(found->digest, expected->digest);
}

static void check_document(const json_t *found, const json_t *expected)
{
    ck_assert(expected != NULL ? json_equal(found, expected) : found == NULL);
}

static void check_row(const struct job_row *found, const struct job_row *expected)
{
    const struct job_progress *p = &found->progress, *q = &expected->progress;
    const struct job_checkpoint *c = &found->checkpoint, *d = &expected->checkpoint;

    ck_assert_str_eq(found->id, expected->id);
    ck_assert_str_eq(found->project, expected->project);
    ck_assert_pstr_eq(found->name, expected->name);
    ck_assert_pstr_eq(found->model, expected->model);
    ck_assert_pstr_eq(found->method, expected->method);
    ck_assert_int_eq(found->status, expected->status);
    ck_assert_pstr_eq(found->status_reason, expected->status_reason);
    ck_assert_pstr_eq(found->phase, expected->phase);
    ck_assert_pstr_eq(found->worker, expected->worker);
    ck_assert_int_eq(found->priority, expected->priority);
    ck_assert_int_eq(found->attempt, expected->attempt);
    ck_assert_int_eq(found->fence, expected->fence);
    ck_assert_int_eq(found->created_at, expected->created_at);
    ck_assert_int_eq(found->queued_at, expected->queued_at);
    ck_assert_int_eq(found->started_at, expected->started_at);
    ck_assert_int_eq(found->finished_at, expected->finished_at);
    ck_assert_int_eq(found->cancelled_at, expected->cancelled_at);
    check_document(found->request, expected->request);
    check_document(found->warnings, expected->warnings);
    check_document(found->error, expected->error);
    check_document(found->result, expected->result);
    check_records(&found->calibration, &expected->calibration);
    check_records(&found->evaluation, &expected->evaluation);
    ck_assert_int_eq(p->known, q->known);
    ck_assert_int_eq(p->block, q->block);
    ck_assert_pstr_eq(p->step, q->step);
    ck_assert(p->fraction == q->fraction && p->elapsed_seconds == q->elapsed_seconds);
    ck_assert_int_eq(p->layers_done, q->layers_done);
    ck_assert_int_eq(p->layers_total, q->layers_total);
    ck_assert_int_eq(p->modules_done, q->modules_done);
    ck_assert_int_eq(p->modules_total, q->modules_total);
    ck_assert_int_eq(p->tokens_calibrated, q->tokens_calibrated);
    ck_assert_int_eq(p->eta_seconds, q->eta_seconds);
    ck_assert_int_eq(p->estimated_finish_at, q->estimated_finish_at);
    ck_assert_mem_eq(&found->memory, &expected->memory, sizeof(found->memory));
    ck_assert_int_eq(c->blocks, d->blocks);
    ck_assert_int_eq(c->saved_at, d->saved_at);
    ck_assert_int_eq(c->charged, d->charged);
    ck_assert_int_eq(c->attempt, d->attempt);
    check_document(c->phases, d->phases);
    ck_assert_pstr_eq(c->device, d->device);
}

START_TEST(jobs_come_back_whole)
{
    struct bench bench;
    struct job_row got;
    struct store_status status;
    char id[ID_SIZE];
    json_t *request = json_of("{'priority': 3, 'x': [1, 2.5, '\\u00e9']}"), *error = json_of("{'code': 'x'}"),
           *warnings = json_of("[]"), *phases = json_of("{'forward': {'seconds': 0.1}}");
    struct job_row job = {
        .id = id,
        .project = "p",
        .name = "n",
        .model = "mdl_1",
        .method = "gptq",
        .status = STATUS_QUEUED,
        .phase = "loading",
        .priority = 3,
        .attempt = 2,
        .fence = 7,
        .seq = 99, /* not read */
        .created_at = 11,
        .queued_at = 12,
        .request = request,
        .error = error,
        .warnings = warnings,
        .calibration = {1, 2, 3, true, 4, 5, "d"},
        .evaluation = {6, 7, 8, false, 9, 10, NULL},
        .progress = {true, 1, "solving", 0.1, 2, 3, 4, 5, 6, 0.7, 8, 9},
        .memory = {1, 2, 3, 4, 5},
        .checkpoint = {2, 3, 4, 5, phases, "abacus"},
    };

    bench_init(&bench);
    id_new("job", id);
    ck_assert_rc_ok(store_job_create(bench.store, &job, NULL, NULL, NULL));
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &got));
    check_row(&got, &job);
    ck_assert_int_eq(got.seq, 0);
    job_row_deinit(&got);
    job_row_deinit(&got); /* once is enough */
    ck_assert_int_eq(store_job_create(bench.store, &job, NULL, NULL, NULL), ERR_JOB_STATE_CONFLICT); /* twice */
    ck_assert_int_eq(store_job_get(bench.store, NULL, "job_none", &got), ERR_NOT_FOUND);
    ck_assert_int_eq(store_job_get(bench.store, "q", id, &got), ERR_NOT_FOUND); /* of another project */
    ck_assert_rc_ok(store_job_status(bench.store, "p", id, &status));
    ck_assert_int_eq(status.status, STATUS_QUEUED);
    ck_assert_int_eq(status.fence, 7);
    ck_assert_int_eq(status.seq, 0);
    ck_assert_rc_ok(store_job_status(bench.store, NULL, id, &status));
    ck_assert_int_eq(store_job_status(bench.store, "q", id, &status), ERR_NOT_FOUND);
    ck_assert_int_eq(store_job_status(bench.store, NULL, "job_none", &status), ERR_NOT_FOUND);
    job.project = NULL;
    ck_assert_int_eq(store_job_create(bench.store, &job, NULL, NULL, NULL), ERR_INTERNAL);
    job.project = "p";
    job.status = STATUS_NONE;
    ck_assert_int_eq(store_job_create(bench.store, &job, NULL, NULL, NULL), ERR_INTERNAL);
    job.status = STATUS_QUEUED;
    bench_reopen(&bench);
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &got));
    check_row(&got, &job);
    job_row_deinit(&got);
    json_decref(request);
    json_decref(error);
    json_decref(warnings);
    json_decref(phases);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_row_of_nothing_is_nothing)
{
    struct bench bench;
    struct job_row got;
    const struct job_row job = {.id = "job_1", .project = "p"};

    bench_init(&bench);
    ck_assert_rc_ok(store_job_create(bench.store, &job, NULL, NULL, NULL));
    ck_assert_rc_ok(store_job_get(bench.store, "p", "job_1", &got));
    ck_assert_int_gt(got.created_at, 0);
    got.created_at = 0;
    check_row(&got, &job);
    job_row_deinit(&got);
    bench_deinit(&bench);
}
END_TEST

START_TEST(updates_are_fenced)
{
    struct bench bench;
    struct job_row job;
    json_t *error = json_of("{'code': 'timeout'}");
    const struct job_row change = {.phase = NULL, .error = error, .name = "not set"};
    char id[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    ck_assert_int_eq(move_job(bench.store, id, STATUS_RUNNING, -1, STATUS_FAILED, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(move_job(bench.store, id, STATUS_ANY, 1, STATUS_FAILED, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(move_job(bench.store, "job_none", STATUS_ANY, -1, STATUS_FAILED, NULL), ERR_NOT_FOUND);
    ck_assert_int_eq(check_events(bench.store, id), 1); /* what fails tells nothing */
    ck_assert_rc_ok(move_job(bench.store, id, STATUS_QUEUED, 0, STATUS_RUNNING, NULL));
    ck_assert_rc_ok(store_job_get(bench.store, NULL, id, &job));
    ck_assert_int_eq(job.status, STATUS_RUNNING);
    ck_assert_int_eq(job.seq, 2);
    job_row_deinit(&job);
    struct job_update update = {
        .id = id, .from = STATUS_ANY, .fence = -1, .set = JOB_SET_PHASE | JOB_SET_ERROR, .row = &change};
    ck_assert_rc_ok(store_job_update(bench.store, &update, &job));
    ck_assert_ptr_null(job.phase);
    ck_assert_ptr_null(job.name); /* only what is named */
    ck_assert_int_eq(job.status, STATUS_RUNNING);
    ck_assert_str_eq(text_at(job.error, "code"), "timeout");
    job_row_deinit(&job);
    update.set = 0; /* nothing: only the condition */
    ck_assert_rc_ok(store_job_update(bench.store, &update, NULL));
    update.fence = 5;
    ck_assert_int_eq(store_job_update(bench.store, &update, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(check_events(bench.store, id), 2);
    json_decref(error);
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
    struct job_row job;

    bench_init(&bench);
    for (int i = 0; i < 6; i++) {
        add_job(bench.store, rows[i].priority, rows[i].queued_at, ids[i]);
    }
    for (int i = 0; i < 6; i++) {
        job = claim_job(bench.store);
        ck_assert_str_eq(job.id, ids[order[i]]);
        ck_assert_int_eq(job.status, STATUS_RUNNING);
        ck_assert_str_eq(job.worker, "w");
        ck_assert_int_eq(job.attempt, 1);
        ck_assert_int_eq(job.fence, 1);
        ck_assert_int_gt(job.started_at, 0);
        job_row_deinit(&job);
    }
    ck_assert_int_eq(store_job_claim(bench.store, STATUS_QUEUED, STATUS_RUNNING, "w", "[]", &job), ERR_NOT_FOUND);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_second_claim_fences_the_first)
{
    struct bench bench;
    struct job_row job;
    json_t *events;
    char id[ID_SIZE];

    bench_init(&bench);
    add_job(bench.store, 0, 1, id);
    job = claim_job(bench.store);
    int64_t started_at = job.started_at;
    job_row_deinit(&job);
    ck_assert_rc_ok(move_job(bench.store, id, STATUS_RUNNING, 1, STATUS_QUEUED, NULL));
    ck_assert_rc_ok(store_job_claim(bench.store, STATUS_QUEUED, STATUS_RUNNING, "b", "[]", &job));
    ck_assert_int_eq(job.attempt, 2);
    ck_assert_int_eq(job.fence, 2);
    ck_assert_int_eq(job.started_at, started_at);
    job_row_deinit(&job);
    ck_assert_int_eq(move_job(bench.store, id, STATUS_ANY, 1, STATUS_QUEUED, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(store_events_list(bench.store, id, 3, 0, &events));
    json_object_del(json_array_get(events, 0), "created_at");
    assert_json_take(events, "[{'object': 'event', 'seq': 4, 'type': 'status', 'traceparent': null, 'data':"
                             " {'status': 'running', 'from': 'queued', 'attempt': 2, 'fence': 2, 'worker': 'b'}}]");
    bench_deinit(&bench);
}
END_TEST

static void check_counts(struct store *store, const char *project, int64_t queued, int64_t running)
{
    int64_t counts[STATUS_COUNT];

    ck_assert_rc_ok(store_job_counts(store, project, counts));
    for (int i = 0; i < STATUS_COUNT; i++) {
        ck_assert_int_eq(counts[i], i == STATUS_QUEUED ? queued : i == STATUS_RUNNING ? running : 0);
    }
}

START_TEST(counts_follow_every_move)
{
    struct bench bench;
    struct job_row job;
    char a[ID_SIZE], b[ID_SIZE], c[ID_SIZE];

    bench_init(&bench);
    check_counts(bench.store, NULL, 0, 0);
    add_job(bench.store, 0, 1, a);
    add_job(bench.store, 0, 2, b);
    add_job(bench.store, 0, 3, c);
    ck_assert_rc_ok(store_job_create(
        bench.store, &(struct job_row){.id = "job_1", .project = "other", .status = STATUS_QUEUED}, NULL, NULL, NULL));
    job = claim_job(bench.store);
    ck_assert_str_eq(job.id, "job_1"); /* no queued_at comes first */
    job_row_deinit(&job);
    check_counts(bench.store, NULL, 3, 1);
    check_counts(bench.store, "default", 3, 0);
    check_counts(bench.store, "other", 0, 1);
    ck_assert_rc_ok(store_job_delete(bench.store, b));
    ck_assert_int_eq(store_job_delete(bench.store, b), ERR_NOT_FOUND);
    ck_assert_rc_ok(store_job_delete(bench.store, a));
    check_counts(bench.store, NULL, 1, 1);
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
    struct job_row job;
    char id[ID_SIZE];
    const struct job_row change = {.phase = "x"};
    const struct job_update quiet = {.id = id, .from = STATUS_ANY, .fence = -1, .set = JOB_SET_PHASE, .row = &change};

    bench_init(&bench);
    store_on_event(bench.store, on_event, &heard);
    add_job(bench.store, 0, 1, id);
    ck_assert_int_eq(heard.count, 1);
    ck_assert_str_eq(heard.last, id);
    ck_assert_rc_ok(store_job_update(bench.store, &quiet, NULL)); /* no event */
    ck_assert_int_eq(move_job(bench.store, id, STATUS_FAILED, -1, STATUS_QUEUED, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(heard.count, 1);
    heard.last[0] = '\0';
    job = claim_job(bench.store);
    job_row_deinit(&job);
    ck_assert_int_eq(heard.count, 2);
    ck_assert_str_eq(heard.last, id);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("jobs", jobs_come_back_whole, a_row_of_nothing_is_nothing, updates_are_fenced, claims_go_by_priority_then_age,
          a_second_claim_fences_the_first, counts_follow_every_move, events_are_read_from_anywhere,
          the_subscriber_hears_commits_only)
