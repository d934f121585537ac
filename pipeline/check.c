/* What a recipe does with a model's modules, from headers alone. */

#include "pipeline/check.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int recipe_modules(const struct recipe *recipe, const struct format *format, const struct model *model,
                   struct format_module **modules, int *count)
{
    const struct plans *plans = model_plans(model);
    size_t total = plans_modules(plans);
    struct format_module *list = calloc(total, sizeof(*list));
    int n = 0;

    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of modules");
    }
    for (size_t i = 0; i < total; i++) {
        struct format_module *m = &list[n];
        int number;
        int64_t layer = plans_module_at(plans, i, &number);
        const struct plan_module *module = &plans_layer(plans, layer)->modules[number];
        model_module_name(model, layer, number, m->name);
        const struct recipe_stage *solver = recipe_module_solver(recipe, module, m->name);
        if (solver == NULL) {
            continue;
        }
        m->rows = module->rows;
        m->cols = module->cols;
        int rc = recipe_scheme(recipe, solver, m->name, m->rows, m->cols, &m->scheme);
        if (rc != 0) {
            rc = err_pass(rc, "scheme of %s", m->name);
            free(list);
            return rc;
        }
        if (format != NULL) {
            m->scheme.scale_dtype = format->scale_dtype(model_dtype(model));
        }
        m->scheme.weight_dtype = model_dtype(model);
        m->outliers =
            solver->quantizer->outliers != NULL ? solver->quantizer->outliers(solver->params, m->rows, m->cols) : 0;
        n++;
    }
    *modules = list;
    *count = n;
    return 0;
}

/* Whoever reads the report is to know what the result rests on. */
static void warn_bare(const struct model *model, int count, json_t *warnings)
{
    char message[512];

    snprintf(message, sizeof(message),
             "model-free: %.200s, so no calibration was used and nothing was evaluated; %d of %zu weights are "
             "quantized, chosen by their names and shapes alone",
             model_bare_reason(model), count, plans_modules(model_plans(model)));
    json_array_append_new(warnings, json_pack("{s:s, s:s}", "code", "model_free", "message", message));
}

int recipe_warnings(const struct recipe *recipe, const struct format *format, const struct model *model,
                    json_t *warnings)
{
    struct format_module *modules = NULL;
    int count = 0;

    if (recipe_analyses(recipe)) {
        return 0;
    }
    int rc = recipe_modules(recipe, format, model, &modules, &count);
    if (rc == 0) {
        const struct format_config config = {
            .modules = modules, .count = count, .model = model, .method = recipe->name, .cache = recipe->cache};
        rc = format_warnings(format, &config, warnings);
        if (rc == 0 && model_is_bare(model)) {
            warn_bare(model, count, warnings);
        }
    }
    free(modules);
    return rc != 0 ? err_pass(rc, "warnings") : 0;
}
