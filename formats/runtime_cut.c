/* How runtimes divide a layer over devices: of two linears with attention or an activation between them, the first is
 * cut between its outputs and the second between its inputs; what makes the inputs of another linear directly (the
 * latent row of attention) is on every device undivided. */

#include "formats/runtimes.h"

#include <string.h>

static bool cut_reads(const struct plan_step *step, int value)
{
    for (int i = 0; i < step->inputs; i++) {
        if (step->in[i] == value) {
            return true;
        }
    }
    return false;
}

/* The value passes the step with nothing but factors and sums. */
static bool cut_passes(const struct plan *plan, const struct plan_step *step, int value)
{
    switch (step->kind) {
    case STEP_NORM:
    case STEP_SCALE:
    case STEP_ADD:
    case STEP_SELECT:
        return true;
    case STEP_ACTIVATE: /* times a number for each token */
        return step->inputs == 2 && step->in[1] == value && plan->values[step->in[0]].width == 1;
    default:
        return false;
    }
}

static enum runtime_cut cut_of_value(const struct plan *plan, int value, bool expert)
{
    enum runtime_cut found = CUT_OUTPUTS;

    if (plan->values[value].residual || (expert && value == plan->output)) {
        return CUT_INPUTS;
    }
    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        enum runtime_cut way = CUT_OUTPUTS;
        if (!cut_reads(step, value)) {
            continue;
        }
        if (step->kind == STEP_LINEAR) {
            return CUT_NONE;
        }
        if (cut_passes(plan, step, value)) {
            way = cut_of_value(plan, step->out, expert);
        }
        if (way == CUT_NONE) {
            return CUT_NONE;
        }
        found = way == CUT_INPUTS ? CUT_INPUTS : found;
    }
    return found;
}

enum runtime_cut runtime_cut_of(const struct plan *plan, int module)
{
    const struct plan_module *m = &plan->modules[module];

    if (m->step < 0) {
        return CUT_NONE; /* of a bare model */
    }
    if (m->expert < 0) {
        return cut_of_value(plan, plan->steps[m->step].out, false);
    }
    int step = plan_find_step(plan, STEP_EXPERTS);
    const struct plan *own = plan->steps[step].experts->plan;
    return cut_of_value(own, own->steps[m->step].out, true);
}
