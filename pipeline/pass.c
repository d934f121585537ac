/* Parts of a pass over the open block that block_pass.c, rewrite.c and cache_scales.c share: which steps there are, and
 * values of a micro-batch to and from the run's stores. */

#include "pipeline/pass.h"

#include "base/err.h"

int pass_open(struct run *run, struct activations *const *stores, struct microbatch *b, plan_set values)
{
    const struct plan *plan = b->values.plan;

    for (int v = 0; v < plan->value_count; v++) {
        if ((values & PLAN_BIT(v)) != 0) {
            TRY(microbatch_open(b, v, stores[plan->storages[plan->values[v].storage].store],
                                v == 0 ? ACTIVATIONS_IN : ACTIVATIONS_OUT, run->p->gpu, run->stream));
        }
    }
    return 0;
}

int pass_run(struct run *run, struct activations *const *stores, const struct block *block, struct microbatch *b,
             plan_set steps, plan_set used)
{
    const struct plan *plan = block->plan;

    for (int s = 0; s <= plan->step_count; s++) {
        plan_set made = 0; /* by the step before */
        for (int v = 0; v < plan->value_count; v++) {
            made |= plan->values[v].producer == s - 1 ? used & PLAN_BIT(v) : 0;
        }
        TRY(pass_open(run, stores, b, made));
        if (s < plan->step_count && (steps & PLAN_BIT(s)) != 0) {
            TRY(block_run(block, &b->values, PLAN_BIT(s)));
        }
    }
    return 0;
}

void pass_place(struct run *run, struct activations *const *stores, struct microbatch *b, plan_set values)
{
    const struct plan *plan = b->values.plan;

    for (int v = 0; v < plan->value_count; v++) {
        if ((values & PLAN_BIT(v)) != 0) {
            microbatch_place(b, v, stores[plan->storages[plan->values[v].storage].store], run->p->gpu);
        }
    }
}

int pass_write(struct run *run, struct activations *const *stores, const struct microbatch *b, plan_set values)
{
    const struct plan *plan = b->values.plan;

    for (int v = 0; v < plan->value_count; v++) {
        if ((values & PLAN_BIT(v)) != 0) {
            TRY(microbatch_write(b, v, stores[plan->storages[plan->values[v].storage].store], run->p->gpu,
                                 run->stream));
        }
    }
    return 0;
}

int pass_steps(const struct plan *plan, plan_set have, plan_set want, plan_set *steps, plan_set *used)
{
    return plan_steps(plan, have, want, steps, used)
               ? 0
               : err_raise(ERR_INTERNAL, "a pass needs values that were not kept: %llx of %llx",
                           (unsigned long long)want, (unsigned long long)have);
}

plan_set pass_kept_before(const struct plan *plan, int group)
{
    if (group == 0) {
        return plan->inputs;
    }
    const struct plan_group *last = &plan->groups[group - 1];
    bool experts = last->expert >= 0 && (group == plan->group_count || plan->groups[group].step != last->step);
    return last->kept | (experts ? PLAN_BIT(plan->steps[last->step].out) : 0);
}
