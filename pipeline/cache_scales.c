/* The open block's key and value cache: scales for one that is to be quantized, and what an analysis has to say of it.
 *
 * Scales are measured behind the solved q, k and v, on the keys and values that the artifact's user will have, and from
 * then on the block reads both through the cache: what is solved and evaluated behind them sees its error. */

#include "pipeline/cache_scales.h"

#include "base/err.h"
#include "base/ids.h"
#include "models/cache.h"

#include <stdio.h>
#include <string.h>

/* Input i of the attention, in the micro-batches' scratch. */
static int attention_input(struct run *run, const struct block *block, int64_t i, struct batch *b)
{
    *b = microbatches_at(&run->calibration, i);
    int rc = activations_read(run->hidden, ACTIVATIONS_IN, b->first, &b->x, run->p->gpu, run->stream);
    return rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
}

static int gather(struct run *run, const struct block *block, struct cache_ranges *ranges)
{
    int64_t batches = microbatches_count(&run->calibration);
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < batches; i++) {
        struct block_heads heads;
        struct batch b;
        rc = run_tick(run, (0.9 + 0.1 * (double)i / (double)batches) / (double)SITE_COUNT, "calibrating");
        rc = rc != 0 ? rc : attention_input(run, block, i, &b);
        rc = rc != 0 ? rc : block_attention_heads(block, b.scratch, &b.in, &heads);
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
    char name[128];

    snprintf(name, sizeof(name), "model.layers.%lld.self_attn.%s", (long long)run->block_index, tensor);
    int rc = qtensor_new(name, &scheme, count, 1, &outputs->list[outputs->count]);
    if (rc == 0) {
        memcpy(outputs->list[outputs->count++].tables, scales, (size_t)count * sizeof(*scales));
    }
    return rc;
}

int site_cache(struct run *run, struct block *block, struct block_outputs *outputs)
{
    const struct cache_scheme *scheme = &run->p->recipe->cache;
    const struct gpu *gpu = run->p->gpu;
    enum dtype dtype = run->p->format->scale_dtype(model_dtype(run->p->model));
    struct cache_ranges ranges = {0};
    struct cache_scales scales = {0};
    double mark = clock_monotonic_seconds();

    if (scheme->element == DTYPE_F32 || run->calibration.set == NULL) {
        return 0;
    }
    int rc = cache_ranges_init(&ranges, run->config, gpu);
    rc = rc != 0 ? rc : gather(run, block, &ranges);
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
};

static int analysis_input(void *data, int64_t i, struct tensor *in, struct block_scratch **scratch)
{
    const struct analysis_data *d = data;
    struct batch b;

    int rc = attention_input(d->run, d->block, i, &b);
    *in = b.in;
    *scratch = b.scratch;
    return rc;
}

static int analysis_tick(void *data)
{
    const struct analysis_data *d = data;
    return run_tick(d->run, 0.1, "calibrating");
}

static const struct qscheme *analysis_scheme(void *data, enum linear_role role)
{
    (void)data;
    (void)role;
    return NULL;
}

int sites_analyse(struct run *run, struct block *block)
{
    const struct recipe_stage *stage = &run->p->recipe->stages[0];
    struct analysis_data data = {run, block};
    const struct rewrite_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .params = stage->params,
        .weight_dtype = model_dtype(run->p->model),
        .site = SITE_ATTENTION,
        .block = block,
        .batches = run->calibration.set != NULL ? microbatches_count(&run->calibration) : 0,
        .input = analysis_input,
        .input_data = &data,
        .scheme = analysis_scheme,
        .tick = analysis_tick,
        .tick_data = &data,
    };
    double mark = clock_monotonic_seconds();

    if (!recipe_analyses(run->p->recipe)) {
        return 0;
    }
    int rc = stage->quantizer->analyse(&context, &run->analysis);
    run_add_time(run, PHASE_MEASURE, &mark, 0);
    return rc != 0 ? err_pass(rc, "analysis of block %lld", (long long)run->block_index) : 0;
}
