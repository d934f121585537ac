/* The candidates of a sensitivity pass: what a request lists, or the widths of an integer grid. */

#include "pipeline/recipe_parts.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "pipeline/names.h"
#include "quantizers/sensitivity.h"

#include <stdlib.h>
#include <string.h>

void sensitivity_candidates_deinit(struct sensitivity_candidates *candidates)
{
    for (int i = 0; i < candidates->count; i++) {
        recipe_stage_deinit(&candidates->list[i].solver);
        json_decref(candidates->list[i].members);
    }
    *candidates = (struct sensitivity_candidates){0};
}

/* The widths of an integer grid. New reference. */
static json_t *candidates_default(void)
{
    return json_pack("[{s:i}, {s:i}, {s:i}, {s:i}]", "bits", 2, "bits", 3, "bits", 4, "bits", 8);
}

/* The method of an item; NULL: there is an error. */
static const struct quantizer *candidate_method(const struct quantizer *usual, const json_t *item, const char *pointer,
                                                struct validation_errors *errors)
{
    const json_t *method = json_object_get(item, "method");
    const struct quantizer *solver = usual;
    char at[192];

    text_pointer(at, sizeof(at), pointer, "method");
    if (method != NULL) {
        solver = names_method(method, at, errors);
    }
    if (solver != NULL && solver->solve == NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s quantizes no weights, so it cannot be a candidate",
                       solver->name);
        return NULL;
    }
    return solver;
}

/* What the solver's parameters make of a weight that every group size divides. */
static void candidate_describe(struct sensitivity_candidate *candidate, const char *pointer,
                               struct validation_errors *errors)
{
    const struct recipe_stage *solver = &candidate->solver;
    const char *method = solver->quantizer->name;
    size_t size = sizeof(candidate->name);
    struct qscheme scheme;

    snprintf(candidate->method, sizeof(candidate->method), "%s", method);
    int rc = solver->quantizer->scheme(solver->params, 4096, 4096, &scheme);
    if (rc != 0) {
        validation_add(errors, rc, pointer, "%s", err_last()->message);
        return;
    }
    if (scheme.input.element != DTYPE_F32 && !scheme.input.dynamic) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
                       "a candidate cannot have static inputs: their scales follow from the modules before them");
        return;
    }
    bool grid = params_find(solver->quantizer->params, "bits") != NULL;
    candidate->bits = scheme.bits;
    candidate->group_size = !grid ? 0 : scheme.per_channel ? -1 : scheme.group_size;
    if (!grid) {
        snprintf(candidate->name, size, "%s-%dbit", method, scheme.bits);
    } else if (scheme.per_channel) {
        snprintf(candidate->name, size, "%s-w%dch", method, scheme.bits);
    } else {
        snprintf(candidate->name, size, "%s-w%dg%lld", method, scheme.bits, (long long)scheme.group_size);
    }
}

static void candidate_parse(const struct quantizer *usual, const json_t *quantization, const json_t *item,
                            const char *pointer, struct validation_errors *errors, struct sensitivity_candidate *out)
{
    const struct quantizer *solver = candidate_method(usual, item, pointer, errors);
    size_t before = errors->count + errors->dropped;

    if (solver == NULL) {
        return;
    }
    recipe_check_part(solver, item, pointer, errors);
    AUTO_JSON json_t *merged = recipe_merge(solver, quantization, item);
    recipe_parse_stage(solver, merged, true, pointer, errors, &out->solver);
    out->members = json_copy((json_t *)item);
    if (out->members == NULL || json_object_set_new(out->members, "method", json_string(solver->name)) != 0) {
        validation_add(errors, ERR_HOST_OUT_OF_MEMORY, "", "no memory for a candidate");
    }
    if (errors->count + errors->dropped == before) {
        candidate_describe(out, pointer, errors);
    }
}

/* Two candidates of one name get numbers; two that are the same are an error. */
static void candidates_name(struct sensitivity_candidates *list, const char *pointer, struct validation_errors *errors)
{
    char names[SENSITIVITY_CANDIDATES_MAX][sizeof(list->list[0].name)];

    for (int i = 0; i < list->count; i++) {
        struct sensitivity_candidate *candidate = &list->list[i];
        int alike = 0;
        memcpy(names[i], candidate->name, sizeof(names[i]));
        for (int k = 0; k < i; k++) {
            bool same = strcmp(names[k], names[i]) == 0;
            alike += same;
            if (same && json_equal(list->list[k].members, candidate->members)) {
                validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, pointer, "candidates %d and %d are the same", k, i);
            }
        }
        if (alike > 0) {
            snprintf(candidate->name, sizeof(candidate->name), "%.48s-%d", names[i], alike + 1);
        }
    }
}

static void candidates_parse_list(const struct quantizer *usual, const json_t *quantization, const json_t *list,
                                  const char *pointer, struct validation_errors *errors,
                                  struct sensitivity_candidates *out)
{
    size_t i;
    json_t *item;
    char at[192];

    json_array_foreach((json_t *)list, i, item)
    {
        snprintf(at, sizeof(at), "%.140s/%zu", pointer, i);
        if (!json_is_object(item)) {
            validation_add(errors, ERR_INVALID_PARAMETER, at,
                           "a candidate must be an object with \"method\" or parameters of it");
            continue;
        }
        candidate_parse(usual, quantization, item, at, errors, &out->list[out->count++]);
    }
}

int sensitivity_candidates_parse(const struct quantizer *usual, const json_t *quantization, const json_t *list,
                                 const char *pointer, struct validation_errors *errors,
                                 struct sensitivity_candidates *out)
{
    struct sensitivity_candidates made = {.count = 0};
    size_t before = errors->count + errors->dropped;
    bool given = list != NULL && !json_is_null(list);
    AUTO_JSON json_t *widths = given ? NULL : candidates_default();

    if (given &&
        (!json_is_array(list) || json_array_size(list) < 1 || json_array_size(list) > SENSITIVITY_CANDIDATES_MAX)) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer, "\"candidates\" must be a list of 1 to %d objects",
                       SENSITIVITY_CANDIDATES_MAX);
    } else if (!given && params_find(usual->params, "bits") == NULL) {
        validation_add(errors, ERR_MISSING_PARAMETER, pointer,
                       "\"candidates\" is required: %s has no \"bits\" that widths could be tried of", usual->name);
    } else {
        candidates_parse_list(usual, quantization, given ? list : widths, pointer, errors, &made);
        if (errors->count + errors->dropped == before) {
            candidates_name(&made, pointer, errors);
        }
    }
    if (errors->count + errors->dropped != before) {
        sensitivity_candidates_deinit(&made);
        return validation_raise(errors);
    }
    *out = made;
    return 0;
}

void recipe_parse_candidates(const char *pointer, struct validation_errors *errors, struct recipe *recipe)
{
    const struct sensitivity_params *params = recipe->stages[0].params;
    AUTO_JSON json_t *all = params_json(recipe->stages[0].quantizer->params, params);
    char at[192];

    text_pointer(at, sizeof(at), pointer, "solver");
    AUTO_JSON json_t *name = json_string(params->solver);
    const struct quantizer *solver = names_method(name, at, errors);
    if (solver != NULL && solver->solve == NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s quantizes no weights, so it solves no candidate",
                       solver->name);
    } else if (solver != NULL) {
        text_pointer(at, sizeof(at), pointer, "candidates");
        recipe->candidates = calloc(1, sizeof(*recipe->candidates));
        if (recipe->candidates == NULL) {
            validation_add(errors, ERR_HOST_OUT_OF_MEMORY, "", "no memory for candidates");
            return;
        }
        (void)sensitivity_candidates_parse(solver, all, params->candidates, at, errors, recipe->candidates);
    }
}
