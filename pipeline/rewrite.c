/* Rewriting stages over the open block (SmoothQuant, AWQ): site by site in the order of the forward pass, each stage
 * sees the inputs that the sites already rewritten make, in float, and changes the block without changing its output.
 *
 * The passes here leave the hidden activations alone: the solving passes that follow start from them again. What a site
 * reads is made anew from the hidden activations and the work stores of attention and MLP. */

#include "pipeline/rewrite.h"

#include "base/err.h"
#include "base/ids.h"
#include "pipeline/solve.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Input i of a site, in the micro-batches' scratch. */
static int site_input(struct run *run, struct block *block, enum site site, const struct batch *b, struct tensor *in)
{
    const struct gpu *gpu = run->p->gpu;
    struct tensor attention = microbatches_wide(&run->calibration, b, run->config->num_heads * run->config->head_dim);
    int rc = activations_read(run->hidden, ACTIVATIONS_IN, b->first, (struct tensor *)&b->x, gpu, run->stream);

    if (site == SITE_ATTENTION) {
        *in = b->in;
        return rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
    }
    if (site == SITE_OUTPUT) {
        *in = attention;
        return rc != 0 ? rc : activations_read(run->attention, ACTIVATIONS_OUT, b->first, &attention, gpu, run->stream);
    }
    if (site == SITE_DOWN) {
        *in = microbatches_wide(&run->calibration, b, run->config->intermediate_size);
        return rc != 0 ? rc : activations_read(run->mlp, ACTIVATIONS_OUT, b->first, in, gpu, run->stream);
    }
    *in = b->in;
    rc = rc != 0 ? rc : activations_read(run->attention, ACTIVATIONS_OUT, b->first, &attention, gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_output(block, b->scratch, &attention, &b->x);
    return rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, &b->in);
}

/* Attention's output or the MLP's product of one micro-batch into its work store: the next site's input. */
static int keep_output(struct run *run, struct block *block, enum site site, const struct batch *b,
                       const struct tensor *in)
{
    const struct gpu *gpu = run->p->gpu;
    const struct model_config *c = run->config;
    struct tensor out = microbatches_wide(&run->calibration, b,
                                          site == SITE_ATTENTION ? c->num_heads * c->head_dim : c->intermediate_size);

    int rc =
        site == SITE_ATTENTION ? block_attention(block, b->scratch, in, &out) : block_mlp(block, b->scratch, in, &out);
    return rc != 0 ? rc
                   : activations_write(site == SITE_ATTENTION ? run->attention : run->mlp, b->first, &out, gpu,
                                       run->stream);
}

static double share_of(enum site site, double part)
{
    return 0.25 * ((double)site + part) / (double)SITE_COUNT;
}

static int gather(struct run *run, struct block *block, enum site site, struct layer_stats *stats)
{
    int64_t batches = microbatches_count(&run->calibration);
    double mark = clock_monotonic_seconds();
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < batches; i++) {
        struct batch b = microbatches_at(&run->calibration, i);
        struct tensor in;
        rc = run_tick(run, share_of(site, 0.5 * (double)i / (double)batches), "calibrating");
        rc = rc != 0 ? rc : site_input(run, block, site, &b, &in);
        run_add_time(run, PHASE_FORWARD, &mark, 0);
        rc = rc != 0 ? rc : stats_add(stats, run->p->gpu, run->stream, &in);
        run_add_time(run, PHASE_STATISTICS, &mark, 0);
    }
    return rc != 0 ? rc : stats_finish(stats, run->p->gpu, run->stream);
}

/* Behind a rewritten site: what the next one reads. */
static int advance(struct run *run, struct block *block, enum site site)
{
    int rc = 0;

    if (site != SITE_ATTENTION && site != SITE_MLP) {
        return 0;
    }
    for (int64_t i = 0; rc == 0 && i < microbatches_count(&run->calibration); i++) {
        struct batch b = microbatches_at(&run->calibration, i);
        struct tensor in;
        rc = run_tick(run, share_of(site, 0.9), "calibrating");
        rc = rc != 0 ? rc : site_input(run, block, site, &b, &in);
        rc = rc != 0 ? rc : keep_output(run, block, site, &b, &in);
    }
    return rc;
}

struct rewrite_data {
    struct run *run;
    struct block *block;
    enum site site;
    struct qscheme schemes[LINEAR_COUNT];
    bool quantized[LINEAR_COUNT];
};

static int rewrite_input(void *data, int64_t i, struct tensor *in, struct block_scratch **scratch)
{
    struct rewrite_data *d = data;
    struct batch b = microbatches_at(&d->run->calibration, i);

    *scratch = b.scratch;
    return site_input(d->run, d->block, d->site, &b, in);
}

static const struct qscheme *rewrite_scheme(void *data, enum linear_role role)
{
    struct rewrite_data *d = data;
    return d->quantized[role] ? &d->schemes[role] : NULL;
}

static int rewrite_tick(void *data)
{
    struct rewrite_data *d = data;
    return run_tick(d->run, share_of(d->site, 0.7), "quantizing");
}

static int rewrite_stage(struct run *run, const struct recipe_stage *stage, struct rewrite_data *data,
                         const struct layer_stats *stats)
{
    const struct rewrite_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .params = stage->params,
        .weight_dtype = model_dtype(run->p->model),
        .site = data->site,
        .block = data->block,
        .stats = stats,
        .batches = microbatches_count(&run->calibration),
        .input = rewrite_input,
        .input_data = data,
        .scheme = rewrite_scheme,
        .scheme_data = data,
        .tick = rewrite_tick,
        .tick_data = data,
    };
    double mark = clock_monotonic_seconds();
    int rc = stage->quantizer->rewrite(&context);

    run_add_time(run, PHASE_SOLVE, &mark, 0);
    return rc != 0 ? err_pass(rc, "%s at site %d", stage->quantizer->name, (int)data->site) : 0;
}

/* Statistics are gathered anew for each stage: the one before it changed them. */
static int rewrite_site(struct run *run, struct block *block, struct rewrite_data *data)
{
    const struct recipe *recipe = run->p->recipe;
    int rc = 0;

    for (int i = 0; rc == 0 && i < recipe->count; i++) {
        const struct recipe_stage *stage = &recipe->stages[i];
        struct layer_stats stats = {0};
        if (stage->quantizer->rewrite == NULL) {
            continue;
        }
        rc = stats_init(&stats, stage->quantizer->rewrite_stats, block_site_columns(run->config, data->site),
                        run->p->gpu);
        rc = rc != 0 ? rc : gather(run, block, data->site, &stats);
        rc = rc != 0 ? rc : rewrite_stage(run, stage, data, &stats);
        stats_deinit(&stats, run->p->gpu);
    }
    return rc != 0 ? rc : advance(run, block, data->site);
}

int sites_rewrite(struct run *run, struct block *block)
{
    struct rewrite_data data = {.run = run, .block = block};
    int rc = 0;

    if (!recipe_rewrites(run->p->recipe) || run->calibration.set == NULL) {
        return 0;
    }
    for (int role = 0; role < LINEAR_COUNT; role++) {
        data.quantized[role] = site_solver(run, (enum linear_role)role, &data.schemes[role]) != NULL;
    }
    for (int site = 0; rc == 0 && site < SITE_COUNT; site++) {
        data.site = (enum site)site;
        rc = rewrite_site(run, block, &data);
    }
    return rc != 0 ? err_pass(rc, "rewrite block %lld", (long long)run->block_index) : 0;
}

/* A float tensor under its full name, [rows, cols]. */
static int keep_tensor(struct run *run, const char *name, const struct tensor *tensor, struct block_outputs *outputs)
{
    const struct qscheme scheme = {
        .kind = QTENSOR_DENSE, .bits = 16, .group_size = 1, .scale_dtype = model_dtype(run->p->model)};
    int64_t rows = tensor->rank == 2 ? tensor->shape[0] : 1, cols = tensor_count(tensor) / rows;
    struct qtensor *q = &outputs->list[outputs->count];

    int rc = qtensor_new(name, &scheme, rows, cols, q);
    if (rc != 0) {
        return rc;
    }
    outputs->count++;
    rc = run->p->gpu->ops->download(run->stream, q->tables, tensor->data, tensor_bytes(tensor));
    for (int64_t i = 0; rc == 0 && i < rows * cols; i++) {
        q->tables[i] = dtype_round(q->tables[i], scheme.scale_dtype);
        if (!isfinite(q->tables[i])) {
            rc = err_set_module(err_raise(ERR_NON_FINITE_VALUE, "%s [%lld] is beyond %s after rewriting", name,
                                          (long long)i, dtype_rows[scheme.scale_dtype].name),
                                name);
        }
    }
    return rc;
}

int sites_keep_changes(struct run *run, const struct block *block, struct block_outputs *outputs)
{
    char module[128], name[160];
    struct qscheme unused;
    int rc = 0;

    for (int role = 0; rc == 0 && role < LINEAR_COUNT; role++) {
        if (!block->changed_linears[role]) {
            continue;
        }
        model_linear_name(run->p->model, run->block_index, (enum linear_role)role, module);
        if (site_solver(run, (enum linear_role)role, &unused) == NULL) {
            snprintf(name, sizeof(name), "%s.weight", module);
            rc = keep_tensor(run, name, &block->linears[role], outputs);
        }
        if (rc == 0 && block->biases[role].data != NULL) {
            snprintf(name, sizeof(name), "%s.bias", module);
            rc = keep_tensor(run, name, &block->biases[role], outputs);
        }
    }
    for (int role = 0; rc == 0 && role < NORM_COUNT; role++) {
        if (block->changed_norms[role]) {
            snprintf(name, sizeof(name), "model.layers.%lld.%s.weight", (long long)run->block_index,
                     run->config->arch->norms[role]);
            rc = keep_tensor(run, name, &block->norms[role], outputs);
        }
    }
    return rc;
}
