/* What becomes of jobs and uploads later on: jobs that are tried again. */

#include "tests/unit/jobs/support.h"

#include <unistd.h>

static struct rig rig;

/* The first records, as a file that arrives by a resumable upload. */
static void upload_records(int count, char file_id[ID_SIZE])
{
    struct service_transfer *transfer;
    struct service_piece piece = {.announced = -1};
    size_t used = 0;
    json_t *object, *file;
    int64_t offset;
    char *text = malloc((size_t)count * 512);

    ck_assert_ptr_nonnull(text);
    for (int i = 0; i < count; i++) {
        used += (size_t)rig_record(i, text + used, 512);
    }
    ck_assert_rc_ok(
        service_transfer_create(rig.service, &principal_local, "calibration", "records", (int64_t)used, &object));
    ck_assert_rc_ok(
        service_transfer_open(rig.service, &principal_local, json_get_string(object, "id"), &piece, &transfer));
    ck_assert_rc_ok(service_transfer_feed(transfer, text, used));
    ck_assert_rc_ok(service_transfer_end_take(transfer, true, &offset, &file));
    ck_assert_int_eq(offset, (int64_t)used);
    snprintf(file_id, ID_SIZE, "%s", json_get_string(file, "id"));
    json_decref(object);
    json_decref(file);
    free(text);
}

static int retry(const char *id, const json_t *body, json_t **job)
{
    struct validation_errors errors = {0};

    return service_job_retry(rig.service, &principal_local, id, body, &errors, job);
}

/* A failed job of which the store knows blocks and records and whose folder is gone: other parameters contradict
 * nothing, and the file is read again. */
START_TEST(test_retry_without_files_starts_over)
{
    char id[ID_SIZE], file[ID_SIZE], members[512], path[512];
    json_t *job;
    rig_open(&rig);
    upload_records(60, file);
    snprintf(members, sizeof(members),
             "\"method\":\"rtn\",\"quantization\":{\"bits\":4,\"group_size\":64},\"output\":{\"format\":\"gptq\"},"
             "\"calibration\":{\"file_id\":\"%s\",\"num_samples\":16,\"sequence_length\":64}",
             file);
    rig_create(&rig, members, id);
    job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_decref(job);
    snprintf(path, sizeof(path), "%s/jobs/%s", rig.directory, id);
    for (int i = 0; i < 500 && access(path, F_OK) == 0; i++) { /* it goes after the job's end is told */
        rig_sleep(10);
    }
    ck_assert_int_ne(access(path, F_OK), 0);
    rig_set_status(&rig, id, STATUS_FAILED);
    json_t *body = json_pack("{s:{s:i}}", "quantization", "bits", 8);
    ck_assert_rc_ok(retry(id, body, &job));
    json_decref(body);
    json_decref(job);
    job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(job, "quantization"), "bits")), 8);
    ck_assert_uint_eq(json_array_size(json_object_get(job, "warnings")), 0);
    json_decref(job);
    rig_close(&rig);
}
END_TEST

/* Of a cancelled job they are as good as gone, even where the folder is still about to be removed. */
START_TEST(test_retry_needs_streamed_records)
{
    char id[ID_SIZE];
    json_t *job;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    rig_upload(&rig, id, 0, 60, false);
    rig_set_status(&rig, id, STATUS_CANCELLED);
    ck_assert_int_eq(retry(id, NULL, &job), ERR_JOB_STATE_CONFLICT);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "streamed"));
    rig_set_status(&rig, id, STATUS_FAILED);
    ck_assert_rc_ok(retry(id, NULL, &job));
    json_decref(job);
    job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_decref(job);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("service_change", test_retry_without_files_starts_over, test_retry_needs_streamed_records)
