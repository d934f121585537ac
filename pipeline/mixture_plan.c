/* Which linears a mixture chooses for, which of them are tied, and what each takes under each candidate, from headers
 * alone. */

#include "pipeline/mixture_parts.h"

#include "base/err.h"
#include "base/mem.h"
#include "pipeline/check.h"
#include "pipeline/disk_plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void mixture_plan_deinit(struct mixture_plan *plan)
{
    free(plan->modules);
    *plan = (struct mixture_plan){0};
}

/* The experts that a module is one of, or NULL. */
static const struct plan_experts *mixture_experts(const struct plan *plan, int module)
{
    for (int i = 0; plan->modules[module].expert >= 0 && i < plan->step_count; i++) {
        const struct plan_experts *experts = plan->steps[i].kind == STEP_EXPERTS ? plan->steps[i].experts : NULL;
        if (experts != NULL && module >= experts->first_module &&
            module < experts->first_module + (int)experts->count * experts->plan->module_count) {
            return experts;
        }
    }
    return NULL;
}

/* The first module of those that a module is tied to. fuses: the format's loaders take those of one input as one. */
static int mixture_tied_to(const struct plan *plan, int module, bool fuses)
{
    const struct plan_experts *experts = mixture_experts(plan, module);

    for (int f = 0; fuses && experts == NULL && f < plan->fused_count; f++) {
        for (int i = 0; i < plan->fused[f].count; i++) {
            if (plan->fused[f].modules[i] == module) {
                return plan->fused[f].modules[0];
            }
        }
    }
    return experts != NULL ? experts->first_module : module;
}

/* An expert's module has "*" in the expert's place. */
static void mixture_name_unit(const struct plan *plan, int module, const char *name, char out[PLAN_NAME_MAX])
{
    const struct plan_experts *experts = mixture_experts(plan, module);
    char stem[PLAN_NAME_MAX];

    snprintf(out, PLAN_NAME_MAX, "%s", name);
    if (experts == NULL) {
        return;
    }
    int size = snprintf(stem, sizeof(stem), "%s.%d.", experts->path, plan->modules[module].expert);
    int digits = size - (int)strlen(experts->path) - 2;
    const char *at = size < (int)sizeof(stem) ? strstr(name, stem) : NULL;
    if (at != NULL) {
        int kept = (int)(at - name) + (int)strlen(experts->path) + 1;
        snprintf(out, PLAN_NAME_MAX, "%.*s*%s", kept, name, name + kept + digits);
    }
}

/* Bits of a module in the artifact under a solver, or -1: not possible. */
static int64_t mixture_bits(const struct recipe *recipe, const struct recipe_stage *solver, const struct format *format,
                            const struct model *model, const struct mixture_module *m)
{
    struct format_module module = {.rows = m->rows, .cols = m->cols};
    struct qtensor q;

    memcpy(module.name, m->name, sizeof(module.name));
    if (recipe_scheme(recipe, solver, m->name, m->rows, m->cols, &module.scheme) != 0) {
        return -1;
    }
    module.scheme.scale_dtype = format != NULL ? format->scale_dtype(model_dtype(model)) : DTYPE_F16;
    module.scheme.weight_dtype = model_dtype(model);
    if (format != NULL && format->accepts(&module.scheme, m->rows, m->cols) != 0) {
        return -1;
    }
    if (format != NULL && !format->plain) {
        return 8 * disk_plan_module(format, &module);
    }
    return qtensor_describe(m->name, &module.scheme, m->rows, m->cols, 0, &q) != 0
               ? -1
               : llround(qtensor_bits_per_weight(&q) * (double)m->rows * (double)m->cols);
}

struct mixture_builder {
    const struct recipe *recipe;
    const struct format *format;
    const struct model *model;
    struct mixture_plan *plan;
    double source; /* bytes of quantized linears in the source */
};

/* A module that the mixture chooses for; `set` is the one that its layer's module `tied` got, if it has. */
static void mixture_add_choice(struct mixture_builder *b, const struct plan *layer, int number, int *sets)
{
    const struct mixture *mixture = b->recipe->mixture;
    struct mixture_module *m = &b->plan->modules[b->plan->count++];
    int tied = mixture_tied_to(layer, number, b->format == NULL || b->format->fuses);

    mixture_name_unit(layer, number, m->name, m->unit);
    if (sets[tied] < 0) {
        sets[tied] = b->plan->sets++;
    }
    m->set = sets[tied];
    for (int c = 0; c < mixture->candidates.count; c++) {
        m->bits[c] = mixture_bits(b->recipe, &mixture->candidates.list[c].solver, b->format, b->model, m);
    }
}

static void mixture_add_module(struct mixture_builder *b, int64_t index, const struct plan *layer, int number,
                               int *sets)
{
    const struct plan_module *module = &layer->modules[number];
    const struct plan_experts *experts = mixture_experts(layer, number);
    struct mixture_plan *plan = b->plan;
    struct mixture_module *m = &plan->modules[plan->count];
    double elements = (double)module->rows * (double)module->cols;
    double bytes = elements * (double)dtype_rows[model_dtype(b->model)].bytes;

    *m = (struct mixture_module){.rows = module->rows, .cols = module->cols, .share = 1};
    if (b->recipe->mixture->budget == MIXTURE_DECODE && experts != NULL) {
        m->share = (double)experts->top_k / (double)experts->count;
    }
    model_module_name(b->model, index, number, m->name);
    const struct recipe_stage *solver = recipe_module_solver(b->recipe, module, m->name);
    if (solver == NULL) {
        plan->fixed += b->recipe->mixture->budget == MIXTURE_DECODE ? 8 * bytes * m->share : 0;
        return;
    }
    b->source += bytes;
    plan->parameters += elements;
    if (recipe_override_of(b->recipe, m->name) == RECIPE_USUAL) {
        mixture_add_choice(b, layer, number, sets);
        return;
    }
    int64_t bits = mixture_bits(b->recipe, solver, b->format, b->model, m);
    plan->fixed_bits += bits > 0 ? (double)bits : 0;
    plan->fixed += bits > 0 ? (double)bits * m->share : 0;
}

/* What the budget allows in all, and what of it is not the linears'. */
static void mixture_set_limit(const struct mixture_builder *b)
{
    const struct mixture *mixture = b->recipe->mixture;
    const struct model_config *c = model_config(b->model);
    struct mixture_plan *plan = b->plan;

    switch (mixture->budget) {
    case MIXTURE_BITS:
        plan->limit = mixture->bits_per_weight * plan->parameters;
        break;
    case MIXTURE_BYTES:
        plan->limit = 8 * mixture->max_bytes;
        plan->fixed += 8 * ((double)model_bytes(b->model) - b->source);
        break;
    case MIXTURE_DECODE:
        plan->limit = 8 * mixture->decode_milliseconds / 1e3 * mixture->memory_bandwidth;
        plan->fixed += 8.0 * dtype_rows[model_dtype(b->model)].bytes * (double)c->vocab_size * (double)c->hidden_size;
        break;
    }
}

int mixture_plan(const struct recipe *recipe, const struct format *format, const struct model *model,
                 struct mixture_plan *out)
{
    const struct plans *plans = model_plans(model);
    AUTO(mixture_plan) struct mixture_plan plan = {0};
    struct mixture_builder builder = {recipe, format, model, &plan, 0};
    AUTO_FREE int *sets = NULL; /* of the open layer, by the first module of each */

    TRY(mem_array(&plan.modules, plans_modules(plans) + 1));
    for (int64_t index = 0; index < model_config(model)->num_layers; index++) {
        const struct plan *layer = plans_layer(plans, index);
        TRY(mem_resize(&sets, (size_t)layer->module_count + 1));
        memset(sets, -1, ((size_t)layer->module_count + 1) * sizeof(*sets));
        for (int i = 0; i < layer->module_count; i++) {
            mixture_add_module(&builder, index, layer, i, sets);
        }
    }
    mixture_set_limit(&builder);
    *out = plan;
    plan = (struct mixture_plan){0};
    return 0;
}
