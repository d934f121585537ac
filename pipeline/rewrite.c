/* Rewriting stages over the open block (SmoothQuant, AWQ): one input group after the other in the order of the forward
 * pass, each stage sees the inputs that the groups already rewritten make, in float, and changes the block without
 * changing its output.
 *
 * The passes here leave the residual stream alone: the solving passes that follow start from it again. What a group
 * reads is made from the layer's input and from what else is kept between passes. */

#include "pipeline/rewrite.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "pipeline/experts.h"
#include "pipeline/pass.h"
#include "pipeline/solve.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct rewrite_data {
    struct run *run;
    struct block *block;
    const struct plan_group *group; /* at hand */
    bool all;                       /* an expert sees all tokens: as asked, or since too few went to it */
    plan_set have;                  /* values that are there: the layer's input, and what the stores hold */
    const struct qscheme *schemes;  /* [modules] */
    const bool *quantized;          /* [modules] */
    struct experts_turn turn;       /* of the step that the group's expert is in */
};

/* Micro-batch i with the values `want`. The layer's input is a copy, since additions work in its place. */
static int make_values(const struct rewrite_data *d, int64_t i, plan_set want, struct microbatch *b)
{
    struct run *run = d->run;
    plan_set steps, used;

    *b = microbatches_at(&run->calibration, d->block->plan, i);
    TRY(pass_steps(d->block->plan, d->have, want, &steps, &used));
    if ((used & PLAN_BIT(0)) != 0) {
        TRY(microbatch_read(b, 0, run->stores[0], ACTIVATIONS_IN, run->p->gpu, run->stream));
    }
    used |= d->group->kept & plan_taken(d->block->plan); /* a search runs on from the group's input */
    pass_place(run, run->stores, b, want & ~used & ~plan_sources(d->block->plan, d->group));
    return pass_run(run, run->stores, d->block, b, steps, used & ~PLAN_BIT(0));
}

/* Micro-batch i with the input of the group at hand: an expert's are the rows that went to it, or, where too few did,
 * those of all tokens. */
static int make_input(const struct rewrite_data *d, int64_t i, struct block_values *values)
{
    struct microbatch b;

    TRY(make_values(d, i, plan_sources(d->block->plan, d->group), &b));
    return block_group_input(d->block, &b.values, d->group, d->all, values);
}

static double share_of(const struct rewrite_data *d, double part)
{
    int64_t group = d->group - d->block->plan->groups;
    return 0.25 * ((double)group + part) / (double)d->block->plan->group_count;
}

static int rewrite_gather(const struct rewrite_data *d, struct layer_stats *stats)
{
    struct run *run = d->run;
    int64_t batches = microbatches_count(&run->calibration);

    for (int64_t i = 0; i < batches; i++) {
        struct microbatch b;
        TRY(run_tick(run, share_of(d, 0.5 * (double)i / (double)batches), "calibrating"));
        TRY(make_input(d, i, &b.values));
        run_end_phase(run, PHASE_FORWARD, 0);
        if (block_values_rows(&b.values) > 0) {
            const struct tensor in = block_value(&b.values, d->group->input);
            TRY(stats_add(stats, run->p->gpu, run->stream, &in));
        }
        run_end_phase(run, PHASE_STATISTICS, 0);
    }
    return 0;
}

/* Factors of the group's input can be folded, and some module that reads it is going to be quantized. */
static bool can_rewrite(const struct rewrite_data *d, const struct plan_group *group)
{
    bool any = false;

    for (int i = 0; i < group->count; i++) {
        any = any || d->quantized[group->modules[i]];
    }
    return any && group->fold.kind != FOLD_NONE;
}

/* Whether a stage may rewrite this group or one that comes later. */
static bool any_is_left(const struct rewrite_data *d, int group)
{
    while (group < d->block->plan->group_count && !can_rewrite(d, &d->block->plan->groups[group])) {
        group++;
    }
    return group < d->block->plan->group_count;
}

/* After a rewritten group: store what the next one needs, except the residual stream, while there are others to be
 * rewritten. The sum of experts, which are not loaded here, is never among it: no group that follows from it has a
 * fold. */
static int rewrite_advance(struct rewrite_data *d)
{
    const struct plan *plan = d->block->plan;
    int next = (int)(d->group - plan->groups) + 1;
    struct run *run = d->run;
    plan_set keep = any_is_left(d, next) ? plan->groups[next].kept & ~d->have : 0;

    for (int v = 0; v < plan->value_count; v++) {
        keep &= plan->values[v].residual ? ~PLAN_BIT(v) : ~(plan_set)0;
    }
    for (int64_t i = 0; keep != 0 && i < microbatches_count(&run->calibration); i++) {
        struct microbatch b;
        TRY(run_tick(run, share_of(d, 0.9), "calibrating"));
        TRY(make_values(d, i, keep, &b));
        TRY(pass_write(run, run->stores, &b, keep));
    }
    run_end_phase(run, PHASE_FORWARD, 0);
    d->have |= keep;
    return 0;
}

static int rewrite_input(void *data, int64_t i, struct block_values *values)
{
    const struct rewrite_data *d = data;

    return make_input(d, i, values);
}

static const struct qscheme *rewrite_scheme(void *data, int module)
{
    const struct rewrite_data *d = data;
    return d->quantized[module] ? &d->schemes[module] : NULL;
}

static int rewrite_tick(void *data)
{
    const struct rewrite_data *d = data;
    return run_tick(d->run, share_of(d, 0.7), "quantizing");
}

static int rewrite_stage(struct run *run, const struct recipe_stage *stage, struct rewrite_data *data,
                         const struct layer_stats *stats)
{
    const struct rewrite_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .params = stage->params,
        .weight_dtype = model_dtype(run->p->model),
        .group = data->group,
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
    int rc = stage->quantizer->rewrite(&context);

    run_end_phase(run, PHASE_SOLVE, 0);
    return rc != 0 ? err_pass(rc, "%s of value %d", stage->quantizer->name, data->group->input) : 0;
}

static int gather_finished(const struct rewrite_data *d, unsigned wants, struct layer_stats *stats)
{
    struct run *run = d->run;

    TRY(stats_init(stats, wants, d->group->columns, run->p->gpu));
    TRY(rewrite_gather(d, stats));
    if (d->group->expert >= 0 && stats->tokens == 0) {
        return 0;
    }
    return stats_finish(stats, run->p->gpu, run->stream);
}

/* Statistics for one stage; of all tokens where a starved expert's own say too little. */
static int stage_stats(struct rewrite_data *d, const struct recipe_stage *stage, struct layer_stats *stats)
{
    const struct expert_calibration experts = quant_experts(stage->params);
    bool expert = d->group->expert >= 0;

    d->all = expert && experts.all;
    TRY(gather_finished(d, stage->quantizer->rewrite_stats, stats));
    if (!expert || d->all || stats->tokens >= experts.min_tokens) {
        return 0;
    }
    stats_deinit(stats, d->run->p->gpu);
    d->all = true;
    return gather_finished(d, stage->quantizer->rewrite_stats, stats);
}

/* An expert's modules are there for as long as its groups are rewritten. */
static int load_group(struct rewrite_data *data)
{
    const struct plan_group *group = data->group;

    if (group->expert < 0 || !can_rewrite(data, group)) {
        return 0;
    }
    if (data->turn.count > 0 && data->turn.step != group->step) {
        experts_end(&data->turn);
    }
    if (data->turn.count == 0) {
        data->turn = experts_begin(data->run, data->block, NULL, group->step);
    }
    return experts_seek(&data->turn, group->expert);
}

/* Statistics are gathered again for each stage: the one before it changed them. */
static int rewrite_group(struct rewrite_data *data)
{
    struct run *run = data->run;
    const struct recipe *recipe = run->p->recipe;

    TRY(load_group(data));
    for (int i = 0; i < recipe->count && can_rewrite(data, data->group); i++) {
        const struct recipe_stage *stage = &recipe->stages[i];
        struct layer_stats stats = {0};
        if (stage->quantizer->rewrite == NULL) {
            continue;
        }
        int rc = stage_stats(data, stage, &stats);
        if (rc == 0) {
            rc = rewrite_stage(run, stage, data, &stats);
        }
        stats_deinit(&stats, run->p->gpu);
        TRY(rc);
    }
    return rewrite_advance(data);
}

/* The turn is the caller's to end. */
static int rewrite_groups(struct rewrite_data *data)
{
    const struct plan *plan = data->block->plan;
    AUTO_FREE struct qscheme *schemes = NULL;
    AUTO_FREE bool *quantized = NULL;

    TRY(mem_array(&schemes, (size_t)plan->module_count));
    TRY(mem_array(&quantized, (size_t)plan->module_count));
    for (int i = 0; i < plan->module_count; i++) {
        quantized[i] = module_solver(data->run, i, &schemes[i]) != NULL;
    }
    data->schemes = schemes;
    data->quantized = quantized;
    for (int g = 0; g < plan->group_count; g++) {
        data->group = &plan->groups[g];
        TRY(rewrite_group(data));
    }
    return 0;
}

int block_rewrite(struct run *run, struct block *block)
{
    struct rewrite_data data = {.run = run, .block = block, .have = block->plan->inputs};

    if (!recipe_rewrites(run->p->recipe) || run->calibration.set == NULL) {
        return 0;
    }
    int rc = rewrite_groups(&data);
    if (data.turn.count > 0) {
        experts_end(&data.turn);
    }
    return rc != 0 ? err_pass(rc, "rewrite block %lld", (long long)run->block_index) : 0;
}

/* A float tensor under its full name, [rows, cols], to the outputs. */
static int output_tensor(struct run *run, const char *name, const struct tensor *tensor, struct block_outputs *outputs)
{
    const struct qscheme scheme = {
        .kind = QTENSOR_DENSE, .bits = 16, .group_size = 1, .scale_dtype = model_dtype(run->p->model)};
    int64_t rows = tensor->rank == 2 ? tensor->shape[0] : 1, cols = tensor_count(tensor) / rows;
    const struct tensor no_codes = {.data = NULL};
    struct qtensor made, *q = &made;

    TRY(block_outputs_reserve(outputs));
    TRY(qtensor_new(name, &scheme, rows, cols, q));
    block_outputs_add_take(outputs, q, &no_codes);
    q = &outputs->list[outputs->count - 1];
    TRY(run->p->gpu->ops->download(run->stream, q->tables, tensor->data, tensor_bytes(tensor)));
    for (int64_t i = 0; i < rows * cols; i++) {
        q->tables[i] = dtype_round(q->tables[i], scheme.scale_dtype);
        if (!isfinite(q->tables[i])) {
            return err_set_module(err_raise(ERR_NON_FINITE_VALUE, "%s [%lld] is beyond %s after rewriting", name,
                                            (long long)i, dtype_rows[scheme.scale_dtype].name),
                                  name);
        }
    }
    return 0;
}

static int output_parts(struct run *run, const struct block *block, int i, bool weight, struct block_outputs *outputs)
{
    const struct plan_module *plan = &block->plan->modules[i];
    char name[MODEL_NAME_MAX];

    if (weight) {
        model_tensor_name(run->p->model, run->block_index, plan->path, "weight", name);
        TRY(output_tensor(run, name, &block->modules[i].weight, outputs));
    }
    if (plan->bias) {
        model_tensor_name(run->p->model, run->block_index, plan->path, "bias", name);
        TRY(output_tensor(run, name, &block->modules[i].bias, outputs));
    }
    return 0;
}

/* Of a module that was changed: its weight where it is not quantized, and its bias. */
static int output_module(struct run *run, struct block *block, int i, struct block_outputs *outputs)
{
    const struct plan_module *plan = &block->plan->modules[i];
    const struct block_module *module = &block->modules[i];
    struct qscheme unused;
    bool weight = module_solver(run, i, &unused) == NULL, load = module->weight.data == NULL;

    if (!module->changed || (!weight && !plan->bias)) {
        return 0;
    }
    if (load) {
        TRY(block_load_module(run->p->model, run->p->gpu, run->stream, block, i));
    }
    int rc = output_parts(run, block, i, weight, outputs);
    if (load) {
        block_drop_module(block, i, run->p->gpu);
    }
    return rc;
}

int block_keep_changes(struct run *run, struct block *block, struct block_outputs *outputs)
{
    const struct plan *plan = block->plan;
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < plan->module_count; i++) {
        TRY(output_module(run, block, i, outputs));
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (block->norms[i].changed) {
            model_tensor_name(run->p->model, run->block_index, plan->norms[i].path, "weight", name);
            TRY(output_tensor(run, name, &block->norms[i].weight, outputs));
        }
        if (block->norms[i].changed && plan->norms[i].bias) {
            model_tensor_name(run->p->model, run->block_index, plan->norms[i].path, "bias", name);
            TRY(output_tensor(run, name, &block->norms[i].bias, outputs));
        }
    }
    return 0;
}
