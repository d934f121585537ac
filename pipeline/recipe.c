/* Recipes: names to stages, one object of parameters to a struct for each stage, overrides to solvers of their own. */

#include "pipeline/recipe.h"

#include "base/err.h"
#include "pipeline/kv_cache.h"
#include "pipeline/names.h"
#include "pipeline/recipe_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool has_row(const struct quantizer *quantizer, const char *name)
{
    return params_find(quantizer->params, name) != NULL;
}

/* The members of object that the quantizer has rows for. New reference. */
static json_t *own_members(const struct quantizer *quantizer, const json_t *object)
{
    json_t *own = json_object();
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        if (has_row(quantizer, key)) {
            json_object_set(own, key, value);
        }
    }
    return own;
}

void recipe_stage_deinit(struct recipe_stage *stage)
{
    if (stage->params != NULL) {
        params_release(stage->quantizer->params, stage->params);
        free(stage->params);
    }
    *stage = (struct recipe_stage){0};
}

/* Members that the stage's preset sets and the request does not, and the parameters again with them. */
static void apply_preset(struct recipe_stage *stage, json_t *own, const char *pointer, struct validation_errors *errors)
{
    const struct quantizer *quantizer = stage->quantizer;
    const char *text = quantizer->preset != NULL ? quantizer->preset(stage->params) : NULL;
    json_t *preset = text != NULL ? json_loads(text, 0, NULL) : NULL;
    const char *key, *name;
    json_t *value;

    if (preset == NULL) {
        return;
    }
    json_object_foreach(preset, key, value)
    {
        const struct params_row *row = params_find(quantizer->params, key);
        if (row != NULL && params_member(row, own, &name) == NULL) {
            json_object_set(own, key, value);
        }
    }
    json_decref(preset);
    params_release(quantizer->params, stage->params);
    memset(stage->params, 0, quantizer->params_size);
    (void)params_parse(quantizer->params, own, pointer, stage->params, errors);
}

void recipe_parse_stage(const struct quantizer *quantizer, const json_t *object, bool solves, const char *pointer,
                        struct validation_errors *errors, struct recipe_stage *out)
{
    size_t before = errors->count + errors->dropped;
    json_t *own = own_members(quantizer, object);

    *out = (struct recipe_stage){.quantizer = quantizer, .params = calloc(1, quantizer->params_size)};
    if (out->params == NULL || own == NULL) {
        json_decref(own);
        validation_add(errors, ERR_HOST_OUT_OF_MEMORY, "", "no memory for the parameters");
        return;
    }
    if (params_parse(quantizer->params, own, pointer, out->params, errors) == 0) {
        apply_preset(out, own, pointer, errors);
    }
    json_decref(own);
    if (solves && errors->count + errors->dropped == before && quantizer->check != NULL) {
        quantizer->check(out->params, pointer, errors);
    }
}

static void recipe_refuse_unknown(const struct recipe *recipe, const json_t *object, const char *pointer,
                                  struct validation_errors *errors)
{
    const struct quantizer *methods[RECIPE_STAGES_MAX];
    int count = recipe->count;
    const char *key;
    json_t *value;

    for (int i = 0; i < recipe->count; i++) {
        methods[i] = recipe->stages[i].quantizer;
    }
    if (recipe->tuner.quantizer != NULL) {
        methods[count++] = recipe->tuner.quantizer;
    }
    json_object_foreach((json_t *)object, key, value)
    {
        bool known = false;
        for (int i = 0; i < count && !known; i++) {
            known = has_row(methods[i], key);
        }
        if (!known) {
            char at[192];
            text_pointer(at, sizeof(at), pointer, key);
            names_refuse_member(methods, count, recipe->name, key, at, errors);
        }
    }
}

/* A method that only quantizes the cache uses FP8 E4M3 by default. */
static void parse_cache(const char *pointer, struct validation_errors *errors, struct recipe *recipe)
{
    const struct recipe_stage *last = &recipe->stages[recipe->count - 1];
    const struct quant_base *base = last->params;
    bool only = last->quantizer->solve == NULL && !quantizer_analyses(last->quantizer);
    char at[192];

    text_pointer(at, sizeof(at), pointer, "kv_cache");
    if (base != NULL && !quantizer_analyses(last->quantizer)) {
        (void)kv_cache_parse(base->kv_cache, at, errors, &recipe->cache);
        if (only && recipe->cache.element == DTYPE_F32) {
            recipe->cache.element = DTYPE_F8_E4M3;
        }
    }
}

/* What an earlier stage expects of the solver's parameters becomes their default, unless the request sets one of them
 * to another value. */
static void add_defaults(const struct recipe_stage *stage, const struct quantizer *solver, json_t *object)
{
    const char *text = stage->quantizer->defaults_after != NULL && stage->params != NULL
                           ? stage->quantizer->defaults_after(stage->params)
                           : NULL;
    json_t *defaults = text != NULL ? json_loads(text, 0, NULL) : NULL;
    bool agree = true;
    const char *key, *name;
    json_t *value;

    json_object_foreach(defaults, key, value)
    {
        const struct params_row *row = params_find(solver->params, key);
        const json_t *given = row != NULL ? params_member(row, object, &name) : NULL;
        agree = agree && row != NULL && (given == NULL || json_equal(given, value));
    }
    json_object_foreach(defaults, key, value)
    {
        const struct params_row *row = params_find(solver->params, key);
        if (agree && params_member(row, object, &name) == NULL) {
            json_object_set(object, key, value);
        }
    }
    json_decref(defaults);
}

static void parse_mixture(const json_t *quantization, const char *pointer, struct validation_errors *errors,
                          struct recipe *recipe)
{
    const struct recipe_stage *last = &recipe->stages[recipe->count - 1];
    const struct quant_base *base = last->params;
    char at[192];

    if (base == NULL || base->mixed_precision == NULL) {
        return;
    }
    text_pointer(at, sizeof(at), pointer, "mixed_precision");
    (void)mixture_parse(base->mixed_precision, last->quantizer, quantization, at, errors, &recipe->mixture);
}

int recipe_parse(const json_t *method, const json_t *quantization, const char *pointer_method, const char *pointer,
                 struct validation_errors *errors, struct recipe *out)
{
    struct recipe recipe = {0};
    size_t before = errors->count + errors->dropped;

    if (quantization != NULL && !json_is_object(quantization)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, pointer, "\"quantization\" is %s; it must be an object",
                       params_value_text(quantization, text));
    } else if (recipe_parse_methods(method, pointer_method, errors, &recipe)) {
        json_t *filled = quantization != NULL ? json_copy((json_t *)quantization) : json_object();
        for (int i = 0; i < recipe.count; i++) {
            recipe_parse_stage(recipe.stages[i].quantizer, filled, i + 1 == recipe.count, pointer, errors,
                               &recipe.stages[i]);
            if (i + 1 < recipe.count) {
                add_defaults(&recipe.stages[i], recipe.stages[recipe.count - 1].quantizer, filled);
            }
        }
        if (recipe.tuner.quantizer != NULL) {
            recipe_parse_stage(recipe.tuner.quantizer, filled, true, pointer, errors, &recipe.tuner);
        }
        recipe_refuse_unknown(&recipe, quantization, pointer, errors);
        bool valid = errors->count + errors->dropped == before;
        recipe_parse_overrides(filled, valid, pointer, errors, &recipe);
        recipe_collect_patterns(quantization, pointer, errors, &recipe);
        parse_cache(pointer, errors, &recipe);
        if (valid && recipe_measures(&recipe)) {
            recipe_parse_candidates(pointer, errors, &recipe);
        }
        parse_mixture(filled, pointer, errors, &recipe);
        json_decref(filled);
    }
    if (errors->count + errors->dropped != before) {
        recipe_deinit(&recipe);
        return validation_raise(errors);
    }
    *out = recipe;
    return 0;
}

void recipe_deinit(struct recipe *recipe)
{
    for (int i = 0; i < recipe->count; i++) {
        recipe_stage_deinit(&recipe->stages[i]);
    }
    recipe_stage_deinit(&recipe->tuner);
    for (int i = 0; i < recipe->override_count; i++) {
        recipe_stage_deinit(&recipe->overrides[i].solver);
    }
    if (recipe->candidates != NULL) {
        sensitivity_candidates_deinit(recipe->candidates);
    }
    free(recipe->candidates);
    free(recipe->overrides);
    mixture_free(recipe->mixture);
    patterns_free(recipe->patterns);
    *recipe = (struct recipe){0};
}

json_t *recipe_method_json(const struct recipe *recipe)
{
    if (recipe->count == 1 && recipe->tuner.quantizer == NULL) {
        return json_string(recipe->stages[0].quantizer->name);
    }
    json_t *list = json_array();
    for (int i = 0; i < recipe->count; i++) {
        json_array_append_new(list, json_string(recipe->stages[i].quantizer->name));
    }
    if (recipe->tuner.quantizer != NULL) {
        json_array_append_new(list, json_string(recipe->tuner.quantizer->name));
    }
    return list;
}

json_t *recipe_parameters_json(const struct recipe *recipe)
{
    json_t *all = json_object();

    for (int i = 0; i < recipe->count; i++) {
        json_t *own = params_json(recipe->stages[i].quantizer->params, recipe->stages[i].params);
        json_object_update(all, own);
        json_decref(own);
    }
    if (recipe->tuner.quantizer != NULL) {
        json_t *own = params_json(recipe->tuner.quantizer->params, recipe->tuner.params);
        json_object_update(all, own);
        json_decref(own);
    }
    if (recipe->override_count > 0) {
        json_object_set_new(all, "overrides", recipe_overrides_json(recipe, all));
    }
    json_object_set_new(all, "kv_cache", kv_cache_json(&recipe->cache));
    if (recipe->mixture != NULL) {
        json_object_set_new(all, "mixed_precision", mixture_request(recipe->mixture, recipe_base(recipe), all));
    }
    return all;
}

const struct quant_base *recipe_base(const struct recipe *recipe)
{
    return recipe->stages[recipe->count - 1].params;
}

static bool is_listed(const struct recipe *recipe, const json_t *patterns, const char *module)
{
    size_t i;
    json_t *pattern;

    json_array_foreach(patterns, i, pattern)
    {
        if (patterns_match(recipe->patterns, json_string_value(pattern), module)) {
            return true;
        }
    }
    return false;
}

int recipe_override_of(const struct recipe *recipe, const char *module)
{
    if (is_listed(recipe, recipe_base(recipe)->modules_to_not_convert, module)) {
        return RECIPE_LISTED;
    }
    for (int i = recipe->override_count - 1; i >= 0; i--) {
        if (patterns_match(recipe->patterns, recipe->overrides[i].match, module)) {
            return i;
        }
    }
    return RECIPE_USUAL;
}

const struct recipe_stage *recipe_solver(const struct recipe *recipe, const char *module)
{
    int decider = recipe_override_of(recipe, module);

    if (decider >= 0) {
        return recipe->overrides[decider].skip ? NULL : &recipe->overrides[decider].solver;
    }
    if (decider == RECIPE_LISTED) {
        return NULL;
    }
    const struct recipe_stage *chosen = recipe->mixture != NULL ? mixture_solver(recipe->mixture, module) : NULL;
    const struct recipe_stage *last = &recipe->stages[recipe->count - 1];
    return chosen != NULL ? chosen : last->quantizer->solve != NULL ? last : NULL;
}

bool recipe_decides(const struct recipe *recipe, const struct plan_module *module, const char *name)
{
    return module->fixed || module->optional || recipe_override_of(recipe, name) != RECIPE_USUAL;
}

const struct recipe_stage *recipe_module_solver(const struct recipe *recipe, const struct plan_module *module,
                                                const char *name)
{
    bool left = module->fixed || (module->optional && recipe_override_of(recipe, name) == RECIPE_USUAL);

    return left ? NULL : recipe_solver(recipe, name);
}

const struct recipe_stage *recipe_tuner(const struct recipe *recipe)
{
    const struct recipe_stage *last = &recipe->stages[recipe->count - 1];

    return recipe->tuner.quantizer != NULL ? &recipe->tuner : last->quantizer->tune != NULL ? last : NULL;
}

bool recipe_end_to_end(const struct recipe *recipe, struct tune_model_plan *plan)
{
    const struct recipe_stage *tuner = recipe_tuner(recipe);

    return tuner != NULL && tuner->quantizer->tune_model != NULL && tuner->quantizer->tune_model(tuner->params, plan);
}

static bool has_float_input(const struct recipe *recipe, const struct recipe_stage *solver, const char *module)
{
    bool listed = is_listed(recipe, ((const struct quant_base *)solver->params)->float_inputs, module);

    for (int i = 0; i < recipe->count && !listed; i++) {
        listed = is_listed(recipe, ((const struct quant_base *)recipe->stages[i].params)->float_inputs, module);
    }
    return listed;
}

int recipe_amended_scheme(const struct recipe *recipe, const struct recipe_stage *solver, int64_t rows, int64_t cols,
                          struct qscheme *out)
{
    int rc = solver->quantizer->scheme(solver->params, rows, cols, out);

    for (int i = 0; rc == 0 && i + 1 < recipe->count; i++) {
        const struct recipe_stage *stage = &recipe->stages[i];
        if (stage->quantizer->amend != NULL) {
            rc = stage->quantizer->amend(stage->params, out);
        }
    }
    return rc;
}

int recipe_scheme(const struct recipe *recipe, const struct recipe_stage *solver, const char *module, int64_t rows,
                  int64_t cols, struct qscheme *out)
{
    int rc = recipe_amended_scheme(recipe, solver, rows, cols, out);

    if (rc == 0 && has_float_input(recipe, solver, module)) {
        out->input = (struct gpu_input){.element = DTYPE_F32};
        out->input_search = false;
        out->input_threshold = 0;
    }
    return rc;
}

bool recipe_analyses(const struct recipe *recipe)
{
    return quantizer_analyses(recipe->stages[recipe->count - 1].quantizer);
}

bool recipe_measures(const struct recipe *recipe)
{
    return recipe->stages[recipe->count - 1].quantizer->measures;
}

bool recipe_rewrites(const struct recipe *recipe)
{
    for (int i = 0; i < recipe->count; i++) {
        if (recipe->stages[i].quantizer->rewrite != NULL) {
            return true;
        }
    }
    return false;
}

bool recipe_stage_has_targets(const struct recipe_stage *stage, int64_t tokens, int64_t columns)
{
    struct quant_targets targets;

    return stage->quantizer != NULL && stage->quantizer->targets != NULL &&
           stage->quantizer->targets(stage->params, &targets) && (double)tokens >= targets.tokens * (double)columns;
}

bool recipe_has_targets(const struct recipe *recipe, int64_t tokens, int64_t columns)
{
    bool has = recipe_stage_has_targets(&recipe->stages[recipe->count - 1], tokens, columns);

    for (int i = 0; i < recipe->override_count && !has; i++) {
        has = recipe_stage_has_targets(&recipe->overrides[i].solver, tokens, columns);
    }
    for (int i = 0; recipe->mixture != NULL && i < recipe->mixture->candidates.count && !has; i++) {
        has = recipe_stage_has_targets(&recipe->mixture->candidates.list[i].solver, tokens, columns);
    }
    return has;
}

static int64_t more_tokens(const struct recipe_stage *stage, int64_t tokens)
{
    int64_t own = stage->quantizer != NULL && stage->quantizer->output_tokens != NULL
                      ? stage->quantizer->output_tokens(stage->params)
                      : 0;

    return own < 0 || tokens < 0 ? -1 : own > tokens ? own : tokens;
}

int64_t recipe_output_tokens(const struct recipe *recipe)
{
    int64_t tokens = more_tokens(&recipe->stages[recipe->count - 1], 0);

    for (int i = 0; i < recipe->override_count; i++) {
        tokens = more_tokens(&recipe->overrides[i].solver, tokens);
    }
    for (int i = 0; recipe->mixture != NULL && i < recipe->mixture->candidates.count; i++) {
        tokens = more_tokens(&recipe->mixture->candidates.list[i].solver, tokens);
    }
    return tokens;
}

static bool stage_data_free(const struct recipe_stage *stage)
{
    return quantizer_data_free(stage->quantizer, stage->params);
}

bool recipe_data_free(const struct recipe *recipe)
{
    bool is = !recipe_needs_calibration(recipe) && !recipe_analyses(recipe);

    for (int i = 0; i < recipe->count && is; i++) {
        is = stage_data_free(&recipe->stages[i]);
    }
    for (int i = 0; i < recipe->override_count && is; i++) {
        is = recipe->overrides[i].skip || stage_data_free(&recipe->overrides[i].solver);
    }
    return is;
}

bool recipe_needs_calibration(const struct recipe *recipe)
{
    bool needs = recipe_rewrites(recipe) || recipe->cache.element != DTYPE_F32 || recipe->mixture != NULL ||
                 recipe_tuner(recipe) != NULL;

    for (int i = 0; i < recipe->count && !needs; i++) {
        needs = quantizer_stats(recipe->stages[i].quantizer, recipe->stages[i].params) != STATS_NONE;
    }
    for (int i = 0; i < recipe->override_count && !needs; i++) {
        const struct recipe_stage *solver = &recipe->overrides[i].solver;
        needs = solver->quantizer != NULL && quantizer_stats(solver->quantizer, solver->params) != STATS_NONE;
    }
    return needs;
}
