/* Interruptions: drained, killed, damaged. The artifact is byte for byte that of an undisturbed run. */

#include "tests/unit/jobs/support.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* Blocks that last long enough to be interrupted, in every build. */
#if defined(__SANITIZE_THREAD__)
#define SAMPLES "10"
#elif defined(__SANITIZE_ADDRESS__)
#define SAMPLES "20"
#else
#define SAMPLES "40"
#endif
#define SLOW_GPTQ                                                                              \
    "\"method\":\"gptq\",\"quantization\":{\"bits\":3,\"group_size\":64},\"max_attempts\":20," \
    "\"calibration\":{\"stream\":true,\"num_samples\":" SAMPLES                                \
    ",\"sequence_length\":128},\"evaluation\":{\"hold_back\":0.1}"
#define RECORDS 160

static struct rig rig;

static json_t *undisturbed; /* the files of the job when nothing happens to it */

static void run_undisturbed(void)
{
    char id[ID_SIZE];
    rig_open(&rig);
    rig_create(&rig, SLOW_GPTQ, id);
    rig_upload(&rig, id, 0, RECORDS, true);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    undisturbed = rig_files(&rig, job);
    json_decref(job);
    rig_close(&rig);
}

static void expect_end(const char *id)
{
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_t *found = rig_files(&rig, job);
    char *wanted_text = json_dumps(undisturbed, 0);
    char *found_text = json_dumps(found, 0);
    ck_assert_str_eq(found_text, wanted_text);
    free(wanted_text);
    free(found_text);
    json_decref(found);
    json_t *report;
    ck_assert_rc_ok(service_job_report(rig.service, &principal_local, id, &report));
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
        json_t *job = rig_job(&rig, id);
        bool over = job_view_ended(job);
        int64_t done = json_integer_value(json_object_get(json_object_get(job, "progress"), "layers_done"));
        json_decref(job);
        if (over || done >= layers) {
            return !over;
        }
        rig_sleep(5);
    }
}

START_TEST(test_drained_jobs_go_on)
{
    char id[ID_SIZE];
    rig_open(&rig);
    rig_create(&rig, SLOW_GPTQ, id);
    rig_upload(&rig, id, 0, RECORDS, true);
    for (int64_t layers = 1; layers < 4; layers++) {
        if (!wait_for_layers(id, layers)) {
            break;
        }
        rig_stop(&rig, layers == 2 ? 0 : 25000); /* once without waiting for the block's end */
        rig_start(&rig);
    }
    json_t *job = rig_wait(&rig, id);
    ck_assert_int_ge(json_integer_value(json_object_get(job, "attempt")), 2);
    json_decref(job);
    expect_end(id);
    rig_close(&rig);
}
END_TEST

/* The child runs the daemon's part until it is killed. */
static void run_and_kill(int after_ms)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        rig_start(&rig);
        rig_sleep(60000);
        _exit(0);
    }
    rig_sleep(after_ms);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

START_TEST(test_killed_jobs_go_on)
{
    static const int moments_ms[] = {120, 300, 30, 450, 700, 200};
    char id[ID_SIZE];
    memset(&rig, 0, sizeof(rig));
    rig_open(&rig);
    rig_create(&rig, SLOW_GPTQ, id);
    rig_upload(&rig, id, 0, RECORDS - 1, false);
    rig_stop(&rig, 0);
    rig_start(&rig);
    rig_upload(&rig, id, RECORDS - 1, 1, true);
    rig_stop(&rig, 0);
    for (size_t i = 0; i < sizeof(moments_ms) / sizeof(moments_ms[0]); i++) {
        run_and_kill(moments_ms[i]);
    }
    rig_start(&rig);
    expect_end(id);
    rig_close(&rig);
}
END_TEST

static void damage(const char *id, const char *file)
{
    char path[700];
    snprintf(path, sizeof(path), "%s/jobs/%s/%s", rig.directory, id, file);
    int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, "damage", 6, 9000), 6);
    close(fd);
}

/* The first file of the job whose name begins so. */
static void find_file(const char *id, const char *begin, char name[256])
{
    char path[700];
    snprintf(path, sizeof(path), "%s/jobs/%s", rig.directory, id);
    DIR *folder = opendir(path);
    ck_assert_ptr_nonnull(folder);
    name[0] = '\0';
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (strncmp(entry->d_name, begin, strlen(begin)) == 0) {
            snprintf(name, 256, "%s", entry->d_name);
        }
    }
    closedir(folder);
    ck_assert_str_ne(name, "");
}

/* The last block's row with another member. */
static void change_block_row(const char *id, int64_t index, const char *member, const char *value)
{
    json_t *blocks, *layers;
    struct job_row job;
    ck_assert_rc_ok(store_blocks_list(rig.store, id, &blocks));
    ck_assert_rc_ok(store_layers_list(rig.store, id, &layers));
    ck_assert_rc_ok(store_job_get(rig.store, NULL, id, &job));
    json_t *block = json_array_get(blocks, (size_t)index);
    ck_assert_ptr_nonnull(json_object_get(block, member));
    json_object_set_new(block, member, json_string(value));
    json_t *rows = json_array();
    for (size_t i = 0; i < 7; i++) {
        json_array_append(rows, json_array_get(layers, 7 * (size_t)index + i));
    }
    const struct job_update update = {.id = id, .from = STATUS_ANY, .fence = job.fence, .event = "layer"};
    ck_assert_rc_ok(store_blocks_clear(rig.store, id, index));
    ck_assert_rc_ok(store_block_commit(rig.store, &update, block, rows));
    json_decref(rows);
    json_decref(blocks);
    json_decref(layers);
    job_row_deinit(&job);
}

/* As a build of the next version would leave it: the same length, and a row with its digest. */
static void rewrite_as_version_2(const char *id, int64_t index)
{
    static const char mine[] = "\"version\":\"1\"", theirs[] = "\"version\":\"2\"";
    char path[700], sha256[DIGEST_HEX_SIZE], *data;
    size_t size;
    snprintf(path, sizeof(path), "%s/jobs/%s/block-%05lld.safetensors", rig.directory, id, (long long)index);
    ck_assert_rc_ok(fs_read_file(path, 64 << 20, &data, &size));
    char *at = memmem(data, size, mine, strlen(mine));
    ck_assert_ptr_nonnull(at);
    memcpy(at, theirs, strlen(theirs));
    ck_assert_rc_ok(fs_write_atomic(path, data, size));
    digest_bytes(data, size, sha256);
    free(data);
    change_block_row(id, index, "sha256", sha256);
}

static const struct {
    const char
        *file; /* to damage: its name's beginning; NULL: a block becomes one of another version; "": of other weights */
    int64_t layers; /* done before */
    const char *code, *message;
} damages[] = {
    {"block-00000", 1, "checkpoint_damaged", "block 0 was damaged or gone; the job started over from its first block"},
    {"block-00001", 2, "checkpoint_damaged", "block 1 was damaged or gone; the job went on after block 0"},
    {"calibration-", 1, "checkpoint_damaged", "saved activations were damaged; blocks 0 to "},
    {NULL, 2, "checkpoint_version", "version 2, and this build reads 1; the job went on after block 0"},
    {"", 2, "source_changed", "files were modified after blocks were done; the job started over from its first block"},
};

static void run_damaged(size_t i)
{
    char id[ID_SIZE], name[256];
    rig_open(&rig);
    rig_create(&rig, SLOW_GPTQ, id);
    rig_upload(&rig, id, 0, RECORDS, true);
    ck_assert(wait_for_layers(id, damages[i].layers));
    rig_stop(&rig, 0);
    if (damages[i].file != NULL && damages[i].file[0] != '\0') {
        find_file(id, damages[i].file, name);
        damage(id, name);
    } else {
        const struct store_config store = {.data_dir = rig.directory};
        ck_assert_rc_ok(store_open(&store, &rig.store));
        if (damages[i].file == NULL) {
            rewrite_as_version_2(id, 1);
        } else {
            change_block_row(id, 1, "source", "that of other weights");
        }
        store_close(rig.store);
    }
    rig_start(&rig);
    expect_end(id);
    json_t *job = rig_job(&rig, id);
    const json_t *warning = json_array_get(json_object_get(job, "warnings"), 0);
    ck_assert_str_eq(json_get_string(warning, "code"), damages[i].code);
    ck_assert_msg(strstr(json_get_string(warning, "message"), damages[i].message) != NULL, "%s is not %s",
                  json_get_string(warning, "message"), damages[i].message);
    json_decref(job);
    rig_close(&rig);
}

START_TEST(test_goes_on_from_the_last_usable_block)
{
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        run_damaged(i);
    }
}
END_TEST

/* Stopped after its first block, which another device is then said to have made. */
START_TEST(test_another_device_is_said)
{
    char id[ID_SIZE];
    struct job_row row;
    bool said = false;
    size_t i;
    json_t *warning;
    rig_open(&rig);
    rig_create(&rig, SLOW_GPTQ, id);
    rig_upload(&rig, id, 0, RECORDS, true);
    ck_assert(wait_for_layers(id, 1));
    service_drain(rig.service, 0);
    service_close(rig.service);
    ck_assert_rc_ok(store_job_get(rig.store, NULL, id, &row));
    ck_assert_ptr_nonnull(row.checkpoint.device);
    struct job_row change = {.checkpoint = row.checkpoint};
    change.checkpoint.device = "an abacus (wood)";
    const struct job_update update = {
        .id = id, .from = STATUS_ANY, .fence = -1, .set = JOB_SET_CHECKPOINT, .row = &change};
    ck_assert_rc_ok(store_job_update(rig.store, &update, NULL));
    job_row_deinit(&row);
    store_close(rig.store);
    rig_start(&rig);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_array_foreach(json_object_get(job, "warnings"), i, warning)
    {
        said = said || (strcmp(json_get_string(warning, "code"), "device_changed") == 0 &&
                        strstr(json_get_string(warning, "message"), "an abacus (wood)") != NULL);
    }
    ck_assert(said);
    json_decref(job);
    rig_close(&rig);
}
END_TEST

START_TEST(test_poison_is_given_up)
{
    char id[ID_SIZE];
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ ",\"max_attempts\":1", id);
    /* As a killed daemon leaves it. */
    rig_set_status(&rig, id, STATUS_RUNNING);
    rig_stop(&rig, 0);
    rig_start(&rig);
    json_t *job = rig_job(&rig, id);
    rig_expect_status(job, "failed");
    ck_assert_str_eq(json_get_string(json_object_get(job, "error"), "code"), "worker_lost");
    json_decref(job);
    rig_close(&rig);
}
END_TEST

START_TEST(test_stray_folders_and_cancellations)
{
    char id[ID_SIZE];
    char stray[400];
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    rig_set_status(&rig, id, STATUS_CANCELLING);
    snprintf(stray, sizeof(stray), "%s/jobs/job_01J00000000000000000000000", rig.directory);
    ck_assert_rc_ok(fs_make_dirs(stray));
    rig_stop(&rig, 0);
    rig_start(&rig);
    json_t *job = rig_job(&rig, id);
    rig_expect_status(job, "cancelled");
    json_decref(job);
    ck_assert_int_ne(access(stray, F_OK), 0);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN_AFTER(run_undisturbed, "service_resume", test_drained_jobs_go_on, test_killed_jobs_go_on,
                test_goes_on_from_the_last_usable_block, test_another_device_is_said, test_poison_is_given_up,
                test_stray_folders_and_cancellations)
