/* Streaming calibration: broken lines are named and skipped, offsets keep retries from doubling, what was not
 * acknowledged is not there afterwards. */

#include "tests/unit/jobs/support.h"

static struct rig rig;

static int feed(struct service_upload *upload, const char *text)
{
    return service_upload_feed(upload, text, strlen(text));
}

START_TEST(test_broken_lines_are_named)
{
    char id[ID_SIZE];
    struct service_upload *upload;
    json_t *answer;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, -1, &upload));
    ck_assert_rc_ok(feed(upload, "{\"text\":\"one good line\"}\nnot json\n{\"input_ids\":[1,2,3]}\n"
                                 "{\"input_ids\":[99999999]}\n{\"text\":\"last, without a newline\"}"));
    ck_assert_rc_ok(service_upload_end_take(upload, false, &answer));
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "accepted")), 3);
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "rejected")), 2);
    const json_t *errors = json_object_get(answer, "errors");
    ck_assert_uint_eq(json_array_size(errors), 2);
    ck_assert_int_eq(json_integer_value(json_object_get(json_array_get(errors, 0), "line")), 2);
    ck_assert_int_eq(json_integer_value(json_object_get(json_array_get(errors, 1), "line")), 4);
    ck_assert_int_gt(json_integer_value(json_object_get(answer, "needed")), 0);
    json_decref(answer);
    rig_close(&rig);
}
END_TEST

START_TEST(test_offsets)
{
    char id[ID_SIZE];
    struct service_upload *upload;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    ck_assert_int_eq(service_upload_open(rig.service, &principal_local, id, 1, &upload), ERR_OFFSET_MISMATCH);
    rig_upload(&rig, id, 0, 5, false);
    ck_assert_int_eq(service_upload_open(rig.service, &principal_local, id, 0, &upload), ERR_OFFSET_MISMATCH);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, 5, &upload));
    struct service_upload *second;
    ck_assert_int_eq(service_upload_open(rig.service, &principal_local, id, 5, &second), ERR_JOB_STATE_CONFLICT);
    service_upload_abort(upload);
    rig_upload(&rig, id, 5, 1, false);
    rig_close(&rig);
}
END_TEST

START_TEST(test_unacknowledged_is_lost_and_nothing_else)
{
    char id[ID_SIZE];
    char line[512];
    struct service_upload *upload;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    rig_upload(&rig, id, 0, 10, false);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, 10, &upload));
    for (int i = 10; i < 3000; i++) { /* enough to be partly written */
        ck_assert_rc_ok(service_upload_feed(upload, line, (size_t)rig_record(i, line, sizeof(line))));
    }
    service_upload_abort(upload);
    rig_stop(&rig, 0);
    rig_start(&rig); /* also over a restart */
    rig_upload(&rig, id, 10, 50, true);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(job, "calibration"), "records")), 60);
    json_decref(job);
    rig_close(&rig);
}
END_TEST

START_TEST(test_complete_too_early)
{
    char id[ID_SIZE];
    struct service_upload *upload;
    json_t *answer = NULL;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, 0, &upload));
    ck_assert_rc_ok(feed(upload, "{\"text\":\"too short\"}\n"));
    ck_assert_int_eq(service_upload_end_take(upload, true, &answer), ERR_INSUFFICIENT_CALIBRATION);
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "next_offset")), 1);
    ck_assert_str_eq(json_get_string(answer, "status"), "awaiting_calibration");
    json_decref(answer);
    rig_upload(&rig, id, 1, 40, true); /* the good record stayed */
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_decref(job);
    rig_close(&rig);
}
END_TEST

START_TEST(test_whole_records_without_packing)
{
    char id[ID_SIZE];
    struct service_upload *upload;
    json_t *answer = NULL;
    rig_open(&rig);
    rig_create(&rig,
               "\"method\":\"gptq\",\"quantization\":{\"group_size\":64},"
               "\"calibration\":{\"stream\":true,\"sequence_length\":8,\"packing\":false}",
               id);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, 0, &upload));
    for (int i = 0; i < 50; i++) { /* many tokens, no record of eight */
        ck_assert_rc_ok(feed(upload, "{\"input_ids\":[5,6,7]}\n"));
    }
    ck_assert_int_eq(service_upload_end_take(upload, true, &answer), ERR_INSUFFICIENT_CALIBRATION);
    json_decref(answer);
    ck_assert_rc_ok(service_upload_open(rig.service, &principal_local, id, 50, &upload));
    ck_assert_rc_ok(feed(upload, "{\"input_ids\":[1,2,3,4,5,6,7,8]}\n{\"input_ids\":[1,2,3,4,5,6,7,9]}\n"));
    ck_assert_rc_ok(service_upload_end_take(upload, true, &answer));
    json_decref(answer);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_decref(job);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("service_upload", test_broken_lines_are_named, test_offsets, test_unacknowledged_is_lost_and_nothing_else,
          test_complete_too_early, test_whole_records_without_packing)
