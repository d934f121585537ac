/* Widths of activation stores: values of a layer's plan that outlive a pass, merged over all kinds of layers. */

#include "pipeline/stores.h"

#include <string.h>

/* Numbers of the stores that the values of a set have. */
static uint64_t stores_of(const struct plan *plan, plan_set values)
{
    uint64_t stores = 0;

    for (int v = 0; v < plan->value_count; v++) {
        stores |= (values & PLAN_BIT(v)) != 0 ? (uint64_t)1 << plan->storages[plan->values[v].storage].store : 0;
    }
    return stores;
}

/* What a path that only passes through a layer keeps next to its residual stream: the sums of experts, and, where
 * `inputs`, what these are made of. */
static uint64_t stores_of_experts(const struct plan *plan, bool inputs)
{
    uint64_t stores = 0;

    for (int s = 0; s < plan->step_count; s++) {
        stores |= plan->steps[s].kind == STEP_EXPERTS ? stores_of(plan, PLAN_BIT(plan->steps[s].out)) : 0;
    }
    for (int g = 0; inputs && g < plan->group_count; g++) {
        stores |= plan->groups[g].expert >= 0 ? stores_of(plan, plan->groups[g].kept) : 0;
    }
    return stores & ~(uint64_t)1;
}

void stores_values(const struct plans *plans, enum stores_use use, int64_t columns[PLAN_VALUES_MAX])
{
    memset(columns, 0, PLAN_VALUES_MAX * sizeof(*columns));
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        uint64_t stores = use == STORES_CALIBRATION ? ~(uint64_t)1 : stores_of_experts(plan, use == STORES_EVALUATION);
        for (int i = 0; i < plan->store_count; i++) {
            bool wider = (stores >> i & 1) != 0 && plan->store_columns[i] > columns[i];
            columns[i] = wider ? plan->store_columns[i] : columns[i];
        }
    }
}

void stores_shared(const struct plans *plans, int64_t columns[PLAN_SHARED_MAX])
{
    memset(columns, 0, PLAN_SHARED_MAX * sizeof(*columns));
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int v = 0; v < plan->value_count; v++) {
            if (plan->values[v].shared > 0) {
                columns[plan->values[v].shared - 1] = plan->values[v].width;
            }
        }
    }
}
