/* The float model's activations of the calibration set, next to the quantized ones: what a linear should give, X_f W^T,
 * where the quantized linears before it make the inputs X (asymmetric calibration: Li et al. 2025, arXiv 2504.02692).
 * The method finds the nearest weight, T = W + W (X_f - X)^T X (X^T X)^-1; its numerator is summed here, over
 * micro-batches.
 *
 * A module that is alone in reading its input, and whose output is added to the residual stream as it is (o and down of
 * Llama), uses the difference of its output, (X_f - X) W^T, plus a share of the stream's loss before the
 * addition, which it can compensate for in part. Elsewhere several modules read the input, and its difference serves
 * all of them.
 *
 * The path is always one step ahead: attention and MLP are added to its stream as soon as the quantized path has
 * reached their inputs. Only the stream is therefore stored, and float weights from the group that solves them to the
 * next addition. */

#include "pipeline/reference.h"

#include "base/err.h"
#include "pipeline/pass.h"
#include "pipeline/solve.h"

#include <stdlib.h>

int reference_open(struct run *run)
{
    const struct calibration_set *set = run->calibration.set;
    const struct plans *plans = model_plans(run->p->model);
    const struct gpu *gpu = run->p->gpu;
    struct reference *reference = &run->reference;
    int64_t narrowest = INT64_MAX;
    int modules = 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int g = 0; g < plan->group_count; g++) {
            narrowest = plan->groups[g].columns < narrowest ? plan->groups[g].columns : narrowest;
        }
        modules = plan->module_count > modules ? plan->module_count : modules;
    }
    if (!recipe_has_targets(run->p->recipe, set->sequences * set->length, narrowest)) {
        return 0;
    }
    const int64_t shape[2] = {run->calibration.batch * set->length, run->config->hidden_size};
    reference->float_weights = calloc((size_t)modules, sizeof(*reference->float_weights));
    if (reference->float_weights == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of %d weights", modules);
    }
    TRY(microbatches_init_second(&reference->batches, &run->calibration, plans, gpu));
    return gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &reference->lacks);
}

void reference_close(struct run *run)
{
    microbatches_deinit(&run->reference.batches, run->p->gpu);
    gpu_tensor_free(run->p->gpu, &run->reference.lacks);
    free(run->reference.float_weights);
}

int reference_init(struct run *run, const struct plan *plan, int group, struct layer_stats *stats)
{
    int module = plan->groups[group].residual;

    return stats_init_target(stats, module >= 0 ? plan->modules[module].rows : 0, run->p->gpu);
}

void reference_free(struct run *run, int module)
{
    if (run->reference.float_weights == NULL) {
        return;
    }
    if (run->tuning != NULL) { /* whose they are */
        run->reference.float_weights[module] = (struct tensor){.data = NULL};
    } else {
        gpu_tensor_free(run->p->gpu, &run->reference.float_weights[module]);
    }
}

int reference_view(const struct run *run, const struct block *block, struct block *out)
{
    TRY(block_view(block, out));
    for (int i = 0; i < block->plan->module_count; i++) {
        struct block_module *module = &out->modules[i];
        if (run->reference.float_weights[i].data != NULL) {
            module->weight = run->reference.float_weights[i];
        }
        module->input = (struct gpu_input){.element = DTYPE_F32};
        module->outliers = (struct tensor){0};
    }
    out->key_cache = out->value_cache = (struct gpu_cache){0};
    return 0;
}

void reference_release(struct run *run, const struct plan *plan, int group)
{
    bool all = group == plan->group_count;
    bool passed = all || plan_residual_before(plan, group + 1) != plan_residual_before(plan, group);

    for (int i = 0; run->reference.float_weights != NULL && passed && i < plan->module_count; i++) {
        if (all || plan->modules[i].group <= group) {
            reference_free(run, i);
        }
    }
}

/* The share of the residual stream's loss that a module compensates for. */
static double residual_share(struct run *run, int module)
{
    struct qscheme scheme;
    struct quant_targets targets = {.residual_share = 0};
    const struct recipe_stage *solver = module_solver(run, module, &scheme);

    if (solver != NULL && solver->quantizer->targets != NULL) {
        (void)solver->quantizer->targets(solver->params, &targets);
    }
    return targets.residual_share;
}

/* What the path has when all before a group is done: its stream, what the layer takes, and what experts before the
 * group added up. */
static plan_set kept_before(const struct plan *plan, int group)
{
    plan_set kept = PLAN_BIT(plan_residual_before(plan, group)) | plan_taken(plan);

    for (int s = 0; s < plan->step_count; s++) {
        bool before = group == plan->group_count || s < plan->groups[group].step;
        kept |= plan->steps[s].kind == STEP_EXPERTS && before ? PLAN_BIT(plan->steps[s].out) : 0;
    }
    return kept;
}

/* Some steps of the path, from values of which `open` are there already. */
static int run_steps(struct run *run, const struct block *reference, struct microbatch *b, plan_set have, plan_set open,
                     plan_set want)
{
    plan_set steps = 0, used = 0;

    TRY(pass_steps(reference->plan, have | open, want, &steps, &used));
    TRY(pass_open(run, run->reference.stores, b, used & ~open));
    return block_run(reference, &b->values, steps);
}

/* On to the next sum of the residual stream, and to the first with what the layer gives. open: values of the
 * micro-batch that are there already. */
static int reference_advance(struct run *run, const struct block *reference, plan_set have, plan_set open, int next,
                             struct microbatch *b)
{
    plan_set made = PLAN_BIT(next) | ((have & PLAN_BIT(0)) != 0 ? reference->plan->given : 0);

    TRY(run_steps(run, reference, b, have, open, made));
    return pass_write(run, run->reference.stores, b, made);
}

/* Whether a sum of the stream comes between a group and the next one, and somebody is going to read it. */
static bool advances_after(const struct run *run, const struct plan *plan, int group)
{
    int next = plan_residual_before(plan, group + 1);
    bool last = next == plan->output && run->block_index + 1 == run->config->num_layers;

    return !last && next != plan_residual_before(plan, group);
}

int reference_experts(const struct experts_turn *turn, int group)
{
    struct run *run = turn->run;
    const struct plan *plan = turn->block->plan;
    const struct experts_input input = {.batches = &run->reference.batches,
                                        .stores = run->reference.stores,
                                        .have = kept_before(plan, group),
                                        .phase = PHASE_FORWARD,
                                        .share = run->block_fraction,
                                        .doing = "calibrating"};
    struct block view = {0};

    if (run->reference.stores[0] == NULL) {
        return 0;
    }
    TRY(reference_view(run, turn->block, &view));
    int rc = experts_add(turn, &view, &input);
    block_view_deinit(&view);
    return rc;
}

static int advance_batches(struct run *run, const struct block *reference, plan_set have, int next)
{
    for (int64_t i = 0; i < microbatches_count(&run->reference.batches); i++) {
        struct microbatch b = microbatches_at(&run->reference.batches, reference->plan, i);
        TRY(run_tick(run, run->block_fraction, "calibrating"));
        TRY(reference_advance(run, reference, have, 0, next, &b));
    }
    return 0;
}

int reference_pass_experts(struct run *run, struct block *block, int group)
{
    const struct plan *plan = block->plan;
    int next = plan_residual_before(plan, group + 1);
    plan_set have = kept_before(plan, group) | PLAN_BIT(plan->steps[plan->groups[group].step].out);
    struct block view = {0};

    if (run->reference.stores[0] == NULL || !advances_after(run, plan, group)) {
        return 0;
    }
    TRY(reference_view(run, block, &view));
    int rc = advance_batches(run, &view, have, next);
    block_view_deinit(&view);
    run_end_phase(run, PHASE_FORWARD, 0);
    return rc;
}

/* What the group's modules lack, to their statistics: their inputs, or where one of them adds to the residual stream
 * its output, with `lacks` of the stream. b: this path at the group's input. */
static int reference_add_targets(struct run *run, const struct block *reference, const struct plan_group *group,
                                 struct microbatch *b, const struct tensor *in, const struct tensor *lacks,
                                 struct layer_stats *stats)
{
    const struct gpu *gpu = run->p->gpu;
    bool in_stream = reference->plan->values[group->input].residual; /* which stays: nothing may be written there */
    const struct tensor input = block_value(&b->values, group->input), missing = in_stream ? *lacks : input;

    TRY(gpu->ops->combine(run->stream, &missing, 1, &input, -1, in));
    if (group->residual < 0) {
        return stats_add_target(stats, gpu, run->stream, in, &missing);
    }
    const struct tensor product = block_value(&b->values, group->branch);
    TRY(gpu->ops->linear(run->stream, &product, &missing, &reference->modules[group->residual].weight, NULL));
    TRY(gpu->ops->add(run->stream, lacks, &product));
    return stats_add_target(stats, gpu, run->stream, in, lacks);
}

plan_set reference_reads(const struct run *run, const struct plan *plan, int group, const struct layer_stats *stats)
{
    bool targets = run->reference.stores[0] != NULL && (stats->flags & STATS_TARGET) != 0;

    return targets && plan->groups[group].residual >= 0 ? PLAN_BIT(plan_residual_before(plan, group)) : 0;
}

int reference_pass(struct run *run, const struct block *reference, int g, int64_t i, const struct microbatch *quantized,
                   struct layer_stats *stats)
{
    const struct gpu *gpu = run->p->gpu;
    const struct plan *plan = reference->plan;
    const struct plan_group *group = &plan->groups[g];
    int stream = plan_residual_before(plan, g);
    plan_set have = kept_before(plan, g), sources = plan_sources(plan, group);
    bool targets = stats != NULL && (stats->flags & STATS_TARGET) != 0;
    bool advances = advances_after(run, plan, g);
    struct microbatch b = microbatches_at(&run->reference.batches, plan, i);
    const struct tensor in = targets ? block_value(&quantized->values, group->input) : (struct tensor){0};
    const struct tensor lacks = tensor_2d(run->reference.lacks.data, DTYPE_F32, b.rows, run->config->hidden_size);

    if (group->expert >= 0 || (!advances && !targets)) {
        return 0;
    }
    TRY(pass_open(run, run->reference.stores, &b, PLAN_BIT(stream)));
    TRY(run_steps(run, reference, &b, have, PLAN_BIT(stream), sources));
    if (group->residual >= 0 && targets) {
        double share = residual_share(run, group->residual);
        const struct tensor x = block_value(&b.values, stream), y = block_value(&quantized->values, stream);
        TRY(gpu->ops->combine(run->stream, &lacks, share, &x, -share, &y));
    }
    if (advances) {
        TRY(reference_advance(run, reference, have, PLAN_BIT(stream) | sources, plan_residual_before(plan, g + 1), &b));
    }
    run_end_phase(run, PHASE_FORWARD, 0);
    if (!targets) {
        return 0;
    }
    TRY(reference_add_targets(run, reference, group, &b, &in, &lacks, stats));
    run_end_phase(run, PHASE_STATISTICS, 2.0 * (double)b.rows * (double)tensor_count(&stats->target));
    return 0;
}
