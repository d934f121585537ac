/* One block, site by site, each product computed once (true-sequential, as in Frantar et al. 2022, GPTQ's released
 * code):
 *
 *   A  x -> norm            -> statistics -> solve q, k, v
 *   B  quantized q,k,v      -> attention  -> statistics -> solve o          keeps the attention output
 *   C  x + o(attention) = m -> norm       -> statistics -> solve gate, up   keeps m
 *   D  quantized gate, up   -> silu*mul   -> statistics -> solve down       keeps the product
 *   E  m + down(product)    = the next block's input
 *
 * Each linear sees inputs that the already quantized ones before it made, and every product is computed once. Where a
 * method takes its targets from the float model, the reference path (reference.c) keeps step with these passes. */

#include "pipeline/block_pass.h"

#include "base/err.h"
#include "base/ids.h"
#include "pipeline/cache_scales.h"
#include "pipeline/reference.h"
#include "pipeline/report.h"
#include "pipeline/solve.h"
#include "pipeline/static_inputs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double linear_flops(const struct run *run, enum linear_role role, int64_t tokens)
{
    int64_t rows;
    int64_t cols;
    arch_linear_shape(run->config, role, &rows, &cols);
    return 2.0 * (double)tokens * (double)rows * (double)cols;
}

/* Statistics of x, charged to their own phase. */
static int observe(struct run *run, struct layer_stats *stats, const struct tensor *x)
{
    double mark = clock_monotonic_seconds();
    int rc = stats_add(stats, run->p->gpu, run->stream, x);
    double n = (double)stats->columns;
    run_add_time(run, PHASE_STATISTICS, &mark,
                 (stats->flags & STATS_HESSIAN) != 0 ? (double)x->shape[0] * n * (n + 1) : 0);
    return rc;
}

/* One micro-batch up to a site: the site's input, and in b->x the residual stream before the site's linears add to it.
 */
static int pass_attention(struct run *run, struct block *block, struct batch *b, struct tensor *in)
{
    double mark = clock_monotonic_seconds();
    int rc = activations_open(run->hidden, ACTIVATIONS_IN, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
    run_add_time(run, PHASE_FORWARD, &mark, 0);
    *in = b->in;
    return rc;
}

static int pass_output(struct run *run, struct block *block, struct batch *b, struct tensor *in)
{
    double mark = clock_monotonic_seconds();
    const struct model_config *c = run->config;
    struct tensor out = microbatches_wide(&run->calibration, b, c->num_heads * c->head_dim);
    double length = (double)run->calibration.set->length;

    activations_place(run->attention, b->first, &out, run->p->gpu);
    int rc = activations_open(run->hidden, ACTIVATIONS_IN, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_input(block, b->scratch, &b->x, &b->in);
    rc = rc != 0 ? rc : block_attention(block, b->scratch, &b->in, &out);
    rc = rc != 0 ? rc : activations_write(run->attention, b->first, &out, run->p->gpu, run->stream);
    double flops = linear_flops(run, LINEAR_Q, b->rows) + linear_flops(run, LINEAR_K, b->rows) +
                   linear_flops(run, LINEAR_V, b->rows) +
                   2.0 * (double)b->rows * length * (double)(c->num_heads * c->head_dim);
    run_add_time(run, PHASE_FORWARD, &mark, flops);
    *in = out;
    return rc;
}

static int pass_mlp(struct run *run, struct block *block, struct batch *b, struct tensor *in)
{
    double mark = clock_monotonic_seconds();
    struct tensor out = microbatches_wide(&run->calibration, b, run->config->num_heads * run->config->head_dim);

    int rc = activations_open(run->hidden, ACTIVATIONS_IN, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : activations_open(run->attention, ACTIVATIONS_OUT, b->first, &out, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_attention_output(block, b->scratch, &out, &b->x);
    rc = rc != 0 ? rc : activations_write(run->hidden, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, &b->in);
    run_add_time(run, PHASE_FORWARD, &mark, linear_flops(run, LINEAR_O, b->rows));
    *in = b->in;
    return rc;
}

static int pass_down(struct run *run, struct block *block, struct batch *b, struct tensor *in)
{
    double mark = clock_monotonic_seconds();
    struct tensor act = microbatches_wide(&run->calibration, b, run->config->intermediate_size);

    activations_place(run->mlp, b->first, &act, run->p->gpu);
    int rc = activations_open(run->hidden, ACTIVATIONS_OUT, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_mlp_input(block, b->scratch, &b->x, &b->in);
    rc = rc != 0 ? rc : block_mlp(block, b->scratch, &b->in, &act);
    rc = rc != 0 ? rc : activations_write(run->mlp, b->first, &act, run->p->gpu, run->stream);
    run_add_time(run, PHASE_FORWARD, &mark,
                 linear_flops(run, LINEAR_GATE, b->rows) + linear_flops(run, LINEAR_UP, b->rows));
    *in = act;
    return rc;
}

static int pass_end(struct run *run, struct block *block, struct batch *b)
{
    double mark = clock_monotonic_seconds();
    struct tensor act = microbatches_wide(&run->calibration, b, run->config->intermediate_size);

    int rc = activations_open(run->hidden, ACTIVATIONS_OUT, b->first, &b->x, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : activations_open(run->mlp, ACTIVATIONS_OUT, b->first, &act, run->p->gpu, run->stream);
    rc = rc != 0 ? rc : block_mlp_output(block, b->scratch, &act, &b->x);
    rc = rc != 0 ? rc : activations_write(run->hidden, b->first, &b->x, run->p->gpu, run->stream);
    run_add_time(run, PHASE_FORWARD, &mark, linear_flops(run, LINEAR_DOWN, b->rows));
    return rc;
}

typedef int (*site_pass)(struct run *, struct block *, struct batch *, struct tensor *);
static const site_pass site_passes[SITE_COUNT] = {
    [SITE_ATTENTION] = pass_attention,
    [SITE_OUTPUT] = pass_output,
    [SITE_MLP] = pass_mlp,
    [SITE_DOWN] = pass_down,
};

/* All micro-batches of the calibration set through one site; stats NULL = nobody looks. */
static int site_gather(struct run *run, struct block *block, enum site site, struct layer_stats *stats)
{
    int64_t batches = microbatches_count(&run->calibration);
    const struct block reference = reference_block(run, block);
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < batches; i++) {
        struct batch b = microbatches_at(&run->calibration, i);
        struct tensor in = {0};
        double share = ((double)site + 0.5 * (double)i / (double)batches) / (double)SITE_COUNT;
        rc = run_tick(run, share, "calibrating");
        rc = rc != 0 ? rc : site_passes[site](run, block, &b, &in);
        rc = rc != 0 || stats == NULL ? rc : observe(run, stats, &in);
        if (rc == 0 && run->reference.hidden != NULL) {
            rc = reference_pass(run, &reference, site, i, &b, &in, stats);
        }
    }
    double mark = clock_monotonic_seconds();
    if (rc == 0 && stats != NULL) {
        rc = stats_finish(stats, run->p->gpu, run->stream);
    }
    run_add_time(run, PHASE_STATISTICS, &mark, 0);
    return rc;
}

/* What a site needs of its statistics (STATS_*) to be solved; 0 when nothing of it is. */
static unsigned site_needs(struct run *run, enum site site)
{
    unsigned wants = 0;
    struct qscheme scheme;

    for (int role = 0; role < LINEAR_COUNT; role++) {
        const struct recipe_stage *solver =
            arch_linear_site[role] == site ? site_solver(run, (enum linear_role)role, &scheme) : NULL;
        if (solver != NULL) {
            unsigned ranges = !site_input_is_static(&scheme) ? 0
                              : scheme.input_search          ? STATS_RANGE | STATS_SPREAD
                                                             : STATS_RANGE;
            /* The Hessian is what output error is measured with, so every method gets it when there are inputs. */
            wants |= quantizer_stats(solver->quantizer, solver->params) | STATS_HESSIAN | ranges;
            if (run->reference.hidden != NULL &&
                recipe_stage_has_targets(solver,
                                         run->reference.batches.set->sequences * run->reference.batches.set->length,
                                         block_site_columns(run->config, site))) {
                wants |= STATS_TARGET;
            }
        }
    }
    return wants;
}

static int site_run(struct run *run, struct block *block, enum site site, struct block_outputs *outputs,
                    struct report_rows *rows)
{
    struct layer_stats stats = {0};
    bool calibrated = run->calibration.set != NULL;
    unsigned wants = site_needs(run, site);
    int rc = 0;

    if (calibrated && wants != 0) {
        const struct calibration_set *set = run->calibration.set;
        rc = stats_init(&stats, wants, block_site_columns(run->config, site), run->p->gpu);
        rc = rc != 0 || (wants & STATS_SPREAD) == 0
                 ? rc
                 : stats_init_spread(&stats, set->sequences * set->length, run->p->gpu);
        rc = rc != 0 || (wants & STATS_TARGET) == 0 ? rc : reference_init(run, site, &stats);
    }
    if (rc == 0 && calibrated) {
        rc = site_gather(run, block, site, wants != 0 ? &stats : NULL);
    }
    if (rc == 0 && wants != 0) {
        rc = site_solve(run, block, site, calibrated ? &stats : NULL, outputs, rows);
    }
    stats_deinit(&stats, run->p->gpu);
    return rc;
}

/* Float linears that the reference path has passed. */
static void release_passed(struct run *run, enum site site)
{
    if (site == SITE_OUTPUT || site == SITE_DOWN) {
        reference_release(run, site == SITE_OUTPUT ? SITE_ATTENTION : SITE_MLP);
        reference_release(run, site);
    }
}

int sites_solve(struct run *run, struct block *block, struct block_outputs *outputs, struct report_rows *rows)
{
    int rc = 0;

    for (int site = 0; rc == 0 && site < SITE_COUNT; site++) {
        rc = site_run(run, block, (enum site)site, outputs, rows);
        release_passed(run, (enum site)site);
        rc = rc != 0 || site != SITE_ATTENTION ? rc : site_cache(run, block, outputs);
    }
    for (int site = 0; site < SITE_COUNT; site++) { /* what a failure left */
        reference_release(run, (enum site)site);
    }
    bool last = run->block_index + 1 == run->config->num_layers; /* nobody reads what it would give */
    if (rc != 0 || run->calibration.set == NULL || last) {
        return rc;
    }
    for (int64_t i = 0; rc == 0 && i < microbatches_count(&run->calibration); i++) {
        struct batch b = microbatches_at(&run->calibration, i);
        rc = run_tick(run, 1.0, "calibrating");
        rc = rc != 0 ? rc : pass_end(run, block, &b);
    }
    return rc;
}
