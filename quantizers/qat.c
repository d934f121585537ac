/* Block-wise quantization-aware training (EfficientQAT's Block-AP: Chen et al. 2024, arXiv 2407.11062): weights and
 * scales of a block learn with AdamW through the rounding, from GPTQ's result. A part of the sequences is held out:
 * what had the smallest loss there is kept, and blocks that no longer gain are done early. */

#include "quantizers/gptq.h"
#include "quantizers/learn.h"

#include <math.h>

#define CHECKS_PER_EPOCH 4
#define HELD_OUT 16     /* one sequence in so many */
#define HELD_MIN 4      /* of those at least */
#define PATIENCE 4      /* measured losses */
#define LAST_SHARE 0.05 /* of the rates, at the end */
#define SCALE_REACH 0.5
#define MARGIN 0.4

struct qat_params {
    struct gptq_params gptq;
    int64_t epochs, batch_size;
    double lr, scale_lr;
    LEARN_MODEL_MEMBERS;
};

static struct learn_plan qat_plan(const void *values, int64_t sequences)
{
    const struct qat_params *params = values;
    int64_t held = sequences / HELD_OUT > HELD_MIN ? sequences / HELD_OUT : HELD_MIN;
    int64_t learned = sequences - held, batches = learned / params->batch_size;
    return (struct learn_plan){
        .steps = params->epochs * (batches > 1 ? batches : 1),
        .batch = params->batch_size,
        .checks = CHECKS_PER_EPOCH * params->epochs,
        .checked = held,
        .held_out = true,
        .patience = PATIENCE,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .cosine = true,
        .floor = LAST_SHARE,
        .rate = {[LEARN_LATENTS] = params->lr, [LEARN_SCALES] = params->scale_lr},
        .margin = MARGIN,
        .reach = INFINITY,
        .scale_reach = SCALE_REACH,
    };
}

static int qat_tune(const struct tune_context *context)
{
    const struct learn_plan plan = qat_plan(context->params, context->sequences);

    return learn_block(context, &plan);
}

static void qat_tune_cost(const void *values, int64_t sequences, struct tune_cost *out)
{
    const struct learn_plan plan = qat_plan(values, sequences);

    learn_cost(&plan, sequences, out);
}

static const char *qat_preset(const void *values)
{
    const struct qat_params *params = values;
    const struct quant_common *common = &params->gptq.common;

    return common->sym && search_of(common, SEARCH_IMATRIX) != SEARCH_MINMAX ? NULL : "{\"signed_scales\":false}";
}

static const char *const lr_names[] = {"weight_lr", "learning_rate", NULL};
static const char *const scale_lr_names[] = {"quant_lr", NULL};

static bool qat_tune_model(const void *values, struct tune_model_plan *out)
{
    const struct qat_params *params = values;

    *out = (struct tune_model_plan)LEARN_MODEL_PLAN(params);
    return params->end_to_end;
}

static const struct params_row qat_rows[] = {
    QUANT_ROW(PARAMS_INT, qat_params, epochs, "4", .min = 0, .max = 1000,
              .help = "Passes over the calibration set for each block; 0 leaves GPTQ's result as it is."),
    QUANT_ROW(PARAMS_INT, qat_params, batch_size, "4", .min = 1, .max = 4096,
              .help = "Calibration sequences of a step; all of them where there are fewer."),
    QUANT_ROW(PARAMS_NUMBER, qat_params, lr, "0.002", .min = 0, .max = 10, .aliases = lr_names,
              .help = "The rate of weights, in units of their scale; it falls as a cosine to a twentieth. 0: they "
                      "stay."),
    QUANT_ROW(PARAMS_NUMBER, qat_params, scale_lr, "0.0005", .min = 0, .max = 1, .aliases = scale_lr_names,
              .help = "The same of scales, as a share of each; 0: they stay."),
    LEARN_MODEL_ROWS(qat_params),
    {.name = NULL},
};

static const struct params_row *const qat_params[] = {quant_base_rows, quant_common_rows, quant_search_rows,
                                                      gptq_rows,       qat_rows,          NULL};

static void qat_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct qat_params *params = values;

    gptq_check(values, pointer, errors);
    learn_model_check(qat_params, values, params->end_to_end, pointer, errors);
    if (params->epochs > 0 && params->lr == 0 && params->scale_lr == 0) {
        quant_refuse(errors, pointer, "lr", "nothing learns with \"lr\" and \"scale_lr\" 0");
        validation_hint(errors, "epochs 0, which leaves GPTQ's result as it is, or a rate above 0");
    }
}

const struct quantizer quantizer_qat = {
    .name = "qat",
    .title = "Block-wise training",
    .help = "Trains weights and scales of each block through the rounding, such that the block's output comes nearest "
            "to the float model's (Block-AP of EfficientQAT: Chen et al. 2024, arXiv 2407.11062), from GPTQ's result. "
            "Minutes where GPTQ takes seconds, with the same storage; gptq with output_moments has lost less in less "
            "time, and at 2 bits end_to_end after it. Needs calibration data.",
    .stats = STATS_HESSIAN,
    .targets = gptq_targets,
    .output_tokens = gptq_output_tokens,
    .preset = qat_preset,
    .params = qat_params,
    .learning = qat_rows,
    .params_size = sizeof(struct qat_params),
    .check = qat_check,
    .scheme = quant_common_scheme,
    .solve = gptq_solve,
    .cost = gptq_cost,
    .tune = qat_tune,
    .tune_cost = qat_tune_cost,
    .tune_model = qat_tune_model,
};
