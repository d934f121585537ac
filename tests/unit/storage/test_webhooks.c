/* Webhooks and their messages: made with a move, due by webhook, ended, and gone with what they are about. */

#include "tests/unit/storage/support.h"

static json_t *body_of(const char *type, const struct job_row *after)
{
    return json_pack("{s:s, s:s, s:s}", "type", type, "job", after->id, "status", job_status_name(after->status));
}

static void add_webhook(struct store *store, const char *project, bool every_job, const char *events, char id[ID_SIZE])
{
    json_t *types = events != NULL ? json_of(events) : NULL;
    const struct webhook_row webhook = {.id = id,
                                        .project = project,
                                        .name = "n",
                                        .url = "https://hooks.example.com/",
                                        .secret = "whsec_abcd",
                                        .events = types,
                                        .every_job = every_job,
                                        .created_at = 1};
    id_new("wh", id);
    ck_assert_rc_ok(store_webhook_create(store, &webhook, 10));
    json_decref(types);
}

/* A job that names a webhook (NULL: none) moves to the status; its id in job. */
static int tell(struct store *store, const char *webhook, char job[ID_SIZE])
{
    json_t *request = json_pack("{s:s?}", "webhook_id", webhook);
    const struct job_row made = {.id = job, .project = "default", .status = STATUS_QUEUED, .request = request};
    const struct job_row row = {.status = STATUS_CANCELLED};
    const struct job_update update = {.id = job,
                                      .from = STATUS_QUEUED,
                                      .fence = -1,
                                      .set = JOB_SET_STATUS,
                                      .row = &row,
                                      .message = "cancelled",
                                      .message_body = body_of};
    id_new("job", job);
    ck_assert_rc_ok(store_job_create(store, &made, NULL, NULL, NULL));
    json_decref(request);
    return store_job_update(store, &update, NULL);
}

static size_t count_of(struct store *store, const char *webhook, const char *status)
{
    const struct page page = {.limit = 100, .webhook = webhook, .status = status};
    json_t *list;

    ck_assert_rc_ok(store_delivery_list(store, &page, &list));
    size_t count = json_array_size(json_object_get(list, "data"));
    json_decref(list);
    return count;
}

START_TEST(a_move_tells_those_that_want_it)
{
    struct bench bench;
    struct delivery_list due;
    char all[ID_SIZE], named[ID_SIZE], typed[ID_SIZE], other[ID_SIZE], foreign[ID_SIZE], job[ID_SIZE];
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, all);
    add_webhook(bench.store, "default", false, NULL, named);
    add_webhook(bench.store, "default", true, "['failed', 'cancelled']", typed);
    add_webhook(bench.store, "default", true, "['failed']", other);
    add_webhook(bench.store, "other", true, NULL, foreign);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    ck_assert_uint_eq(count_of(bench.store, all, "pending"), 1);
    ck_assert_uint_eq(count_of(bench.store, named, NULL), 0);
    ck_assert_uint_eq(count_of(bench.store, typed, "pending"), 1);
    ck_assert_uint_eq(count_of(bench.store, other, NULL), 0);
    ck_assert_uint_eq(count_of(bench.store, foreign, NULL), 0);
    ck_assert_rc_ok(tell(bench.store, named, job));
    ck_assert_uint_eq(count_of(bench.store, named, "pending"), 1);
    ck_assert_rc_ok(tell(bench.store, foreign, job)); /* of another project: as if it were not there */
    ck_assert_uint_eq(count_of(bench.store, foreign, NULL), 0);

    bench_reopen(&bench); /* as after a crash */
    ck_assert_rc_ok(store_delivery_due(bench.store, clock_unix_seconds(), 1, 9, &due));
    ck_assert_uint_eq(due.count, 3); /* one of each webhook */
    for (size_t i = 0; i < due.count; i++) {
        ck_assert_str_eq(due.rows[i].secret, "whsec_abcd");
        ck_assert_str_eq(due.rows[i].previous, "");
        ck_assert_ptr_nonnull(strstr(due.rows[i].body, "\"cancelled\""));
    }
    delivery_list_deinit(&due);
    ck_assert_rc_ok(store_delivery_due(bench.store, clock_unix_seconds(), 9, 2, &due));
    ck_assert_uint_eq(due.count, 2);
    delivery_list_deinit(&due);
    bench_deinit(&bench);
}
END_TEST

/* Projects take turns, and webhooks with a message that failed wait for others of their project. */
START_TEST(nobody_stands_before_all_others)
{
    struct bench bench;
    struct delivery_list due;
    char failing[ID_SIZE], sound[ID_SIZE], other[ID_SIZE], id[ID_SIZE];
    json_t *body = json_object();
    int64_t now = clock_unix_seconds();
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, failing);
    for (int i = 0; i < 3; i++) {
        id_new("msg", id);
        ck_assert_rc_ok(store_delivery_create(bench.store, failing, id, "test", body));
    }
    const struct delivery_attempt tried = {
        .id = id, .status = DELIVERY_PENDING, .at = now, .next_at = now + 100, .error = "silent"};
    ck_assert_rc_ok(store_delivery_end(bench.store, &tried));
    add_webhook(bench.store, "default", true, NULL, sound);
    add_webhook(bench.store, "other", true, NULL, other);
    const char *const later[] = {other, sound};
    for (int i = 0; i < 2; i++) {
        id_new("msg", id);
        ck_assert_rc_ok(store_delivery_create(bench.store, later[i], id, "test", body));
    }
    ck_assert_rc_ok(store_delivery_due(bench.store, now + 10, 2, 2, &due));
    ck_assert_uint_eq(due.count, 2); /* one of each project */
    for (size_t i = 0; i < due.count; i++) {
        bool own = strcmp(due.rows[i].project, "default") == 0;
        ck_assert_str_eq(due.rows[i].webhook, own ? sound : other);
        ck_assert(!due.rows[i].again);
    }
    ck_assert_str_ne(due.rows[0].project, due.rows[1].project);
    delivery_list_deinit(&due);
    ck_assert_rc_ok(store_delivery_due(bench.store, now + 10, 2, 9, &due));
    ck_assert_uint_eq(due.count, 4);
    ck_assert_str_eq(due.rows[3].webhook, failing);
    ck_assert(due.rows[3].again && due.rows[3].attempts == 0);
    delivery_list_deinit(&due);
    json_decref(body);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_move_that_is_refused_tells_nobody)
{
    struct bench bench;
    char webhook[ID_SIZE], job[ID_SIZE];
    const struct job_row row = {.status = STATUS_CANCELLED};
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, webhook);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    const struct job_update again = {.id = job,
                                     .from = STATUS_QUEUED,
                                     .fence = -1,
                                     .set = JOB_SET_STATUS,
                                     .row = &row,
                                     .message = "cancelled",
                                     .message_body = body_of};
    ck_assert_int_eq(store_job_update(bench.store, &again, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_uint_eq(count_of(bench.store, webhook, NULL), 1);
    bench_deinit(&bench);
}
END_TEST

/* The clock is the caller's: a message is due when it says so. */
START_TEST(attempts_at_a_message)
{
    struct bench bench;
    struct delivery_list due;
    char webhook[ID_SIZE], job[ID_SIZE];
    json_t *shown;
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, webhook);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    int64_t now = clock_unix_seconds();
    ck_assert_rc_ok(store_delivery_due(bench.store, now, 2, 9, &due));
    ck_assert_uint_eq(due.count, 1);
    struct delivery_attempt attempt = {.id = due.rows[0].id,
                                       .status = DELIVERY_PENDING,
                                       .at = now,
                                       .next_at = now + 100,
                                       .status_code = 500,
                                       .error = "no"};
    struct delivery_list later;
    ck_assert_rc_ok(store_delivery_end(bench.store, &attempt));
    ck_assert_rc_ok(store_delivery_due(bench.store, now + 99, 2, 9, &later));
    ck_assert_uint_eq(later.count, 0);
    ck_assert_int_eq(later.next_at, now + 100);
    delivery_list_deinit(&later);
    ck_assert_rc_ok(store_delivery_due(bench.store, now + 100, 2, 9, &later));
    ck_assert_uint_eq(later.count, 1);
    ck_assert_int_eq(later.next_at, 0);
    ck_assert_int_eq(later.rows[0].attempts, 1);
    ck_assert_str_eq(later.rows[0].body, due.rows[0].body);
    delivery_list_deinit(&later);
    ck_assert_rc_ok(store_delivery_get(bench.store, webhook, attempt.id, &shown));
    ck_assert_int_eq(int_at(shown, "next_attempt_at"), now + 100);
    ck_assert_int_eq(int_at(shown, "response_status"), 500);
    ck_assert_str_eq(text_at(shown, "error"), "no");
    ck_assert_str_eq(text_at(shown, "job_id"), job);
    json_decref(shown);
    attempt =
        (struct delivery_attempt){.id = attempt.id, .status = DELIVERY_DELIVERED, .at = now + 100, .status_code = 204};
    ck_assert_rc_ok(store_delivery_end(bench.store, &attempt));
    ck_assert_int_eq(store_delivery_end(bench.store, &attempt), ERR_NOT_FOUND); /* not pending any more */
    ck_assert_rc_ok(store_delivery_get(bench.store, webhook, attempt.id, &shown));
    ck_assert(json_is_null(json_object_get(shown, "error")) && json_is_null(json_object_get(shown, "next_attempt_at")));
    ck_assert_int_eq(int_at(shown, "attempts"), 2);
    ck_assert_int_eq(int_at(shown, "finished_at"), now + 100);
    json_decref(shown);
    delivery_list_deinit(&due);
    bench_deinit(&bench);
}
END_TEST

START_TEST(a_receiver_that_is_gone_disables_its_webhook)
{
    struct bench bench;
    struct delivery_list due;
    char webhook[ID_SIZE], job[ID_SIZE];
    json_t *shown;
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, webhook);
    for (int i = 0; i < 3; i++) {
        ck_assert_rc_ok(tell(bench.store, NULL, job));
    }
    ck_assert_rc_ok(store_delivery_due(bench.store, clock_unix_seconds(), 1, 9, &due));
    const struct delivery_attempt gone = {
        .id = due.rows[0].id, .status = DELIVERY_FAILED, .at = 5, .status_code = 410, .error = "gone", .gone = true};
    ck_assert_rc_ok(store_delivery_end(bench.store, &gone));
    delivery_list_deinit(&due);
    ck_assert_uint_eq(count_of(bench.store, webhook, "failed"), 3);
    ck_assert_rc_ok(store_webhook_get(bench.store, "default", webhook, &shown));
    ck_assert(json_is_true(json_object_get(shown, "disabled")));
    json_decref(shown);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    ck_assert_uint_eq(count_of(bench.store, webhook, NULL), 3);
    const struct webhook_row enable = {.id = webhook, .project = "default"};
    ck_assert_rc_ok(store_webhook_change(bench.store, &enable, WEBHOOK_SET_DISABLED, &shown));
    ck_assert(json_is_false(json_object_get(shown, "disabled")));
    ck_assert(json_is_null(json_object_get(shown, "disabled_reason")));
    json_decref(shown);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    ck_assert_uint_eq(count_of(bench.store, webhook, "pending"), 1);
    bench_deinit(&bench);
}
END_TEST

START_TEST(secrets_and_projects)
{
    struct bench bench;
    struct delivery_list due;
    char webhook[ID_SIZE], job[ID_SIZE];
    json_t *shown = NULL;
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, webhook);
    int64_t now = clock_unix_seconds();
    const struct webhook_row rotate = {
        .id = webhook, .project = "default", .secret = "whsec_new1", .previous_until = now + 50};
    ck_assert_rc_ok(store_webhook_change(bench.store, &rotate, WEBHOOK_SET_SECRET, &shown));
    char *text = json_dumps(shown, 0);
    ck_assert_ptr_null(strstr(text, "whsec"));
    free(text);
    json_decref(shown);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    for (int i = 0; i < 2; i++) { /* the old one is valid until then */
        ck_assert_rc_ok(store_delivery_due(bench.store, now + 10 + 40 * i, 1, 1, &due));
        ck_assert_str_eq(due.rows[0].secret, "whsec_new1");
        ck_assert_str_eq(due.rows[0].previous, i == 0 ? "whsec_abcd" : "");
        delivery_list_deinit(&due);
    }
    const struct webhook_row foreign = {.id = webhook, .project = "other", .name = "x"};
    ck_assert_int_eq(store_webhook_change(bench.store, &foreign, WEBHOOK_SET_NAME, &shown), ERR_NOT_FOUND);
    ck_assert_int_eq(store_webhook_get(bench.store, "other", webhook, &shown), ERR_NOT_FOUND);
    ck_assert_int_eq(store_webhook_delete(bench.store, "other", webhook), ERR_NOT_FOUND);
    for (int i = 0; i < 9; i++) {
        char more[ID_SIZE];
        add_webhook(bench.store, "default", false, NULL, more);
    }
    const struct webhook_row eleventh = {
        .id = "wh_x", .project = "default", .name = "", .url = "u", .secret = "s", .created_at = 1};
    ck_assert_int_eq(store_webhook_create(bench.store, &eleventh, 10), ERR_QUOTA_EXCEEDED);
    bench_deinit(&bench);
}
END_TEST

START_TEST(what_goes_with_what)
{
    struct bench bench;
    char webhook[ID_SIZE], job[ID_SIZE], test[ID_SIZE];
    int64_t removed = 0;
    bench_init(&bench);

    add_webhook(bench.store, "default", true, NULL, webhook);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    ck_assert_rc_ok(store_job_delete(bench.store, job));
    ck_assert_uint_eq(count_of(bench.store, webhook, NULL), 0);
    json_t *body = json_object();
    id_new("msg", test);
    ck_assert_rc_ok(store_delivery_create(bench.store, webhook, test, "test", body));
    json_decref(body);
    ck_assert_rc_ok(store_delivery_sweep(bench.store, clock_unix_seconds() + 10, 9, &removed));
    ck_assert_int_eq(removed, 0); /* pending */
    const struct delivery_attempt done = {.id = test, .status = DELIVERY_DELIVERED, .at = 1};
    ck_assert_rc_ok(store_delivery_end(bench.store, &done));
    ck_assert_rc_ok(store_delivery_sweep(bench.store, clock_unix_seconds() - 10, 9, &removed));
    ck_assert_int_eq(removed, 0); /* too young */
    ck_assert_rc_ok(store_delivery_sweep(bench.store, clock_unix_seconds() + 10, 9, &removed));
    ck_assert_int_eq(removed, 1);
    ck_assert_rc_ok(tell(bench.store, NULL, job));
    ck_assert_rc_ok(store_webhook_delete(bench.store, "default", webhook));
    ck_assert_uint_eq(count_of(bench.store, webhook, NULL), 0);
    bench_deinit(&bench);
}
END_TEST

UNIT_MAIN("webhooks", a_move_tells_those_that_want_it, nobody_stands_before_all_others,
          a_move_that_is_refused_tells_nobody, attempts_at_a_message, a_receiver_that_is_gone_disables_its_webhook,
          secrets_and_projects, what_goes_with_what)
