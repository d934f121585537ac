#pragma once
/* A world around pipeline_run: the bundled checkpoint, token sets, and hooks that remember and interrupt. */

#include "base/err.h"
#include "pipeline/pipeline.h"
#include "tests/unit/gpu/support.h"
#include "tests/unit/scratch.h"

#include "base/json.h"

#include <fcntl.h>
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
    size_t begun;               /* blocks */
    int moved, halved, damaged; /* notices */
};

static inline int on_tick(void *data, double fraction, int64_t block, const char *step)
{
    struct world *world = data;
    ck_assert_ptr_nonnull(step);
    ck_assert(block >= 0 && block <= model_config(world->model)->num_layers);
    ck_assert(fraction >= 0);
    world->fraction = fraction;
    world->begun += strcmp(step, "loading") == 0;
    if (world->cancel_in >= 0 && world->cancel_in-- == 0) {
        return err_raise(world->refusal != 0 ? world->refusal : ERR_CANCELLED, "refused by the test");
    }
    return 0;
}

static inline int on_block(void *data, int64_t index, const char *file, const char *sha256, const json_t *chains,
                           const json_t *notes, const json_t *rows)
{
    struct world *world = data;
    ck_assert_int_eq(index, (int64_t)json_array_size(world->blocks));
    json_array_append_new(world->blocks, json_pack("{s:I, s:i, s:s, s:s, s:O, s:O}", "index", (json_int_t)index,
                                                   "version", CHECKPOINT_VERSION, "file", file, "sha256", sha256,
                                                   "chains", chains, "notes", notes));
    json_array_extend(world->rows, (json_t *)rows);
    return index == world->stop_at ? err_raise(ERR_INTERRUPTED, "interrupted by the test") : 0;
}

static inline int on_notice(void *data, const char *code, const char *message)
{
    struct world *world = data;
    if (strcmp(code, "checkpoint_damaged") == 0) {
        world->damaged++;
        return 0;
    }
    ck_assert_ptr_nonnull(strstr(message, "out of memory"));
    bool moved = strcmp(code, "activations_on_host") == 0;
    ck_assert(moved || strcmp(code, "micro_batch_halved") == 0);
    world->moved += moved;
    world->halved += !moved;
    return 0;
}

/* Both as JSON. */
static inline void read_spec(struct world *world, const char *method, const char *quantization)
{
    struct faults faults = {0};
    json_t *name = json_loads(method, JSON_DECODE_ANY, NULL), *options = json_loads(quantization, 0, NULL);
    ck_assert(name != NULL && options != NULL);
    json_t *body = json_pack("{s:s, s:o, s:o, s:{s:b}, s:i, s:{s:s}}", "model", "mdl_01J00000000000000000000000",
                             "method", name, "quantization", options, "calibration", "stream", 1, "seed", 3, "output",
                             "format", "compressed-tensors");
    int rc = spec_parse(body, &faults, &world->spec);
    ck_assert_msg(rc == 0, "%s: %s %s", quantization, faults.items[0].param, faults.items[0].detail);
    json_decref(body);
}

/* quantization: its parameters, as JSON. */
static inline void world_open_with(struct world *world, const char *method, const char *quantization, int threads)
{
    char name[64];
    uint64_t seed = 5;
    memset(world, 0, sizeof(*world));
    scratch_make(world->directory);
    ck_assert_rc_ok(gpu_open("cpu", threads, &world->gpu));
    int root = open(MODEL_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &world->model));
    close(root);
    snprintf(name, sizeof(name), "\"%s\"", method);
    read_spec(world, name, quantization);
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

static inline void world_open(struct world *world, const char *method, int threads)
{
    world_open_with(world, method, "{\"bits\":4,\"group_size\":64}", threads);
}

static inline void world_close(struct world *world)
{
    json_decref(world->blocks);
    json_decref(world->rows);
    spec_deinit(&world->spec);
    model_close(world->model);
    gpu_close(&world->gpu);
    scratch_remove(world->directory);
}

static inline int run(struct world *world, int64_t memory)
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

static inline void expect_same(struct world *a, struct world *b)
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
