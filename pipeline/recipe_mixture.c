/* "mixed_precision" of a request. */

#include "pipeline/recipe_parts.h"

#include "base/err.h"
#include "base/mem.h"
#include "base/params.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIXTURE_NUMBER(member_, min_, max_, help_)                                                    \
    {                                                                                                 \
        .name = #member_, .type = PARAMS_NUMBER, .offset = offsetof(struct mixture_members, member_), \
        .size = sizeof(double), .fallback = "null", .min = (min_), .max = (max_), .help = (help_)     \
    }

struct mixture_members {
    double bits_per_weight, max_bytes, decode_milliseconds, memory_bandwidth;
    int64_t kl_tokens;
    json_t *candidates;
};

static const struct params_row mixture_rows[] = {
    MIXTURE_NUMBER(bits_per_weight, 1, 16,
                   "Average bits of a weight over all quantized linears at most, with scales and zero points."),
    MIXTURE_NUMBER(max_bytes, 1, 1e15, "Bytes of all tensors of the artifact at most."),
    MIXTURE_NUMBER(decode_milliseconds, 1e-6, 1e9,
                   "Time to read what one token needs of the linears and the head, at most, at memory_bandwidth."),
    MIXTURE_NUMBER(memory_bandwidth, 1, 1e18, "Bytes per second of the device that will run the artifact."),
    {.name = "kl_tokens",
     .type = PARAMS_INT,
     .offset = offsetof(struct mixture_members, kl_tokens),
     .size = sizeof(int64_t),
     .fallback = "4096",
     .min = 1,
     .max = 1e9,
     .help = "Calibration tokens that the effect of each linear on the logits is measured on, in complete sequences."},
    {.name = "candidates",
     .type = PARAMS_JSON,
     .offset = offsetof(struct mixture_members, candidates),
     .size = sizeof(json_t *),
     .fallback = "null",
     .help = "What linears may become: a list of {\"method\", or parameters of it}. By default every width of the "
             "method, or every type, that the format takes."},
    {.name = NULL},
};
static const struct params_row *const mixture_tables[] = {mixture_rows, NULL};

json_t *mixture_schema(void)
{
    json_t *schema = params_schema(mixture_tables);
    json_t *candidates =
        json_pack("{s:[s, s], s:i, s:i, s:{s:s}, s:O}", "type", "array", "null", "minItems", 1, "maxItems",
                  SENSITIVITY_CANDIDATES_MAX, "items", "type", "object", "description",
                  json_object_get(json_object_get(json_object_get(schema, "properties"), "candidates"), "description"));

    json_object_set_new(json_object_get(schema, "properties"), "candidates", candidates);
    return schema;
}

/* Which budget the request gives; errors where it is not exactly one. */
static void mixture_read_budget(const struct mixture_members *given, const char *pointer,
                                struct validation_errors *errors, struct mixture *out)
{
    int budgets = !isnan(given->bits_per_weight) + !isnan(given->max_bytes) + !isnan(given->decode_milliseconds);
    char at[192];

    out->bits_per_weight = given->bits_per_weight;
    out->max_bytes = given->max_bytes;
    out->decode_milliseconds = given->decode_milliseconds;
    out->memory_bandwidth = given->memory_bandwidth;
    out->budget = !isnan(given->bits_per_weight) ? MIXTURE_BITS
                  : !isnan(given->max_bytes)     ? MIXTURE_BYTES
                                                 : MIXTURE_DECODE;
    if (budgets != 1) {
        validation_add(errors, budgets == 0 ? ERR_MISSING_PARAMETER : ERR_INCOMPATIBLE_OPTIONS, pointer,
                       "\"mixed_precision\" has %s; it takes exactly one of \"bits_per_weight\", \"max_bytes\" and "
                       "\"decode_milliseconds\"",
                       budgets == 0 ? "no budget" : "several budgets");
        return;
    }
    if ((out->budget == MIXTURE_DECODE) == isnan(given->memory_bandwidth)) {
        text_pointer(at, sizeof(at), pointer, "memory_bandwidth");
        validation_add(errors, out->budget == MIXTURE_DECODE ? ERR_MISSING_PARAMETER : ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"memory_bandwidth\" and \"decode_milliseconds\" go together: the time is what reading the "
                       "weights takes at that bandwidth");
    }
}

/* Every type of a method, or every width. New reference, or NULL: it lists none. */
static json_t *mixture_default(const struct quantizer *usual)
{
    const struct params_row *types = params_find(usual->params, "type");
    const struct params_row *row = types != NULL ? types : params_find(usual->params, "bits");
    json_t *list = row != NULL && row->choices != NULL ? json_array() : NULL;

    for (int i = 0; list != NULL && row->choices[i] != NULL; i++) {
        if (row->type != PARAMS_ENUM) {
            json_array_append_new(list, json_pack("{s:I}", row->name, (json_int_t)strtoll(row->choices[i], NULL, 10)));
        } else if (strcmp(row->choices[i], "auto") != 0) {
            json_array_append_new(list, json_pack("{s:s}", row->name, row->choices[i]));
        }
    }
    return list;
}

int mixture_parse(const json_t *object, const struct quantizer *usual, const json_t *quantization, const char *pointer,
                  struct validation_errors *errors, struct mixture **out)
{
    struct mixture_members given = {0};
    size_t before = errors->count + errors->dropped;
    AUTO(mixture) struct mixture *made = NULL;
    AUTO_JSON json_t *plain = json_copy((json_t *)quantization);
    char at[192];

    TRY(mem_new(&made));
    TRY(params_parse(mixture_tables, object, pointer, &given, errors));
    made->listed = given.candidates != NULL;
    made->kl_tokens = given.kl_tokens;
    mixture_read_budget(&given, pointer, errors, made);
    (void)json_object_del(plain, "mixed_precision"); /* a candidate is not mixed in turn */
    (void)json_object_del(plain, "overrides");
    text_pointer(at, sizeof(at), pointer, "candidates");
    if (usual->solve == NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, pointer, "%s quantizes no weights, so there is nothing to mix",
                       usual->name);
    } else {
        AUTO_JSON json_t *all = made->listed ? NULL : mixture_default(usual);
        (void)sensitivity_candidates_parse(usual, plain, all != NULL ? all : given.candidates, at, errors,
                                           &made->candidates);
    }
    params_release(mixture_tables, &given);
    if (errors->count + errors->dropped != before) {
        return validation_raise(errors);
    }
    *out = MOVE(made);
    return 0;
}

json_t *mixture_request(const struct mixture *mixture, const struct quant_base *base, const json_t *all)
{
    json_t *object = json_deep_copy(base->mixed_precision), *list = json_object_get(object, "candidates");

    for (size_t i = 0; i < json_array_size(list); i++) {
        recipe_fill_part(&mixture->candidates.list[i].solver, all, json_array_get(list, i));
    }
    return object;
}

void mixture_free(struct mixture *mixture)
{
    if (mixture != NULL) {
        sensitivity_candidates_deinit(&mixture->candidates);
        free(mixture->choices);
        free(mixture);
    }
}

static int mixture_by_name(const void *key, const void *choice)
{
    return strcmp(key, ((const struct mixture_choice *)choice)->module);
}

static const struct mixture_choice *mixture_find(const struct mixture *mixture, const char *module)
{
    return mixture->choice_count == 0
               ? NULL
               : bsearch(module, mixture->choices, mixture->choice_count, sizeof(*mixture->choices), mixture_by_name);
}

const struct recipe_stage *mixture_solver(const struct mixture *mixture, const char *module)
{
    const struct mixture_choice *choice = mixture_find(mixture, module);

    return choice != NULL ? &mixture->candidates.list[choice->candidate].solver : NULL;
}
