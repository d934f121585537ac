/* What rewriting a block's input groups takes (rewrite.c): for each stage the group's input is made again from what is
 * kept, once for its statistics and as often as the method's search asks for it. */

#include "pipeline/run_plan_parts.h"

#define FLOAT ((int64_t)sizeof(float))

/* Some module of the group is solved, and factors of its input can be folded. */
static bool rewrite_is_due(const struct layer_walk *l, const struct plan_group *group)
{
    struct qscheme scheme;
    bool any = false;

    for (int i = 0; i < group->count; i++) {
        any = any || run_walk_solver(l->w, l->layer, group->modules[i], &scheme) != NULL;
    }
    return any && group->fold.kind != FOLD_NONE;
}

/* Of all tokens, from what is there to what is asked for. */
static double rewrite_flops(const struct layer_walk *l, plan_set have, plan_set want)
{
    plan_set steps = 0, used = 0;

    return plan_steps(l->plan, have, want, &steps, &used) ? plan_flops(l->plan, steps, l->w->tokens, l->w->load->length)
                                                          : 0;
}

static bool rewrite_shape(const struct layer_walk *l, const struct group_walk *g, struct quant_group *out)
{
    const struct plan *inner = plan_of_group(l->plan, g->group);
    int64_t largest = 0;

    *out = (struct quant_group){.batch_tokens = l->w->batch_rows,
                                .batches = (l->w->tokens + l->w->batch_rows - 1) / l->w->batch_rows,
                                .expert = g->group->expert >= 0};
    for (int i = 0; i < g->group->count; i++) {
        const struct plan_module *m = &l->plan->modules[g->group->modules[i]];
        struct qscheme scheme;
        if (run_walk_solver(l->w, l->layer, g->group->modules[i], &scheme) == NULL) {
            continue;
        }
        out->elements += m->rows * m->cols;
        out->tallest = out->tallest > m->rows ? out->tallest : m->rows;
        out->group_size = scheme.group_size > 0 ? scheme.group_size : m->cols;
        if (m->rows * m->cols > largest) {
            largest = m->rows * m->cols;
            out->linear = run_layer_shape(l, g, g->group->modules[i]);
        }
    }
    if (g->group->branch >= 0) {
        plan_set steps = 0, used = 0;
        out->branch = inner->values[g->group->branch].width;
        if (plan_steps(inner, PLAN_BIT(g->group->input) | plan_taken(inner), PLAN_BIT(g->group->branch), &steps,
                       &used)) {
            out->branch_flops = plan_flops(inner, steps, 1, l->w->load->length);
        }
    }
    return largest > 0;
}

/* One stage at a group whose statistics are of its own tokens, or of all; share: of the groups like this one. */
static void rewrite_stage_walk(struct layer_walk *l, const struct group_walk *g, const struct recipe_stage *stage,
                               double before, double share)
{
    struct run_walk *w = l->w;
    double input = before + run_layer_inner(l, g->group, g->tokens);
    struct quant_group shape;
    struct quant_cost cost = {0};

    if (share == 0 || !rewrite_shape(l, g, &shape)) {
        return;
    }
    shape.input_flops = input / (double)shape.batches;
    if (stage->quantizer->rewrite_cost != NULL) {
        stage->quantizer->rewrite_cost(stage->params, &shape, &cost);
    }
    int64_t stats = (stage->quantizer->rewrite_stats & STATS_RANGE) != 0 ? 2 * g->group->columns * FLOAT : 0;
    run_walk_note(w, STAGE_QUANTIZING, l->weights + g->experts + stats + cost.solving, cost.host);
    w->plan->work[PHASE_SOLVE] += share * g->times * cost.operations;
    w->plan->work[PHASE_FORWARD] += share * g->times * input;
    w->plan->work[PHASE_STATISTICS] += share * g->times * 4 * (double)g->tokens * (double)g->group->columns;
}

/* have: values that are there. An expert with too few tokens of its own is seen once more with all. */
static void rewrite_group_walk(struct layer_walk *l, const struct group_walk *g, plan_set have)
{
    const struct recipe *recipe = l->w->load->recipe;
    double before = rewrite_flops(l, have, plan_sources(l->plan, g->group));
    struct group_walk all = *g;

    all.tokens = l->w->tokens;
    for (int i = 0; i < recipe->count; i++) {
        const struct recipe_stage *stage = &recipe->stages[i];
        const struct expert_calibration experts = quant_experts(stage->params);
        double starved = run_layer_starved(g->group, &experts, g->tokens);
        bool only_all = g->group->expert >= 0 && experts.all;
        if (stage->quantizer->rewrite != NULL) {
            double gather = before + run_layer_inner(l, g->group, g->tokens);
            rewrite_stage_walk(l, g, stage, before, only_all ? 0 : 1 - starved);
            rewrite_stage_walk(l, &all, stage, before, only_all ? 1 : starved);
            l->w->plan->work[PHASE_FORWARD] += starved * g->times * gather;
        }
    }
}

/* What is stored after a group for the next one, while there are others to be rewritten. */
static plan_set rewrite_kept(const struct layer_walk *l, int group, plan_set have)
{
    const struct plan *plan = l->plan;
    int left = group + 1;

    while (left < plan->group_count && !rewrite_is_due(l, &plan->groups[left])) {
        left++;
    }
    if (left >= plan->group_count) {
        return 0;
    }
    plan_set keep = plan->groups[group + 1].kept & ~have;
    for (int v = 0; v < plan->value_count; v++) {
        keep &= plan->values[v].residual ? ~PLAN_BIT(v) : ~(plan_set)0;
    }
    return keep;
}

void run_layer_rewrite(struct layer_walk *l)
{
    const struct plan *plan = l->plan;
    plan_set have = plan->inputs;

    if (!recipe_rewrites(l->w->load->recipe) || l->w->tokens == 0) {
        return;
    }
    for (int g = 0; g < plan->group_count; g++) {
        const struct plan_experts *e = plan->groups[g].expert >= 0 ? plan->steps[plan->groups[g].step].experts : NULL;
        const struct group_walk walk = {.group = &plan->groups[g],
                                        .tokens = run_layer_tokens(l, &plan->groups[g]),
                                        .experts = run_walk_turn(l->w, e),
                                        .times = e != NULL ? (double)e->count : 1};
        if (plan->groups[g].expert <= 0 && rewrite_is_due(l, &plan->groups[g])) {
            rewrite_group_walk(l, &walk, have);
        }
        plan_set keep = rewrite_kept(l, g, have);
        l->w->plan->work[PHASE_FORWARD] += keep != 0 ? rewrite_flops(l, have, keep) : 0;
        have |= keep;
    }
}
