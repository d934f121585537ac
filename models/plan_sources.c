/* What a layer has beyond its input: values of earlier layers, and what it gets of its tokens. */

#include "models/plan_internal.h"

#include "base/err.h"

int plan_tokens(struct plan_builder *b, int64_t width)
{
    return plan_add_step(b, &(struct plan_step){.kind = STEP_TOKENS, .module = -1, .norm = -1}, width);
}

int plan_take(struct plan_builder *b, int number, int64_t width)
{
    struct plan *plan = &b->plan;

    if (b->rc != 0) {
        return 0;
    }
    if (number < 0 || number >= PLAN_SHARED_MAX || plan->value_count == PLAN_VALUES_MAX) {
        return plan_fail(b, err_raise(ERR_INTERNAL, "a plan takes number %d of %d", number, PLAN_SHARED_MAX));
    }
    b->values[plan->value_count] =
        (struct plan_value){.width = width, .producer = -1, .last = -1, .shared = number + 1};
    return plan->value_count++;
}

void plan_give(struct plan_builder *b, int value, int number)
{
    if (b->rc == 0) {
        b->values[value].shared = number + 1;
    }
}
