/* How much each linear loses under each of several candidates, and what that does to the model's logits. A method
 * without a solver of its own: the pipeline passes over the model, and candidates are solved by their methods. */

#include "quantizers/sensitivity.h"

#include "base/err.h"
#include "quantizers/common.h"

static void sensitivity_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct sensitivity_params *params = values;
    const struct {
        const json_t *value;
        const char *name;
    } idle[] = {{params->base.overrides, "overrides"}, {params->base.kv_cache, "kv_cache"}};
    char at[192];

    quant_base_check(params, pointer, errors);
    for (size_t i = 0; i < sizeof(idle) / sizeof(idle[0]); i++) {
        if (idle[i].value != NULL && !json_is_null(idle[i].value)) {
            snprintf(at, sizeof(at), "%.140s/%s", pointer, idle[i].name);
            validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                           "\"%s\" does nothing here: the same candidates are tried on every linear", idle[i].name);
            validation_hint(errors, "leave it out");
        }
    }
}

static const struct params_row sensitivity_rows[] = {
    QUANT_ROW(PARAMS_JSON, sensitivity_params, candidates, "null",
              .help = "What to try on every linear: a list of 1 to 16 objects {\"method\", parameters of it}, such as "
                      "{\"bits\": 3, \"group_size\": 64}; null: 2, 3, 4 and 8 bits of the solver."),
    QUANT_ROW(PARAMS_STRING, sensitivity_params, solver, "\"gptq\"",
              .help = "The method of candidates that name none."),
    QUANT_ROW(PARAMS_INT, sensitivity_params, group_size, "128", .choices = quant_group_choices,
              .aliases = quant_group_names, .help = "group_size of candidates that have none."),
    QUANT_ROW(PARAMS_BOOL, sensitivity_params, sym, "true", .aliases = quant_sym_names,
              .help = "sym of candidates that have none."),
    QUANT_ROW(PARAMS_INT, sensitivity_params, max_tokens, "32768", .min = 0, .max = 1e9,
              .help = "Calibration tokens that output errors are measured on; 0 = all."),
    QUANT_ROW(PARAMS_INT, sensitivity_params, kl_tokens, "4096", .min = 1, .max = 1e9,
              .help = "Further calibration tokens, at most a quarter of all, that the effect on the logits is measured "
                      "on."),
    QUANT_ROW(PARAMS_INT, sensitivity_params, max_streams, "256", .min = 1, .max = 1e6,
              .help = "Measurements of the effect on the logits; each is a pass of kl_tokens through all later blocks. "
                      "What is not measured is predicted from what is."),
    {.name = NULL},
};

static const struct params_row *const sensitivity_tables[] = {quant_base_rows, sensitivity_rows, NULL};

const struct quantizer quantizer_sensitivity = {
    .name = "sensitivity",
    .title = "Sensitivity of each linear",
    .help =
        "Makes no artifact. The report's \"analysis\" says for every linear and candidate (bits, group size, method) "
        "the bits per weight, the error of the outputs, and the KL divergence of the model's logits when this linear "
        "alone is quantized so: what to give more bits, and what can do with fewer.",
    .stats = STATS_HESSIAN,
    .params = sensitivity_tables,
    .params_size = sizeof(struct sensitivity_params),
    .check = sensitivity_check,
    .measures = true,
};
