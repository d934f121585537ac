/* What a runtime that a format is for will not do with an artifact that is right all the same: said when the job is
 * submitted, among its warnings. */

#include "formats/common.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void format_warn(json_t *warnings, const char *code, const char *text, ...)
{
    char message[384];
    va_list list;

    va_start(list, text);
    vsnprintf(message, sizeof(message), text, list);
    va_end(list);
    json_array_append_new(warnings, json_pack("{s:s, s:s}", "code", code, "message", message));
}

int format_experts_schemes(const struct format_config *config, const struct qscheme **first, bool *all)
{
    const struct format_module **table = NULL;
    const struct plans *plans = model_plans(config->model);
    int rc = format_module_table(config, &table);
    const struct qscheme *found = NULL;
    bool alike = true, in_float = false;

    for (size_t i = 0; rc == 0 && i < plans_modules(plans); i++) {
        int module;
        const struct plan *plan = plans_layer(plans, plans_module_at(plans, i, &module));
        if (plan->modules[module].expert < 0) {
            continue;
        }
        in_float = in_float || table[i] == NULL;
        found = found == NULL && table[i] != NULL ? &table[i]->scheme : found;
        alike = alike && (table[i] == NULL || format_same_geometry(found, &table[i]->scheme));
    }
    free(table);
    *first = found;
    *all = alike && !in_float;
    return rc;
}

int format_warn_experts(const struct format_config *config, json_t *warnings, const char *text)
{
    const struct qscheme *experts;
    bool all;
    int rc = format_experts_schemes(config, &experts, &all);

    if (rc == 0 && experts != NULL) {
        format_warn(warnings, "not_in_transformers", "%s", text);
    }
    return rc;
}

/* Whether a module is quantized that the checkpoint has in one tensor with others, an expert's, and that is not loaded
 * by itself. */
static int warn_find_stacked(const struct format_config *config, bool *found)
{
    const struct format_module **table = NULL;
    const struct plans *plans = model_plans(config->model);
    const struct arch_experts *row = model_config(config->model)->arch->experts;
    int rc = row != NULL && row->apart ? 0 : format_module_table(config, &table);

    *found = false;
    for (size_t i = 0; table != NULL && !*found && i < plans_modules(plans); i++) {
        int module;
        const struct plan *plan = plans_layer(plans, plans_module_at(plans, i, &module));
        const struct plan_stored *stored = plan->modules[module].stored;
        *found = table[i] != NULL && stored != NULL && stored->entries > 0;
    }
    free(table);
    return rc;
}

int format_warnings(const struct format *format, const struct format_config *config, json_t *warnings)
{
    const struct model_config *c = model_config(config->model);

    if (!format->plain && config->count > 0 && c->arch->own_linears) {
        format_warn(
            warnings, "not_in_transformers",
            "transformers 5.24 has a class of its own for the linears of %s, which what loads quantized linears "
            "does not replace; format dense loads there",
            c->arch->name);
    }
    bool stacked = false;
    int rc = format->plain ? 0 : warn_find_stacked(config, &stacked);
    if (rc == 0 && stacked) {
        format_warn(warnings, "not_in_transformers",
                    "the checkpoint has a layer's experts in one tensor, and transformers 5.24 does not load those of "
                    "each expert: it leaves them as they were initialized, and lists their tensors as UNEXPECTED; "
                    "format dense loads there");
    }
    return rc == 0 && format->warn != NULL ? format->warn(config, warnings) : rc;
}
