/* The open block's key and value cache: scales for one that is to be quantized, and what an analysis has to say of it.
 *
 * Scales are measured once queries, keys and values are solved, on the keys and values that the artifact's user will
 * have, and from then on the block reads both through the cache: what is solved and evaluated after them sees its
 * error. */

#include "pipeline/cache_scales.h"

#include "base/err.h"
#include "base/ids.h"
#include "models/cache.h"
#include "pipeline/pass.h"

#include <stdio.h>
#include <string.h>

static int gather(struct run *run, const struct block *block, int group, struct cache_ranges *ranges)
{
    const struct plan *plan = block->plan;
    const int *heads_in = plan->steps[plan_find_step(plan, STEP_ATTENTION)].in;
    plan_set have = plan->groups[group].kept, want = 0, steps, used = 0;
    int64_t batches = microbatches_count(&run->calibration);

    for (int i = 0; i < 3; i++) {
        want |= PLAN_BIT(heads_in[i]);
    }
    int rc = pass_steps(plan, have, want, &steps, &used);
    for (int64_t i = 0; rc == 0 && i < batches; i++) {
        double done = (double)group + 0.9 + 0.1 * (double)i / (double)batches;
        struct block_heads heads;
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        rc = run_tick(run, done / (double)plan->group_count, "calibrating");
        rc = rc != 0 ? rc : pass_open(run, &b, used);
        rc = rc != 0 ? rc : block_attention_heads(block, &b.values, have, &heads);
        rc = rc != 0 ? rc : cache_ranges_add(ranges, &heads, run->p->gpu, run->stream);
    }
    return rc;
}

/* A float tensor of the attention that holds scales. */
static int keep_scales(struct run *run, const char *tensor, const float *scales, int64_t count, enum dtype dtype,
                       struct block_outputs *outputs)
{
    const struct qscheme scheme = {
        .kind = QTENSOR_DENSE, .bits = dtype_rows[dtype].bytes * 8, .group_size = 1, .scale_dtype = dtype};
    const struct tensor no_codes = {.data = NULL};
    char name[MODEL_NAME_MAX];
    struct qtensor q;

    model_tensor_name(run->p->model, run->block_index, run->config->arch->attention, tensor, name);
    int rc = block_outputs_reserve(outputs);
    rc = rc != 0 ? rc : qtensor_new(name, &scheme, count, 1, &q);
    if (rc == 0) {
        memcpy(q.tables, scales, (size_t)count * sizeof(*scales));
        block_outputs_add_take(outputs, &q, &no_codes);
    }
    return rc;
}

int group_cache(struct run *run, struct block *block, int group, struct block_outputs *outputs)
{
    const struct cache_scheme *scheme = &run->p->recipe->cache;
    const struct gpu *gpu = run->p->gpu;
    enum dtype dtype = run->p->format->scale_dtype(model_dtype(run->p->model));
    struct cache_ranges ranges = {0};
    struct cache_scales scales = {0};
    double mark = clock_monotonic_seconds();

    if (scheme->element == DTYPE_F32 || run->calibration.set == NULL || group != plan_attention_group(block->plan)) {
        return 0;
    }
    int rc = cache_ranges_init(&ranges, run->config, gpu);
    rc = rc != 0 ? rc : gather(run, block, group, &ranges);
    rc = rc != 0 ? rc : cache_scales_make(&ranges, run->config, scheme, dtype, gpu, run->stream, &scales);
    rc = rc != 0 ? rc : cache_place(block, scheme, &scales, gpu, run->stream);
    rc = rc != 0 ? rc : keep_scales(run, "k_scale", scales.keys, scales.count, dtype, outputs);
    rc = rc != 0 ? rc : keep_scales(run, "v_scale", scales.values, scales.count, dtype, outputs);
    cache_scales_deinit(&run->cache);
    run->cache = scales;
    cache_ranges_deinit(&ranges, gpu);
    run_add_time(run, PHASE_STATISTICS, &mark, 0);
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

    int rc = pass_steps(plan, PLAN_BIT(0), PLAN_BIT(d->group->input), &steps, &used);
    rc = rc != 0 ? rc : microbatch_read(&b, 0, run->stores[0], ACTIVATIONS_IN, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_run(d->block, &b.values, steps);
    *values = b.values;
    return rc;
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
    double mark = clock_monotonic_seconds();

    if (!recipe_analyses(run->p->recipe) || data.group == NULL) {
        return 0;
    }
    int rc = stage->quantizer->analyse(&context, &run->analysis);
    run_add_time(run, PHASE_MEASURE, &mark, 0);
    return rc != 0 ? err_pass(rc, "analysis of block %lld", (long long)run->block_index) : 0;
}
