#pragma once
/* A world around pipeline_run: the bundled checkpoint, token sets, and a receiver that remembers and interrupts. */

#include "base/err.h"
#include "pipeline/pipeline.h"
#include "tests/unit/gpu/support.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

enum { SEQUENCES = 5, LENGTH = 64, EVAL_SEQUENCES = 2, BLOCKS = 4 };

struct world {
    char directory[256];
    struct gpu gpu;
    struct model *model;
    struct recipe recipe;
    const struct format *format;
    int32_t ids[(SEQUENCES + EVAL_SEQUENCES) * LENGTH];
    struct calibration_set calibration, evaluation;
    struct generation generation;
    struct saved_activations float_model;
    struct pipeline_times times;
    struct evaluation_result result;
    struct saved_block blocks[BLOCKS]; /* committed */
    int64_t block_count;
    struct report_rows rows;
    struct cache_scales caches[BLOCKS]; /* what messages said of them */
    struct analysis_rows analyses[BLOCKS];
    struct tune_curve curves[BLOCKS], complete; /* of a block; of the complete model */
    int replaced;                               /* commits of blocks that were committed */
    int64_t stop_again;                         /* such a block after which the receiver interrupts; -1 = never */
    struct err_record failure;
    int ended; /* last messages of the last run */
    int64_t device_peak;
    int64_t stop_at;   /* block after which the receiver interrupts; -1 = never */
    int64_t cancel_in; /* ticks until one refuses; -1 = never */
    int refusal;       /* what it says; 0 = ERR_CANCELLED */
    double fraction;
    size_t begun;               /* blocks */
    int moved, halved, damaged; /* notices */
    int64_t refuse_at;          /* block that the receiver fails to commit; -1 = never */
    /* The receiver takes blocks and commits them later: */
    bool late;
    struct message_block waiting; /* valid until it is answered */
    bool waits;
    int64_t waited;                                 /* ticks since it came */
    int64_t ignored;                                /* ticks of the run while a block waited */
    bool refused_waiting;                           /* a tick was refused then */
    int (*worker)(const struct pipeline *pipeline); /* NULL: pipeline_run */
    pthread_t thread;                               /* that messages must come on */
};

static inline int on_progress(struct world *world, const struct message_progress *progress)
{
    ck_assert_ptr_nonnull(progress->step);
    ck_assert(progress->block >= 0 && progress->block <= model_config(world->model)->num_layers);
    ck_assert(progress->fraction >= 0);
    world->fraction = progress->fraction;
    world->begun += strcmp(progress->step, "loading") == 0;
    world->waited += world->waits;
    world->ignored += world->waits;
    if (world->cancel_in >= 0 && world->cancel_in-- == 0) {
        world->refused_waiting = world->waits;
        return err_raise(world->refusal != 0 ? world->refusal : ERR_CANCELLED, "refused by the test");
    }
    return 0;
}

static inline float *copy_floats(const float *from, int64_t count)
{
    float *copy = malloc((size_t)(count + 1) * sizeof(*copy));
    ck_assert_ptr_nonnull(copy);
    for (int64_t i = 0; i < count; i++) {
        copy[i] = from[i];
    }
    return copy;
}

static inline struct cache_scales copy_scales(const struct cache_scales *from)
{
    return (struct cache_scales){.count = from->count,
                                 .keys = copy_floats(from->keys, from->count),
                                 .values = copy_floats(from->values, from->count)};
}

/* A block that is committed has another file. */
static inline int on_block_again(struct world *world, const struct message_block *block)
{
    int64_t index = block->saved.index;
    ck_assert_int_eq(world->block_count, BLOCKS);
    ck_assert_int_eq(block->row_count, 0);
    world->blocks[index] = block->saved;
    world->replaced++;
    if (block->tuning->done) {
        world->complete = *block->tuning;
    }
    return world->stop_again >= 0 && index == world->stop_again ? err_raise(ERR_INTERRUPTED, "interrupted by the test")
                                                                : 0;
}

static inline int on_block(struct world *world, const struct message_block *block)
{
    int64_t index = block->saved.index;
    if (block->again) {
        return on_block_again(world, block);
    }
    ck_assert_int_eq(index, world->block_count);
    ck_assert_int_lt(index, BLOCKS);
    if (index == world->refuse_at) {
        return err_raise(ERR_DISK_FULL, "not committed by the test");
    }
    world->blocks[world->block_count++] = block->saved;
    for (int i = 0; i < block->row_count; i++) {
        ck_assert_rc_ok(report_rows_add(&world->rows, &block->rows[i]));
    }
    world->caches[index] = copy_scales(block->cache);
    world->curves[index] = *block->tuning;
    for (int i = 0; i < block->analysis_count; i++) {
        struct analysis_row *row = analysis_rows_add(&world->analyses[index]);
        ck_assert_ptr_nonnull(row);
        *row = block->analysis[i];
        row->scales = copy_scales(&block->analysis[i].scales);
    }
    return index == world->stop_at ? err_raise(ERR_INTERRUPTED, "interrupted by the test") : 0;
}

static inline int on_warning(struct world *world, const struct message_warning *warning)
{
    if (strcmp(warning->code, "checkpoint_damaged") == 0) {
        world->damaged++;
        return 0;
    }
    ck_assert_ptr_nonnull(strstr(warning->text, "out of memory"));
    bool moved = strcmp(warning->code, "activations_on_host") == 0;
    ck_assert(moved || strcmp(warning->code, "micro_batch_halved") == 0);
    world->moved += moved;
    world->halved += !moved;
    return 0;
}

#define LATE_TICKS 3

static inline int take_late(struct world *world, const struct message_block *block)
{
    ck_assert(!world->waits);
    world->waiting = *block;
    world->waits = true;
    world->waited = 0;
    return 0;
}

static inline int on_answer(void *data, bool wait, bool *answered)
{
    struct world *world = data;
    ck_assert(world->waits);
    *answered = wait || world->waited >= LATE_TICKS;
    if (!*answered) {
        return 0;
    }
    world->waits = false;
    return on_block(world, &world->waiting);
}

static inline int on_message(void *data, const struct message *message)
{
    struct world *world = data;
    ck_assert(pthread_equal(pthread_self(), world->thread));
    ck_assert_int_eq(world->ended, 0);
    ck_assert_int_gt(message->host_peak_bytes, 0);
    world->times = message->times;
    world->device_peak = message->device_peak_bytes;
    switch (message->kind) {
    case MESSAGE_PROGRESS:
        return on_progress(world, &message->progress);
    case MESSAGE_BLOCK_DONE:
        return world->late ? take_late(world, &message->block) : on_block(world, &message->block);
    case MESSAGE_WARNING:
        return on_warning(world, &message->warning);
    case MESSAGE_FAILED:
        world->failure = message->failure;
        world->ended++;
        return 0;
    default:
        ck_assert_int_eq(message->kind, MESSAGE_DONE);
        world->result = message->done;
        world->ended++;
        return 0;
    }
}

/* Both as JSON. */
static inline void read_recipe(struct world *world, const char *method, const char *quantization)
{
    struct validation_errors errors = {0};
    json_t *name = json_loads(method, JSON_DECODE_ANY, NULL), *options = json_loads(quantization, 0, NULL);
    ck_assert(name != NULL && options != NULL);
    recipe_deinit(&world->recipe);
    int rc = recipe_parse(name, options, "/method", "/quantization", &errors, &world->recipe);
    ck_assert_msg(rc == 0, "%s: %s %s", quantization, errors.items[0].param, errors.items[0].detail);
    json_decref(name);
    json_decref(options);
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
    read_recipe(world, name, quantization);
    world->format = format_find("compressed-tensors");
    for (size_t i = 0; i < sizeof(world->ids) / sizeof(world->ids[0]); i++) {
        world->ids[i] = (int32_t)(random_bits(&seed) % 2048);
    }
    world->calibration = (struct calibration_set){.ids = world->ids, .sequences = SEQUENCES, .length = LENGTH};
    world->evaluation =
        (struct calibration_set){.ids = world->ids + SEQUENCES * LENGTH, .sequences = EVAL_SEQUENCES, .length = LENGTH};
    world->stop_at = world->stop_again = world->refuse_at = -1;
    world->cancel_in = -1;
}

/* Scales are searched for by other tests. */
static inline void world_open(struct world *world, const char *method, int threads)
{
    world_open_with(world, method, "{\"bits\":4,\"group_size\":64,\"mse_search\":false}", threads);
}

static inline void world_close(struct world *world)
{
    for (int i = 0; i < BLOCKS; i++) {
        cache_scales_deinit(&world->caches[i]);
        analysis_rows_deinit(&world->analyses[i]);
    }
    report_rows_deinit(&world->rows);
    recipe_deinit(&world->recipe);
    model_close(world->model);
    gpu_close(&world->gpu);
    scratch_remove(world->directory);
}

/* One that ends as its last message says, and says so once. */
static inline int run(struct world *world, int64_t memory)
{
    struct saved_block done[BLOCKS];
    memcpy(done, world->blocks, sizeof(done));
    const struct pipeline pipeline = {
        .recipe = &world->recipe,
        .format = world->format,
        .model = world->model,
        .gpu = &world->gpu,
        .directory = world->directory,
        .calibration = world->calibration.sequences > 0 ? &world->calibration : NULL,
        .evaluation = world->evaluation.sequences > 0 ? &world->evaluation : NULL,
        .generation = world->generation,
        .float_model = world->float_model,
        .seed = 3,
        .host_memory_bytes = memory,
        .blocks = done,
        .block_count = world->block_count,
        .rows_before = world->rows.count,
        .receive = on_message,
        .answer = world->late ? on_answer : NULL,
        .receiver = world,
    };
    world->thread = pthread_self();
    world->ended = 0;
    world->failure.code = 0;
    int rc = world->worker != NULL ? world->worker(&pipeline) : pipeline_run(&pipeline);
    ck_assert_int_eq(world->ended, 1);
    ck_assert_int_eq(world->failure.code, rc);
    ck_assert(rc == 0 || strcmp(world->failure.message, err_last()->message) == 0);
    return rc;
}

#define MEMORY ((int64_t)1 << 30)

static inline void expect_same_row(const struct report_row *a, const struct report_row *b)
{
    for (const struct report_column *column = report_columns; column->name != NULL; column++) {
        const char *x = (const char *)a + column->offset, *y = (const char *)b + column->offset;
        bool same = column->type == REPORT_TEXT ? strcmp(x, y) == 0 : memcmp(x, y, column->size) == 0;
        ck_assert_msg(same || strcmp(column->name, "seconds") == 0, "%s of row %lld", column->name,
                      (long long)a->index);
    }
}

static inline const struct saved_activations *saved_of(const struct saved_block *block, const char *store)
{
    for (int i = 0; i < block->activation_count; i++) {
        if (strcmp(block->activations[i].store, store) == 0) {
            return &block->activations[i];
        }
    }
    return NULL;
}

static inline bool same_scales(const struct cache_scales *a, const struct cache_scales *b)
{
    size_t bytes = (size_t)a->count * sizeof(float);
    return a->count == b->count &&
           (bytes == 0 || (memcmp(a->keys, b->keys, bytes) == 0 && memcmp(a->values, b->values, bytes) == 0));
}

static inline void expect_same(struct world *a, struct world *b)
{
    ck_assert_int_eq(a->block_count, BLOCKS);
    ck_assert_int_eq(b->block_count, BLOCKS);
    for (size_t i = 0; i < BLOCKS; i++) {
        ck_assert_str_eq(a->blocks[i].sha256, b->blocks[i].sha256);
    }
    ck_assert_double_eq(a->result.perplexity_before, b->result.perplexity_before);
    ck_assert_double_eq(a->result.perplexity_after, b->result.perplexity_after);
    ck_assert_double_eq(a->result.kl_mean, b->result.kl_mean);
    ck_assert_int_eq(a->rows.count, b->rows.count);
    for (int i = 0; i < a->rows.count; i++) {
        expect_same_row(&a->rows.list[i], &b->rows.list[i]);
    }
}
