/* One block, one input group after the other (true-sequential, in one incremental pass). For Llama's layer:
 *
 *   x -> norm                   -> statistics -> solve q, k, v
 *   quantized q,k,v, attention  -> statistics -> solve o          keeps the attention's output
 *   x + o(attention) = m, norm  -> statistics -> solve gate, up   keeps m
 *   quantized gate, up, product -> statistics -> solve down       keeps the product
 *   m + down(product)           =  the next block's input
 *
 * Which steps a pass has, and what is kept for the next one, follows from the layer's plan (plan.h). Each module sees
 * inputs that the already quantized ones before it made, and every product is computed once. Where a method takes its
 * targets from the float model, the reference path (reference.c) keeps step with these passes. */

#include "pipeline/block_pass.h"

#include "base/err.h"
#include "base/ids.h"
#include "pipeline/cache_scales.h"
#include "pipeline/pass.h"
#include "pipeline/reference.h"
#include "pipeline/report.h"
#include "pipeline/solve.h"
#include "pipeline/static_inputs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* How the experts of a group see the calibration set. */
struct expert_options {
    bool all;           /* every token, whether it goes there or not */
    int64_t min_tokens; /* with fewer, an expert's statistics are shrunk to those of all tokens */
};

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

/* One micro-batch from the values `have`, which are kept, to the values `want`, and `keep`, which are to be kept. */
static int pass_batch(struct run *run, const struct block *block, plan_set have, plan_set keep, plan_set want,
                      struct microbatch *b)
{
    plan_set steps = 0, used = 0, made = keep & ~have;
    double mark = clock_monotonic_seconds();
    int rc = pass_steps(block->plan, have, made | want, &steps, &used);

    rc = rc != 0 ? rc : pass_open(run, b, used);
    if (rc == 0) {
        pass_place(run, b, made);
        rc = block_run(block, &b->values, steps);
    }
    rc = rc != 0 ? rc : pass_write(run, b, made);
    run_add_time(run, PHASE_FORWARD, &mark, plan_flops(block->plan, steps, b->rows, run->calibration.set->length));
    return rc;
}

/* All micro-batches of the calibration set to the input of a group; stats NULL = nobody looks. all: an expert sees the
 * tokens that went to others too. */
static int group_gather(struct run *run, struct block *block, int g, bool all, struct layer_stats *stats)
{
    const struct plan *plan = block->plan;
    const struct plan_group *group = &plan->groups[g];
    int64_t batches = microbatches_count(&run->calibration);
    struct block reference = {0};
    int rc = run->reference.hidden != NULL ? reference_view(run, block, &reference) : 0;

    for (int64_t i = 0; rc == 0 && i < batches; i++) {
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        double share = ((double)g + 0.5 * (double)i / (double)batches) / (double)plan->group_count;
        rc = run_tick(run, share, "calibrating");
        rc = rc != 0 ? rc
                     : pass_batch(run, block, pass_kept_before(plan, g), group->kept, plan_sources(plan, group), &b);
        struct block_values values;
        rc = rc != 0 || stats == NULL ? rc : block_group_input(block, &b.values, group, all, &values);
        if (rc == 0 && stats != NULL && block_values_rows(&values) > 0) {
            const struct tensor in = block_value(&values, group->input);
            rc = observe(run, stats, &in);
        }
        if (rc == 0 && run->reference.hidden != NULL) {
            rc = reference_pass(run, &reference, g, i, &b, stats);
        }
    }
    block_view_deinit(&reference);
    double mark = clock_monotonic_seconds();
    if (rc == 0 && stats != NULL && (stats->tokens > 0 || group->expert < 0)) {
        rc = stats_finish(stats, run->p->gpu, run->stream);
    }
    run_add_time(run, PHASE_STATISTICS, &mark, 0);
    return rc;
}

static int group_stats_init(struct run *run, const struct plan *plan, int g, unsigned wants, struct layer_stats *stats)
{
    const struct calibration_set *set = run->calibration.set;
    int rc = stats_init(stats, wants, plan->groups[g].columns, run->p->gpu);

    rc = rc != 0 || (wants & STATS_SPREAD) == 0 ? rc
                                                : stats_init_spread(stats, set->sequences * set->length, run->p->gpu);
    return rc != 0 || (wants & STATS_TARGET) == 0 ? rc : reference_init(run, plan, g, stats);
}

/* Statistics of an expert that fewer tokens came to than it is to have: those of all tokens, gathered in another look
 * at them, with its own as far as they go. */
static int relieve(struct run *run, struct block *block, int g, unsigned wants, const struct expert_options *options,
                   struct layer_stats *stats)
{
    struct layer_stats pooled = {0};

    if (block->plan->groups[g].expert < 0 || stats->tokens >= options->min_tokens) {
        return 0;
    }
    int rc = group_stats_init(run, block->plan, g, wants, &pooled);
    rc = rc != 0 ? rc : group_gather(run, block, g, true, &pooled);
    rc = rc != 0 ? rc : stats_shrink(stats, &pooled, options->min_tokens, run->p->gpu, run->stream);
    stats_deinit(&pooled, run->p->gpu);
    return rc != 0 ? err_pass(rc, "statistics of expert %d", block->plan->groups[g].expert) : 0;
}

/* What a group needs of its statistics (STATS_*) to be solved; 0 when nothing of it is. */
static unsigned group_needs(struct run *run, const struct plan_group *group)
{
    unsigned wants = 0;
    struct qscheme scheme;

    for (int i = 0; i < group->count; i++) {
        const struct recipe_stage *solver = module_solver(run, group->modules[i], &scheme);
        if (solver != NULL) {
            unsigned ranges = !input_is_static(&scheme) ? 0
                              : scheme.input_search     ? STATS_RANGE | STATS_SPREAD
                                                        : STATS_RANGE;
            /* The Hessian is what output error is measured with, so every method gets it when there are inputs. */
            wants |= quantizer_stats(solver->quantizer, solver->params) | STATS_HESSIAN | ranges;
            if (run->reference.hidden != NULL && group->expert < 0 &&
                recipe_stage_has_targets(solver,
                                         run->reference.batches.set->sequences * run->reference.batches.set->length,
                                         group->columns)) {
                wants |= STATS_TARGET;
            }
        }
    }
    return wants;
}

/* How the experts of a group are calibrated: as the method that solves its first module has it. */
static struct expert_options expert_options(struct run *run, const struct plan_group *group)
{
    struct expert_options options = {.min_tokens = 1};
    struct qscheme scheme;

    for (int i = group->count - 1; i >= 0; i--) {
        const struct recipe_stage *solver = module_solver(run, group->modules[i], &scheme);
        if (solver != NULL) {
            const struct quant_base *base = solver->params;
            options.all = base->calibrate_all_experts;
            options.min_tokens = base->expert_min_tokens > 1 ? base->expert_min_tokens : 1;
        }
    }
    return options;
}

static int group_run(struct run *run, struct block *block, int g, struct block_outputs *outputs,
                     struct report_rows *rows)
{
    const struct plan_group *group = &block->plan->groups[g];
    struct layer_stats stats = {0};
    bool calibrated = run->calibration.set != NULL;
    unsigned wants = group_needs(run, group);
    int rc = 0;

    const struct expert_options options = expert_options(run, group);
    rc = calibrated && wants != 0 ? group_stats_init(run, block->plan, g, wants, &stats) : 0;
    if (rc == 0 && calibrated) {
        rc = group_gather(run, block, g, options.all, wants != 0 ? &stats : NULL);
    }
    if (rc == 0 && calibrated && wants != 0) {
        rc = relieve(run, block, g, wants, &options, &stats);
    }
    if (rc == 0 && wants != 0) {
        rc = group_solve(run, block, g, calibrated ? &stats : NULL, outputs, rows);
    }
    stats_deinit(&stats, run->p->gpu);
    return rc;
}

int block_solve(struct run *run, struct block *block, struct block_outputs *outputs, struct report_rows *rows)
{
    const struct plan *plan = block->plan;
    int rc = 0;

    for (int g = 0; rc == 0 && g < plan->group_count; g++) {
        rc = group_run(run, block, g, outputs, rows);
        reference_release(run, plan, g);
        rc = rc != 0 ? rc : group_cache(run, block, g, outputs);
    }
    reference_release(run, plan, plan->group_count);             /* what a failure left */
    bool last = run->block_index + 1 == run->config->num_layers; /* nobody reads what it would give */
    if (rc != 0 || run->calibration.set == NULL || last) {
        return rc;
    }
    for (int64_t i = 0; rc == 0 && i < microbatches_count(&run->calibration); i++) {
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        rc = run_tick(run, 1.0, "calibrating");
        rc = rc != 0 ? rc
                     : pass_batch(run, block, pass_kept_before(plan, plan->group_count), PLAN_BIT(plan->output), 0, &b);
    }
    return rc;
}
