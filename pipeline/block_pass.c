/* One block, one input group after the other (true-sequential, in one incremental pass). For Llama's layer:
 *
 *   x -> norm                   -> statistics -> solve q, k, v
 *   quantized q,k,v, attention  -> statistics -> solve o          keeps the attention's output
 *   x + o(attention) = m, norm  -> statistics -> solve gate, up   keeps m
 *   quantized gate, up, product -> statistics -> solve down       keeps the product
 *   m + down(product)           =  the next block's input
 *
 * Experts have their turns (experts.c): each turn solves the groups of some experts and adds their outputs up, so that
 * no other experts need to be there.
 *
 * Which steps a pass has, and what is kept for the next one, follows from the layer's plan (plan.h). Each module sees
 * inputs that the already quantized ones before it made, and every product is computed once. Where a method takes its
 * targets from the float model, the reference path (reference.c) advances together with these passes. */

#include "pipeline/block_pass.h"

#include "base/err.h"
#include "pipeline/cache_scales.h"
#include "pipeline/evaluate.h"
#include "pipeline/experts.h"
#include "pipeline/pass.h"
#include "pipeline/reference.h"
#include "pipeline/report.h"
#include "pipeline/solve.h"
#include "pipeline/static_inputs.h"
#include "pipeline/tune.h"
#include "pipeline/tuned.h"

#include <math.h>
#include <string.h>

/* Statistics of all tokens that a step EXPERTS reads: the same for every expert whose modules read them themselves. */
struct expert_pool {
    struct layer_stats stats;
    unsigned wants; /* 0: there are none */
    int step;
};

/* Add x to statistics, in their own phase. */
static int observe(struct run *run, struct layer_stats *stats, const struct tensor *x)
{
    double n = (double)stats->columns;

    TRY(stats_add(stats, run->p->gpu, run->stream, x));
    run_end_phase(run, PHASE_STATISTICS, (stats->flags & STATS_HESSIAN) != 0 ? (double)x->shape[0] * n * (n + 1) : 0);
    return 0;
}

/* One micro-batch from the values `have`, which are kept, to the values `want`, and `keep`, which are to be kept. */
static int pass_batch(struct run *run, const struct block *block, plan_set have, plan_set keep, plan_set want,
                      struct microbatch *b)
{
    plan_set steps = 0, used = 0, made = keep & ~have;

    TRY(pass_steps(block->plan, have, made | want, &steps, &used));
    pass_place(run, run->stores, b, made);
    TRY(pass_run(run, run->stores, block, b, steps, used));
    TRY(pass_write(run, run->stores, b, made));
    run_end_phase(run, PHASE_FORWARD, plan_flops(block->plan, steps, b->rows, run->calibration.set->length));
    return 0;
}

/* Statistics of a group's input in one micro-batch. all: an expert sees the tokens that went to others too. */
static int observe_group(struct run *run, const struct block *block, const struct plan_group *group, bool all,
                         const struct microbatch *b, struct layer_stats *stats)
{
    struct block_values values;

    TRY(block_group_input(block, &b->values, group, all, &values));
    if (block_values_rows(&values) == 0) {
        return 0;
    }
    const struct tensor in = block_value(&values, group->input);
    return observe(run, stats, &in);
}

static double gather_share(const struct plan *plan, int g, int64_t i, int64_t batches)
{
    return ((double)g + 0.5 * (double)i / (double)batches) / (double)plan->group_count;
}

static int group_finish(struct run *run, struct layer_stats *stats)
{
    TRY(stats_finish(stats, run->p->gpu, run->stream));
    run_end_phase(run, PHASE_STATISTICS, 0);
    return 0;
}

/* reference: a view of the block, where there is such a path. */
static int gather_batches(struct run *run, const struct block *block, const struct block *reference, int g,
                          struct layer_stats *stats)
{
    const struct plan *plan = block->plan;
    const struct plan_group *group = &plan->groups[g];
    plan_set want = stats != NULL ? plan_sources(plan, group) | reference_reads(run, plan, g, stats) : 0;
    int64_t batches = microbatches_count(&run->calibration);

    for (int64_t i = 0; i < batches; i++) {
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        TRY(run_tick(run, gather_share(plan, g, i, batches), "calibrating"));
        TRY(pass_batch(run, block, pass_kept_before(plan, g), group->kept, want, &b));
        if (stats != NULL) {
            TRY(observe_group(run, block, group, false, &b, stats));
        }
        if (run->reference.stores[0] != NULL) {
            TRY(reference_pass(run, reference, g, i, &b, stats));
        }
    }
    return 0;
}

/* All micro-batches of the calibration set to the input of a group, and the reference path with them; stats NULL:
 * none are needed. */
static int group_gather(struct run *run, struct block *block, int g, struct layer_stats *stats)
{
    struct block reference = {0};

    if (run->reference.stores[0] != NULL) {
        TRY(reference_view(run, block, &reference));
    }
    int rc = gather_batches(run, block, &reference, g, stats);
    block_view_deinit(&reference);
    bool any = stats != NULL && (stats->tokens > 0 || block->plan->groups[g].expert < 0);
    return rc == 0 && any ? group_finish(run, stats) : rc;
}

static int group_stats_init(struct run *run, const struct plan *plan, int g, unsigned wants, struct layer_stats *stats)
{
    const struct calibration_set *set = run->calibration.set;

    TRY(stats_init(stats, wants, plan->groups[g].columns, run->p->gpu));
    if ((wants & STATS_SPREAD) != 0) {
        TRY(stats_init_spread(stats, set->sequences * set->length, run->p->gpu));
    }
    return (wants & STATS_TARGET) != 0 ? reference_init(run, plan, g, stats) : 0;
}

/* Statistics of all tokens for an expert's group, from the values that group_gather stored; the reference path has
 * advanced already. */
static int gather_all(struct run *run, struct block *block, int g, unsigned wants, struct layer_stats *stats)
{
    const struct plan *plan = block->plan;
    const struct plan_group *group = &plan->groups[g];
    int64_t batches = microbatches_count(&run->calibration);

    TRY(group_stats_init(run, plan, g, wants, stats));
    for (int64_t i = 0; i < batches; i++) {
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        TRY(run_tick(run, gather_share(plan, g, i, batches), "calibrating"));
        TRY(pass_batch(run, block, group->kept, 0, plan_sources(plan, group), &b));
        TRY(observe_group(run, block, group, true, &b, stats));
    }
    return group_finish(run, stats);
}

static void pool_drop(struct run *run, struct expert_pool *pool)
{
    stats_deinit(&pool->stats, run->p->gpu);
    pool->wants = 0;
}

/* Statistics of all tokens for an expert's group: the pool's where the group reads the tokens themselves, as all
 * experts do, else its own. */
static int pool_gather(struct run *run, struct block *block, int g, unsigned wants, struct expert_pool *pool,
                       struct layer_stats *own, const struct layer_stats **stats)
{
    const struct plan_group *group = &block->plan->groups[g];

    if (group->input != 0 || block->plan->steps[group->step].experts->scale_input) {
        *stats = own;
        return gather_all(run, block, g, wants, own);
    }
    if (pool->wants != wants || pool->step != group->step) {
        pool_drop(run, pool);
        TRY(gather_all(run, block, g, wants, &pool->stats));
        pool->wants = wants;
        pool->step = group->step;
    }
    *stats = &pool->stats;
    return 0;
}

/* The statistics of a starved expert are shrunk towards those of all tokens, which takes another pass over them. */
static int relieve_starved(struct run *run, struct block *block, int g, unsigned wants, int64_t min_tokens,
                           struct layer_stats *stats)
{
    struct layer_stats pooled = {0};

    if (block->plan->groups[g].expert < 0 || stats->tokens >= min_tokens) {
        return 0;
    }
    int rc = gather_all(run, block, g, wants, &pooled);
    if (rc == 0) {
        rc = stats_shrink(stats, &pooled, min_tokens, run->p->gpu, run->stream);
    }
    stats_deinit(&pooled, run->p->gpu);
    return rc != 0 ? err_pass(rc, "statistics of expert %d", block->plan->groups[g].expert) : 0;
}

/* The statistics (STATS_*) that a group needs; 0 when none of its modules is solved. */
static unsigned group_needs(struct run *run, const struct plan_group *group)
{
    unsigned wants = 0;
    struct qscheme scheme;

    if (run->trials != NULL) {
        return run->trials->needs(run, group);
    }
    for (int i = 0; i < group->count; i++) {
        const struct recipe_stage *solver = module_solver(run, group->modules[i], &scheme);
        if (solver != NULL) {
            unsigned ranges = !input_is_static(&scheme) ? 0
                              : scheme.input_search     ? STATS_RANGE | STATS_SPREAD
                                                        : STATS_RANGE;
            /* Output errors are measured with the Hessian, so it is gathered for every method. */
            wants |= quantizer_stats(solver->quantizer, solver->params) | STATS_HESSIAN | ranges;
            if (run->reference.stores[0] != NULL && group->expert < 0 &&
                recipe_stage_has_targets(solver,
                                         run->reference.batches.set->sequences * run->reference.batches.set->length,
                                         group->columns)) {
                wants |= STATS_TARGET;
            }
        }
    }
    return wants;
}

static bool reports_alone(const struct run *run)
{
    return run->trials == NULL && recipe_data_free(run->p->recipe);
}

/* How an expert's group is calibrated: as the method that solves its first module has it. Where statistics serve the
 * report alone, it says what the expert's own tokens say. */
static struct expert_calibration group_experts(struct run *run, const struct plan_group *group)
{
    struct qscheme scheme;

    for (int i = 0; i < group->count; i++) {
        const struct recipe_stage *solver = module_solver(run, group->modules[i], &scheme);
        if (solver != NULL) {
            struct expert_calibration experts = quant_experts(solver->params);
            experts.min_tokens = reports_alone(run) ? 0 : experts.min_tokens;
            return experts;
        }
    }
    return (struct expert_calibration){.min_tokens = 1};
}

/* All micro-batches to the group's input, with its statistics where they are needed. */
static int group_calibrate(struct run *run, struct block *block, int g, unsigned wants, struct expert_pool *pool,
                           struct layer_stats *own, const struct layer_stats **stats)
{
    const struct plan_group *group = &block->plan->groups[g];
    const struct expert_calibration experts = group_experts(run, group);

    if (wants == 0) {
        return group_gather(run, block, g, NULL);
    }
    if (experts.all && group->expert >= 0) {
        TRY(group_gather(run, block, g, NULL));
        return pool_gather(run, block, g, wants, pool, own, stats);
    }
    pool_drop(run, pool);
    *stats = own;
    TRY(group_stats_init(run, block->plan, g, wants, own));
    TRY(group_gather(run, block, g, own));
    return relieve_starved(run, block, g, wants, experts.min_tokens, own);
}

/* A group of a listed plan: its one module is there for its own solve alone. */
static int group_run_listed(struct run *run, struct block *block, int g, struct block_outputs *outputs,
                            struct report_rows *rows)
{
    int module = block->plan->groups[g].modules[0];
    char name[MODEL_NAME_MAX];

    if (group_needs(run, &block->plan->groups[g]) == 0) {
        return 0;
    }
    TRY(run_tick(run, (double)g / (double)block->plan->group_count, "loading"));
    TRY(block_load_module(run->p->model, run->p->gpu, run->stream, block, module));
    run_end_phase(run, PHASE_LOAD, 0);
    if (g + 1 < block->plan->group_count) {
        model_tensor_name(run->p->model, run->block_index, block->plan->modules[module + 1].path, "weight", name);
        model_prefetch_tensor(run->p->model, name);
    }
    int rc = group_solve(run, block, g, NULL, outputs, rows);
    block_drop_module(block, module, run->p->gpu);
    return rc;
}

static int group_run(struct run *run, struct block *block, int g, struct expert_pool *pool,
                     struct block_outputs *outputs, struct report_rows *rows)
{
    unsigned wants = group_needs(run, &block->plan->groups[g]);
    const struct layer_stats *stats = NULL;
    struct layer_stats own = {0};
    int rc = 0;

    if (run->calibration.set != NULL) {
        rc = group_calibrate(run, block, g, wants, pool, &own, &stats);
    }
    if (rc == 0 && wants != 0) {
        rc = run->trials != NULL ? run->trials->group(run, block, g, stats)
                                 : group_solve(run, block, g, stats, outputs, rows);
        rc = rc == 0 ? tuned_add_stats(run, &own) : rc;
    }
    stats_deinit(&own, run->p->gpu);
    return rc;
}

/* Experts that were solved add their outputs to the step's while they are loaded, on both paths, unless nothing reads
 * it: after the last block's last group. Their results, from output `first_output` on, leave memory. */
static int finish_turn(const struct experts_turn *turn, int group, bool read, int first_output)
{
    struct run *run = turn->run;
    const struct plan *plan = turn->block->plan;
    const struct experts_input input = {.batches = &run->calibration,
                                        .stores = run->stores,
                                        .have = plan->groups[group].kept,
                                        .phase = PHASE_FORWARD,
                                        .share = run->block_fraction,
                                        .doing = "calibrating"};

    if (read) {
        TRY(experts_add(turn, turn->block, &input));
        TRY(reference_experts(turn, group));
    }
    for (int i = 0; i < plan->module_count; i++) {
        int64_t expert = plan->modules[i].expert;
        if (expert >= turn->first && expert < turn->first + turn->count) {
            reference_free(run, i);
        }
    }
    return turn->count == plan->steps[turn->step].experts->count
               ? 0
               : block_outputs_spill(turn->outputs, first_output, run->p->directory, run->p->gpu, run->stream);
}

/* The groups of all experts of a step, from group `first` on, in turns; *end: the group after them. */
static int experts_run(struct run *run, struct block *block, int first, struct expert_pool *pool,
                       struct block_outputs *outputs, struct report_rows *rows, int *end)
{
    const struct plan *plan = block->plan;
    const struct plan_experts *experts = plan->steps[plan->groups[first].step].experts;
    struct experts_turn turn = experts_begin(run, block, outputs, plan->groups[first].step);
    int each = experts->plan->group_count, last = first + (int)experts->count * each - 1;
    bool read = run->calibration.set != NULL &&
                (last + 1 < plan->group_count || run->block_index + 1 < run->config->num_layers);
    bool more = true;

    TRY(experts_next(&turn, &more));
    while (more) {
        int from = first + (int)turn.first * each, to = from + (int)turn.count * each, first_output = outputs->count;
        for (int g = from; g < to; g++) {
            TRY(group_run(run, block, g, pool, outputs, rows));
        }
        TRY(finish_turn(&turn, from, read, first_output));
        TRY(experts_next(&turn, &more));
    }
    *end = last + 1;
    return read ? reference_pass_experts(run, block, last) : 0;
}

static int groups_run(struct run *run, struct block *block, struct expert_pool *pool, struct block_outputs *outputs,
                      struct report_rows *rows)
{
    const struct plan *plan = block->plan;

    for (int g = 0, end = 0; g < plan->group_count; g = end) {
        end = g + 1;
        TRY(plan_is_listed(plan)         ? group_run_listed(run, block, g, outputs, rows)
            : plan->groups[g].expert < 0 ? group_run(run, block, g, pool, outputs, rows)
                                         : experts_run(run, block, g, pool, outputs, rows, &end));
        reference_release(run, plan, end - 1);
        TRY(group_cache(run, block, end - 1, outputs));
    }
    return 0;
}

int block_solve(struct run *run, struct block *block, struct block_outputs *outputs, struct report_rows *rows)
{
    const struct plan *plan = block->plan;
    plan_set have = pass_kept_before(plan, plan->group_count);
    struct expert_pool pool = {.wants = 0};

    int rc = groups_run(run, block, &pool, outputs, rows);
    pool_drop(run, &pool);
    reference_release(run, plan, plan->group_count); /* all that a failure left */
    TRY(rc);
    if (run->tuning != NULL) {
        TRY(tuning_run(run, block, outputs, rows));
        return run->block_index + 1 == run->config->num_layers ? 0
                                                               : calibration_forward(run, run->stores, block, outputs);
    }
    if (run->calibration.set == NULL || run->block_index + 1 == run->config->num_layers) {
        return 0; /* nothing reads the last block's output */
    }
    for (int64_t i = 0; i < microbatches_count(&run->calibration); i++) {
        struct microbatch b = microbatches_at(&run->calibration, plan, i);
        TRY(run_tick(run, 1.0, "calibrating"));
        TRY(pass_batch(run, block, have, PLAN_BIT(plan->output) | plan->given, 0, &b));
    }
    return 0;
}
