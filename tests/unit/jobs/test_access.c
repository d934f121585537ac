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
    struct service_upload *upload = NULL;
    bool last = false;
    struct validation_errors errors = {0};
    char id[ID_SIZE];
    rig_open(&rig);

    json_t *body = rig_body(&rig, RIG_GPTQ);
    ck_assert_rc_ok(service_job_create(rig.service, &principal_local, body, NULL, NULL, &errors, &job));
    snprintf(id, sizeof(id), "%s", json_get_string(job, "id"));
    ck_assert_str_eq(json_get_string(job, "project"), principal_local.project);
    json_decref(job);

    assert_hidden(service_job_get(rig.service, &other, id, &got));
    assert_hidden(service_job_check(rig.service, &other, id));
    assert_hidden(service_job_events(rig.service, &other, id, 0, 10, &got, &last));
    assert_hidden(service_job_layers(rig.service, &other, id, &got));
    assert_hidden(service_job_report(rig.service, &other, id, &got));
    assert_hidden(service_upload_open(rig.service, &other, id, -1, &upload));
    assert_hidden(service_job_cancel(rig.service, &other, id, &got));
    assert_hidden(service_job_delete(rig.service, &other, id));
    struct page page = {.limit = 10};
    ck_assert_rc_ok(service_job_list(rig.service, &other, &page, &got));
    ck_assert_uint_eq(list_size(got), 0);

    struct page own = {.limit = 10};
    ck_assert_rc_ok(service_job_list(rig.service, &principal_local, &own, &got));
    ck_assert_uint_eq(list_size(got), 1);
    ck_assert_rc_ok(service_job_events(rig.service, &principal_local, id, 0, 10, &got, &last));
    ck_assert(!last);
    json_decref(got);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, -1, &upload));
    service_upload_abort(upload);
    ck_assert_rc_ok(service_job_cancel(rig.service, &principal_local, id, &got));
    ck_assert_str_eq(json_get_string(got, "status"), "cancelled");
    json_decref(got);
    ck_assert_rc_ok(service_job_events(rig.service, &principal_local, id, 0, 1, &got, &last));
    ck_assert(!last); /* a page that does not reach the end */
    json_decref(got);
    ck_assert_rc_ok(service_job_events(rig.service, &principal_local, id, 1, 10, &got, &last));
    ck_assert(last);
    json_decref(got);
    ck_assert_rc_ok(service_job_delete(rig.service, &principal_local, id));
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

    assert_hidden(service_object_get(rig.service, &other, "mdl", rig.model, &got));
    assert_hidden(service_model_delete(rig.service, &other, rig.model));
    struct page page = {.limit = 10};
    ck_assert_rc_ok(service_object_list(rig.service, &other, "mdl", &page, &got));
    ck_assert_uint_eq(list_size(got), 0);
    json_t *body = rig_body(&rig, "\"method\":\"rtn\"");
    ck_assert_int_lt(service_job_create(rig.service, &other, body, NULL, NULL, &errors, &got), 0);
    ck_assert_str_eq(err_last()->param, "/model");
    json_decref(body);

    ck_assert_rc_ok(service_object_get(rig.service, &principal_local, "mdl", rig.model, &got));
    json_decref(got);
    ck_assert_rc_ok(service_model_delete(rig.service, &principal_local, rig.model));
    rig_close(&rig);
}
END_TEST

START_TEST(an_upload_of_another_project)
{
    const struct service_piece piece = {.announced = -1};
    struct service_transfer *transfer = NULL;
    struct rig rig = {0};
    json_t *upload = NULL, *file = NULL;
    int64_t offset = -1;

    rig_open(&rig);
    ck_assert_rc_ok(service_transfer_create(rig.service, &principal_local, "model", NULL, 3, &upload));
    const char *id = json_string_value(json_object_get(upload, "id"));
    assert_hidden(service_transfer_open(rig.service, &other, id, &piece, &transfer));
    ck_assert_rc_ok(service_transfer_open(rig.service, &principal_local, id, &piece, &transfer));
    assert_hidden(service_transfer_open(rig.service, &other, id, &piece, &transfer)); /* also while it is busy */
    assert_hidden(service_transfer_delete(rig.service, &other, id));
    ck_assert_int_eq(service_transfer_delete(rig.service, &principal_local, id), ERR_UPLOAD_BUSY);
    ck_assert_rc_ok(service_transfer_feed(transfer, "abc", 3));
    ck_assert_rc_ok(service_transfer_end_take(transfer, true, &offset, &file));
    ck_assert_int_eq(offset, 3);
    assert_hidden(
        service_object_get(rig.service, &other, "file", json_string_value(json_object_get(file, "id")), &upload));
    ck_assert_rc_ok(service_transfer_delete(rig.service, &principal_local, id));
    json_decref(upload);
    json_decref(file);
    rig_close(&rig);
}
END_TEST

START_TEST(a_file_and_an_artifact_of_another_project)
{
    struct rig rig = {0};
    json_t *got = NULL;
    char sha256[DIGEST_HEX_SIZE];
    rig_open(&rig);
    json_t *file = json_pack("{s:s, s:s, s:I}", "id", "file_1", "purpose", "calibration", "created_at", (json_int_t)1);
    json_t *artifact = json_pack("{s:s, s:I}", "id", "art_1", "created_at", (json_int_t)1);

    ck_assert_rc_ok(service_file_create(rig.service, &principal_local, file));
    ck_assert_rc_ok(store_object_put(rig.store, principal_local.project, "art", artifact));
    assert_hidden(service_object_get(rig.service, &other, "file", "file_1", &got));
    assert_hidden(service_file_delete(rig.service, &other, "file_1"));
    assert_hidden(service_object_get(rig.service, &other, "art", "art_1", &got));
    assert_hidden(service_artifact_verify(rig.service, &other, "art_1", &got));
    assert_hidden(service_artifact_signature(rig.service, &other, "art_1", sha256));
    assert_hidden(service_artifact_sign(rig.service, &other, "art_1", &got));
    assert_hidden(service_artifact_delete(rig.service, &other, "art_1"));
    ck_assert_rc_ok(service_file_delete(rig.service, &principal_local, "file_1"));
    ck_assert_rc_ok(service_artifact_delete(rig.service, &principal_local, "art_1"));
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

    ck_assert_int_eq(service_idempotency_reserve(rig.service, &mine, "d1", &got), 0);
    ck_assert_int_eq(service_idempotency_reserve(rig.service, &theirs, "d2", &got), 0);
    json_t *response = json_pack("{s:s}", "id", "job_1");
    ck_assert_rc_ok(service_idempotency_finish(rig.service, &mine, response));
    ck_assert_int_eq(service_idempotency_reserve(rig.service, &theirs, "d2", &got), ERR_IDEMPOTENCY_IN_PROGRESS);
    ck_assert_int_eq(service_idempotency_reserve(rig.service, &mine, "d1", &got), 1);
    json_decref(got);
    ck_assert_rc_ok(service_idempotency_release(rig.service, &theirs));
    ck_assert_int_eq(service_idempotency_reserve(rig.service, &theirs, "d3", &got), 0);
    json_decref(response);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("access", a_job_of_another_project, a_model_of_another_project, a_file_and_an_artifact_of_another_project,
          an_upload_of_another_project, idempotency_keys_of_two_projects)
