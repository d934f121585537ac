/* Targets of a request: read, used for what it leaves open, and held against what it would make. */

#include "jobs/targets.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

void targets_parse(const json_t *list, int64_t tensor_parallel, struct format_targets *out,
                   struct validation_errors *errors)
{
    char pointer[64];
    size_t i;
    json_t *item;
    bool divides = false;

    *out = (struct format_targets){.tensor_parallel = tensor_parallel};
    if (json_array_size(list) > FORMAT_TARGETS_MAX) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/output/targets", "\"targets\" are %zu, and %d at most",
                       json_array_size(list), FORMAT_TARGETS_MAX);
        return;
    }
    json_array_foreach((json_t *)list, i, item)
    {
        snprintf(pointer, sizeof(pointer), "/output/targets/%zu", i);
        int rc = runtime_target_parse(json_string_value(item), &out->items[out->count]);
        if (rc != 0) {
            validation_add(errors, rc, pointer, "%s", err_last()->message);
            validation_hint(errors, "%s", err_last()->hint);
            continue;
        }
        divides = divides || out->items[out->count].runtime->parallel != NULL;
        out->count++;
    }
    if (tensor_parallel > 1 && !divides && out->count == (int)json_array_size(list)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/output/tensor_parallel_size",
                       "\"tensor_parallel_size\" is %lld, and no target divides a model over devices",
                       (long long)tensor_parallel);
        validation_hint(errors, "\"targets\": [\"vllm\"] or [\"sglang\"], or leave it out");
    }
}

json_t *targets_defaults(const struct format_targets *targets, const char *format, const json_t *method,
                         const json_t *quantization, char note[TARGETS_NOTE_SIZE])
{
    const struct quantizer *quantizer = json_is_string(method) ? quantizer_find(json_string_value(method)) : NULL;
    const struct params_row *row = quantizer != NULL ? params_find(quantizer->params, "group_size") : NULL;
    const char *name;
    int group = 0;

    if (row == NULL || (quantization != NULL && !json_is_object(quantization)) ||
        params_member(row, quantization, &name) != NULL) {
        return NULL;
    }
    for (int i = 0; i < targets->count && group == 0; i++) {
        group = runtime_only_group(&targets->items[i], format[0] != '\0' ? format : NULL);
        snprintf(note, TARGETS_NOTE_SIZE, "group_size %d was chosen, the only one that %s loads%s%s", group,
                 targets->items[i].runtime->name, format[0] != '\0' ? " in " : "", format);
    }
    if (group == 0 && targets->count == 0 && format[0] != '\0') {
        group = runtime_only_group(NULL, format);
        snprintf(note, TARGETS_NOTE_SIZE, "group_size %d was chosen, the only one of %s", group, format);
    }
    if (group == 0) {
        note[0] = '\0';
        return NULL;
    }
    json_t *filled = quantization != NULL ? json_copy((json_t *)quantization) : json_object();
    json_object_set_new(filled, row->name, json_integer(group));
    return filled;
}

/* --- refusals */

/* Parameters that say how a part of a scheme is, in the names of methods; the first that a method has. */
static const char *const *part_members(enum runtime_part part)
{
    static const char *const none[] = {NULL}, *const bits[] = {"bits", "type", NULL}, *const sym[] = {"sym", NULL},
                             *const groups[] = {"group_size", "weight_block_size", "granularity", NULL},
                             *const form[] = {"activation_scheme", NULL};

    switch (part) {
    case PART_BITS:
        return bits;
    case PART_SYMMETRY:
        return sym;
    case PART_GROUP:
        return groups;
    case PART_FORM:
        return form;
    default:
        return none;
    }
}

/* Where in the request a refusal lies. */
static void refusal_pointer(const struct recipe *recipe, const struct runtime_refusal *refusal, int target,
                            char out[96])
{
    const struct quantizer *solver = recipe->stages[recipe->count - 1].quantizer;
    int override = refusal->module[0] != '\0' ? recipe_override_of(recipe, refusal->module) : RECIPE_USUAL;
    const char *const *members = part_members(refusal->part);

    if (refusal->part == PART_TARGET) {
        snprintf(out, 96, "/output/targets/%d", target);
    } else if (refusal->part == PART_FORMAT) {
        snprintf(out, 96, "/output/format");
    } else if (refusal->part == PART_PARALLEL) {
        snprintf(out, 96, "/output/tensor_parallel_size");
    } else if (refusal->part == PART_CACHE) {
        snprintf(out, 96, solver->solve == NULL ? "/method" : "/quantization/kv_cache");
    } else if (override >= 0) {
        snprintf(out, 96, "/quantization/overrides/%d", override);
    } else if (recipe->mixture != NULL && refusal->part == PART_BITS) {
        snprintf(out, 96, "/quantization/mixed_precision/candidates");
    } else {
        while (*members != NULL && params_find(solver->params, *members) == NULL) {
            members++;
        }
        snprintf(out, 96, "/quantization%s%s", *members != NULL ? "/" : "", *members != NULL ? *members : "");
    }
}

void targets_check(const struct format_targets *targets, const struct recipe *recipe, const struct format *format,
                   const struct format_config *config, struct validation_errors *errors)
{
    struct runtime_refusal refusals[RUNTIME_REFUSALS_MAX];
    char pointer[96];

    for (int t = 0; t < targets->count; t++) {
        int count = runtime_check(format, config, &targets->items[t], targets->tensor_parallel, refusals);
        if (count < 0) {
            validation_add(errors, count, "", "%s", err_last()->message);
            return;
        }
        for (int i = 0; i < count; i++) {
            const struct runtime_refusal *r = &refusals[i];
            refusal_pointer(recipe, r, t, pointer);
            validation_add(errors, ERR_INCOMPATIBLE_RUNTIME, pointer, "%s%s%s%s", r->text,
                           r->module[0] != '\0' ? " (" : "", r->module, r->module[0] != '\0' ? ")" : "");
            if (r->hint[0] != '\0') {
                validation_hint(errors, "%s", r->hint);
            }
        }
    }
}
