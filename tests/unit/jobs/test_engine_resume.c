/* Interruptions: drained, killed, damaged. The artifact is byte for byte that of an undisturbed run. */

#include "tests/unit/jobs/support.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOW_GPTQ                                                                              \
    "\"method\":\"gptq\",\"quantization\":{\"bits\":3,\"group_size\":64},\"max_attempts\":20," \
    "\"calibration\":{\"stream\":true,\"num_samples\":40,\"sequence_length\":128},\"evaluation\":{\"hold_back\":0.1}"
#define RECORDS 160

static struct house house;

static json_t *undisturbed(void)
{
    char id[ID_SIZE];
    house_open(&house);
    house_create(&house, SLOW_GPTQ, id);
    house_upload(&house, id, 0, RECORDS, true);
    json_t *job = house_wait(&house, id);
    house_expect_status(job, "succeeded");
    json_t *files = house_files(&house, job);
    json_decref(job);
    house_close(&house);
    return files;
}

static void expect_end(const char *id, const json_t *files)
{
    json_t *job = house_wait(&house, id);
    house_expect_status(job, "succeeded");
    json_t *found = house_files(&house, job);
    char *wanted_text = json_dumps(files, 0);
    char *found_text = json_dumps(found, 0);
    ck_assert_str_eq(found_text, wanted_text);
    free(wanted_text);
    free(found_text);
    json_decref(found);
    json_t *report;
    ck_assert_rc_ok(engine_job_report(house.engine, id, &report));
    const json_t *layers = json_object_get(report, "layers");
    ck_assert_uint_eq(json_array_size(layers), 28);
    for (size_t i = 0; i < 28; i++) {
        ck_assert_int_eq(json_integer_value(json_object_get(json_array_get(layers, i), "index")), (json_int_t)i);
    }
    json_decref(report);
    json_decref(job);
}

/* Until at least this many blocks are done; false when the job was over first. */
static bool wait_for_layers(const char *id, int64_t layers)
{
    for (;;) {
        json_t *job = house_job(&house, id);
        bool over = job_is_terminal(json_get_string(job, "status"));
        int64_t done = json_integer_value(json_object_get(json_object_get(job, "progress"), "layers_done"));
        json_decref(job);
        if (over || done >= layers) {
            return !over;
        }
        house_sleep(5);
    }
}

START_TEST(test_drained_jobs_go_on)
{
    char id[ID_SIZE];
    json_t *files = undisturbed();
    house_open(&house);
    house_create(&house, SLOW_GPTQ, id);
    house_upload(&house, id, 0, RECORDS, true);
    for (int64_t layers = 1; layers < 4; layers++) {
        if (!wait_for_layers(id, layers)) {
            break;
        }
        house_stop(&house, layers == 2 ? 0 : 25000); /* once without waiting for the block's end */
        house_start(&house);
    }
    json_t *job = house_wait(&house, id);
    ck_assert_int_ge(json_integer_value(json_object_get(job, "attempt")), 2);
    json_decref(job);
    expect_end(id, files);
    json_decref(files);
    house_close(&house);
}
END_TEST

/* The child runs the daemon's part until it is killed. */
static void run_and_kill(int after_ms)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        house_start(&house);
        house_sleep(60000);
        _exit(0);
    }
    house_sleep(after_ms);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

START_TEST(test_killed_jobs_go_on)
{
    static const int moments_ms[] = {120, 300, 30, 450, 700, 200};
    char id[ID_SIZE];
    json_t *files = undisturbed();
    memset(&house, 0, sizeof(house));
    house_open(&house);
    house_create(&house, SLOW_GPTQ, id);
    house_upload(&house, id, 0, RECORDS - 1, false);
    house_stop(&house, 0);
    house_start(&house);
    house_upload(&house, id, RECORDS - 1, 1, true);
    house_stop(&house, 0);
    for (size_t i = 0; i < sizeof(moments_ms) / sizeof(moments_ms[0]); i++) {
        run_and_kill(moments_ms[i]);
    }
    house_start(&house);
    expect_end(id, files);
    json_decref(files);
    house_close(&house);
}
END_TEST

static void damage_blocks(const char *id)
{
    char path[700];
    snprintf(path, sizeof(path), "%s/jobs/%s/block-00000.safetensors", house.directory, id);
    int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, "damage", 6, 9000), 6);
    close(fd);
}

START_TEST(test_damaged_checkpoint_starts_over)
{
    char id[ID_SIZE];
    json_t *files = undisturbed();
    house_open(&house);
    house_create(&house, SLOW_GPTQ, id);
    house_upload(&house, id, 0, RECORDS, true);
    ck_assert(wait_for_layers(id, 1));
    house_stop(&house, 0);
    damage_blocks(id);
    house_start(&house);
    expect_end(id, files);
    json_t *job = house_job(&house, id);
    ck_assert_str_eq(json_get_string(json_array_get(json_object_get(job, "warnings"), 0), "code"),
                     "checkpoint_damaged");
    json_decref(job);
    json_decref(files);
    house_close(&house);
}
END_TEST

START_TEST(test_poison_is_given_up)
{
    char id[ID_SIZE];
    house_open(&house);
    house_create(&house, HOUSE_GPTQ ",\"max_attempts\":1", id);
    /* As a killed daemon leaves it. */
    json_t *patch = json_pack("{s:s}", "status", "running");
    ck_assert_rc_ok(store_job_update(house.store, id, NULL, -1, patch, NULL, NULL, NULL));
    json_decref(patch);
    house_stop(&house, 0);
    house_start(&house);
    json_t *job = house_job(&house, id);
    house_expect_status(job, "failed");
    ck_assert_str_eq(json_get_string(json_object_get(job, "error"), "code"), "worker_lost");
    json_decref(job);
    house_close(&house);
}
END_TEST

START_TEST(test_stray_folders_and_cancellations)
{
    char id[ID_SIZE];
    char stray[400];
    house_open(&house);
    house_create(&house, HOUSE_GPTQ, id);
    json_t *patch = json_pack("{s:s}", "status", "cancelling");
    ck_assert_rc_ok(store_job_update(house.store, id, NULL, -1, patch, NULL, NULL, NULL));
    json_decref(patch);
    snprintf(stray, sizeof(stray), "%s/jobs/job_01J00000000000000000000000", house.directory);
    ck_assert_rc_ok(fs_make_dirs(stray));
    house_stop(&house, 0);
    house_start(&house);
    json_t *job = house_job(&house, id);
    house_expect_status(job, "cancelled");
    json_decref(job);
    ck_assert_int_ne(access(stray, F_OK), 0);
    house_close(&house);
}
END_TEST

UNIT_MAIN("engine_resume", test_drained_jobs_go_on, test_killed_jobs_go_on, test_damaged_checkpoint_starts_over,
          test_poison_is_given_up, test_stray_folders_and_cancellations)
