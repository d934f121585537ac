/* What becomes of jobs and uploads later on: jobs that are tried again, jobs and uploads that expire. */

#include "jobs/service.h"
#include "jobs/task.h"
#include "tests/unit/jobs/support.h"

#include <fcntl.h>
#include <sys/stat.h>
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

/* A client's thread that is late with an order speaks to an attempt that is over, and not to the next one. */
START_TEST(test_orders_are_for_one_attempt)
{
    struct task *task = calloc(1, sizeof(*task));
    const struct job_row first = {.id = "job_01M8MFTCMAEWYGJEAN1MY424FS", .fence = 1};
    struct job_row second = first;
    ck_assert_ptr_nonnull(task);
    rig_open(&rig);
    second.fence = task->fence = 2;
    snprintf(task->id, sizeof(task->id), "%s", first.id);
    rig.service->supervisor.runners[0].task = task; /* nothing is queued, so the runner's thread leaves it alone */
    supervisor_tell(rig.service, &first, ORDER_CANCEL);
    supervisor_tell(rig.service, &first, ORDER_PAUSE_NOW);
    ck_assert(!atomic_load(&task->cancelled) && atomic_load(&task->pause) == PAUSE_NONE);
    supervisor_tell(rig.service, &second, ORDER_CANCEL);
    ck_assert(atomic_load(&task->cancelled));
    rig.service->supervisor.runners[0].task = NULL;
    free(task);
    rig_close(&rig);
}
END_TEST

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

START_TEST(test_jobs_expire)
{
    char id[ID_SIZE], path[512];
    json_t *job;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ ",\"expires_after_seconds\":1", id);
    rig_upload(&rig, id, 0, 5, false);
    snprintf(path, sizeof(path), "%s/jobs/%s", rig.directory, id);
    ck_assert_int_eq(access(path, F_OK), 0);
    job = rig_wait(&rig, id);
    rig_expect_status(job, "expired");
    json_decref(job);
    ck_assert_int_eq(retry(id, NULL, &job), ERR_JOB_STATE_CONFLICT);
    rig_stop(&rig, 0); /* the sweep has ended, with what it was at */
    ck_assert_int_ne(access(path, F_OK), 0);
    scratch_remove(rig.directory);
}
END_TEST

/* An upload of 10 bytes that has 4, whose last piece came so long ago, and which itself is older than all that. */
static void begin_upload(int64_t age, char id[ID_SIZE], char path[512])
{
    struct service_transfer *transfer;
    const struct service_piece piece = {.announced = 4};
    json_t *object, *file;
    int64_t offset;

    ck_assert_rc_ok(service_transfer_create(rig.service, &principal_local, "calibration", NULL, 10, &object));
    snprintf(id, ID_SIZE, "%s", json_get_string(object, "id"));
    ck_assert_rc_ok(service_transfer_open(rig.service, &principal_local, id, &piece, &transfer));
    ck_assert_rc_ok(service_transfer_feed(transfer, "abcd", 4));
    ck_assert_rc_ok(service_transfer_end_take(transfer, false, &offset, &file));
    json_decref(object);
    ck_assert_rc_ok(store_object_get(rig.store, "default", "upl", id, &object));
    json_object_set_new(object, "created_at", json_integer(1));
    ck_assert_rc_ok(store_object_put(rig.store, "default", "upl", object));
    json_decref(object);
    snprintf(path, 512, "%s/uploads/%s", rig.directory, id);
    const struct timespec then = {.tv_sec = time(NULL) - age};
    const struct timespec times[2] = {then, then};
    ck_assert_int_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

static bool upload_is_there(const char *id)
{
    json_t *object = NULL;
    int rc = store_object_get(rig.store, "default", "upl", id, &object);
    json_decref(object);
    ck_assert(rc == 0 || rc == ERR_NOT_FOUND);
    return rc == 0;
}

START_TEST(test_uploads_expire)
{
    char old[ID_SIZE], young[ID_SIZE], file[ID_SIZE], old_path[512], young_path[512];
    json_t *object;
    rig_open(&rig);
    begin_upload(7200, old, old_path);
    begin_upload(10, young, young_path);
    upload_records(5, file);
    rig_stop(&rig, 0);
    ck_assert_int_eq(access(old_path, F_OK), 0);
    rig.retention.uploads = 3600;
    rig_start(&rig);
    for (int i = 0; i < 1000 && upload_is_there(old); i++) {
        rig_sleep(20);
    }
    rig_stop(&rig, 0);
    rig.retention.uploads = 0;
    rig_start(&rig);
    ck_assert(!upload_is_there(old));
    ck_assert_int_ne(access(old_path, F_OK), 0);
    ck_assert(upload_is_there(young));
    ck_assert_int_eq(access(young_path, F_OK), 0);
    ck_assert_rc_ok(store_object_get(rig.store, "default", "file", file, &object));
    json_decref(object);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("service_change", test_orders_are_for_one_attempt, test_retry_without_files_starts_over,
          test_retry_needs_streamed_records, test_jobs_expire, test_uploads_expire)
