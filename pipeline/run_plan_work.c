/* What layers have and compute, as run_plan.c and the files next to it add it up. */

#include "pipeline/run_plan_parts.h"

#include <math.h>

#define FLOAT ((int64_t)sizeof(float))

static int64_t work_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t run_walk_weights(const struct plan *plan, int64_t stored, int64_t *largest)
{
    int64_t elements = 0;

    *largest = 0;
    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *m = &plan->modules[i];
        if (m->expert < 0) {
            elements += m->rows * m->cols + (m->bias ? m->rows : 0);
            *largest = work_larger(*largest, m->rows * m->cols * stored);
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        elements += plan->norms[i].size * (plan->norms[i].bias ? 2 : 1);
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        int64_t count = 1;
        for (int axis = 0; axis < plan->parameters[i].rank; axis++) {
            count *= plan->parameters[i].shape[axis];
        }
        elements += count;
    }
    return elements * FLOAT;
}

static int64_t expert_elements(const struct plan_experts *experts)
{
    int64_t elements = 0;

    for (int i = 0; i < experts->plan->module_count; i++) {
        elements += experts->plan->modules[i].rows * experts->plan->modules[i].cols;
    }
    return elements;
}

int64_t run_walk_turn(const struct run_walk *w, const struct plan_experts *experts)
{
    return experts != NULL ? memory_plan_turn(experts, w->expert_bytes) * expert_elements(experts) * FLOAT : 0;
}

double run_walk_forward(const struct run_walk *w, int64_t layer, int64_t tokens, int64_t length, bool ends)
{
    const struct plan *plan = plans_layer(model_plans(w->model), layer);
    plan_set want = 0, steps = ~(plan_set)0, used = 0;
    bool after = plan->group_count > 0 && plan->groups[plan->group_count - 1].expert < 0;

    for (int g = 0; ends && g < plan->group_count; g++) {
        want |= plan_sources(plan, &plan->groups[g]);
        want |= after && plan->groups[g].expert >= 0 ? PLAN_BIT(plan->steps[plan->groups[g].step].out) : 0;
    }
    if (ends && !plan_steps(plan, plan->inputs, want, &steps, &used)) {
        steps = ~(plan_set)0;
    }
    return plan_flops(plan, steps, tokens, length);
}

double run_walk_stored(const struct run_walk *w, int64_t layer, double *experts)
{
    const struct plan *plan = plans_layer(model_plans(w->model), layer);
    double stored = (double)dtype_rows[model_dtype(w->model)].bytes, elements = 0;

    *experts = 0;
    for (int i = 0; i < plan->module_count; i++) {
        double bytes = (double)(plan->modules[i].rows * plan->modules[i].cols) * stored;
        *(plan->modules[i].expert >= 0 ? experts : &elements) += bytes;
    }
    return elements;
}

void run_walk_widths(struct run_walk *w)
{
    const struct plans *plans = model_plans(w->model);
    double weights = 0, logs = 0;

    for (size_t i = 0; i < plans_modules(plans); i++) {
        int module;
        int64_t layer = plans_module_at(plans, i, &module);
        const struct plan_module *m = &plans_layer(plans, layer)->modules[module];
        double elements = (double)m->rows * (double)m->cols;
        weights += elements;
        logs += elements * log(elements) / 2;
        w->plan->experts = w->plan->experts || m->expert >= 0;
    }
    w->plan->width = weights > 0 ? exp(logs / weights) : 0;
}
