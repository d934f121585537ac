/* What can be tuned of a solved block with its codes as they are: scales, tables of codebooks, norms and biases, such
 * that the block gives what the float block does (AQLM's block fine-tuning: Egiazarian et al. 2024, arXiv 2401.06118,
 * section 3.4). Comes after a method that solves. */

#include "quantizers/learn.h"

#include <math.h>

#define CHECKS_PER_EPOCH 4
#define CHECKED 32
#define SCALE_REACH 0.5
#define LAST_SHARE 0.05

struct tuning_params {
    int64_t tune_epochs, tune_batch_size;
    double tune_lr;
    bool tune_scales, tune_tables, tune_norms, tune_biases;
    LEARN_MODEL_MEMBERS;
};

static struct learn_plan tuning_plan(const void *values, int64_t sequences)
{
    const struct tuning_params *params = values;
    int64_t batches = sequences / params->tune_batch_size;
    return (struct learn_plan){
        .steps = params->tune_epochs * (batches > 1 ? batches : 1),
        .batch = params->tune_batch_size,
        .checks = CHECKS_PER_EPOCH * params->tune_epochs,
        .checked = CHECKED,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .cosine = true,
        .floor = LAST_SHARE,
        .rate = {[LEARN_SCALES] = params->tune_scales ? params->tune_lr : 0,
                 [LEARN_TABLES] = params->tune_tables ? params->tune_lr : 0,
                 [LEARN_NORMS] = params->tune_norms ? params->tune_lr : 0,
                 [LEARN_BIASES] = params->tune_biases ? params->tune_lr : 0},
        .margin = LEARN_MARGIN_MAX,
        .reach = INFINITY,
        .scale_reach = SCALE_REACH,
    };
}

static int tuning_tune(const struct tune_context *context)
{
    const struct learn_plan plan = tuning_plan(context->params, context->sequences);

    return learn_block(context, &plan);
}

static void tuning_tune_cost(const void *values, int64_t sequences, struct tune_cost *out)
{
    const struct learn_plan plan = tuning_plan(values, sequences);

    learn_cost(&plan, sequences, out);
}

static bool tuning_tune_model(const void *values, struct tune_model_plan *out)
{
    const struct tuning_params *params = values;

    *out = (struct tune_model_plan)LEARN_MODEL_PLAN(params);
    return params->end_to_end;
}

static const struct params_row tuning_rows[] = {
    QUANT_ROW(PARAMS_INT, tuning_params, tune_epochs, "4", .min = 0, .max = 1000,
              .help = "Passes over the calibration set for each block; 0 leaves the solved block as it is."),
    QUANT_ROW(PARAMS_INT, tuning_params, tune_batch_size, "8", .min = 1, .max = 4096,
              .help = "Calibration sequences of a step; all of them where there are fewer."),
    QUANT_ROW(PARAMS_NUMBER, tuning_params, tune_lr, "0.001", .min = 0, .max = 1,
              .help =
                  "What a step changes at first, relative to the size of what is changed; it falls as a cosine to a "
                  "twentieth."),
    QUANT_ROW(PARAMS_BOOL, tuning_params, tune_scales, "true", .help = "Tune scales."),
    QUANT_ROW(PARAMS_BOOL, tuning_params, tune_tables, "true", .help = "Tune tables of codebooks."),
    QUANT_ROW(PARAMS_BOOL, tuning_params, tune_norms, "true", .help = "Tune the weights of norms."),
    QUANT_ROW(PARAMS_BOOL, tuning_params, tune_biases, "true", .help = "Tune the biases of quantized linears."),
    LEARN_MODEL_ROWS(tuning_params),
    {.name = NULL},
};

static const struct params_row *const tuning_params[] = {tuning_rows, NULL};

static void tuning_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct tuning_params *params = values;
    bool any = params->tune_scales || params->tune_tables || params->tune_norms || params->tune_biases;

    learn_model_check(tuning_params, values, params->end_to_end, pointer, errors);
    if (params->tune_epochs > 0 && (!any || params->tune_lr == 0)) {
        quant_refuse(errors, pointer, any ? "tune_lr" : "tune_scales",
                     any ? "nothing learns with \"tune_lr\" 0"
                         : "nothing learns with \"tune_scales\", \"tune_tables\", \"tune_norms\" and \"tune_biases\" "
                           "false");
        validation_hint(errors, "tune_epochs 0, which leaves blocks as they were solved");
    }
}

const struct quantizer quantizer_tune = {
    .name = "tune",
    .title = "Tuning",
    .help = "After a method that solves, [\"gptq\", \"tune\"]: tunes scales, codebooks, norms and biases of each block "
            "with codes as they are, such that the block's output comes nearest to the float model's (as AQLM's block "
            "fine-tuning: Egiazarian et al. 2024, arXiv 2401.06118). Needs calibration data.",
    .params = tuning_params,
    .params_size = sizeof(struct tuning_params),
    .check = tuning_check,
    .tune = tuning_tune,
    .tune_cost = tuning_tune_cost,
    .tune_model = tuning_tune_model,
};
