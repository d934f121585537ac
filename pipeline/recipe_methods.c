/* "method" of a request: a name, or a list of names in an order that makes sense. */

#include "base/err.h"
#include "pipeline/names.h"
#include "pipeline/recipe_parts.h"

#include <stdio.h>
#include <string.h>

static void list_rewriters(char *out, size_t size)
{
    out[0] = '\0';
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        size_t used = strlen(out);
        if ((*q)->rewrite != NULL) {
            snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", (*q)->name);
        }
    }
}

/* Whether a method can be number i of a list of `count`. */
static void check_place(const struct quantizer *quantizer, const struct quantizer *next, size_t i, size_t count,
                        const char *at, struct validation_errors *errors)
{
    char rewriters[128];

    if (quantizer_follows(quantizer)) {
        if (i == 0 || i + 1 < count) {
            validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                           "%s works on what another method solved, so it comes last in a list", quantizer->name);
            validation_hint(errors, "[\"gptq\", \"%s\"]", quantizer->name);
        }
        return;
    }
    if (count > 1 && quantizer->solve == NULL && quantizer->rewrite == NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "%s leaves weights as they are, so it cannot be part of a list", quantizer->name);
        validation_hint(errors, "%s",
                        !quantizer_analyses(quantizer) ? "the last method of a list takes the parameter \"kv_cache\""
                                                       : "make a job of its own for it");
        return;
    }
    bool tuned = next != NULL && quantizer_follows(next) && i + 2 == count;
    if (tuned && (quantizer->solve == NULL || quantizer->tune != NULL)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s %s, so \"%s\" cannot come after it", quantizer->name,
                       quantizer->solve == NULL ? "solves nothing" : "learns by itself", next->name);
    } else if (i + 1 < count && quantizer->rewrite == NULL && !tuned) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s quantizes weights, so it must come last in a list",
                       quantizer->name);
        list_rewriters(rewriters, sizeof(rewriters));
        validation_hint(errors, "before another method can come %s", rewriters);
    }
}

bool recipe_parse_methods(const json_t *method, const char *pointer, struct validation_errors *errors,
                          struct recipe *out)
{
    size_t count = json_is_array(method) ? json_array_size(method) : 1;
    size_t before = errors->count + errors->dropped;
    char at[RECIPE_STAGES_MAX][192];

    if ((!json_is_string(method) && !json_is_array(method)) || count < 1 || count > RECIPE_STAGES_MAX) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "\"method\" is %s; it must be a method's name, or a list of 1 to %d of them",
                       params_value_text(method, text), RECIPE_STAGES_MAX);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_is_array(method) ? json_array_get(method, i) : method;
        snprintf(at[i], sizeof(at[i]), json_is_array(method) ? "%.100s/%zu" : "%.100s", pointer, i);
        const struct quantizer *quantizer = names_method(item, at[i], errors);
        out->stages[i].quantizer = quantizer;
        if (quantizer != NULL) {
            size_t used = strlen(out->name);
            snprintf(out->name + used, sizeof(out->name) - used, "%s%s", used > 0 ? "+" : "", quantizer->name);
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (out->stages[i].quantizer != NULL) {
            check_place(out->stages[i].quantizer, i + 1 < count ? out->stages[i + 1].quantizer : NULL, i, count, at[i],
                        errors);
        }
    }
    out->count = (int)count;
    if (errors->count + errors->dropped == before && quantizer_follows(out->stages[count - 1].quantizer)) {
        out->tuner = out->stages[--out->count];
        out->stages[out->count] = (struct recipe_stage){0};
    }
    return errors->count + errors->dropped == before;
}
