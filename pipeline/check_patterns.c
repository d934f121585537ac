/* What has no effect is refused: patterns that match no module, overrides of modules that are never quantized or that
 * later overrides decide, float_inputs of inputs that are not quantized anyway. A pattern that leaves a module in float
 * (modules_to_not_convert, skip) is accepted also where the module would not have been quantized. */

#include "pipeline/check.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct linear {
    char name[PLAN_NAME_MAX];
    bool fixed;           /* never quantized; patterns may name it to skip it */
    int decider;          /* recipe_override_of */
    bool quantizes_input; /* without regard to float_inputs */
    bool quantized_input; /* with regard to float_inputs */
};

struct search {
    const struct recipe *recipe;
    const struct model *model;
    struct linear *linears; /* every module of the model */
    int count;
    struct validation_errors *errors;
};

static int check_gather(const struct recipe *recipe, const struct model *model, struct search *search)
{
    const struct plans *plans = model_plans(model);

    search->recipe = recipe;
    search->model = model;
    search->linears = calloc(plans_modules(plans), sizeof(*search->linears));
    if (search->linears == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of modules");
    }
    for (size_t i = 0; i < plans_modules(plans); i++) {
        struct linear *linear = &search->linears[search->count++];
        struct qscheme scheme;
        int number;
        int64_t layer = plans_module_at(plans, i, &number);
        const struct plan_module *m = &plans_layer(plans, layer)->modules[number];
        model_module_name(model, layer, number, linear->name);
        linear->fixed = m->fixed;
        linear->decider = recipe_override_of(recipe, linear->name);
        const struct recipe_stage *solver = recipe_module_solver(recipe, m, linear->name);
        if (solver == NULL) {
            continue;
        }
        /* Where there is no scheme, check_shapes refuses the shape, and no pattern is refused for it. */
        linear->quantizes_input =
            recipe_amended_scheme(recipe, solver, m->rows, m->cols, &scheme) != 0 || scheme.input.element != DTYPE_F32;
        linear->quantized_input = recipe_scheme(recipe, solver, linear->name, m->rows, m->cols, &scheme) != 0 ||
                                  scheme.input.element != DTYPE_F32;
    }
    return 0;
}

static const struct linear *first_hit(const struct search *search, const char *pattern)
{
    for (int i = 0; i < search->count; i++) {
        if (!search->linears[i].fixed && patterns_match(search->recipe->patterns, pattern, search->linears[i].name)) {
            return &search->linears[i];
        }
    }
    return NULL;
}

/* The head, the embedding or a router, when the pattern hits it; else NULL. */
static const char *outside_hit(const struct search *search, const char *pattern)
{
    const struct arch *arch = model_config(search->model)->arch;

    for (int i = 0; i < search->count; i++) {
        if (search->linears[i].fixed && patterns_match(search->recipe->patterns, pattern, search->linears[i].name)) {
            return search->linears[i].name;
        }
    }
    if (model_is_bare(search->model)) {
        return NULL; /* those are modules like the others */
    }
    return patterns_match(search->recipe->patterns, pattern, arch->head)        ? arch->head
           : patterns_match(search->recipe->patterns, pattern, arch->embedding) ? arch->embedding
                                                                                : NULL;
}

/* The first module that a request can quantize. */
static const char *first_name(const struct search *search)
{
    int i = 0;

    while (i + 1 < search->count && search->linears[i].fixed) {
        i++;
    }
    return search->linears[i].name;
}

static void refuse_miss(const struct search *search, const char *pointer, const char *pattern)
{
    validation_add(search->errors, ERR_INVALID_PARAMETER, pointer,
                   "\"%.100s\" matches no module of the model; its first one is %s", pattern, first_name(search));
}

static void check_skips(const struct search *search, const json_t *patterns)
{
    size_t i;
    json_t *pattern;
    char pointer[64];

    json_array_foreach((json_t *)patterns, i, pattern)
    {
        const char *text = json_string_value(pattern);
        if (first_hit(search, text) == NULL && outside_hit(search, text) == NULL) {
            snprintf(pointer, sizeof(pointer), "/quantization/modules_to_not_convert/%zu", i);
            refuse_miss(search, pointer, text);
        }
    }
}

static void check_override(const struct search *search, int index)
{
    const struct recipe_override *override = &search->recipe->overrides[index];
    const struct linear *hit = first_hit(search, override->match);
    const char *other = outside_hit(search, override->match);
    bool listed = true;
    char pointer[64];

    for (int i = 0; i < search->count; i++) {
        const struct linear *linear = &search->linears[i];
        if (linear->fixed) {
            continue;
        }
        if (linear->decider == index) {
            return;
        }
        listed = listed && (linear->decider == RECIPE_LISTED ||
                            !patterns_match(search->recipe->patterns, override->match, linear->name));
    }
    snprintf(pointer, sizeof(pointer), "/quantization/overrides/%d/match", index);
    if (hit == NULL && other == NULL) {
        refuse_miss(search, pointer, override->match);
    } else if (hit == NULL && !override->skip) {
        validation_add(search->errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
                       "\"%.100s\" matches only %s, which is never quantized: an override of it can only skip it",
                       override->match, other);
    } else if (hit != NULL && !(override->skip && listed)) {
        validation_add(
            search->errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
            "\"%.100s\" decides nothing: %s and whatever else it matches is taken by %s", override->match, hit->name,
            hit->decider == RECIPE_LISTED ? "modules_to_not_convert" : "a later override, and the last match wins");
    }
}

/* owner: the override that has the list, or RECIPE_USUAL for the request's, which applies to every module. */
static void check_float_inputs(const struct search *search, const json_t *patterns, int owner, const char *pointer)
{
    size_t i;
    json_t *pattern;
    char at[96];

    json_array_foreach((json_t *)patterns, i, pattern)
    {
        const char *text = json_string_value(pattern);
        bool hits = false, works = false;
        for (int k = 0; k < search->count && !works; k++) {
            const struct linear *linear = &search->linears[k];
            bool mine = !linear->fixed && (owner == RECIPE_USUAL || linear->decider == owner);
            hits = mine && patterns_match(search->recipe->patterns, text, linear->name) ? true : hits;
            works = mine && linear->quantizes_input && patterns_match(search->recipe->patterns, text, linear->name);
        }
        snprintf(at, sizeof(at), "%s/float_inputs/%zu", pointer, i);
        if (works) {
            continue;
        }
        if (hits || outside_hit(search, text) != NULL) {
            validation_add(search->errors, ERR_INCOMPATIBLE_OPTIONS, at,
                           "\"%.100s\" does nothing: the inputs of what it matches are not quantized anyway", text);
        } else if (owner != RECIPE_USUAL && first_hit(search, text) != NULL) {
            validation_add(search->errors, ERR_INCOMPATIBLE_OPTIONS, at,
                           "\"%.100s\" matches none of the modules that this override decides about", text);
        } else {
            refuse_miss(search, at, text);
        }
    }
}

/* An override has a list of its own where its object has the member; else it has a copy of the request's. */
static void check_own_float_inputs(const struct search *search, int index)
{
    const struct recipe_override *override = &search->recipe->overrides[index];
    const json_t *item = json_array_get(recipe_base(search->recipe)->overrides, (size_t)index);
    char pointer[64];

    if (json_object_get(item, "float_inputs") != NULL && override->solver.params != NULL) {
        const struct quant_base *base = override->solver.params;
        snprintf(pointer, sizeof(pointer), "/quantization/overrides/%d", index);
        check_float_inputs(search, base->float_inputs, index, pointer);
    }
}

/* A switch for experts, where there are none. */
static void check_experts(const struct search *search)
{
    const struct plans *plans = model_plans(search->model);

    if (!recipe_base(search->recipe)->calibrate_all_experts) {
        return;
    }
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        if (plan_find_step(plans_kind(plans, kind), STEP_EXPERTS) >= 0) {
            return;
        }
    }
    validation_add(search->errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/calibrate_all_experts",
                   "\"calibrate_all_experts\" does nothing: the model has no experts");
    validation_hint(search->errors, "leave it out");
}

/* A stage's parameters against the model. */
static void check_stages(const struct search *search)
{
    bool *quantized = calloc((size_t)search->count, sizeof(*quantized));

    if (quantized == NULL) {
        int rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of %d modules", search->count);
        validation_add(search->errors, rc, "", "%s", err_last()->message);
        return;
    }
    for (int i = 0; i < search->count; i++) {
        quantized[i] = search->linears[i].quantized_input;
    }
    for (int i = 0; i < search->recipe->count; i++) {
        const struct recipe_stage *stage = &search->recipe->stages[i];
        if (stage->quantizer->check_model != NULL) {
            stage->quantizer->check_model(stage->params, model_plans(search->model), quantized, "/quantization",
                                          search->errors);
        }
    }
    free(quantized);
}

void check_patterns(const struct recipe *recipe, const struct model *model, struct validation_errors *errors)
{
    struct search search = {.errors = errors};
    const json_t *float_inputs = NULL;

    int rc = check_gather(recipe, model, &search);
    if (rc != 0) {
        validation_add(errors, rc, "", "%s", err_last()->message);
        return;
    }
    check_skips(&search, recipe_base(recipe)->modules_to_not_convert);
    for (int i = 0; i < recipe->override_count; i++) {
        check_override(&search, i);
        check_own_float_inputs(&search, i);
    }
    for (int i = 0; i < recipe->count; i++) { /* every stage that has the list has the same */
        const struct quant_base *base = recipe->stages[i].params;
        float_inputs = float_inputs != NULL ? float_inputs : base->float_inputs;
    }
    check_float_inputs(&search, float_inputs, RECIPE_USUAL, "/quantization");
    check_experts(&search);
    check_stages(&search);
    free(search.linears);
}
