/* Activations in memory and on disk hold the same; what was committed loads, what was damaged does not. */

#include "pipeline/activations.h"
#include "tests/unit/gpu/support.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <unistd.h>

enum { ROWS = 96, WIDTH = 40, BATCH = 32 };

static struct activations *open_store(const char *directory, struct activations_budget *budget)
{
    struct activations *store;
    ck_assert_rc_ok(activations_new(directory, "hidden", ROWS, WIDTH, budget, &store));
    return store;
}

/* Row r, column c of step s. */
static float value(int step, int64_t r, int64_t c)
{
    return (float)(1000 * step) + (float)r + (float)c / 64;
}

static void write_step(struct rig *rig, struct activations *store, int step)
{
    struct tensor batch = rig_tensor(rig, DTYPE_F32, BATCH, WIDTH);
    for (int64_t first = 0; first < ROWS; first += BATCH) {
        for (int64_t i = 0; i < BATCH * WIDTH; i++) {
            floats(&batch)[i] = value(step, first + i / WIDTH, i % WIDTH);
        }
        ck_assert_rc_ok(activations_write(store, first, &batch, &rig->gpu, rig->stream));
    }
    gpu_tensor_free(&rig->gpu, &batch);
}

static void check_step(struct rig *rig, struct activations *store, enum activations_side side, int step)
{
    struct tensor batch = rig_tensor(rig, DTYPE_F32, BATCH, WIDTH);
    for (int64_t first = 0; first < ROWS; first += BATCH) {
        ck_assert_rc_ok(activations_read(store, side, first, &batch, &rig->gpu, rig->stream));
        ck_assert_rc_ok(rig->ops->stream_sync(rig->stream));
        for (int64_t i = 0; i < BATCH * WIDTH; i++) {
            ck_assert_float_eq(floats(&batch)[i], value(step, first + i / WIDTH, i % WIDTH));
        }
    }
    gpu_tensor_free(&rig->gpu, &batch);
}

/* Work in place: rows that the device works on are the store's own or come back by a write, with the same outcome. */
static void work_in_place(struct rig *rig, struct activations *store, bool own)
{
    struct tensor batch = rig_tensor(rig, DTYPE_F32, BATCH, WIDTH);

    for (int64_t first = 0; first < ROWS; first += BATCH) {
        struct tensor rows = batch;
        ck_assert_rc_ok(activations_open(store, ACTIVATIONS_OUT, first, &rows, &rig->gpu, rig->stream));
        ck_assert((rows.data != batch.data) == own);
        ck_assert_rc_ok(rig->ops->stream_sync(rig->stream));
        for (int64_t i = 0; i < BATCH * WIDTH; i++) {
            ck_assert_float_eq(floats(&rows)[i], value(1, first + i / WIDTH, i % WIDTH));
            floats(&rows)[i] = value(2, first + i / WIDTH, i % WIDTH);
        }
        ck_assert_rc_ok(activations_write(store, first, &rows, &rig->gpu, rig->stream));
    }
    check_step(rig, store, ACTIVATIONS_OUT, 2);
    for (int64_t first = 0; first < ROWS; first += BATCH) {
        struct tensor rows = batch;
        activations_place(store, first, &rows, &rig->gpu);
        ck_assert((rows.data != batch.data) == own);
        for (int64_t i = 0; i < BATCH * WIDTH; i++) {
            floats(&rows)[i] = value(1, first + i / WIDTH, i % WIDTH);
        }
        ck_assert_rc_ok(activations_write(store, first, &rows, &rig->gpu, rig->stream));
    }
    check_step(rig, store, ACTIVATIONS_OUT, 1);
    gpu_tensor_free(&rig->gpu, &batch);
}

/* One life of a store: turn, two commits, a resume. Gives the second commit's digest. */
static void live(struct rig *rig, int64_t limit, bool on_device, char sha256[DIGEST_HEX_SIZE])
{
    char directory[256];
    char file[64];
    struct activations_budget budget = {
        .limit = limit, .device_limit = on_device ? 1 << 20 : 0, .gpu = &rig->gpu, .stream = rig->stream};

    scratch_make(directory);
    struct activations *store = open_store(directory, &budget);
    ck_assert_int_eq(budget.used > 0, limit > 0);
    write_step(rig, store, 1);
    work_in_place(rig, store, limit > 0 || on_device);
    ck_assert_rc_ok(activations_turn(store));
    check_step(rig, store, ACTIVATIONS_IN, 1);
    write_step(rig, store, 2);
    check_step(rig, store, ACTIVATIONS_OUT, 2);
    ck_assert_rc_ok(activations_commit(store, 0, file, sha256));
    check_step(rig, store, ACTIVATIONS_IN, 2);
    write_step(rig, store, 3);
    ck_assert_rc_ok(activations_commit(store, 1, file, sha256));
    ck_assert_str_eq(file, "hidden-00001.act");
    ck_assert_rc_ok(activations_sweep(store, file));
    write_step(rig, store, 9); /* an open block that is dropped */
    activations_free(store);
    ck_assert_int_eq(budget.used, 0);
    ck_assert_int_eq(budget.device_used, 0);

    store = open_store(directory, &budget);
    ck_assert_int_eq(activations_load(store, "hidden-00000.act", sha256), ERR_NOT_FOUND); /* swept */
    ck_assert_rc_ok(activations_load(store, file, sha256));
    check_step(rig, store, ACTIVATIONS_IN, 3);
    activations_free(store);
    scratch_remove(directory);
}

START_TEST(test_memory_and_disk_agree)
{
    struct rig rig;
    char in_memory[DIGEST_HEX_SIZE];
    char on_disk[DIGEST_HEX_SIZE];
    char on_device[DIGEST_HEX_SIZE];

    rig_open(&rig, 1);
    live(&rig, 1 << 20, false, in_memory);
    live(&rig, 0, false, on_disk);
    live(&rig, 0, true, on_device);
    ck_assert_str_eq(in_memory, on_disk);
    ck_assert_str_eq(in_memory, on_device);
    rig_close(&rig);
}
END_TEST

START_TEST(test_damage_is_found)
{
    struct rig rig;
    char directory[256];
    char file[64];
    char path[400];
    char sha256[DIGEST_HEX_SIZE];

    rig_open(&rig, 1);
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        struct activations_budget budget = {.limit = on_disk ? 0 : 1 << 20};
        scratch_make(directory);
        struct activations *store = open_store(directory, &budget);
        write_step(&rig, store, 1);
        ck_assert_rc_ok(activations_commit(store, 0, file, sha256));
        activations_free(store);
        snprintf(path, sizeof(path), "%s/%s", directory, file);
        int fd = open(path, O_WRONLY);
        ck_assert_int_eq(pwrite(fd, "x", 1, 77), 1);
        store = open_store(directory, &budget);
        ck_assert_int_eq(activations_load(store, file, sha256), ERR_SOURCE_CORRUPT);
        ck_assert_int_eq(ftruncate(fd, 100), 0);
        close(fd);
        ck_assert_int_eq(activations_load(store, file, sha256), ERR_SOURCE_CORRUPT);
        activations_free(store);
        scratch_remove(directory);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(test_absurd_sizes_are_refused)
{
    struct activations_budget budget = {.limit = 1 << 20};
    struct activations *store;

    ck_assert_int_eq(activations_new("/", "x", INT64_MAX / 2, 8, &budget, &store), ERR_INSUFFICIENT_MEMORY);
    ck_assert_int_lt(activations_new("/nonexistent", "x", 8, 1 << 20, &budget, &store), 0);
    ck_assert_int_eq(budget.used, 0);
}
END_TEST

UNIT_MAIN("store", test_memory_and_disk_agree, test_damage_is_found, test_absurd_sizes_are_refused)
