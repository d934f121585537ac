/* Overrides of a recipe, and all the patterns that a request names modules by. */

#include "pipeline/recipe_parts.h"

#include "base/err.h"
#include "pipeline/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Drop a member under whichever of its names the object has it. */
static void drop_member(const struct quantizer *quantizer, json_t *object, const char *key)
{
    const struct params_row *row = params_find(quantizer->params, key);
    const char *name;

    while (row != NULL && params_member(row, object, &name) != NULL) {
        json_object_del(object, name);
    }
}

json_t *recipe_merge(const struct quantizer *solver, const json_t *quantization, const json_t *override)
{
    json_t *merged = quantization != NULL ? json_copy((json_t *)quantization) : json_object();
    json_t *own = json_copy((json_t *) override);
    const char *key;
    json_t *value;

    json_object_del(merged, "overrides");
    json_object_del(own, "match");
    json_object_del(own, "skip");
    json_object_del(own, "method");
    json_object_foreach(own, key, value)
    {
        drop_member(solver, merged, key);
    }
    json_object_update(merged, own); /* a member under two names is refused when it is parsed */
    json_decref(own);
    return merged;
}

/* A parameter of learning, which takes complete blocks. */
static bool is_learning(const struct quantizer *solver, const struct params_row *row)
{
    const struct params_row *own = solver->learning;

    while (own != NULL && own->name != NULL && own != row) {
        own++;
    }
    return own != NULL && own->name != NULL;
}

/* A parameter of the model and not of a module, by any of its names. */
static bool is_model_wide(const struct quantizer *solver, const char *key)
{
    const struct params_row *row = params_find(solver->params, key);

    return strcmp(row->name, "modules_to_not_convert") == 0 || strcmp(row->name, "overrides") == 0 ||
           strcmp(row->name, "kv_cache") == 0 || strcmp(row->name, "mixed_precision") == 0 || is_learning(solver, row);
}

void recipe_check_part(const struct quantizer *solver, const json_t *item, const char *pointer,
                       struct validation_errors *errors)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)item, key, value)
    {
        bool own = strcmp(key, "match") == 0 || strcmp(key, "skip") == 0 || strcmp(key, "method") == 0;
        char at[192];
        text_pointer(at, sizeof(at), pointer, key);
        if (!own && params_find(solver->params, key) == NULL) {
            names_refuse_member(&solver, 1, solver->name, key, at, errors);
        } else if (!own && is_model_wide(solver, key)) {
            validation_add(errors, ERR_UNKNOWN_PARAMETER, at,
                           "\"%.80s\" applies to the entire model and cannot be part of an override or a candidate",
                           key);
            validation_hint(errors, "give it in \"quantization\" itself");
        }
    }
}

/* "match", "skip" and "method" of an override. Returns what solves the modules; NULL: they are skipped, or there is an
 * error. */
static const struct quantizer *override_solver(const struct quantizer *usual, const json_t *item, const char *pointer,
                                               struct validation_errors *errors, struct recipe_override *out)
{
    const json_t *skip = json_object_get(item, "skip"), *method = json_object_get(item, "method");
    const char *match = json_string_value(json_object_get(item, "match"));
    const struct quantizer *solver = usual;
    char at[192];

    if (match == NULL) {
        text_pointer(at, sizeof(at), pointer, "match");
        validation_add(
            errors, ERR_INVALID_PARAMETER, at,
            "\"match\" must be a module's path, the end of one, a glob, or a regular expression after \"re:\"");
        return NULL;
    }
    if (strlen(match) >= sizeof(out->match)) {
        return NULL; /* refused with the patterns */
    }
    snprintf(out->match, sizeof(out->match), "%s", match);
    text_pointer(at, sizeof(at), pointer, "skip");
    if (skip != NULL && !json_is_boolean(skip)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, at, "\"skip\" is %s; it must be true or false",
                       params_value_text(skip, text));
        return NULL;
    }
    out->skip = json_is_true(skip);
    if (out->skip && json_object_size(item) > 2) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "a skipped module stays in float: \"skip\": true takes no member but \"match\"");
    }
    if (out->skip) {
        return NULL;
    }
    text_pointer(at, sizeof(at), pointer, "method");
    if (method != NULL) {
        solver = names_method(method, at, errors);
    }
    if (solver != NULL && solver->solve == NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s quantizes no weights, so it cannot be overridden",
                       solver->name);
        validation_hint(errors, "give the override a \"method\" that does, or \"skip\": true");
        return NULL;
    }
    if (solver != NULL && solver != usual && solver->tune != NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "%s learns on complete blocks, so an override cannot ask for it alone", solver->name);
        validation_hint(errors, "make it the request's method, and give the others an override");
        return NULL;
    }
    return solver;
}

/* valid: the request's own parameters are; else their errors would be reported again here. */
static void parse_override(const struct recipe *recipe, const json_t *quantization, const json_t *item, bool valid,
                           const char *pointer, struct validation_errors *errors, struct recipe_override *out)
{
    const struct quantizer *usual = recipe->stages[recipe->count - 1].quantizer;
    const struct quantizer *solver = override_solver(usual, item, pointer, errors, out);

    if (solver == NULL) {
        return;
    }
    recipe_check_part(solver, item, pointer, errors);
    if (valid) {
        json_t *merged = recipe_merge(solver, quantization, item);
        recipe_parse_stage(solver, merged, true, pointer, errors, &out->solver);
        json_decref(merged);
    }
}

void recipe_parse_overrides(const json_t *quantization, bool valid, const char *pointer,
                            struct validation_errors *errors, struct recipe *recipe)
{
    const json_t *list = json_object_get(quantization, "overrides");
    size_t i;
    json_t *item;
    char at[192];

    if (list == NULL || json_is_null(list)) {
        return;
    }
    snprintf(at, sizeof(at), "%.100s/overrides", pointer);
    if (!json_is_array(list) || json_array_size(list) > RECIPE_OVERRIDES_MAX) {
        validation_add(errors, ERR_INVALID_PARAMETER, at, "\"overrides\" must be a list of at most %d objects",
                       RECIPE_OVERRIDES_MAX);
        return;
    }
    recipe->overrides = calloc(json_array_size(list) + 1, sizeof(*recipe->overrides));
    if (recipe->overrides == NULL) {
        validation_add(errors, ERR_HOST_OUT_OF_MEMORY, "", "no memory for overrides");
        return;
    }
    json_array_foreach((json_t *)list, i, item)
    {
        snprintf(at, sizeof(at), "%.100s/overrides/%zu", pointer, i);
        if (!json_is_object(item)) {
            validation_add(errors, ERR_INVALID_PARAMETER, at,
                           "an override must be an object with \"match\" and \"skip\", \"method\" or parameters");
            continue;
        }
        parse_override(recipe, quantization, item, valid, at, errors, &recipe->overrides[recipe->override_count++]);
    }
}

/* Lists apply to the entire model, or to an override as to the rest. */
static bool is_scalar(const struct params_row *row)
{
    return row->type != PARAMS_STRINGS && row->type != PARAMS_JSON;
}

void recipe_fill_part(const struct recipe_stage *solver, const json_t *all, json_t *item)
{
    json_t *own = params_json(solver->quantizer->params, solver->params);
    const char *key, *name;
    json_t *value;

    json_object_foreach(own, key, value)
    {
        const struct params_row *row = params_find(solver->quantizer->params, key);
        const json_t *usual = json_object_get(all, key);
        bool fits = is_scalar(row) && !is_learning(solver->quantizer, row); /* what learns is the request's method */
        if (fits && usual != NULL && !json_equal(usual, value) && params_member(row, item, &name) == NULL) {
            json_object_set(item, key, value);
        }
    }
    json_decref(own);
}

json_t *recipe_overrides_json(const struct recipe *recipe, const json_t *all)
{
    json_t *list = json_deep_copy(recipe_base(recipe)->overrides);

    for (int i = 0; i < recipe->override_count; i++) {
        if (recipe->overrides[i].solver.quantizer != NULL) {
            recipe_fill_part(&recipe->overrides[i].solver, all, json_array_get(list, (size_t)i));
        }
    }
    return list;
}

static void collect_pattern(struct recipe *recipe, const char *text, const char *pointer,
                            struct validation_errors *errors)
{
    int rc = patterns_add(recipe->patterns, text);
    if (rc != 0) {
        validation_add(errors, rc, pointer, "%s", err_last()->message);
    }
}

/* Some method takes a list of patterns under this name. All lists of strings are patterns. */
static bool is_pattern_list(const char *key)
{
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        const struct params_row *row = params_find((*q)->params, key);
        if (row != NULL) {
            return row->type == PARAMS_STRINGS;
        }
    }
    return false;
}

/* Strings of an object's lists of patterns; other items have been refused before. */
static void collect_lists(struct recipe *recipe, const json_t *object, const char *pointer,
                          struct validation_errors *errors)
{
    char list[192], at[224];
    const char *key;
    json_t *value, *item;
    size_t i;

    json_object_foreach((json_t *)object, key, value)
    {
        text_pointer(list, sizeof(list), pointer, key);
        json_array_foreach(is_pattern_list(key) ? value : NULL, i, item)
        {
            if (json_string_length(item) > 0) {
                snprintf(at, sizeof(at), "%s/%zu", list, i);
                collect_pattern(recipe, json_string_value(item), at, errors);
            }
        }
    }
}

void recipe_collect_patterns(const json_t *quantization, const char *pointer, struct validation_errors *errors,
                             struct recipe *recipe)
{
    char at[192];
    size_t i;
    json_t *item;

    if (patterns_new(&recipe->patterns) != 0) {
        validation_add(errors, ERR_HOST_OUT_OF_MEMORY, "", "no memory for patterns");
        return;
    }
    collect_lists(recipe, quantization, pointer, errors);
    json_array_foreach(json_object_get(quantization, "overrides"), i, item)
    {
        const json_t *match = json_object_get(item, "match");
        if (json_is_string(match)) {
            snprintf(at, sizeof(at), "%.100s/overrides/%zu/match", pointer, i);
            collect_pattern(recipe, json_string_value(match), at, errors);
        }
        snprintf(at, sizeof(at), "%.100s/overrides/%zu", pointer, i);
        collect_lists(recipe, item, at, errors);
    }
}
