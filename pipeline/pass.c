/* Parts of a pass over the open block that block_pass.c, rewrite.c and cache_scales.c share: which steps there are, and
 * values of a micro-batch to and from the run's stores. */

#include "pipeline/pass.h"

#include "base/err.h"

int pass_open(struct run *run, struct microbatch *b, plan_set values)
{
    const struct plan *plan = b->values.plan;
    int rc = 0;

    for (int v = 0; rc == 0 && v < plan->value_count; v++) {
        if ((values & PLAN_BIT(v)) != 0) {
            rc = microbatch_open(b, v, run->stores[plan->storages[plan->values[v].storage].store],
                                 v == 0 ? ACTIVATIONS_IN : ACTIVATIONS_OUT, run->p->gpu, run->stream);
        }
    }
    return rc;
}

void pass_place(struct run *run, struct microbatch *b, plan_set values)
{
    const struct plan *plan = b->values.plan;

    for (int v = 0; v < plan->value_count; v++) {
        if ((values & PLAN_BIT(v)) != 0) {
            microbatch_place(b, v, run->stores[plan->storages[plan->values[v].storage].store], run->p->gpu);
        }
    }
}

int pass_write(struct run *run, const struct microbatch *b, plan_set values)
{
    const struct plan *plan = b->values.plan;
    int rc = 0;

    for (int v = 0; rc == 0 && v < plan->value_count; v++) {
        if ((values & PLAN_BIT(v)) != 0) {
            rc = microbatch_write(b, v, run->stores[plan->storages[plan->values[v].storage].store], run->p->gpu,
                                  run->stream);
        }
    }
    return rc;
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
    return group == 0 ? PLAN_BIT(0) : plan->groups[group - 1].kept;
}
