/* SmoothQuant: eight-bit weights and inputs, after the inputs' ranges have been moved into the weights (Xiao et al.
 * 2022, arXiv 2211.10438).
 *
 * Y = (X / s) (W s)^T for any positive s, so large input columns can be made small at the price of larger weight
 * columns: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4), over all linears that read the input. 1/s goes into the
 * norm before them (block_fold), so nothing is left to do at run time. Two more groups have a producer: up's rows for
 * down's inputs (the product of gate and up is linear in up), and v's rows for o's when every key head feeds one query
 * head. Both producers have a scale of their own for each row, so there the move costs the producer nothing.
 *
 * alpha is searched for each input group unless it is given (smoothquant_search.c). All groups are smoothed where they
 * can be and their inputs are quantized. Columns that are always zero keep s = 1.
 *
 * In a recipe the last method solves on the smoothed weights and this one adds how inputs are quantized (amend). */

#include "quantizers/search.h"
#include "quantizers/smoothquant_search.h"

#include "base/err.h"
#include "base/mem.h"
#include "base/text.h"

#include <math.h>

#define USUAL_STRENGTH 0.5

static const char *const bits_choices[] = {"8", "16", NULL};

static int smoothquant_amend(const void *params, struct qscheme *scheme)
{
    const struct smoothquant_params *p = params;

    if (p->activation_bits != 8) {
        return 0;
    }
    if (scheme->kind != QTENSOR_INT || !scheme->sym) {
        bool grid = scheme->kind == QTENSOR_INT;
        int rc =
            err_raise(ERR_INCOMPATIBLE_OPTIONS, "INT8 inputs go with weights on a symmetric integer grid, not %s%s",
                      grid ? "asymmetric " : "", qtensor_kind_names[scheme->kind]);
        (void)err_set_param(rc, grid ? "sym" : "/method");
        return err_set_hint(rc, "%s", grid ? "sym true, or activation_bits 16" : "activation_bits 16, or rtn or gptq");
    }
    scheme->input = (struct gpu_input){.element = DTYPE_I8, .dynamic = p->activation_dynamic};
    scheme->input_search = !p->activation_dynamic && p->input_range == INPUT_RANGE_OUTPUT_ERROR;
    return 0;
}

/* The integer grid that runtimes multiply with INT8 inputs. */
static const char *smoothquant_defaults_after(const void *params)
{
    const struct smoothquant_params *p = params;

    return p->activation_bits == 8 ? "{\"bits\": 8, \"group_size\": -1, \"sym\": true}" : NULL;
}

static const struct quant_common *smoothquant_grid(void)
{
    static const struct quant_common grid = {.bits = 8, .group_size = -1, .sym = true};
    return &grid;
}

static int smoothquant_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    TRY(quant_common_scheme(smoothquant_grid(), rows, cols, out));
    return smoothquant_amend(params, out);
}

static int smoothquant_solve_linear(const struct solve_context *context, const struct layer_stats *stats,
                                    struct linear_job *job)
{
    const void *params = job->params;

    (void)stats;
    job->params = smoothquant_grid();
    int rc = rtn_solve_linear(context, job);
    job->params = params;
    return rc;
}

static void smoothquant_cost(const void *params, const struct quant_shape *shape, struct quant_cost *out)
{
    const enum quant_search search = SEARCH_MINMAX;

    (void)params;
    search_cost(smoothquant_grid(), shape, &search, 1, out);
}

static void smoothquant_rewrite_cost(const void *values, const struct quant_group *group, struct quant_cost *out)
{
    const struct smoothquant_params *p = values;
    bool searches = p->alpha_search == PARAMS_ON || (p->alpha_search == PARAMS_AUTO && isnan(p->smoothing_strength));

    *out = (struct quant_cost){.solving = group->linear.cols * (int64_t)sizeof(float),
                               .operations = 4 * (double)group->elements};
    if (searches) {
        smoothing_search_cost(group, out);
    }
}

static int smoothquant_solve(const struct solve_context *context, const struct layer_stats *stats,
                             struct linear_job *jobs, int count)
{
    return quant_each(context, stats, jobs, count, smoothquant_solve_linear);
}

/* Some module of the group gets its inputs quantized. */
static bool smoothquant_has_quantized_inputs(const struct rewrite_context *c)
{
    bool any = false;

    for (int i = 0; i < c->group->count; i++) {
        const struct qscheme *scheme = rewrite_scheme(c, i);
        any = any || (scheme != NULL && scheme->input.element != DTYPE_F32);
    }
    return any;
}

static bool smoothquant_is_enabled(const struct rewrite_context *c)
{
    const struct smoothquant_params *p = c->params;
    const struct plan_fold *fold = &c->group->fold;

    switch (fold->kind) {
    case FOLD_NORM:
        return true;
    case FOLD_ROWS:
        return (fold->attention ? p->smooth_output : p->smooth_down) != PARAMS_OFF;
    case FOLD_NONE:
        break;
    }
    return false;
}

/* max |W_j| over all linears and rows, for each column, and max |X_j|. */
static int smoothquant_measure(struct smoothing *s)
{
    const struct rewrite_context *c = s->context;
    size_t bytes = (size_t)s->columns * sizeof(float);
    AUTO_TENSOR(absmax, c->gpu);

    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 1, &s->columns, &absmax));
    for (int i = 0; i < c->group->count; i++) {
        TRY(c->gpu->ops->column_stats(c->stream, &absmax, NULL, rewrite_weight(c, i)));
    }
    TRY(c->gpu->ops->download(c->stream, s->weights, absmax.data, bytes));
    return c->gpu->ops->download(c->stream, s->inputs, c->stats->absmax.data, bytes);
}

static int smoothquant_rewrite(const struct rewrite_context *context)
{
    const struct smoothquant_params *p = context->params;
    int64_t columns = context->group->columns;
    bool given = !isnan(p->smoothing_strength), gain = true;
    AUTO_FREE float *memory = NULL;

    if (!smoothquant_is_enabled(context) || !smoothquant_has_quantized_inputs(context)) {
        return 0;
    }
    TRY(mem_array(&memory, 4 * (size_t)columns));
    struct smoothing s = {.context = context,
                          .params = p,
                          .columns = columns,
                          .inputs = memory,
                          .weights = memory + columns,
                          .factors = memory + 2 * columns,
                          .best = memory + 3 * columns};
    TRY(smoothquant_measure(&s));
    if (p->alpha_search == PARAMS_ON || (p->alpha_search == PARAMS_AUTO && !given)) {
        TRY(smoothing_search(&s, &gain));
    } else {
        smoothing_set_factors(&s, given ? p->smoothing_strength : USUAL_STRENGTH);
        s.best = s.factors;
    }
    return gain ? block_fold(context->block, context->group, s.best, context->weight_dtype, context->gpu,
                             context->stream)
                : 0;
}

/* Of the groups whose factors go through rows, by attention or not: the first that there is, its plan in *plan, and
 * whether any module of such a group has its inputs quantized. */
static const struct plan_group *smoothquant_find_rows(const struct plans *plans, const bool *quantized_inputs,
                                                      bool attention, const struct plan **plan, bool *quantized)
{
    const struct plan_group *found = NULL;

    *quantized = false;
    for (int64_t layer = 0; layer < plans_config(plans)->num_layers; layer++) {
        const struct plan *own = plans_layer(plans, layer);
        for (int g = 0; g < own->group_count; g++) {
            const struct plan_group *group = &own->groups[g];
            if (group->fold.module < 0 || group->fold.attention != attention) {
                continue;
            }
            *plan = found == NULL ? own : *plan;
            found = found == NULL ? group : found;
            for (int i = 0; i < group->count; i++) {
                *quantized =
                    *quantized || quantized_inputs[plans_first_module(plans, layer) + (size_t)group->modules[i]];
            }
        }
    }
    return found;
}

static void smoothquant_refuse_idle(const char *member, const char *pointer, const char *module,
                                    struct validation_errors *errors)
{
    char at[192];

    text_pointer(at, sizeof(at), pointer, member);
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                   "\"%s\" does nothing: the inputs of %s are not quantized in any block", member, module);
}

/* What cannot be smoothed, or need not be, is left alone silently only where the request does not ask for it. */
static void smoothquant_check_model(const void *params, const struct plans *plans, const bool *quantized_inputs,
                                    const char *pointer, struct validation_errors *errors)
{
    const struct smoothquant_params *p = params;
    const struct plan *plan = NULL;
    const struct plan_group *group = NULL;
    bool quantized = false;
    char at[192];

    if (p->smooth_output == PARAMS_ON) {
        group = smoothquant_find_rows(plans, quantized_inputs, true, &plan, &quantized);
    }
    if (group != NULL && group->fold.shared) {
        const struct plan_attention *a = &plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention;
        text_pointer(at, sizeof(at), pointer, "smooth_output");
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"smooth_output\" cannot be true: the model shares %lld key heads among %lld query heads, so "
                       "that no row of %s feeds one input of %s alone",
                       (long long)a->kv_heads, (long long)a->heads,
                       plan_short_path(plan->modules[group->fold.module].path),
                       plan_short_path(plan->modules[group->modules[0]].path));
    } else if (group != NULL && !quantized) {
        smoothquant_refuse_idle("smooth_output", pointer, plan_short_path(plan->modules[group->modules[0]].path),
                                errors);
    }
    group = NULL;
    if (p->smooth_down == PARAMS_ON) {
        group = smoothquant_find_rows(plans, quantized_inputs, false, &plan, &quantized);
    }
    if (group != NULL && !quantized) {
        smoothquant_refuse_idle("smooth_down", pointer, plan_short_path(plan->modules[group->modules[0]].path), errors);
    }
}

static const char *const strength_names[] = {"alpha", NULL};

static const struct params_row smoothquant_rows[] = {
    QUANT_ROW(PARAMS_NUMBER, smoothquant_params, smoothing_strength, "null", .min = 0, .max = 1,
              .aliases = strength_names,
              .help = "alpha: 0 moves all difficulty into the inputs, 1 all into the weights; null: searched, or 0.5 "
                      "where alpha_search is false."),
    QUANT_ROW(
        PARAMS_SWITCH, smoothquant_params, alpha_search, "null",
        .help =
            "Choose alpha for each input group from 0.3 to 0.9, or leave the group alone, by its output error; null: "
            "unless smoothing_strength is given."),
    QUANT_ROW(PARAMS_SWITCH, smoothquant_params, smooth_down, "null",
              .help = "Also smooth what down_proj reads, through the rows of up_proj; null: where these inputs are "
                      "quantized."),
    QUANT_ROW(PARAMS_SWITCH, smoothquant_params, smooth_output, "null",
              .help =
                  "Also smooth what o_proj reads, through the rows of v_proj; null: where these inputs are quantized "
                  "and key heads are not grouped, since otherwise it cannot be done."),
    QUANT_ROW(PARAMS_INT, smoothquant_params, activation_bits, "8", .choices = bits_choices,
              .help = "Bits of an input; 16 = inputs stay in float."),
    QUANT_ROW(PARAMS_BOOL, smoothquant_params, activation_dynamic, "true",
              .help = "One scale for each token at run time; else one calibrated scale for each linear."),
    QUANT_INPUT_RANGE_ROW(smoothquant_params),
    {.name = NULL},
};

static const struct params_row *const smoothquant_params_tables[] = {quant_base_rows, quant_input_rows,
                                                                     smoothquant_rows, NULL};

const struct quantizer quantizer_smoothquant = {
    .name = "smoothquant",
    .title = "SmoothQuant",
    .help = "Eight-bit weights and inputs: large input channels are scaled down and the weights that read them up, "
            "then both are rounded. Alone it rounds weights to nearest; before another method in a list, that method "
            "solves (Xiao et al. 2022, arXiv 2211.10438).",
    .stats = STATS_NONE,
    .params = smoothquant_params_tables,
    .params_size = sizeof(struct smoothquant_params),
    .check = quant_base_check,
    .check_model = smoothquant_check_model,
    .scheme = smoothquant_scheme,
    .amend = smoothquant_amend,
    .defaults_after = smoothquant_defaults_after,
    .rewrite_stats = STATS_RANGE,
    .rewrite = smoothquant_rewrite,
    .solve = smoothquant_solve,
    .cost = smoothquant_cost,
    .rewrite_cost = smoothquant_rewrite_cost,
};
