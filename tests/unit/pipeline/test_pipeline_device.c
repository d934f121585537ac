/* The block loop on a device with memory of its own, of which there is enough, or not: what a job gives up, in which
 * order, and that its results do not show it. */

#include "base/ids.h"
#include "models/block_reader.h"
#include "pipeline/block_writer.h"
#include "pipeline/memory_plan.h"
#include "tests/unit/models/support.h"
#include "tests/unit/pipeline/pipeline_rig.h"

#include <pthread.h>

/* A device with memory of its own, as much as the test says, in front of the CPU. */
static const struct gpu_ops *cpu_ops;
static struct gpu_ops small_ops;
static size_t small_limit, small_used, small_max;
static int64_t small_promise;                                  /* bytes that it says it has free */
static pthread_mutex_t small_lock = PTHREAD_MUTEX_INITIALIZER; /* results leave on a thread of their own */

#define SMALL_HEADER 64 /* keeps the alignment */

static int small_alloc(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
{
    char *block;

    pthread_mutex_lock(&small_lock);
    bool fits = bytes <= small_limit - small_used;
    small_used += fits ? bytes : 0;
    small_max = small_used > small_max ? small_used : small_max;
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

/* Whatever there is of it. */
static int small_info(struct gpu_device *device, struct gpu_info *info)
{
    int rc = cpu_ops->device_info(device, info);
    info->host_memory = false;
    info->memory_total = info->memory_free = small_promise;
    return rc;
}

static int small_follows, small_syncs;
static pthread_t small_thread; /* the run's */

/* The run's own stream alone: another thread waits for what it has read ahead. */
static int small_sync(struct gpu_stream *stream)
{
    small_syncs += pthread_equal(pthread_self(), small_thread) ? 1 : 0;
    return cpu_ops->stream_sync(stream);
}

static struct gpu_stream *small_recorded; /* the last event's */

static int small_record(struct gpu_stream *stream, struct gpu_event *event)
{
    small_recorded = stream;
    return cpu_ops->event_record(stream, event);
}

static int small_wait(struct gpu_stream *stream, struct gpu_event *event)
{
    ck_assert_ptr_ne(stream, small_recorded);
    small_follows++;
    return cpu_ops->event_wait(stream, event);
}

static void world_shrink(struct world *world, size_t limit)
{
    cpu_ops = world->gpu.ops;
    small_ops = *cpu_ops;
    small_ops.alloc = small_alloc;
    small_ops.free = small_free;
    small_ops.device_info = small_info;
    small_ops.event_record = small_record;
    small_ops.event_wait = small_wait;
    small_ops.stream_sync = small_sync;
    small_thread = pthread_self();
    small_follows = small_syncs = 0;
    small_limit = limit;
    small_promise = (int64_t)1 << 30;
    small_used = small_max = 0;
    world->gpu.ops = &small_ops;
    world->gpu.info.host_memory = false;
}

static void analyse(struct world *world, bool on_device)
{
    char quantization[96];
    snprintf(quantization, sizeof(quantization), "{\"group_size\":16,\"residual_length\":16,\"max_tokens\":%d}",
             3 * LENGTH);
    world_open_with(world, "kv_analysis", quantization, 2);
    if (on_device) {
        world_shrink(world, MEMORY);
    }
    world->evaluation.sequences = 0;
    ck_assert_rc_ok(run(world, MEMORY));
}

/* An analysis measures on the job's device, with its memory, and finds the same there. */
START_TEST(test_analysis_is_measured_alike)
{
    struct world host, device;
    analyse(&host, false);
    analyse(&device, true);
    ck_assert_uint_eq(small_used, 0);
    for (size_t i = 0; i < 4; i++) {
        ck_assert_int_eq(host.analyses[i].count, 7);
        ck_assert_int_eq(device.analyses[i].count, 7);
        for (int k = 0; k < 7; k++) {
            const struct analysis_row *ours = &host.analyses[i].list[k], *theirs = &device.analyses[i].list[k];
            ck_assert_str_eq(ours->scheme, theirs->scheme);
            ck_assert_double_eq(ours->key_relative_mse, theirs->key_relative_mse);
            ck_assert_double_eq(ours->score_relative_mse, theirs->score_relative_mse);
            ck_assert_double_eq(ours->output_relative_mse, theirs->output_relative_mse);
            ck_assert_int_eq(ours->tokens, theirs->tokens);
            ck_assert(same_scales(&ours->scales, &theirs->scales));
        }
    }
    ck_assert_int_eq(host.rows.count, 0);
    world_close(&host);
    world_close(&device);
}
END_TEST

/* A device that works by itself is not waited for to learn what it spent on a phase, and each phase has its time. */
START_TEST(test_phases_are_timed_by_events)
{
    const enum pipeline_phase phases[] = {PHASE_LOAD,  PHASE_FORWARD, PHASE_STATISTICS,
                                          PHASE_SOLVE, PHASE_MEASURE, PHASE_EVALUATE};
    struct world w;
    double sum = 0;

    world_open(&w, "gptq", 1);
    world_shrink(&w, MEMORY);
    double begun = clock_monotonic_seconds();
    ck_assert_rc_ok(run(&w, MEMORY));
    double took = clock_monotonic_seconds() - begun;
    ck_assert_int_eq(small_syncs, 0);
    for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++) {
        ck_assert_msg(w.times.seconds[phases[i]] > 0, "no time for %s", pipeline_phase_names[phases[i]]);
        sum += w.times.seconds[phases[i]];
    }
    ck_assert_double_le(sum, took);
    ck_assert_double_gt(sum, took / 4);
    world_close(&w);
}
END_TEST

static void check_device_memory(const char *quantization)
{
    struct world full;
    world_open_with(&full, "gptq", quantization, 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    size_t max = MEMORY;
    for (int attempt = 0; attempt < 2; attempt++) {
        struct world w;
        world_open_with(&w, "gptq", quantization, 1);
        world_shrink(&w, max);
        w.stop_at = 1;
        ck_assert_int_eq(run(&w, 0), ERR_INTERRUPTED);
        w.stop_at = -1;
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same(&full, &w);
        ck_assert_uint_eq(small_used, 0);
        max = small_max - 1;
        world_close(&w);
    }
    world_close(&full);
}

/* On the device, in the host when it turns out too small for that, and back from a stop on another tier; with and
 * without the float model's path next to the quantized one. */
START_TEST(test_device_memory_is_the_same)
{
    check_device_memory("{\"bits\":4,\"group_size\":64,\"float_targets\":false}");
    check_device_memory("{\"bits\":4,\"group_size\":64,\"float_targets\":true,\"target_tokens\":0}");
}
END_TEST

/* A device with too little for a complete micro-batch takes smaller ones, with a similar result. */
START_TEST(test_small_device_goes_on)
{
    struct world full;
    struct world w;
    world_open(&full, "gptq", 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    world_open(&w, "gptq", 1);
    world_shrink(&w, MEMORY);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.moved + w.halved, 0);
    ck_assert_int_eq(small_follows, 4 + 3); /* each block's codes follow the run, and so does each block that is read */
    size_t max = small_max;
    int rc = 0, runs = 0, halved = 0;
    for (size_t limit = max; rc == 0 && limit > max / 8; limit -= max / 16) {
        struct world less;
        world_open(&less, "gptq", 1);
        world_shrink(&less, limit);
        rc = run(&less, MEMORY);
        if (rc == 0) {
            runs++;
            ck_assert_int_eq(less.rows.count, 28);
            ck_assert_double_lt(fabs(less.result.perplexity_after / full.result.perplexity_after - 1), 0.1);
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
    world_close(&full);
}
END_TEST

/* The last codes that leave fail for want of memory, when the next block has begun: theirs and its rows are numbered as
 * if nothing had been. */
static pthread_t run_thread;
static int leave_in; /* copies by other threads than the run's until one fails; -1 = never */

static int failing_download(struct gpu_stream *stream, void *host, const void *from, size_t bytes)
{
    if (!pthread_equal(pthread_self(), run_thread) && leave_in >= 0 && leave_in-- == 0) {
        return err_raise(ERR_GPU_OUT_OF_MEMORY, "no pinned memory, says the test");
    }
    return cpu_ops->download(stream, host, from, bytes);
}

START_TEST(test_codes_that_cannot_leave)
{
    struct world full;
    world_open(&full, "rtn", 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    run_thread = pthread_self();
    for (int copy = 0; copy < 28; copy += 9) { /* of 7 a block; in the last one too */
        struct world w;
        world_open(&w, "rtn", 1);
        world_shrink(&w, MEMORY);
        small_ops.download = failing_download;
        leave_in = copy;
        ck_assert_rc_ok(run(&w, MEMORY));
        ck_assert_int_eq(leave_in, -1);
        ck_assert_int_eq(w.moved, 1);
        expect_same(&full, &w);
        ck_assert_uint_eq(small_used, 0);
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

/* A device without capacity for activations first stops reading blocks ahead. */
START_TEST(test_reading_ahead_goes_first)
{
    struct world full;
    world_open(&full, "gptq", 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    size_t max = MEMORY;
    for (int attempt = 0; attempt < 2; attempt++) {
        struct world w;
        world_open(&w, "gptq", 1);
        world_shrink(&w, max);
        small_promise = 1;
        ck_assert_rc_ok(run(&w, MEMORY));
        ck_assert_int_eq(w.moved + w.halved, 0);
        expect_same(&full, &w);
        ck_assert_uint_eq(small_used, 0);
        int64_t reader = 0;
        ck_assert_rc_ok(block_reader_bytes(w.model, &reader));
        max = small_max - (size_t)reader / 2;
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

/* What a run takes of a device that keeps no activations, and what is planned for it. own: a device with memory of its
 * own, else the host's, where activations are not the device's. */
static void measure_world(struct world *w, bool own, int64_t *took, int64_t *planned)
{
    ck_assert_rc_ok(run(w, MEMORY));
    const struct memory_load load = {.recipe = &w->recipe,
                                     .calibrates = true,
                                     .evaluates = true,
                                     .sequences = SEQUENCES,
                                     .sequence_length = LENGTH,
                                     .longest = LENGTH};
    struct memory_plan plan = memory_plan(&load, w->model, &w->gpu.info, (int64_t)SEQUENCES * LENGTH);
    const struct memory_plan single = memory_plan(&load, w->model, &w->gpu.info, 0);
    int64_t reader = 0;
    ck_assert_rc_ok(block_reader_bytes(w->model, &reader));
    ck_assert(!own || (plan.reader <= reader && plan.reader * 20 >= reader * 19)); /* all but norms */
    plan.reserve = 0; /* tensors alone are counted, no scratch */
    plan.head = 0;    /* logits of a few tokens */
    *planned = memory_plan_max(&plan);
    ck_assert(!own || w->device_peak >= (int64_t)small_max); /* by its backend's count, with the host's pinned memory */
    *took = own ? (int64_t)small_max : w->device_peak;
    ck_assert_msg(*took <= *planned && *took * 3 >= *planned && memory_plan_min(&single) > 0,
                  "%s, own %d: took %lld, planned %lld, at least %lld", w->recipe.stages[0].quantizer->name, own,
                  (long long)*took, (long long)*planned, (long long)memory_plan_min(&single));
}

static void shrink_without_activations(struct world *w)
{
    world_shrink(w, MEMORY);
    small_promise = 0;
}

static void measure_plan(const char *method, const char *quantization, bool own, int64_t *took, int64_t *planned)
{
    struct world w;

    world_open_with(&w, method, quantization, 1);
    if (own) {
        shrink_without_activations(&w);
    }
    measure_world(&w, own, took, planned);
    world_close(&w);
}

/* What admission, the run and the report's estimate go by is what a run takes, by the count that the job then shows: no
 * less, and not much more. What the float model's path adds to the one, it adds to the other. */
START_TEST(test_plan_is_what_is_taken)
{
    int64_t took, planned, took_aimed, planned_aimed;

    for (int own = 0; own < 2; own++) {
        measure_plan("rtn", "{\"bits\":4,\"group_size\":64}", own, &took, &planned);
        measure_plan("gptq", "{\"bits\":4,\"group_size\":64,\"float_targets\":false}", own, &took, &planned);
        measure_plan("gptq", "{\"bits\":4,\"group_size\":64,\"float_targets\":true,\"target_tokens\":0}", own,
                     &took_aimed, &planned_aimed);
        ck_assert_int_gt(took_aimed, took);
        ck_assert_msg(planned_aimed - planned >= took_aimed - took, "targets took %lld more, and %lld was planned",
                      (long long)(took_aimed - took), (long long)(planned_aimed - planned));
        measure_plan("gptq",
                     "{\"bits\":4,\"group_size\":64,\"float_targets\":true,\"target_tokens\":0,\"refine_rounds\":1,"
                     "\"resweep\":1}",
                     own, &took_aimed, &planned_aimed);
    }
}
END_TEST

#define EXPERTS 8
#define EXPERT_BYTES (3 * 128 * 384 * (int64_t)sizeof(float))
static const char experts_config[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"hidden_size\":128,"
    "\"intermediate_size\":384,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":4,"
    "\"vocab_size\":2048,\"max_position_embeddings\":64,\"num_local_experts\":8,\"num_experts_per_tok\":2}";

/* memory: of a device of its own (memory_plan_experts); turn: how many experts that is. */
static void measure_experts(const struct support *files, const char *method, const char *quantization, bool own,
                            int64_t memory, int64_t turn, char sha256[DIGEST_HEX_SIZE], int64_t *took)
{
    struct world w;
    int64_t planned;

    world_open_with(&w, method, quantization, 1);
    model_close(w.model);
    ck_assert_rc_ok(support_open(files, ".", &w.model));
    if (own) {
        shrink_without_activations(&w);
        w.gpu.info.memory_total = memory;
    }
    const struct plan *plan = plans_layer(model_plans(w.model), 0);
    const struct plan_experts *experts = plan->steps[plan_find_step(plan, STEP_EXPERTS)].experts;
    ck_assert_int_eq(memory_plan_turn(experts, memory_plan_experts(w.model, &w.gpu.info)), turn);
    measure_world(&w, own, took, &planned);
    ck_assert_int_eq(w.block_count, 2);
    memcpy(sha256, w.blocks[1].sha256, DIGEST_HEX_SIZE);
    world_close(&w);
}

/* Experts count by the turn: one at a time where that is what the block's other modules weigh, all of them on a device
 * with room. The codes are the same. */
START_TEST(test_plan_counts_a_turn_of_experts)
{
    const struct {
        const char *method, *quantization;
    } jobs[] = {{"rtn", "{\"bits\":4,\"group_size\":64}"},
                {"awq", "{\"bits\":4,\"group_size\":64,\"n_grid\":2}"},
                {"gptq", "{\"bits\":4,\"group_size\":64,\"float_targets\":true,\"target_tokens\":0}"}};
    struct support files;

    support_init(&files, experts_config);
    files.dtype = DTYPE_BF16;
    support_write(&files);
    for (size_t i = 0; i < sizeof(jobs) / sizeof(jobs[0]); i++) {
        char host[DIGEST_HEX_SIZE], turns[DIGEST_HEX_SIZE], all[DIGEST_HEX_SIZE];
        int64_t took_turns, took_all;
        measure_experts(&files, jobs[i].method, jobs[i].quantization, false, 0, 1, host, &took_turns);
        measure_experts(&files, jobs[i].method, jobs[i].quantization, true, 0, 1, turns, &took_turns);
        measure_experts(&files, jobs[i].method, jobs[i].quantization, true, MEMORY, EXPERTS, all, &took_all);
        ck_assert_str_eq(turns, host);
        ck_assert_str_eq(all, host);
        ck_assert_int_gt(took_all - took_turns, (EXPERTS - 2) * EXPERT_BYTES);
    }
    support_deinit(&files);
}
END_TEST

/* Nobody waits for a block that was given up: what went wrong with it does not hide what the run says. */
START_TEST(test_abandoned_results_are_silent)
{
    struct block_outputs outputs = {.count = 0};
    struct block_writer *writer = NULL;
    struct world w;
    char path[400];

    world_open(&w, "rtn", 1);
    ck_assert_rc_ok(block_writer_new(&w.gpu, &writer));
    snprintf(path, sizeof(path), "%s/missing/block", w.directory);
    ck_assert_rc_ok(block_writer_start(writer, path, NULL, &outputs));
    (void)err_raise(ERR_CANCELLED, "cancelled by the test");
    block_writer_free(writer);
    ck_assert_str_eq(err_last()->message, "cancelled by the test");
    world_close(&w);
}
END_TEST

UNIT_MAIN("pipeline_device", test_phases_are_timed_by_events, test_analysis_is_measured_alike,
          test_device_memory_is_the_same, test_small_device_goes_on, test_codes_that_cannot_leave,
          test_reading_ahead_goes_first, test_plan_is_what_is_taken, test_plan_counts_a_turn_of_experts,
          test_abandoned_results_are_silent)
