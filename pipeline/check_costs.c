/* What matching a request's patterns costs: counted once against the model, before anything else asks what a pattern
 * matches. */

#include "pipeline/check.h"

#include "base/err.h"

#include <stdlib.h>

int recipe_bind(struct recipe *recipe, const struct model *model)
{
    const struct plans *plans = model_plans(model);
    size_t total = plans_modules(plans), count = 0;
    char(*modules)[PATTERN_MODULE_SIZE] = calloc(total + 2, sizeof(*modules));

    if (modules == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of modules");
    }
    if (!model_is_bare(model)) {
        snprintf(modules[count++], sizeof(modules[0]), "%s", model_head_module(model));
        snprintf(modules[count++], sizeof(modules[0]), "%s", model_embedding_module(model));
    }
    for (size_t i = 0; i < total; i++) {
        int module;
        int64_t layer = plans_module_at(plans, i, &module);
        model_module_name(model, layer, module, modules[count++]);
    }
    int rc = patterns_bind(recipe->patterns, modules, count);
    free(modules);
    return rc;
}

/* False: the request's steps are used up, so later patterns were not matched either, and one error is enough. */
static bool check_cost(const struct recipe *recipe, const char *text, const char *pointer,
                       struct validation_errors *errors)
{
    const char *module;

    switch (patterns_verdict(recipe->patterns, text, &module)) {
    case PATTERN_TOO_COSTLY:
        validation_add(
            errors, ERR_INVALID_PARAMETER, pointer,
            "\"%.100s\" needs more than %d steps on %.100s: do not repeat what already repeats, or use a glob", text,
            PATTERN_STEPS_MAX, module);
        return true;
    case PATTERN_UNDECIDED:
        validation_add(
            errors, ERR_INVALID_PARAMETER, pointer,
            "with \"%.100s\" the request's patterns need more than %d steps on the modules of this model: use"
            " fewer or simpler ones",
            text, PATTERNS_STEPS_MAX);
        return false;
    default:
        return true;
    }
}

static bool check_list(const struct recipe *recipe, const json_t *patterns, const char *pointer,
                       struct validation_errors *errors)
{
    char at[128];
    size_t i;
    json_t *pattern;

    json_array_foreach(patterns, i, pattern)
    {
        snprintf(at, sizeof(at), "%s/%zu", pointer, i);
        if (!check_cost(recipe, json_string_value(pattern), at, errors)) {
            return false;
        }
    }
    return true;
}

static bool check_overrides(const struct recipe *recipe, struct validation_errors *errors)
{
    bool more = true;
    char at[96];

    for (int k = 0; more && k < recipe->override_count; k++) {
        const struct recipe_override *override = &recipe->overrides[k];
        const json_t *item = json_array_get(recipe_base(recipe)->overrides, (size_t)k);
        snprintf(at, sizeof(at), "/quantization/overrides/%d/match", k);
        more = check_cost(recipe, override->match, at, errors);
        if (more) {
            snprintf(at, sizeof(at), "/quantization/overrides/%d/float_inputs", k);
            more = check_list(recipe, json_object_get(item, "float_inputs"), at, errors);
        }
    }
    return more;
}

bool check_costs(struct recipe *recipe, const struct model *model, struct validation_errors *errors)
{
    const json_t *float_inputs = NULL;
    size_t before = errors->count;

    int rc = recipe_bind(recipe, model);
    if (rc != 0) {
        validation_add(errors, rc, "/quantization", "%s", err_last()->message);
        return false;
    }
    for (int i = 0; i < recipe->count && float_inputs == NULL; i++) { /* every stage that has the list has the same */
        float_inputs = ((const struct quant_base *)recipe->stages[i].params)->float_inputs;
    }
    (void)(check_list(recipe, recipe_base(recipe)->modules_to_not_convert, "/quantization/modules_to_not_convert",
                      errors) &&
           check_list(recipe, float_inputs, "/quantization/float_inputs", errors) && check_overrides(recipe, errors));
    return errors->count == before;
}
