/* SmoothQuant: eight-bit weights and inputs, after the inputs' ranges have been moved into the weights (Xiao et al.
 * 2022, arXiv 2211.10438).
 *
 * Y = (X / s) (W s)^T for any positive s, so large input columns can be made small at the price of larger weight
 * columns: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4), over all linears that read the input. 1/s goes into the
 * norm before them (block_fold), so nothing is left to do at run time. Two more groups have a producer: up's rows for
 * down's inputs (the product of gate and up is linear in up), and v's rows for o's when every key head feeds one query
 * head. Both producers have a scale of their own for each row, so there the move costs the producer nothing.
 *
 * alpha is searched for each input group unless it is given: whichever of 0.3 .. 0.9, or leaving the group alone, gives
 * the least output error with weights and inputs quantized as they will be. All groups are smoothed where they can be
 * and their inputs are quantized. Columns that never carried anything keep s = 1.
 *
 * In a recipe the last method solves on the smoothed weights and this one adds how inputs are quantized (amend). */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SEARCH_TOKENS 4096
#define SEARCH_FIRST 0.30
#define SEARCH_STEP 0.05
#define SEARCH_STEPS 13
#define USUAL_STRENGTH 0.5
#define FACTOR_MIN 1e-5f

struct smoothquant_params {
    struct quant_base base;
    double smoothing_strength;                    /* NAN: not given */
    int alpha_search, smooth_down, smooth_output; /* enum params_switch */
    bool activation_dynamic;
    int64_t activation_bits;
    int input_range;
};

static const char *const bits_choices[] = {"8", "16", NULL};

static int amend(const void *params, struct qscheme *scheme)
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
static const char *defaults_after(const void *params)
{
    const struct smoothquant_params *p = params;

    return p->activation_bits == 8 ? "{\"bits\": 8, \"group_size\": -1, \"sym\": true}" : NULL;
}

static const struct quant_common *own_grid(void)
{
    static const struct quant_common grid = {.bits = 8, .group_size = -1, .sym = true};
    return &grid;
}

static int scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    int rc = quant_common_scheme(own_grid(), rows, cols, out);

    return rc != 0 ? rc : amend(params, out);
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    int rc = 0;

    (void)stats;
    for (int i = 0; rc == 0 && i < count; i++) {
        const void *params = jobs[i].params;
        rc = quant_tick(context);
        jobs[i].params = own_grid();
        rc = rc != 0 ? rc : rtn_solve_linear(context, &jobs[i]);
        jobs[i].params = params;
    }
    return rc;
}

/* One group's modules and what they read. */
struct smoothing {
    const struct rewrite_context *context;
    const struct smoothquant_params *params;
    int64_t columns;
    float *inputs, *weights, *factors, *best; /* host [columns]: max |X_j|, max |W_j|, s */
};

static const struct tensor *weight_of(const struct rewrite_context *c, int i)
{
    return &c->block->modules[c->group->modules[i]].weight;
}

static const struct qscheme *scheme_of(const struct rewrite_context *c, int i)
{
    return c->scheme(c->scheme_data, c->group->modules[i]);
}

/* Some module here gets its inputs quantized. */
static bool is_worth_it(const struct rewrite_context *c)
{
    bool any = false;

    for (int i = 0; i < c->group->count; i++) {
        const struct qscheme *scheme = scheme_of(c, i);
        any = any || (scheme != NULL && scheme->input.element != DTYPE_F32);
    }
    return any;
}

static bool is_wanted(const struct rewrite_context *c)
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

/* max over all linears and rows, for each column. */
static int measure_weights(struct smoothing *s)
{
    const struct rewrite_context *c = s->context;
    struct tensor most = {0};

    int rc = gpu_tensor_new(c->gpu, DTYPE_F32, 1, &s->columns, &most);
    for (int i = 0; rc == 0 && i < c->group->count; i++) {
        rc = c->gpu->ops->column_stats(c->stream, &most, NULL, weight_of(c, i));
    }
    size_t bytes = (size_t)s->columns * sizeof(float);
    rc = rc != 0 ? rc : c->gpu->ops->download(c->stream, s->weights, most.data, bytes);
    rc = rc != 0 ? rc : c->gpu->ops->download(c->stream, s->inputs, c->stats->absmax.data, bytes);
    gpu_tensor_free(c->gpu, &most);
    return rc;
}

static void set_factors(struct smoothing *s, double alpha)
{
    for (int64_t j = 0; j < s->columns; j++) {
        double x = (double)s->inputs[j], w = (double)s->weights[j];
        float factor = x > 0 && w > 0 ? (float)(pow(x, alpha) / pow(w, 1 - alpha)) : 1.0f;
        s->factors[j] = !isfinite(factor) ? 1.0f : factor < FACTOR_MIN ? FACTOR_MIN : factor;
    }
}

/* Device memory of a search over one group. */
struct search {
    struct tensor inverse, factor; /* F32 [K] */
    struct tensor x;               /* F32 [T,K], smoothed and rounded */
    struct tensor *weights;        /* F32 [N,K] of each module, smoothed and rounded */
    struct tensor wanted, gotten;  /* F32 [T * widest N] */
    int64_t tokens;                /* room of x */
    double error;
};

static void search_deinit(const struct smoothing *s, struct search *f)
{
    const struct gpu *gpu = s->context->gpu;

    gpu_tensor_free(gpu, &f->inverse);
    gpu_tensor_free(gpu, &f->factor);
    gpu_tensor_free(gpu, &f->x);
    for (int i = 0; f->weights != NULL && i < s->context->group->count; i++) {
        gpu_tensor_free(gpu, &f->weights[i]);
    }
    free(f->weights);
    gpu_tensor_free(gpu, &f->wanted);
    gpu_tensor_free(gpu, &f->gotten);
}

static int search_init(const struct smoothing *s, int64_t tokens, struct search *f)
{
    const struct rewrite_context *c = s->context;
    int64_t widest = 1;

    f->tokens = tokens;
    f->weights = calloc((size_t)c->group->count, sizeof(*f->weights));
    int rc = f->weights != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of weights");
    for (int i = 0; rc == 0 && i < c->group->count; i++) {
        const struct tensor *w = weight_of(c, i);
        widest = w->shape[0] > widest ? w->shape[0] : widest;
        rc = gpu_tensor_new(c->gpu, DTYPE_F32, 2, w->shape, &f->weights[i]);
    }
    rc = rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 1, &s->columns, &f->inverse);
    rc = rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 1, &s->columns, &f->factor);
    rc = rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, s->columns}, &f->x);
    rc = rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, widest}, &f->wanted);
    return rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, widest}, &f->gotten);
}

/* Wq = Q(W s) for one reader, as its scheme says, to nearest. */
static int round_weight(const struct smoothing *s, struct search *f, int i)
{
    const struct rewrite_context *c = s->context;
    const struct gpu_ops *ops = c->gpu->ops;
    const struct qscheme *scheme = scheme_of(c, i);
    struct tensor *w = &f->weights[i], codes = {0}, scale = {0}, zero = {0};

    int rc = ops->convert(c->stream, w, weight_of(c, i));
    rc = rc != 0 ? rc : ops->scale(c->stream, w, NULL, &f->factor);
    if (rc != 0 || scheme == NULL || scheme->kind != QTENSOR_INT) {
        return rc;
    }
    const struct gpu_grid grid = {
        .bits = scheme->bits, .group_size = scheme->group_size, .sym = scheme->sym, .scale_dtype = scheme->scale_dtype};
    const int64_t groups[2] = {w->shape[0], w->shape[1] / scheme->group_size};
    rc = gpu_tensor_new(c->gpu, DTYPE_U8, 2, w->shape, &codes);
    rc = rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 2, groups, &scale);
    rc = rc != 0 ? rc : gpu_tensor_new(c->gpu, DTYPE_F32, 2, groups, &zero);
    rc = rc != 0 ? rc : ops->grid(c->stream, &scale, &zero, w, NULL, &grid);
    rc = rc != 0 ? rc : ops->round(c->stream, &codes, w, &scale, &zero, &grid);
    rc = rc != 0 ? rc : ops->dequantize(c->stream, w, &codes, &scale, &zero, &grid);
    gpu_tensor_free(c->gpu, &codes);
    gpu_tensor_free(c->gpu, &scale);
    gpu_tensor_free(c->gpu, &zero);
    return rc;
}

/* How this linear's input will be quantized, the static scale being what the calibration set reaches over s. */
static struct gpu_input input_of(const struct smoothing *s, const struct qscheme *scheme)
{
    struct gpu_input input = scheme != NULL ? scheme->input : (struct gpu_input){.element = DTYPE_F32};
    float most = 0;

    for (int64_t j = 0; j < s->columns; j++) {
        float reached = s->inputs[j] / s->factors[j];
        most = reached > most ? reached : most;
    }
    input.scale = most > 0 ? most / 127.0f : 1.0f;
    return input;
}

/* Relative output error of the group's modules on one micro-batch, added up. */
static int try_batch(const struct smoothing *s, struct search *f, const struct tensor *in)
{
    const struct rewrite_context *c = s->context;
    const struct gpu_ops *ops = c->gpu->ops;
    struct tensor from = tensor_rows(in, 0, in->shape[0] < f->tokens ? in->shape[0] : f->tokens);
    struct tensor x = tensor_rows(&f->x, 0, from.shape[0]);
    struct gpu_residual lost;
    int rc = 0;

    for (int i = 0; rc == 0 && x.shape[0] > 0 && i < c->group->count; i++) {
        const struct qscheme *scheme = scheme_of(c, i);
        if (scheme == NULL) {
            continue;
        }
        int64_t rows = f->weights[i].shape[0];
        struct tensor wanted = tensor_2d(f->wanted.data, DTYPE_F32, x.shape[0], rows);
        struct tensor gotten = tensor_2d(f->gotten.data, DTYPE_F32, x.shape[0], rows);
        struct gpu_input input = input_of(s, scheme);
        rc = ops->convert(c->stream, &x, &from);
        rc = rc != 0 ? rc : ops->scale(c->stream, &x, NULL, &f->inverse);
        if (input.element != DTYPE_F32) {
            rc = rc != 0 ? rc : ops->quantize_input(c->stream, &x, &x, NULL, &input);
        }
        rc = rc != 0 ? rc : ops->linear(c->stream, &wanted, &from, weight_of(c, i), NULL);
        rc = rc != 0 ? rc : ops->linear(c->stream, &gotten, &x, &f->weights[i], NULL);
        rc = rc != 0 ? rc : ops->residual(c->stream, &lost, &wanted, &gotten, NULL, NULL, NULL);
        if (rc == 0) {
            f->error += lost.weight_sq > 0 ? lost.error_sq / lost.weight_sq : 0;
        }
    }
    return rc;
}

/* The error of s->factors over about SEARCH_TOKENS tokens spread over the calibration set. */
static int try_factors(const struct smoothing *s, struct search *f)
{
    const struct rewrite_context *c = s->context;
    size_t bytes = (size_t)s->columns * sizeof(float);
    float *inverse = malloc(bytes);
    int rc = inverse == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld factors", (long long)s->columns)
                             : c->tick(c->tick_data);

    for (int64_t j = 0; rc == 0 && j < s->columns; j++) {
        inverse[j] = 1.0f / s->factors[j];
    }
    rc = rc != 0 ? rc : gpu_tensor_upload(c->gpu, c->stream, &f->inverse, inverse);
    rc = rc != 0 ? rc : gpu_tensor_upload(c->gpu, c->stream, &f->factor, s->factors);
    free(inverse);
    for (int i = 0; rc == 0 && i < c->group->count; i++) {
        rc = round_weight(s, f, i);
    }
    int64_t wanted = (SEARCH_TOKENS + f->tokens - 1) / f->tokens;
    int64_t stride = c->batches > wanted ? c->batches / wanted : 1;
    f->error = 0;
    for (int64_t i = 0; rc == 0 && i < c->batches && i / stride < wanted; i += stride) {
        struct block_values values;
        rc = c->input(c->input_data, i, &values);
        if (rc == 0) {
            const struct tensor in = block_value(&values, c->group->input);
            rc = try_batch(s, f, &in);
        }
    }
    return rc;
}

/* s->best = the factors of the least error; *gain false when leaving the group alone is as good as any. */
static int search_alpha(struct smoothing *s, bool *gain)
{
    const struct rewrite_context *c = s->context;
    struct search f = {0};
    struct block_values values;
    double least = INFINITY;

    int rc = c->input(c->input_data, 0, &values);
    if (rc == 0) {
        /* An expert's batches differ, and some have no tokens. */
        int64_t tokens = c->group->expert < 0 ? block_value(&values, c->group->input).shape[0] : c->stats->tokens;
        rc = search_init(s, tokens < SEARCH_TOKENS ? tokens : SEARCH_TOKENS, &f);
    }
    for (int i = -1; rc == 0 && i < SEARCH_STEPS; i++) {
        if (i < 0) {
            for (int64_t j = 0; j < s->columns; j++) {
                s->factors[j] = 1.0f;
            }
        } else {
            set_factors(s, SEARCH_FIRST + SEARCH_STEP * i);
        }
        rc = try_factors(s, &f);
        if (rc == 0 && f.error < least) { /* never true of NaN */
            least = f.error;
            *gain = i >= 0;
            memcpy(s->best, s->factors, (size_t)s->columns * sizeof(float));
        }
    }
    search_deinit(s, &f);
    return rc;
}

static int smooth(struct smoothing *s)
{
    const struct rewrite_context *c = s->context;
    double alpha = isnan(s->params->smoothing_strength) ? USUAL_STRENGTH : s->params->smoothing_strength;
    bool given = !isnan(s->params->smoothing_strength), gain = true;

    int rc = measure_weights(s);
    if (rc == 0 && (s->params->alpha_search == PARAMS_ON || (s->params->alpha_search == PARAMS_AUTO && !given))) {
        gain = false;
        rc = search_alpha(s, &gain);
    } else if (rc == 0) {
        set_factors(s, alpha);
        memcpy(s->best, s->factors, (size_t)s->columns * sizeof(float));
    }
    return rc != 0 || !gain ? rc : block_fold(c->block, c->group, s->best, c->weight_dtype, c->gpu, c->stream);
}

static int rewrite(const struct rewrite_context *context)
{
    struct smoothing s = {
        .context = context,
        .params = context->params,
        .columns = context->group->columns,
    };

    if (!is_wanted(context) || !is_worth_it(context)) {
        return 0;
    }
    float *memory = calloc((size_t)s.columns, 4 * sizeof(*memory));
    if (memory == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld factors", (long long)s.columns);
    }
    s.inputs = memory;
    s.weights = memory + s.columns;
    s.factors = memory + 2 * s.columns;
    s.best = memory + 3 * s.columns;
    int rc = smooth(&s);
    free(memory);
    return rc;
}

/* Of the groups whose factors go through rows, by attention or not: the first that there is, in a plan that goes to
 * *plan, and whether any module of such a group has its inputs quantized. */
static const struct plan_group *find_rows(const struct plans *plans, const bool *quantized_inputs, bool attention,
                                          const struct plan **plan, bool *quantized)
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

static void refuse_idle(const char *member, const char *pointer, const char *module, struct validation_errors *errors)
{
    char at[192];

    text_pointer(at, sizeof(at), pointer, member);
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                   "\"%s\" does nothing: the inputs of %s are not quantized in any block", member, module);
}

/* What cannot be smoothed, or need not be, is left alone in silence only where nobody asked for it. */
static void check_model(const void *params, const struct plans *plans, const bool *quantized_inputs,
                        const char *pointer, struct validation_errors *errors)
{
    const struct smoothquant_params *p = params;
    const struct plan *plan = NULL;
    const struct plan_group *group;
    bool quantized;
    char at[192];

    group = p->smooth_output == PARAMS_ON ? find_rows(plans, quantized_inputs, true, &plan, &quantized) : NULL;
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
        refuse_idle("smooth_output", pointer, plan_short_path(plan->modules[group->modules[0]].path), errors);
    }
    group = p->smooth_down == PARAMS_ON ? find_rows(plans, quantized_inputs, false, &plan, &quantized) : NULL;
    if (group != NULL && !quantized) {
        refuse_idle("smooth_down", pointer, plan_short_path(plan->modules[group->modules[0]].path), errors);
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
    .check_model = check_model,
    .scheme = scheme,
    .amend = amend,
    .defaults_after = defaults_after,
    .rewrite_stats = STATS_RANGE,
    .rewrite = rewrite,
    .solve = solve,
};
