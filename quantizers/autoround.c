/* AutoRound (Cheng et al. 2023, arXiv 2309.05516): a block's codes and scales by steps of the gradient's sign, such
 * that the block gives what the float block does. It starts from GPTQ's result, or from rounding as in the paper.
 *
 * A latent moves by the rate, which falls linearly to 0: with the default of 1 / iters it moves by half a code at most,
 * so each code by one. */

#include "quantizers/gptq.h"
#include "quantizers/learn.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>

#define CHECKS 10  /* measured losses after the first */
#define HOLDS 32   /* sequences from which on some are held out, since codes overfit what they learn from, */
#define HELD_OUT 8 /* one in so many */
#define CHECKED 32 /* of fewer, losses are measured on so many at most */
#define SCALE_REACH 0.5
#define MARGIN 0.4
#define MOMENTUM 0.9 /* without it half of all signs are noise */

enum autoround_start { START_GPTQ, START_RTN };
enum autoround_recipe { RECIPE_LIGHT, RECIPE_DEFAULT, RECIPE_BEST };

struct autoround_params {
    struct gptq_params gptq;
    int recipe, start;
    int64_t iters, batch_size;
    double lr, scale_lr;
};

static const struct gptq_params *autoround_gptq(const void *values)
{
    const struct autoround_params *params = values;
    return &params->gptq;
}

static bool autoround_rounds(const void *values)
{
    const struct autoround_params *params = values;
    return params->start == START_RTN;
}

static int autoround_solve(const struct solve_context *context, const struct layer_stats *stats,
                           struct linear_job *jobs, int count)
{
    if (count == 0 || !autoround_rounds(jobs[0].params)) {
        return gptq_solve(context, stats, jobs, count);
    }
    for (int i = 0; i < count; i++) {
        TRY(quant_tick(context));
        TRY(quant_fail(&jobs[i], rtn_solve_linear(context, &jobs[i])));
    }
    return 0;
}

static int64_t autoround_output_tokens(const void *values)
{
    return autoround_rounds(values) ? 0 : gptq_output_tokens(autoround_gptq(values));
}

static bool autoround_targets(const void *values, struct quant_targets *out)
{
    return !autoround_rounds(values) && gptq_targets(autoround_gptq(values), out);
}

/* As GPTQ's, by whether scales of either sign can be searched, and the recipe's. */
static const char *autoround_preset(const void *values)
{
    const struct autoround_params *params = values;
    const struct quant_common *common = &params->gptq.common;
    bool signs = common->sym && search_of(common, SEARCH_IMATRIX) != SEARCH_MINMAX;

    switch (params->recipe) {
    case RECIPE_LIGHT:
        return signs ? "{\"iters\":50}" : "{\"iters\":50,\"signed_scales\":false}";
    case RECIPE_BEST:
        return signs ? "{\"iters\":1000,\"refine_rounds\":4,\"resweep\":2}"
                     : "{\"iters\":1000,\"refine_rounds\":4,\"resweep\":2,\"signed_scales\":false}";
    default:
        return signs ? NULL : "{\"signed_scales\":false}";
    }
}

static struct learn_plan autoround_plan(const void *values, int64_t sequences)
{
    const struct autoround_params *params = values;
    bool holds = sequences >= HOLDS;

    return (struct learn_plan){
        .steps = params->iters,
        .batch = params->batch_size,
        .checks = CHECKS,
        .checked = holds ? sequences / HELD_OUT : CHECKED,
        .held_out = holds,
        .sign = true,
        .beta1 = MOMENTUM,
        .rate = {[LEARN_LATENTS] = params->lr > 0 ? params->lr : 1.0 / (double)(params->iters + 1),
                 [LEARN_SCALES] = params->scale_lr},
        .exact = params->start == START_RTN,
        .margin = params->start == START_RTN ? LEARN_MARGIN_MAX : MARGIN,
        .reach = params->start == START_RTN ? 0.5 : INFINITY,
        .scale_reach = SCALE_REACH,
    };
}

static int autoround_tune(const struct tune_context *context)
{
    const struct learn_plan plan = autoround_plan(context->params, context->sequences);

    return learn_block(context, &plan);
}

static void autoround_tune_cost(const void *values, int64_t sequences, struct tune_cost *out)
{
    const struct learn_plan plan = autoround_plan(values, sequences);

    learn_cost(&plan, sequences, out);
}

/* Rounding to nearest has no descent that moments of outputs could weigh. */
static void autoround_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    gptq_check(values, pointer, errors);
    if (autoround_rounds(values) && gptq_output_tokens(autoround_gptq(values)) != 0) {
        quant_refuse(errors, pointer, "output_moments",
                     "\"output_moments\" are for GPTQ's descent, and \"start\": \"rtn\" rounds to nearest");
        validation_hint(errors, "\"start\": \"gptq\", or leave it out");
    }
}

static const char *const recipe_names[] = {
    [RECIPE_LIGHT] = "light", [RECIPE_DEFAULT] = "default", [RECIPE_BEST] = "best", NULL};
static const char *const start_names[] = {[START_GPTQ] = "gptq", [START_RTN] = "rtn", NULL};
static const char *const lr_names[] = {"learning_rate", NULL};
static const char *const scale_lr_names[] = {"minmax_lr", NULL};

static const struct params_row autoround_rows[] = {
    QUANT_ROW(PARAMS_ENUM, autoround_params, recipe, "\"default\"", .choices = recipe_names,
              .help =
                  "What the members that are not given are: default is 200 steps; light 50; best 1000, from a start "
                  "that sweeps twice more and refines for 4 rounds."),
    QUANT_ROW(PARAMS_ENUM, autoround_params, start, "\"gptq\"", .choices = start_names,
              .help = "The result that is learned on: GPTQ's, by its parameters, or rounding to nearest as in the "
                      "paper."),
    QUANT_ROW(PARAMS_INT, autoround_params, iters, "200", .min = 0, .max = 100000,
              .help = "Steps on each block; 0 leaves the start as it is."),
    QUANT_ROW(PARAMS_INT, autoround_params, batch_size, "8", .min = 1, .max = 4096,
              .help = "Calibration sequences of a step; all of them where there are fewer."),
    QUANT_ROW(PARAMS_NUMBER, autoround_params, lr, "0", .min = 0, .max = 10, .aliases = lr_names,
              .help = "What a step moves weights by, in units of their scale, at first; it falls linearly to 0. 0: "
                      "1 / iters."),
    QUANT_ROW(PARAMS_NUMBER, autoround_params, scale_lr, "0.001", .min = 0, .max = 1, .aliases = scale_lr_names,
              .help = "The same of scales, as a share of each; 0: they stay."),
    {.name = NULL},
};

static const struct params_row *const autoround_params[] = {quant_base_rows, quant_common_rows, quant_search_rows,
                                                            gptq_rows,       autoround_rows,    NULL};

const struct quantizer quantizer_autoround = {
    .name = "autoround",
    .title = "AutoRound",
    .help = "Learns codes and scales of each block by steps of the gradient's sign, such that the block's output comes "
            "nearest to the float model's (Cheng et al. 2023, arXiv 2309.05516), from GPTQ's result or from rounding. "
            "Minutes where GPTQ takes seconds, with the same storage; gptq with output_moments has lost less in less "
            "time. Needs calibration data.",
    .stats = STATS_HESSIAN,
    .targets = autoround_targets,
    .output_tokens = autoround_output_tokens,
    .preset = autoround_preset,
    .params = autoround_params,
    .learning = autoround_rows,
    .params_size = sizeof(struct autoround_params),
    .check = autoround_check,
    .scheme = quant_common_scheme,
    .solve = autoround_solve,
    .cost = gptq_cost,
    .tune = autoround_tune,
    .tune_cost = autoround_tune_cost,
};
