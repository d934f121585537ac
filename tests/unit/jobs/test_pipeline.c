/* The block loop on the bundled checkpoint: results depend neither on memory, nor on threads, nor on interruptions. */

#include "base/err.h"
#include "jobs/pipeline.h"
#include "tests/unit/gpu/support.h"
#include "tests/unit/scratch.h"

#include "base/json.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SEQUENCES = 5, LENGTH = 64, EVAL_SEQUENCES = 2 };

struct world {
    char directory[256];
    struct gpu gpu;
    struct model *model;
    struct job_spec spec;
    int32_t ids[(SEQUENCES + EVAL_SEQUENCES) * LENGTH];
    struct calibration_set calibration, evaluation;
    struct pipeline_times times;
    struct evaluation_result result;
    json_t *blocks; /* committed */
    json_t *rows;
    int64_t stop_at;   /* block after which block_done interrupts; -1 = never */
    int64_t cancel_in; /* ticks until one refuses; -1 = never */
    int refusal;       /* what it says; 0 = ERR_CANCELLED */
    double fraction;
    size_t begun;      /* blocks */
    int moved, halved; /* notices */
};

static int on_tick(void *data, double fraction, const char *phase)
{
    struct world *world = data;
    ck_assert_ptr_nonnull(phase);
    ck_assert(fraction >= 0);
    world->fraction = fraction;
    world->begun += strcmp(phase, "loading") == 0;
    if (world->cancel_in >= 0 && world->cancel_in-- == 0) {
        return err_raise(world->refusal != 0 ? world->refusal : ERR_CANCELLED, "refused by the test");
    }
    return 0;
}

static int on_block(void *data, int64_t index, const char *file, const char *sha256, const json_t *chains,
                    const json_t *notes, const json_t *rows)
{
    struct world *world = data;
    ck_assert_int_eq(index, (int64_t)json_array_size(world->blocks));
    json_array_append_new(world->blocks, json_pack("{s:I, s:s, s:s, s:O, s:O}", "index", (json_int_t)index, "file",
                                                   file, "sha256", sha256, "chains", chains, "notes", notes));
    json_array_extend(world->rows, (json_t *)rows);
    return index == world->stop_at ? err_raise(ERR_INTERRUPTED, "interrupted by the test") : 0;
}

static int on_notice(void *data, const char *code, const char *message)
{
    struct world *world = data;
    ck_assert_ptr_nonnull(strstr(message, "out of memory"));
    bool moved = strcmp(code, "activations_on_host") == 0;
    ck_assert(moved || strcmp(code, "micro_batch_halved") == 0);
    world->moved += moved;
    world->halved += !moved;
    return 0;
}

static void read_spec(struct world *world, const char *method)
{
    struct faults faults = {0};
    json_t *body =
        json_pack("{s:s, s:s, s:{s:i, s:i}, s:{s:b}, s:i}", "model", "mdl_01J00000000000000000000000", "method", method,
                  "quantization", "bits", 4, "group_size", 64, "calibration", "stream", 1, "seed", 3);
    ck_assert_rc_ok(spec_parse(body, &faults, &world->spec));
    json_decref(body);
}

static void world_open(struct world *world, const char *method, int threads)
{
    uint64_t seed = 5;
    memset(world, 0, sizeof(*world));
    scratch_make(world->directory);
    ck_assert_rc_ok(gpu_open("cpu", threads, &world->gpu));
    int root = open(MODEL_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &world->model));
    close(root);
    read_spec(world, method);
    for (size_t i = 0; i < sizeof(world->ids) / sizeof(world->ids[0]); i++) {
        world->ids[i] = (int32_t)(random_bits(&seed) % 2048);
    }
    world->calibration = (struct calibration_set){.ids = world->ids, .sequences = SEQUENCES, .length = LENGTH};
    world->evaluation =
        (struct calibration_set){.ids = world->ids + SEQUENCES * LENGTH, .sequences = EVAL_SEQUENCES, .length = LENGTH};
    world->blocks = json_array();
    world->rows = json_array();
    world->stop_at = -1;
    world->cancel_in = -1;
}

static void world_close(struct world *world)
{
    json_decref(world->blocks);
    json_decref(world->rows);
    spec_deinit(&world->spec);
    model_close(world->model);
    gpu_close(&world->gpu);
    scratch_remove(world->directory);
}

static int run(struct world *world, int64_t memory)
{
    json_t *done = json_copy(world->blocks);
    const struct pipeline pipeline = {
        .spec = &world->spec,
        .model = world->model,
        .gpu = &world->gpu,
        .directory = world->directory,
        .calibration = world->calibration.sequences > 0 ? &world->calibration : NULL,
        .evaluation = world->evaluation.sequences > 0 ? &world->evaluation : NULL,
        .host_memory_bytes = memory,
        .blocks = done,
        .layers_before = (int64_t)json_array_size(world->rows),
        .hooks = {.data = world, .tick = on_tick, .block_done = on_block, .notice = on_notice},
        .times = &world->times,
    };
    int rc = pipeline_run(&pipeline, &world->result);
    json_decref(done);
    return rc;
}

#define MEMORY ((int64_t)1 << 30)

static void expect_same(struct world *a, struct world *b)
{
    ck_assert_uint_eq(json_array_size(a->blocks), 4);
    ck_assert_uint_eq(json_array_size(b->blocks), 4);
    for (size_t i = 0; i < 4; i++) {
        ck_assert_str_eq(json_get_string(json_array_get(a->blocks, i), "sha256"),
                         json_get_string(json_array_get(b->blocks, i), "sha256"));
    }
    ck_assert_double_eq(a->result.perplexity_before, b->result.perplexity_before);
    ck_assert_double_eq(a->result.perplexity_after, b->result.perplexity_after);
    ck_assert_double_eq(a->result.kl_mean, b->result.kl_mean);
    ck_assert_uint_eq(json_array_size(a->rows), json_array_size(b->rows));
    for (size_t i = 0; i < json_array_size(a->rows); i++) {
        json_object_del(json_array_get(a->rows, i), "seconds");
        json_object_del(json_array_get(b->rows, i), "seconds");
        ck_assert(json_equal(json_array_get(a->rows, i), json_array_get(b->rows, i)));
    }
}

START_TEST(test_rows_and_losses)
{
    struct world w;
    world_open(&w, "gptq", 1);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_uint_eq(json_array_size(w.rows), 28);
    for (size_t i = 0; i < 28; i++) {
        const json_t *row = json_array_get(w.rows, i);
        ck_assert_int_eq(json_integer_value(json_object_get(row, "index")), (json_int_t)i);
        ck_assert_int_eq(json_integer_value(json_object_get(row, "layer")), (json_int_t)i / 7);
        ck_assert_int_eq(json_integer_value(json_object_get(row, "tokens")), SEQUENCES * LENGTH);
        double relative = json_number_value(json_object_get(row, "relative_mse"));
        double output = json_number_value(json_object_get(row, "output_relative_mse"));
        ck_assert_msg(relative > 0 && relative < 0.1, "row %zu loses %g of its weights", i, relative);
        ck_assert_msg(output > 0 && output < 0.1, "row %zu loses %g of its output", i, output);
    }
    ck_assert(w.result.done);
    ck_assert_int_eq(w.result.tokens, EVAL_SEQUENCES * (LENGTH - 1));
    ck_assert_double_gt(w.result.perplexity_before, 1);
    ck_assert_double_gt(w.result.kl_mean, 0);
    ck_assert_double_lt(w.result.kl_mean, 1);
    ck_assert_double_gt(w.times.seconds[PHASE_SOLVE], 0);
    ck_assert_double_gt(w.times.flops[PHASE_STATISTICS], 0);
    world_close(&w);
}
END_TEST

START_TEST(test_spilled_is_the_same)
{
    struct world memory;
    struct world disk;
    world_open(&memory, "gptq", 1);
    world_open(&disk, "gptq", 1);
    ck_assert_rc_ok(run(&memory, MEMORY));
    ck_assert_rc_ok(run(&disk, 0));
    expect_same(&memory, &disk);
    world_close(&memory);
    world_close(&disk);
}
END_TEST

START_TEST(test_threads_do_not_matter)
{
    struct world one;
    struct world two;
    world_open(&one, "gptq", 1);
    world_open(&two, "gptq", 2);
    ck_assert_rc_ok(run(&one, MEMORY));
    ck_assert_rc_ok(run(&two, MEMORY));
    expect_same(&one, &two);
    world_close(&one);
    world_close(&two);
}
END_TEST

/* Stopped at a boundary, dropped in the middle of a block, stopped behind the last: always the same end. */
START_TEST(test_resumed_is_the_same)
{
    struct world whole;
    world_open(&whole, "gptq", 2);
    ck_assert_rc_ok(run(&whole, MEMORY));
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        int64_t memory = on_disk ? 0 : MEMORY;
        struct world w;
        world_open(&w, "gptq", 2);
        w.stop_at = 0;
        ck_assert_int_eq(run(&w, memory), ERR_INTERRUPTED);
        ck_assert_uint_eq(json_array_size(w.blocks), 1);
        w.stop_at = -1;
        w.cancel_in = 15;
        ck_assert_int_eq(run(&w, memory), ERR_CANCELLED);
        w.cancel_in = -1;
        w.stop_at = 3;
        ck_assert_int_eq(run(&w, MEMORY - memory), ERR_INTERRUPTED);
        ck_assert_uint_eq(json_array_size(w.blocks), 4);
        w.stop_at = -1;
        ck_assert_rc_ok(run(&w, memory));
        expect_same(&whole, &w);
        world_close(&w);
    }
    world_close(&whole);
}
END_TEST

/* Whatever ends a run in the middle of a block, the blocks before it are committed, though their files may still have
 * been on their way; and the run's own error is what is said. */
START_TEST(test_finished_blocks_survive)
{
    struct world whole;
    world_open(&whole, "rtn", 2);
    ck_assert_rc_ok(run(&whole, MEMORY));
    for (int64_t ticks = 1; ticks < 60; ticks += 6) {
        struct world w;
        world_open(&w, "rtn", 2);
        w.refusal = ERR_INTERRUPTED;
        w.cancel_in = ticks;
        int rc = run(&w, MEMORY);
        ck_assert_int_eq(rc, ERR_INTERRUPTED);
        ck_assert_str_eq(err_last()->message, "refused by the test");
        ck_assert_uint_eq(json_array_size(w.blocks), w.begun - 1);
        w.cancel_in = -1;
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same(&whole, &w);
        world_close(&w);
    }
    world_close(&whole);
}
END_TEST

/* A file that cannot be written ends the run, with the blocks before it. */
START_TEST(test_block_that_cannot_be_written)
{
    char path[400];
    struct world w;
    world_open(&w, "rtn", 2);
    snprintf(path, sizeof(path), "%s/block-00002.safetensors.tmp", w.directory);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_eq(run(&w, MEMORY), ERR_STORAGE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "block-00002.safetensors.tmp"));
    ck_assert_uint_eq(json_array_size(w.blocks), 2);
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_uint_eq(json_array_size(w.rows), 28);
    world_close(&w);
}
END_TEST

/* A quantized cache: its scales come back the same, and whatever is evaluated behind an interruption still sees it. */
START_TEST(test_cache_is_resumed)
{
    struct world whole, w, plain;
    world_open(&whole, "gptq", 1);
    world_open(&w, "gptq", 2);
    world_open(&plain, "gptq", 2);
    whole.spec.recipe.cache = w.spec.recipe.cache = (struct cache_scheme){GPU_NUMBER_E4M3, true};
    ck_assert_rc_ok(run(&whole, MEMORY));
    ck_assert_rc_ok(run(&plain, MEMORY));
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, 0), ERR_INTERRUPTED);
    w.stop_at = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    expect_same(&whole, &w);
    for (size_t i = 0; i < 4; i++) {
        const json_t *ours = json_object_get(json_array_get(w.blocks, i), "notes");
        ck_assert(json_equal(ours, json_object_get(json_array_get(whole.blocks, i), "notes")));
        ck_assert_uint_eq(json_array_size(json_object_get(json_object_get(ours, "kv_cache"), "value_scales")), 2);
        ck_assert_uint_eq(json_object_size(json_object_get(json_array_get(plain.blocks, i), "notes")), 0);
    }
    ck_assert_double_ne(plain.result.kl_mean, whole.result.kl_mean);
    world_close(&whole);
    world_close(&w);
    world_close(&plain);
}
END_TEST

START_TEST(test_damaged_checkpoint_is_said)
{
    struct world w;
    char path[400];
    world_open(&w, "rtn", 1);
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    snprintf(path, sizeof(path), "%s/%s", w.directory, json_get_string(json_array_get(w.blocks, 0), "file"));
    int fd = open(path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, "?", 1, 5000), 1);
    close(fd);
    w.stop_at = -1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_SOURCE_CORRUPT);
    world_close(&w);
}
END_TEST

START_TEST(test_without_any_data)
{
    struct world w;
    world_open(&w, "rtn", 1);
    w.calibration.sequences = 0;
    w.evaluation.sequences = 0;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_uint_eq(json_array_size(w.rows), 28);
    ck_assert(json_is_null(json_object_get(json_array_get(w.rows, 0), "output_relative_mse")));
    ck_assert(!w.result.done);
    world_close(&w);
}
END_TEST

/* A device with memory of its own, as much as the test says, in front of the CPU. */
static const struct gpu_ops *cpu_ops;
static struct gpu_ops small_ops;
static size_t small_limit, small_used, small_most;
static pthread_mutex_t small_lock = PTHREAD_MUTEX_INITIALIZER; /* results leave on a thread of their own */

#define SMALL_HEADER 64 /* keeps the alignment */

static int small_alloc(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
{
    char *block;

    pthread_mutex_lock(&small_lock);
    bool fits = bytes <= small_limit - small_used;
    small_used += fits ? bytes : 0;
    small_most = small_used > small_most ? small_used : small_most;
    pthread_mutex_unlock(&small_lock);
    if (!fits) {
        return err_raise(ERR_GPU_OUT_OF_MEMORY, "the small device has no %zu bytes left", bytes);
    }
    ck_assert_rc_ok(cpu_ops->alloc(device, bytes + SMALL_HEADER, zeroed, (void **)&block));
    memcpy(block, &bytes, sizeof(bytes));
    *pointer = block + SMALL_HEADER;
    return 0;
}

static void small_free(struct gpu_device *device, void *pointer)
{
    size_t bytes;
    char *block = (char *)pointer - SMALL_HEADER;

    if (pointer == NULL) {
        return;
    }
    memcpy(&bytes, block, sizeof(bytes));
    pthread_mutex_lock(&small_lock);
    small_used -= bytes;
    pthread_mutex_unlock(&small_lock);
    cpu_ops->free(device, block);
}

/* It always promises a gigabyte. */
static int small_info(struct gpu_device *device, struct gpu_info *info)
{
    int rc = cpu_ops->device_info(device, info);
    info->host_memory = false;
    info->memory_total = info->memory_free = (int64_t)1 << 30;
    return rc;
}

static void world_shrink(struct world *world, size_t limit)
{
    cpu_ops = world->gpu.ops;
    small_ops = *cpu_ops;
    small_ops.alloc = small_alloc;
    small_ops.free = small_free;
    small_ops.device_info = small_info;
    small_limit = limit;
    small_used = small_most = 0;
    world->gpu.ops = &small_ops;
    world->gpu.info.host_memory = false;
}

static void analyse(struct world *world, bool on_device)
{
    struct faults faults = {0};
    world_open(world, "rtn", 2);
    spec_deinit(&world->spec);
    json_t *body = json_pack("{s:s, s:s, s:{s:i, s:i, s:i}, s:{s:b}}", "model", "mdl_01J00000000000000000000000",
                             "method", "kv_analysis", "quantization", "group_size", 16, "residual_length", 16,
                             "max_tokens", 3 * LENGTH, "calibration", "stream", 1);
    ck_assert_rc_ok(spec_parse(body, &faults, &world->spec));
    json_decref(body);
    if (on_device) {
        world_shrink(world, MEMORY);
    }
    world->evaluation.sequences = 0;
    ck_assert_rc_ok(run(world, MEMORY));
}

/* An analysis measures on the CPU whatever the device, and finds the same there. */
START_TEST(test_analysis_is_measured_alike)
{
    struct world host, device;
    analyse(&host, false);
    analyse(&device, true);
    ck_assert_uint_eq(small_used, 0);
    for (size_t i = 0; i < 4; i++) {
        const json_t *ours = json_object_get(json_array_get(host.blocks, i), "notes");
        ck_assert_uint_eq(json_array_size(json_object_get(ours, "analysis")), 7);
        ck_assert(json_equal(ours, json_object_get(json_array_get(device.blocks, i), "notes")));
    }
    ck_assert_uint_eq(json_array_size(host.rows), 0);
    world_close(&host);
    world_close(&device);
}
END_TEST

/* On the device, in the host when it turns out too small for that, and back from a stop on another tier. */
START_TEST(test_device_memory_is_the_same)
{
    struct world whole;
    world_open(&whole, "gptq", 1);
    ck_assert_rc_ok(run(&whole, MEMORY));
    size_t most = MEMORY;
    for (int attempt = 0; attempt < 2; attempt++) {
        struct world w;
        world_open(&w, "gptq", 1);
        world_shrink(&w, most);
        w.stop_at = 1;
        ck_assert_int_eq(run(&w, 0), ERR_INTERRUPTED);
        w.stop_at = -1;
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same(&whole, &w);
        ck_assert_uint_eq(small_used, 0);
        most = small_most - 1;
        world_close(&w);
    }
    world_close(&whole);
}
END_TEST

/* A device with too little for a whole micro-batch takes smaller ones; what a run of such ones gives is close. */
START_TEST(test_small_device_goes_on)
{
    struct world whole;
    struct world w;
    world_open(&whole, "gptq", 1);
    ck_assert_rc_ok(run(&whole, MEMORY));
    world_open(&w, "gptq", 1);
    world_shrink(&w, MEMORY);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.moved + w.halved, 0);
    size_t most = small_most;
    int rc = 0, runs = 0, halved = 0;
    for (size_t limit = most; rc == 0 && limit > most / 8; limit -= most / 16) {
        struct world less;
        world_open(&less, "gptq", 1);
        world_shrink(&less, limit);
        rc = run(&less, MEMORY);
        if (rc == 0) {
            runs++;
            ck_assert_uint_eq(json_array_size(less.rows), 28);
            ck_assert_double_lt(fabs(less.result.perplexity_after / whole.result.perplexity_after - 1), 0.1);
        }
        ck_assert_uint_eq(small_used, 0);
        ck_assert_int_le(less.moved, 1);
        halved += less.halved;
        world_close(&less);
    }
    ck_assert_int_ge(runs, 2);
    ck_assert_int_ge(halved, 1);
    ck_assert_int_eq(rc, ERR_GPU_OUT_OF_MEMORY); /* in the end there is nothing left to give up */
    world_close(&w);
    world_close(&whole);
}
END_TEST

/* Chains are not written after every block: what lies behind the last ones runs again and is not committed twice. */
START_TEST(test_blocks_without_chains_run_again)
{
    struct world whole;
    world_open(&whole, "gptq", 1);
    ck_assert_rc_ok(run(&whole, MEMORY));
    for (int stop = 0; stop < 4; stop++) {
        struct world w;
        world_open(&w, "gptq", 1);
        w.stop_at = stop;
        ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
        w.stop_at = -1;
        for (size_t i = 0; i < json_array_size(w.blocks); i++) {
            json_object_set_new(json_array_get(w.blocks, i), "chains", json_object());
        }
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same(&whole, &w);
        world_close(&w);
    }
    world_close(&whole);
}
END_TEST

UNIT_MAIN("pipeline", test_rows_and_losses, test_spilled_is_the_same, test_threads_do_not_matter,
          test_resumed_is_the_same, test_finished_blocks_survive, test_block_that_cannot_be_written,
          test_cache_is_resumed, test_analysis_is_measured_alike, test_damaged_checkpoint_is_said,
          test_without_any_data, test_device_memory_is_the_same, test_small_device_goes_on,
          test_blocks_without_chains_run_again)
