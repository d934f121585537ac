/* Jobs that cannot end well: each fails with a code, a place and a hint, and the service serves on. */

#include "tests/unit/jobs/support.h"

#include <endian.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static struct rig rig;
static char root[256];

static void copy_file(const char *name)
{
    char from[400];
    char to[400];
    char *data;
    size_t size;
    snprintf(from, sizeof(from), "%s/tiny-llama/%s", MODEL_ROOT, name);
    snprintf(to, sizeof(to), "%s/tiny-llama/%s", root, name);
    ck_assert_rc_ok(fs_read_file(from, 64 << 20, &data, &size));
    ck_assert_rc_ok(fs_write_atomic(to, data, size));
    free(data);
}

/* A rig over a copy of the bundled model that a test may damage. */
static void open_on_copy(void)
{
    char folder[300];
    scratch_make(root);
    snprintf(folder, sizeof(folder), "%s/tiny-llama", root);
    ck_assert_rc_ok(fs_make_dirs(folder));
    copy_file("config.json");
    copy_file("tokenizer.json");
    copy_file("model.safetensors");
    rig.root = root;
    rig_open(&rig);
}

static void close_copy(void)
{
    rig_close(&rig);
    scratch_remove(root);
}

static json_t *expect_failure(const char *id, const char *code)
{
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "failed");
    json_t *error = json_incref(json_object_get(job, "error"));
    ck_assert_str_eq(json_get_string(error, "code"), code);
    ck_assert_ptr_nonnull(json_get_string(error, "hint"));
    ck_assert_str_eq(json_get_string(job, "status_reason"), code);
    json_decref(job);
    return error;
}

/* After a failure the next job still runs. */
static void expect_service(void)
{
    char id[ID_SIZE];
    rig_create(&rig, "\"method\":\"rtn\",\"quantization\":{\"group_size\":64}", id);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    json_decref(job);
}

/* Where a tensor's bytes begin in the copy. */
static int64_t tensor_offset(int fd, const char *name)
{
    uint64_t length;
    json_t *header;
    ck_assert_rc_ok(fs_pread_full(fd, &length, sizeof(length), 0));
    length = le64toh(length);
    char *text = malloc(length);
    ck_assert_rc_ok(fs_pread_full(fd, text, length, 8));
    ck_assert_rc_ok(json_parse(text, length, 8, &header));
    const json_t *offsets = json_object_get(json_object_get(header, name), "data_offsets");
    int64_t at = 8 + (int64_t)length + json_integer_value(json_array_get(offsets, 0));
    json_decref(header);
    free(text);
    return at;
}

static int open_weights(void)
{
    char path[400];
    snprintf(path, sizeof(path), "%s/tiny-llama/model.safetensors", root);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    return fd;
}

START_TEST(test_not_a_number)
{
    static const uint16_t nan = 0x7fc0; /* BF16 */
    uint16_t original;
    char id[ID_SIZE];
    open_on_copy();
    int fd = open_weights();
    int64_t at = tensor_offset(fd, "model.layers.2.mlp.up_proj.weight") + 34;
    ck_assert_rc_ok(fs_pread_full(fd, &original, sizeof(original), at));
    ck_assert_rc_ok(fs_pwrite_full(fd, &nan, sizeof(nan), at));
    rig_create(&rig, "\"method\":\"rtn\",\"quantization\":{\"group_size\":64}", id);
    json_t *error = expect_failure(id, "non_finite_value");
    ck_assert_int_eq(json_integer_value(json_object_get(error, "layer")), 2);
    ck_assert_str_eq(json_get_string(error, "module"), "model.layers.2.mlp.up_proj");
    ck_assert_ptr_nonnull(strstr(json_get_string(error, "message"), "17"));
    ck_assert(json_is_false(json_object_get(error, "retryable")));
    json_decref(error);
    ck_assert_rc_ok(fs_pwrite_full(fd, &original, sizeof(original), at));
    close(fd);
    expect_service();
    close_copy();
}
END_TEST

/* What belongs to no block names none, also where one is open. */
START_TEST(test_not_a_number_outside_of_the_blocks)
{
    static const uint16_t nan = 0x7fc0; /* BF16 */
    char id[ID_SIZE];
    open_on_copy();
    int fd = open_weights();
    ck_assert_rc_ok(fs_pwrite_full(fd, &nan, sizeof(nan), tensor_offset(fd, "model.norm.weight")));
    close(fd);
    rig_create(&rig, "\"method\":\"rtn\",\"quantization\":{\"group_size\":64}", id);
    json_t *error = expect_failure(id, "non_finite_value");
    ck_assert(json_is_null(json_object_get(error, "layer")));
    json_decref(error);
    close_copy();
}
END_TEST

START_TEST(test_checkpoint_changed_while_waiting)
{
    char id[ID_SIZE];
    open_on_copy();
    rig_create(&rig, RIG_GPTQ, id);
    rig_upload(&rig, id, 0, 40, false);
    int fd = open_weights();
    int64_t size = lseek(fd, 0, SEEK_END);
    ck_assert_int_eq(ftruncate(fd, size - 2), 0);
    struct service_upload *upload;
    ck_assert_int_eq(service_upload_open(rig.service, &principal_local, id, 40, &upload), ERR_SOURCE_CHANGED);
    /* Past the upload's own check, as if it had changed later. */
    rig_set_status(&rig, id, STATUS_QUEUED);
    json_t *error = expect_failure(id, "source_changed");
    ck_assert(json_is_false(json_object_get(error, "retryable")));
    json_decref(error);
    close(fd);
    close_copy();
}
END_TEST

START_TEST(test_out_of_time)
{
    char id[ID_SIZE];
    rig_open(&rig);
    rig_create(&rig,
               "\"method\":\"gptq\",\"quantization\":{\"group_size\":64},\"timeout_seconds\":1,"
               "\"calibration\":{\"stream\":true,\"num_samples\":0,\"sequence_length\":256}",
               id);
    rig_upload(&rig, id, 0, 6000, true);
    json_t *error = expect_failure(id, "timeout");
    json_decref(error);
    expect_service();
    rig_close(&rig);
}
END_TEST

/* No file may grow beyond what one finished block needs: two attempts, then the word and the hint. */
START_TEST(test_disk_is_full)
{
    char id[ID_SIZE];
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    rig_open(&rig);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    const struct rlimit small = {.rlim_cur = 800 << 10, .rlim_max = limit.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    rig_create(&rig, "\"method\":\"rtn\",\"max_attempts\":2,\"quantization\":{\"group_size\":32,\"bits\":8}", id);
    json_t *error = expect_failure(id, "disk_full");
    ck_assert(json_is_true(json_object_get(error, "retryable")));
    json_decref(error);
    json_t *job = rig_job(&rig, id);
    ck_assert_int_eq(json_integer_value(json_object_get(job, "attempt")), 2);
    json_decref(job);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    expect_service();
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("service_failures", test_not_a_number, test_not_a_number_outside_of_the_blocks,
          test_checkpoint_changed_while_waiting, test_out_of_time, test_disk_is_full)
