/* Recipes: names to stages, one object of parameters to a struct for each stage, overrides to solvers of their own. */

#include "jobs/recipe.h"

#include "base/err.h"
#include "jobs/kv_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void list_methods(char *out, size_t size)
{
    out[0] = '\0';
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", (*q)->name);
    }
}

static const struct quantizer *find_method(const char *name, const char *pointer, struct faults *faults)
{
    const struct quantizer *quantizer = name != NULL ? quantizer_find(name) : NULL;

    if (quantizer == NULL) {
        char known[256];
        list_methods(known, sizeof(known));
        faults_add(faults, ERR_INVALID_PARAMETER, pointer, "\"%.64s\" is not one of: %s", name != NULL ? name : "",
                   known);
    }
    return quantizer;
}

static bool has_row(const struct quantizer *quantizer, const char *name)
{
    for (size_t t = 0; quantizer->params[t] != NULL; t++) {
        for (const struct params_row *row = quantizer->params[t]; row->name != NULL; row++) {
            if (strcmp(row->name, name) == 0) {
                return true;
            }
        }
    }
    return false;
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

static void stage_deinit(struct recipe_stage *stage)
{
    if (stage->params != NULL) {
        params_release(stage->quantizer->params, stage->params);
        free(stage->params);
    }
    *stage = (struct recipe_stage){0};
}

/* One stage from the members that are its own. */
static void parse_stage(const struct quantizer *quantizer, const json_t *object, const char *pointer,
                        struct faults *faults, struct recipe_stage *out)
{
    size_t before = faults->count + faults->dropped;
    json_t *own = own_members(quantizer, object);

    *out = (struct recipe_stage){.quantizer = quantizer, .params = calloc(1, quantizer->params_size)};
    if (out->params == NULL || own == NULL) {
        json_decref(own);
        faults_add(faults, ERR_HOST_OUT_OF_MEMORY, "", "no memory for the parameters");
        return;
    }
    (void)params_parse(quantizer->params, own, pointer, out->params, faults);
    json_decref(own);
    if (faults->count + faults->dropped == before && quantizer->check != NULL) {
        quantizer->check(out->params, pointer, faults);
    }
}

/* "/quantization" + "/" + name, the name escaped as a JSON Pointer's token. */
static void member_pointer(const char *pointer, const char *name, char out[192])
{
    size_t used = (size_t)snprintf(out, 192, "%.100s/", pointer);

    for (; *name != '\0' && used + 3 < 192; name++) {
        if (*name == '~' || *name == '/') {
            out[used++] = '~';
            out[used++] = *name == '~' ? '0' : '1';
        } else {
            out[used++] = *name;
        }
    }
    out[used] = '\0';
}

static void refuse_unknown(const struct recipe *recipe, const json_t *object, const char *pointer,
                           struct faults *faults)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        bool known = false;
        for (int i = 0; i < recipe->count && !known; i++) {
            known = has_row(recipe->stages[i].quantizer, key);
        }
        if (!known) {
            char at[192];
            member_pointer(pointer, key, at);
            faults_add(faults, ERR_UNKNOWN_PARAMETER, at, "is not known to %s", recipe->name);
        }
    }
}

static bool parse_names(const json_t *method, const char *pointer, struct faults *faults, struct recipe *out)
{
    size_t count = json_is_array(method) ? json_array_size(method) : 1;
    size_t before = faults->count + faults->dropped;

    if ((!json_is_string(method) && !json_is_array(method)) || count < 1 || count > RECIPE_STAGES_MAX) {
        faults_add(faults, ERR_INVALID_PARAMETER, pointer, "must be a method's name, or a list of at most %d",
                   RECIPE_STAGES_MAX);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_is_array(method) ? json_array_get(method, i) : method;
        char at[192];
        snprintf(at, sizeof(at), json_is_array(method) ? "%.100s/%zu" : "%.100s", pointer, i);
        const struct quantizer *quantizer = find_method(json_string_value(item), at, faults);
        out->stages[i].quantizer = quantizer;
        if (quantizer == NULL) {
            continue;
        }
        size_t used = strlen(out->name);
        snprintf(out->name + used, sizeof(out->name) - used, "%s%s", used > 0 ? "+" : "", quantizer->name);
        if (count > 1 && quantizer->solve == NULL && quantizer->rewrite == NULL) {
            faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, pointer, "%s leaves weights alone, so it comes alone%s",
                       quantizer->name, quantizer->analyse == NULL ? "; the last method of a list takes kv_cache" : "");
        } else if (i + 1 < count && quantizer->rewrite == NULL) {
            faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, pointer, "%s solves, so it can only come last in a list",
                       quantizer->name);
        }
    }
    out->count = (int)count;
    return faults->count + faults->dropped == before;
}

/* The request's parameters with those of one override in their place. New reference. */
static json_t *overridden(const json_t *quantization, const json_t *override)
{
    json_t *merged = quantization != NULL ? json_copy((json_t *)quantization) : json_object();
    const char *key;
    json_t *value;

    json_object_del(merged, "overrides");
    json_object_foreach((json_t *) override, key, value)
    {
        if (strcmp(key, "match") != 0 && strcmp(key, "skip") != 0 && strcmp(key, "method") != 0) {
            json_object_set(merged, key, value);
        }
    }
    return merged;
}

static void check_override_members(const struct quantizer *solver, const json_t *item, const char *pointer,
                                   struct faults *faults)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)item, key, value)
    {
        bool whole =
            strcmp(key, "modules_to_not_convert") == 0 || strcmp(key, "overrides") == 0 || strcmp(key, "kv_cache") == 0;
        bool own = strcmp(key, "match") == 0 || strcmp(key, "skip") == 0 || strcmp(key, "method") == 0;
        if (whole || (!own && !has_row(solver, key))) {
            char at[192];
            member_pointer(pointer, key, at);
            faults_add(faults, ERR_UNKNOWN_PARAMETER, at, "cannot be overridden for %s", solver->name);
        }
    }
}

/* "match", "skip" and "method" of an override; NULL when nothing solves what it matches, or when there is a fault. */
static const struct quantizer *override_solver(const struct quantizer *usual, const json_t *item, const char *pointer,
                                               struct faults *faults, struct recipe_override *out)
{
    const json_t *skip = json_object_get(item, "skip"), *method = json_object_get(item, "method");
    const char *match = json_string_value(json_object_get(item, "match"));
    const struct quantizer *solver = usual;
    char at[192];

    if (match == NULL) {
        member_pointer(pointer, "match", at);
        faults_add(faults, ERR_INVALID_PARAMETER, at,
                   "must be a module path, a glob, or a regular expression behind \"re:\"");
        return NULL;
    }
    if (strlen(match) >= sizeof(out->match)) {
        return NULL; /* named with the patterns */
    }
    snprintf(out->match, sizeof(out->match), "%s", match);
    member_pointer(pointer, "skip", at);
    if (skip != NULL && !json_is_boolean(skip)) {
        faults_add(faults, ERR_INVALID_PARAMETER, at, "must be true or false");
        return NULL;
    }
    out->skip = json_is_true(skip);
    if (out->skip && json_object_size(item) > 2) {
        faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, at,
                   "what is skipped stays in float: nothing else can be said of it");
    }
    if (out->skip) {
        return NULL;
    }
    member_pointer(pointer, "method", at);
    if (method != NULL) {
        solver = find_method(json_string_value(method), at, faults);
    }
    if (solver != NULL && solver->solve == NULL) {
        faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, at, "%s solves no module: give a method, or skip", solver->name);
        return NULL;
    }
    return solver;
}

/* sound: the request's own parameters are; else they would be faulted here again. */
static void parse_override(const struct recipe *recipe, const json_t *quantization, const json_t *item, bool sound,
                           const char *pointer, struct faults *faults, struct recipe_override *out)
{
    const struct quantizer *usual = recipe->stages[recipe->count - 1].quantizer;
    const struct quantizer *solver = override_solver(usual, item, pointer, faults, out);

    if (solver == NULL) {
        return;
    }
    check_override_members(solver, item, pointer, faults);
    if (sound) {
        json_t *merged = overridden(quantization, item);
        parse_stage(solver, merged, pointer, faults, &out->solver);
        json_decref(merged);
    }
}

static void parse_overrides(const json_t *quantization, bool sound, const char *pointer, struct faults *faults,
                            struct recipe *recipe)
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
        faults_add(faults, ERR_INVALID_PARAMETER, at, "must be a list of at most %d objects", RECIPE_OVERRIDES_MAX);
        return;
    }
    recipe->overrides = calloc(json_array_size(list) + 1, sizeof(*recipe->overrides));
    if (recipe->overrides == NULL) {
        faults_add(faults, ERR_HOST_OUT_OF_MEMORY, "", "no memory for overrides");
        return;
    }
    json_array_foreach((json_t *)list, i, item)
    {
        snprintf(at, sizeof(at), "%.100s/overrides/%zu", pointer, i);
        if (!json_is_object(item)) {
            faults_add(faults, ERR_INVALID_PARAMETER, at, "must be an object");
            continue;
        }
        parse_override(recipe, quantization, item, sound, at, faults, &recipe->overrides[recipe->override_count++]);
    }
}

/* A method that only keeps the cache does so even when it is not told how. */
static void parse_cache(const char *pointer, struct faults *faults, struct recipe *recipe)
{
    const struct recipe_stage *last = &recipe->stages[recipe->count - 1];
    const struct quant_base *base = last->params;
    bool only = last->quantizer->solve == NULL && last->quantizer->analyse == NULL;
    char at[192];

    member_pointer(pointer, "kv_cache", at);
    if (base != NULL && last->quantizer->analyse == NULL) {
        (void)kv_cache_parse(base->kv_cache, at, faults, &recipe->cache);
        if (only && recipe->cache.number == GPU_NUMBER_NONE) {
            recipe->cache.number = GPU_NUMBER_E4M3;
        }
    }
}

static void collect_pattern(struct recipe *recipe, const char *text, const char *pointer, struct faults *faults)
{
    int rc = patterns_add(recipe->patterns, text);
    if (rc != 0) {
        faults_add(faults, rc, pointer, "%s", err_last()->message);
    }
}

/* Strings of a list of patterns; what is not a string has been named before. */
static void collect_list(struct recipe *recipe, const json_t *object, const char *member, const char *pointer,
                         struct faults *faults)
{
    char at[192];
    size_t i;
    json_t *item;

    json_array_foreach(json_object_get(object, member), i, item)
    {
        if (json_string_length(item) > 0) {
            snprintf(at, sizeof(at), "%.100s/%s/%zu", pointer, member, i);
            collect_pattern(recipe, json_string_value(item), at, faults);
        }
    }
}

static void collect_patterns(const json_t *quantization, const char *pointer, struct faults *faults,
                             struct recipe *recipe)
{
    char at[192];
    size_t i;
    json_t *item;

    if (patterns_new(&recipe->patterns) != 0) {
        faults_add(faults, ERR_HOST_OUT_OF_MEMORY, "", "no memory for patterns");
        return;
    }
    collect_list(recipe, quantization, "modules_to_not_convert", pointer, faults);
    collect_list(recipe, quantization, "float_inputs", pointer, faults);
    json_array_foreach(json_object_get(quantization, "overrides"), i, item)
    {
        const json_t *match = json_object_get(item, "match");
        if (json_is_string(match)) {
            snprintf(at, sizeof(at), "%.100s/overrides/%zu/match", pointer, i);
            collect_pattern(recipe, json_string_value(match), at, faults);
        }
        snprintf(at, sizeof(at), "%.100s/overrides/%zu", pointer, i);
        collect_list(recipe, item, "float_inputs", at, faults);
    }
}

int recipe_parse(const json_t *method, const json_t *quantization, const char *pointer_method, const char *pointer,
                 struct faults *faults, struct recipe *out)
{
    struct recipe recipe = {0};
    size_t before = faults->count + faults->dropped;

    if (quantization != NULL && !json_is_object(quantization)) {
        faults_add(faults, ERR_INVALID_PARAMETER, pointer, "must be an object");
    } else if (parse_names(method, pointer_method, faults, &recipe)) {
        for (int i = 0; i < recipe.count; i++) {
            parse_stage(recipe.stages[i].quantizer, quantization, pointer, faults, &recipe.stages[i]);
        }
        refuse_unknown(&recipe, quantization, pointer, faults);
        bool sound = faults->count + faults->dropped == before;
        parse_overrides(quantization, sound, pointer, faults, &recipe);
        collect_patterns(quantization, pointer, faults, &recipe);
        parse_cache(pointer, faults, &recipe);
    }
    if (faults->count + faults->dropped != before) {
        recipe_deinit(&recipe);
        return faults_raise(faults);
    }
    *out = recipe;
    return 0;
}

void recipe_deinit(struct recipe *recipe)
{
    for (int i = 0; i < recipe->count; i++) {
        stage_deinit(&recipe->stages[i]);
    }
    for (int i = 0; i < recipe->override_count; i++) {
        stage_deinit(&recipe->overrides[i].solver);
    }
    free(recipe->overrides);
    patterns_free(recipe->patterns);
    *recipe = (struct recipe){0};
}

json_t *recipe_method_json(const struct recipe *recipe)
{
    if (recipe->count == 1) {
        return json_string(recipe->stages[0].quantizer->name);
    }
    json_t *list = json_array();
    for (int i = 0; i < recipe->count; i++) {
        json_array_append_new(list, json_string(recipe->stages[i].quantizer->name));
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
    json_object_set_new(all, "kv_cache", kv_cache_json(&recipe->cache));
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
    const struct recipe_stage *last = &recipe->stages[recipe->count - 1];
    return last->quantizer->solve != NULL ? last : NULL;
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
        out->input = (struct gpu_input){.number = GPU_NUMBER_NONE};
        out->input_threshold = 0;
    }
    return rc;
}

bool recipe_analyses(const struct recipe *recipe)
{
    return recipe->stages[recipe->count - 1].quantizer->analyse != NULL;
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

bool recipe_needs_calibration(const struct recipe *recipe)
{
    bool needs = recipe_rewrites(recipe) || recipe->cache.number != GPU_NUMBER_NONE;

    for (int i = 0; i < recipe->count && !needs; i++) {
        needs = quantizer_stats(recipe->stages[i].quantizer, recipe->stages[i].params) != STATS_NONE;
    }
    for (int i = 0; i < recipe->override_count && !needs; i++) {
        const struct recipe_stage *solver = &recipe->overrides[i].solver;
        needs = solver->quantizer != NULL && quantizer_stats(solver->quantizer, solver->params) != STATS_NONE;
    }
    return needs;
}
