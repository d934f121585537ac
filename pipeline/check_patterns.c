/* What can do nothing is refused by name: patterns that match no module, overrides of modules that are never quantized
 * or that later ones take over, inputs left in float that are not quantized anyway. What asks for a module to stay as
 * it is (modules_to_not_convert, skip) is kept also where it would have stayed so. */

#include "pipeline/check.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* Never quantized: they can be named to be left alone. */
static const char *const outside[] = {"lm_head", "model.embed_tokens"};

struct linear {
    char name[128];
    int role;
    int decider;          /* recipe_override_of */
    bool quantizes_input; /* but for float_inputs */
    bool quantized_input; /* float_inputs heeded */
};

struct search {
    const struct recipe *recipe;
    struct linear *linears;
    int count;
    struct validation_errors *errors;
};

static int gather(const struct recipe *recipe, const struct model *model, struct search *search)
{
    const struct model_config *config = model_config(model);

    search->recipe = recipe;
    search->linears = calloc((size_t)config->num_layers * LINEAR_COUNT, sizeof(*search->linears));
    if (search->linears == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of modules");
    }
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        for (int role = 0; role < LINEAR_COUNT; role++) {
            struct linear *linear = &search->linears[search->count++];
            struct qscheme scheme;
            int64_t rows, cols;
            model_linear_name(model, layer, (enum linear_role)role, linear->name);
            linear->role = role;
            linear->decider = recipe_override_of(recipe, linear->name);
            const struct recipe_stage *solver = recipe_solver(recipe, linear->name);
            arch_linear_shape(config, (enum linear_role)role, &rows, &cols);
            if (solver == NULL) {
                continue;
            }
            /* Where there is no scheme, its shape is refused elsewhere, and nothing is held against a pattern. */
            linear->quantizes_input =
                recipe_amended_scheme(recipe, solver, rows, cols, &scheme) != 0 || scheme.input.element != DTYPE_F32;
            linear->quantized_input = recipe_scheme(recipe, solver, linear->name, rows, cols, &scheme) != 0 ||
                                      scheme.input.element != DTYPE_F32;
        }
    }
    return 0;
}

static const struct linear *first_hit(const struct search *search, const char *pattern)
{
    for (int i = 0; i < search->count; i++) {
        if (patterns_match(search->recipe->patterns, pattern, search->linears[i].name)) {
            return &search->linears[i];
        }
    }
    return NULL;
}

/* lm_head or the embedding, when the pattern hits it; else NULL. */
static const char *outside_hit(const struct search *search, const char *pattern)
{
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        if (patterns_match(search->recipe->patterns, pattern, outside[i])) {
            return outside[i];
        }
    }
    return NULL;
}

static void refuse_miss(const struct search *search, const char *pointer, const char *pattern)
{
    validation_add(search->errors, ERR_INVALID_PARAMETER, pointer,
                   "\"%.100s\" matches no module of the model; its first one is %s", pattern, search->linears[0].name);
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
        validation_add(
            search->errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
            "\"%.100s\" matches only %s, which is never quantized: an override of it can say nothing but skip",
            override->match, other);
    } else if (hit != NULL && !(override->skip && listed)) {
        validation_add(
            search->errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
            "\"%.100s\" decides nothing: %s and whatever else it matches is taken by %s", override->match, hit->name,
            hit->decider == RECIPE_LISTED ? "modules_to_not_convert" : "a later override, and the last match wins");
    }
}

/* owner: the override whose own list it is, or RECIPE_USUAL for the request's, which holds for every module. */
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
            bool mine = owner == RECIPE_USUAL || linear->decider == owner;
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

/* An override has a list of its own where its object says so; else it holds a copy of the request's. */
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

static unsigned quantized_inputs(const struct search *search)
{
    unsigned roles = 0;

    for (int i = 0; i < search->count; i++) {
        roles |= search->linears[i].quantized_input ? 1U << search->linears[i].role : 0;
    }
    return roles;
}

void check_patterns(const struct recipe *recipe, const struct model *model, struct validation_errors *errors)
{
    struct search search = {.errors = errors};
    const json_t *float_inputs = NULL;

    int rc = gather(recipe, model, &search);
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
    for (int i = 0; i < recipe->count; i++) {
        const struct recipe_stage *stage = &recipe->stages[i];
        if (stage->quantizer->check_model != NULL) {
            stage->quantizer->check_model(stage->params, model_config(model), quantized_inputs(&search),
                                          "/quantization", errors);
        }
    }
    free(search.linears);
}
