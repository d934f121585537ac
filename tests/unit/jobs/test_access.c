/* What belongs to a project is not there for principals of another one: not to see, not to change, not to build on. */

#include "tests/unit/jobs/support.h"

static const struct principal other = {.project = "other", .name = "somebody"};

static void assert_hidden(int rc)
{
    ck_assert_int_eq(rc, ERR_NOT_FOUND);
}

static size_t list_size(json_t *list)
{
    size_t count = json_array_size(json_object_get(list, "data"));
    json_decref(list);
    return count;
}

START_TEST(a_job_of_another_project)
{
    struct rig rig = {0};
    json_t *got = NULL, *job;
    struct engine_upload *upload = NULL;
    bool last = false;
    struct validation_errors errors = {0};
    char id[ID_SIZE];
    rig_open(&rig);

    json_t *body = rig_body(&rig, RIG_GPTQ);
    ck_assert_rc_ok(engine_job_create(rig.engine, &principal_local, body, NULL, &errors, &job));
    snprintf(id, sizeof(id), "%s", json_get_string(job, "id"));
    ck_assert_str_eq(json_get_string(job, "project"), principal_local.project);
    json_decref(job);

    assert_hidden(engine_job_get(rig.engine, &other, id, &got));
    assert_hidden(engine_job_check(rig.engine, &other, id));
    assert_hidden(engine_job_events(rig.engine, &other, id, 0, 10, &got, &last));
    assert_hidden(engine_job_layers(rig.engine, &other, id, &got));
    assert_hidden(engine_job_report(rig.engine, &other, id, &got));
    assert_hidden(engine_upload_open(rig.engine, &other, id, -1, &upload));
    assert_hidden(engine_job_cancel(rig.engine, &other, id, &got));
    assert_hidden(engine_job_delete(rig.engine, &other, id));
    struct page page = {.limit = 10};
    ck_assert_rc_ok(engine_job_list(rig.engine, &other, &page, &got));
    ck_assert_uint_eq(list_size(got), 0);

    struct page own = {.limit = 10};
    ck_assert_rc_ok(engine_job_list(rig.engine, &principal_local, &own, &got));
    ck_assert_uint_eq(list_size(got), 1);
    ck_assert_rc_ok(engine_job_events(rig.engine, &principal_local, id, 0, 10, &got, &last));
    ck_assert(!last);
    json_decref(got);
    ck_assert_rc_ok(engine_upload_open(rig.engine, &principal_local, id, -1, &upload));
    engine_upload_abort(upload);
    ck_assert_rc_ok(engine_job_cancel(rig.engine, &principal_local, id, &got));
    ck_assert_str_eq(json_get_string(got, "status"), "cancelled");
    json_decref(got);
    ck_assert_rc_ok(engine_job_events(rig.engine, &principal_local, id, 0, 1, &got, &last));
    ck_assert(!last); /* a page that does not reach the end */
    json_decref(got);
    ck_assert_rc_ok(engine_job_events(rig.engine, &principal_local, id, 1, 10, &got, &last));
    ck_assert(last);
    json_decref(got);
    ck_assert_rc_ok(engine_job_delete(rig.engine, &principal_local, id));
    json_decref(body);
    rig_close(&rig);
}
END_TEST

START_TEST(a_model_of_another_project)
{
    struct rig rig = {0};
    json_t *got = NULL;
    struct validation_errors errors = {0};
    rig_open(&rig);

    assert_hidden(engine_object_get(rig.engine, &other, "mdl", rig.model, &got));
    assert_hidden(engine_model_delete(rig.engine, &other, rig.model));
    struct page page = {.limit = 10};
    ck_assert_rc_ok(engine_object_list(rig.engine, &other, "mdl", &page, &got));
    ck_assert_uint_eq(list_size(got), 0);
    json_t *body = rig_body(&rig, "\"method\":\"rtn\"");
    ck_assert_int_lt(engine_job_create(rig.engine, &other, body, NULL, &errors, &got), 0);
    ck_assert_str_eq(err_last()->param, "/model");
    json_decref(body);

    ck_assert_rc_ok(engine_object_get(rig.engine, &principal_local, "mdl", rig.model, &got));
    json_decref(got);
    ck_assert_rc_ok(engine_model_delete(rig.engine, &principal_local, rig.model));
    rig_close(&rig);
}
END_TEST

START_TEST(a_file_and_an_artifact_of_another_project)
{
    struct rig rig = {0};
    json_t *got = NULL;
    rig_open(&rig);
    json_t *file = json_pack("{s:s, s:s, s:I}", "id", "file_1", "purpose", "calibration", "created_at", (json_int_t)1);
    json_t *artifact = json_pack("{s:s, s:I}", "id", "art_1", "created_at", (json_int_t)1);

    ck_assert_rc_ok(engine_file_create(rig.engine, &principal_local, file));
    ck_assert_rc_ok(store_object_put(rig.store, principal_local.project, "art", artifact));
    assert_hidden(engine_object_get(rig.engine, &other, "file", "file_1", &got));
    assert_hidden(engine_file_delete(rig.engine, &other, "file_1"));
    assert_hidden(engine_object_get(rig.engine, &other, "art", "art_1", &got));
    assert_hidden(engine_artifact_delete(rig.engine, &other, "art_1"));
    ck_assert_rc_ok(engine_file_delete(rig.engine, &principal_local, "file_1"));
    ck_assert_rc_ok(engine_artifact_delete(rig.engine, &principal_local, "art_1"));
    json_decref(file);
    json_decref(artifact);
    rig_close(&rig);
}
END_TEST

/* The same key twice is a repeat within a project alone. */
START_TEST(idempotency_keys_of_two_projects)
{
    struct rig rig = {0};
    json_t *got = NULL;
    const struct idempotency_key mine = {principal_local.project, "POST /a", "k"},
                                 theirs = {other.project, "POST /a", "k"};
    rig_open(&rig);

    ck_assert_int_eq(engine_idempotency_reserve(rig.engine, &mine, "d1", &got), 0);
    ck_assert_int_eq(engine_idempotency_reserve(rig.engine, &theirs, "d2", &got), 0);
    json_t *response = json_pack("{s:s}", "id", "job_1");
    ck_assert_rc_ok(engine_idempotency_finish(rig.engine, &mine, response));
    ck_assert_int_eq(engine_idempotency_reserve(rig.engine, &theirs, "d2", &got), ERR_IDEMPOTENCY_IN_PROGRESS);
    ck_assert_int_eq(engine_idempotency_reserve(rig.engine, &mine, "d1", &got), 1);
    json_decref(got);
    ck_assert_rc_ok(engine_idempotency_release(rig.engine, &theirs));
    ck_assert_int_eq(engine_idempotency_reserve(rig.engine, &theirs, "d3", &got), 0);
    json_decref(response);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("access", a_job_of_another_project, a_model_of_another_project, a_file_and_an_artifact_of_another_project,
          idempotency_keys_of_two_projects)
