/* What a family may have got wrong in a plan. */

#include "models/plan_internal.h"

#include "base/err.h"

/* Whether the widths of a step's inputs fit each other and its constants. */
static bool step_fits(const struct plan_builder *b, const struct plan_step *step)
{
    int64_t width[PLAN_INPUTS_MAX] = {0};

    for (int i = 0; i < step->inputs; i++) {
        width[i] = b->values[step->in[i]].width;
    }
    switch (step->kind) {
    case STEP_ADD:
        return width[0] == width[1];
    case STEP_ACTIVATE:
        return step->inputs == 1 || width[0] == width[1] || width[0] == 1;
    case STEP_SCALE:
        return !step->has_parameter || b->parameters[step->parameter].shape[0] == 1 ||
               b->parameters[step->parameter].shape[0] == width[0];
    case STEP_NORM:
        return width[0] % b->norms[step->norm].size == 0;
    case STEP_ROPE:
        return step->rope.head_dim > 0 && width[0] % step->rope.head_dim == 0 && step->rope.rotated > 0 &&
               step->rope.rotated <= step->rope.head_dim && step->rope.rotated % 2 == 0;
    case STEP_SELECT:
        return step->select.stride > 0 && width[0] % step->select.stride == 0 && step->select.first >= 0 &&
               step->select.count > 0 && step->select.first <= step->select.stride - step->select.count;
    case STEP_JOIN:
        return step->join.heads > 0 && width[0] % step->join.heads == 0 &&
               (step->join.shared || width[1] % step->join.heads == 0);
    case STEP_ATTENTION:
        return width[0] == step->attention.heads * step->attention.head_dim &&
               width[1] == step->attention.kv_heads * step->attention.head_dim &&
               width[2] == step->attention.kv_heads * step->attention.value_dim;
    case STEP_CONV:
    case STEP_DELTA:
    case STEP_SCAN:
    case STEP_GATED_NORM:
        return plan_recurrent_fits(b, step);
    default:
        return true;
    }
}

int plan_check_steps(const struct plan_builder *b)
{
    for (int s = 0; s < b->plan.step_count; s++) {
        const struct plan_step *step = &b->steps[s];
        if (!step_fits(b, step)) {
            return err_raise(ERR_INTERNAL, "the inputs of step %d of a plan do not fit each other", s);
        }
    }
    return 0;
}

/* The float model's path keeps, between groups, the residual stream and what experts added up (pipeline/reference.c):
 * each group must follow from these alone. A branch that reads a norm from before another branch was added does not;
 * the two are to be added to each other first. */
int plan_check_stream(const struct plan *plan)
{
    plan_set steps, used;

    for (int g = 0; g < plan->group_count; g++) {
        plan_set have = PLAN_BIT(plan_residual_before(plan, g)) | plan_taken(plan);
        for (int s = 0; s < plan->groups[g].step; s++) {
            have |= plan->steps[s].kind == STEP_EXPERTS ? PLAN_BIT(plan->steps[s].out) : 0;
        }
        if (!plan_steps(plan, have, plan_sources(plan, &plan->groups[g]), &steps, &used)) {
            return err_raise(ERR_INTERNAL, "input %d of a plan does not follow from the residual stream before it",
                             plan->groups[g].input);
        }
    }
    return 0;
}

int plan_check_given(const struct plan *plan)
{
    int first = plan->step_count; /* the step that makes the first sum */

    for (int v = plan->value_count - 1; v > 0; v--) {
        first = plan->values[v].residual ? plan->values[v].producer : first;
    }
    for (int v = 0; v < plan->value_count; v++) {
        bool given = (plan->given & PLAN_BIT(v)) != 0;
        if (given && (plan->values[v].residual || plan->values[v].producer > first)) {
            return err_raise(ERR_INTERNAL, "value %d of a plan is given too late", v);
        }
    }
    return plan->store_count <= PLAN_SHARED_STORE ? 0 : err_raise(ERR_INTERNAL, "a plan keeps too many values");
}
