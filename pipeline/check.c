/* What a recipe does with a model's modules, from headers alone. */

#include "pipeline/check.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

int recipe_modules(const struct recipe *recipe, const struct format *format, const struct model *model,
                   struct format_module **modules, int *count)
{
    const struct model_config *config = model_config(model);
    struct format_module *list = calloc((size_t)config->num_layers * LINEAR_COUNT, sizeof(*list));
    int n = 0;

    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of modules");
    }
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        for (int role = 0; role < LINEAR_COUNT; role++) {
            struct format_module *m = &list[n];
            model_linear_name(model, layer, (enum linear_role)role, m->name);
            const struct recipe_stage *solver = recipe_solver(recipe, m->name);
            if (solver == NULL) {
                continue;
            }
            arch_linear_shape(config, (enum linear_role)role, &m->rows, &m->cols);
            int rc = recipe_scheme(recipe, solver, m->name, m->rows, m->cols, &m->scheme);
            if (rc != 0) {
                free(list);
                return err_pass(rc, "scheme of %s", m->name);
            }
            if (format != NULL) {
                m->scheme.scale_dtype = format->scale_dtype(model_dtype(model));
            }
            m->scheme.weight_dtype = model_dtype(model);
            n++;
        }
    }
    *modules = list;
    *count = n;
    return 0;
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
    }
    free(modules);
    return rc != 0 ? err_pass(rc, "warnings") : 0;
}
