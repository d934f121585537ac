/* The open block's key and value cache: its scales where it is to be quantized, and its analysis.
 *
 * Scales are measured once queries, keys and values are solved, on the keys and values that the artifact's user will
 * have, and from then on the block reads both through the cache: what is solved and evaluated after them sees its
 * error. A block that takes keys and values of an earlier one has no cache, and gets them as that one's cache has them.
 */

#include "pipeline/cache_scales.h"

#include "base/err.h"
#include "models/cache.h"
#include "pipeline/pass.h"

#include <stdio.h>
#include <string.h>

static int cache_gather(struct run *run, const struct block *block, int group, struct cache_ranges *ranges)
{
    const struct plan *plan = block->plan;
    const int *heads_in = plan->steps[plan_find_step(plan, STEP_ATTENTION)].in;
    plan_set have = plan->groups[group].kept, want = 0, steps, used = 0;
    int64_t batches = microbatches_count(&run->calibration);

    for (int i = 0; i < 3; i++) {
        want |= PLAN_BIT(heads_in[i]);
    }
    TRY(pass_steps(plan, have, want, &steps, &used));
    for (int64_t i = 0; i < batches; i++) {
        double done = (double)group + 0.9 + 0.1 * (double)i / (double)batches;
        struct block_heads heads;
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        TRY(run_tick(run, done / (double)plan->group_count, "calibrating"));
        TRY(pass_open(run, run->stores, &b, used));
        TRY(block_attention_heads(block, &b.values, have, &heads));
        TRY(cache_ranges_add(ranges, &heads, run->p->gpu, run->stream));
    }
    return 0;
}

/* Scales as a float tensor of the attention, to the block's outputs. */
static int cache_output(struct run *run, const char *tensor, const float *scales, int64_t count, enum dtype dtype,
                        struct block_outputs *outputs)
{
    const struct qscheme scheme = {
        .kind = QTENSOR_DENSE, .bits = dtype_rows[dtype].bytes * 8, .group_size = 1, .scale_dtype = dtype};
    const struct tensor no_codes = {.data = NULL};
    char name[MODEL_NAME_MAX];
    struct qtensor q;

    model_tensor_name(run->p->model, run->block_index, run->config->arch->attention, tensor, name);
    TRY(block_outputs_reserve(outputs));
    TRY(qtensor_new(name, &scheme, count, 1, &q));
    memcpy(q.tables, scales, (size_t)count * sizeof(*scales));
    block_outputs_add_take(outputs, &q, &no_codes);
    return 0;
}

/* Measure the open block's scales, read the cache through them from now on, and output them. Both are the caller's to
 * release, also after a failure. */
static int cache_scale(struct run *run, struct block *block, int group, struct block_outputs *outputs,
                       struct cache_ranges *ranges, struct cache_scales *scales)
{
    const struct cache_scheme *scheme = &run->p->recipe->cache;
    const struct gpu *gpu = run->p->gpu;
    enum dtype dtype = run->p->format->scale_dtype(model_dtype(run->p->model));
    const struct plan_attention *attention = &block->plan->steps[plan_find_step(block->plan, STEP_ATTENTION)].attention;

    TRY(cache_ranges_init(ranges, attention, gpu));
    TRY(cache_gather(run, block, group, ranges));
    TRY(cache_scales_make(ranges, attention, scheme, dtype, gpu, run->stream, scales));
    TRY(cache_place(block, scheme, scales, gpu, run->stream));
    TRY(cache_output(run, "k_scale", scales->keys, scales->count, dtype, outputs));
    return cache_output(run, "v_scale", scales->values, scales->count, dtype, outputs);
}

int group_cache(struct run *run, struct block *block, int group, struct block_outputs *outputs)
{
    struct cache_ranges ranges = {0};
    struct cache_scales scales = {0};

    if (run->p->recipe->cache.element == DTYPE_F32 || run->calibration.set == NULL || plan_taken(block->plan) != 0 ||
        group != plan_attention_group(block->plan)) {
        return 0;
    }
    int rc = cache_scale(run, block, group, outputs, &ranges, &scales);
    cache_scales_deinit(&run->cache);
    run->cache = scales;
    cache_ranges_deinit(&ranges, run->p->gpu);
    run_end_phase(run, PHASE_STATISTICS, 0);
    return rc != 0 ? err_pass(rc, "cache of block %lld", (long long)run->block_index) : 0;
}

struct analysis_data {
    struct run *run;
    struct block *block;
    const struct plan_group *group;
};

static int analysis_input(void *data, int64_t i, struct block_values *values)
{
    const struct analysis_data *d = data;
    const struct plan *plan = d->block->plan;
    struct run *run = d->run;
    struct microbatch b = microbatches_at(&run->calibration, plan, i);
    plan_set steps, used;

    TRY(pass_steps(plan, PLAN_BIT(0), PLAN_BIT(d->group->input), &steps, &used));
    TRY(microbatch_read(&b, 0, run->stores[0], ACTIVATIONS_IN, run->p->gpu, run->stream));
    TRY(block_run(d->block, &b.values, steps));
    *values = b.values;
    return 0;
}

static int analysis_tick(void *data)
{
    const struct analysis_data *d = data;
    return run_tick(d->run, 0.1, "calibrating");
}

static const struct qscheme *analysis_scheme(void *data, int module)
{
    (void)data;
    (void)module;
    return NULL;
}

int block_analyse(struct run *run, struct block *block)
{
    const struct recipe_stage *stage = &run->p->recipe->stages[0];
    int group = plan_attention_group(block->plan);
    struct analysis_data data = {run, block, group >= 0 ? &block->plan->groups[group] : NULL};
    const struct rewrite_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .params = stage->params,
        .weight_dtype = model_dtype(run->p->model),
        .group = data.group,
        .block = block,
        .batches = run->calibration.set != NULL ? microbatches_count(&run->calibration) : 0,
        .input = analysis_input,
        .input_data = &data,
        .scheme = analysis_scheme,
        .tick = analysis_tick,
        .tick_data = &data,
    };

    if (!recipe_analyses(run->p->recipe) || data.group == NULL || plan_taken(block->plan) != 0) {
        return 0;
    }
    int rc = stage->quantizer->analyse(&context, &run->analysis);
    run_end_phase(run, PHASE_MEASURE, 0);
    return rc != 0 ? err_pass(rc, "analysis of block %lld", (long long)run->block_index) : 0;
}
