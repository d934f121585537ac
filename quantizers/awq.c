/* AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that are large on average get finer weights. A factor s_j for each
 * input j moves from what produces it to the linears that read it, X W^T = (X / s) (W s)^T, so that the rounding of the
 * columns that matter shrinks relative to them; then ranges are cut where that loses least.
 *
 * The search. x_j = mean |X_j|, w_j = mean over the rows of all readers of |W_ij| / max of its group (eq. 4; w_j by the
 * reference code's duo scaling). Candidates: s = 1, and for r = 0, 1/n .. (n-1)/n
 *
 *   s_j = x_j^r / (w_j^(1-r) + 1e-4)        with duo_scaling
 *   s_j = x_j^r                              without; r = 0 is s = 1 then and not tried twice
 *
 * divided by sqrt(max s * min s). Inputs with x_j = 0 or w_j = 0 keep 1 and do not count for the extremes, nor do
 * factors that are not finite. Each candidate is Q(W s) / s, on the grid that the solver will use, in the block itself:
 * the output of attention with o_proj (for q, k, v), of the MLP (gate, up), of the linear (o, down) is held against
 * the float block's, and the least sum of squares wins, ties to the earlier. A candidate whose output is not finite is
 * out. s = 1 is always in, so no group loses to rounding on what is scored.
 *
 * Scored on SCORE_TOKENS inputs at most, in whole micro-batches (at least one), spread evenly over the calibration set:
 * the same ones in every run. Every candidate meets the first that has inputs; the SHORTLIST best of it and s = 1 meet
 * the others too, and the least sum over all wins. Neighbours lose nearly the same, so what the first misorders costs
 * little. The winner is folded before the next group is looked at, so that its statistics and float outputs are those
 * of the folded block.
 *
 * The clip search is per row and group, in solve: see gpu/cpu/clip.c. It needs the second moments of the inputs alone,
 * of which it takes the group's diagonal block; over the whole calibration set that is the reference's objective, the
 * mean squared error of the group's part of the output, which the reference samples at 512 tokens. q and k are not
 * clipped, since attention multiplies their outputs. Of the clipped and the unclipped linear the one that loses less
 * on its output is taken. */

#include "quantizers/search.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SCORE_TOKENS 4096
#define SHORTLIST 5
#define DUO_FLOOR 1e-4
#define N_GRID_MAX 200
#define CANDIDATES_MAX (N_GRID_MAX + 1)

enum awq_version { AWQ_GEMM };
static const char *const versions[] = {"gemm", NULL};
static const char *const bits_choices[] = {"2", "3", "4", "8", NULL};
static const char *const group_choices[] = {"-1", "32", "64", "128", NULL};

struct awq_params {
    struct quant_common common;
    int64_t n_grid;
    bool duo_scaling, clip;
    int version;
};

/* The search at one group. Candidate 0 is the block as it is. */
struct search {
    const struct rewrite_context *context;
    const struct awq_params *params;
    int64_t columns;
    int candidates;
    double *losses;                           /* [candidates]; infinite: out */
    float *inputs;                            /* x_j */
    float *weights;                           /* w_j */
    float *factors;                           /* s_j of the candidate at hand */
    struct block trial;                       /* the block with readers in place that are quantized; owns nothing */
    struct tensor *readers;                   /* of each of the group's modules; data NULL: it stays in float */
    plan_set steps;                           /* from the input to what the group is judged by */
    struct tensor codes, scale, zero, column; /* of the widest reader; F32 [columns] */
    struct tensor target, output;             /* what it is judged by, [tokens, width] */
};

/* The scheme of the group's module i if it is rounded to an integer grid, or NULL. */
static const struct qscheme *reader(const struct rewrite_context *context, int i)
{
    const struct qscheme *scheme = context->scheme(context->scheme_data, context->group->modules[i]);
    return scheme != NULL && scheme->kind == QTENSOR_INT && scheme->group_rows <= 1 ? scheme : NULL;
}

static const struct tensor *weight_of(const struct rewrite_context *context, int i)
{
    return &context->block->modules[context->group->modules[i]].weight;
}

/* Add |w| over its group's largest to the columns' sums. */
static void add_weights(const float *w, int64_t rows, int64_t cols, int64_t group, double *sums)
{
    for (int64_t at = 0; at < rows * cols; at += group) {
        float most = 0;
        for (int64_t i = 0; i < group; i++) {
            most = fmaxf(most, fabsf(w[at + i]));
        }
        for (int64_t i = 0; most > 0 && i < group; i++) {
            sums[at % cols + i] += (double)(fabsf(w[at + i]) / most);
        }
    }
}

static int weigh_reader(struct search *search, int i, const struct qscheme *scheme, double *sums)
{
    const struct rewrite_context *context = search->context;
    const struct tensor *weight = weight_of(context, i);
    float *host = malloc(tensor_bytes(weight));

    if (host == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a weight");
    }
    int rc = context->gpu->ops->download(context->stream, host, weight->data, tensor_bytes(weight));
    if (rc == 0) {
        add_weights(host, weight->shape[0], weight->shape[1], scheme->group_size, sums);
    }
    free(host);
    return rc;
}

/* x_j and w_j. */
static int search_observe(struct search *search)
{
    const struct rewrite_context *context = search->context;
    double *sums = calloc((size_t)search->columns, sizeof(*sums));
    int64_t rows = 0;

    if (sums == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld columns", (long long)search->columns);
    }
    int rc = context->gpu->ops->download(context->stream, search->inputs, context->stats->absmean.data,
                                         (size_t)search->columns * sizeof(float));
    for (int i = 0; rc == 0 && i < context->group->count; i++) {
        const struct qscheme *scheme = reader(context, i);
        if (scheme != NULL) {
            rc = weigh_reader(search, i, scheme, sums);
            rows += weight_of(context, i)->shape[0];
        }
    }
    for (int64_t j = 0; rc == 0 && j < search->columns; j++) {
        search->weights[j] = (float)(sums[j] / (double)rows);
    }
    free(sums);
    return rc;
}

/* s_j of candidate i > 0, before it is put in the middle; NAN: leave this input alone. */
static double raw_factor(const struct search *search, int candidate, int64_t j)
{
    bool duo = search->params->duo_scaling;
    double r = (double)(duo ? candidate - 1 : candidate) / (double)search->params->n_grid;
    double x = (double)search->inputs[j], w = (double)search->weights[j];

    if (!(x > 0) || !(w > 0) || !isfinite(x) || !isfinite(w)) {
        return NAN;
    }
    return duo ? pow(x, r) / (pow(w, 1 - r) + DUO_FLOOR) : fmax(pow(x, r), DUO_FLOOR);
}

static void set_factors(struct search *search, int candidate)
{
    double low = INFINITY, high = 0;

    for (int64_t j = 0; j < search->columns; j++) {
        double s = candidate > 0 ? raw_factor(search, candidate, j) : NAN;
        low = s < low ? s : low;
        high = s > high ? s : high;
    }
    double middle = sqrt(low * high);
    for (int64_t j = 0; j < search->columns; j++) {
        double s = candidate > 0 ? raw_factor(search, candidate, j) / middle : NAN;
        search->factors[j] = s > 0x1p-60 && s < 0x1p60 ? (float)s : 1.0f;
    }
}

static int upload_column(struct search *search, bool inverse)
{
    const struct rewrite_context *context = search->context;
    float *column = malloc((size_t)search->columns * sizeof(*column));

    if (column == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld columns", (long long)search->columns);
    }
    for (int64_t j = 0; j < search->columns; j++) {
        column[j] = inverse ? 1.0f / search->factors[j] : search->factors[j];
    }
    int rc = gpu_tensor_upload(context->gpu, context->stream, &search->column, column);
    free(column);
    return rc;
}

/* A reader's grid, over buffers that are wide enough for any. */
static int round_reader(struct search *search, int i, const struct qscheme *scheme)
{
    const struct rewrite_context *context = search->context;
    const struct gpu_ops *ops = context->gpu->ops;
    struct tensor *w = &search->readers[i];
    int64_t rows = w->shape[0], groups = w->shape[1] / scheme->group_size;
    struct tensor codes = tensor_2d(search->codes.data, DTYPE_U8, rows, w->shape[1]);
    struct tensor scale = tensor_2d(search->scale.data, DTYPE_F32, rows, groups);
    struct tensor zero = tensor_2d(search->zero.data, DTYPE_F32, rows, groups);
    const struct gpu_grid grid = {
        .bits = scheme->bits, .group_size = scheme->group_size, .sym = scheme->sym, .scale_dtype = scheme->scale_dtype};

    int rc = ops->grid(context->stream, &scale, &zero, w, NULL, &grid);
    rc = rc != 0 ? rc : ops->round(context->stream, &codes, w, &scale, &zero, &grid);
    return rc != 0 ? rc : ops->dequantize(context->stream, w, &codes, &scale, &zero, &grid);
}

/* The trial's readers: Q(W s) / s. */
static int place_candidate(struct search *search, int candidate)
{
    const struct rewrite_context *context = search->context;
    const struct gpu_ops *ops = context->gpu->ops;
    int rc = 0;

    set_factors(search, candidate);
    for (int pass = 0; rc == 0 && pass < 2; pass++) {
        rc = upload_column(search, pass == 1);
        for (int i = 0; rc == 0 && i < context->group->count; i++) {
            const struct qscheme *scheme = reader(context, i);
            if (scheme == NULL) {
                continue;
            }
            if (pass == 0) {
                rc = ops->convert(context->stream, &search->readers[i], weight_of(context, i));
            }
            rc = rc != 0 ? rc : ops->scale(context->stream, &search->readers[i], NULL, &search->column);
            if (rc == 0 && pass == 0) {
                rc = round_reader(search, i, scheme);
            }
        }
    }
    return rc;
}

/* What the group is judged by (plan_group.branch), to `out`: the output of attention with its last module, of the MLP,
 * or of the module itself. */
static int branch_output(const struct search *search, const struct block *block, const struct block_values *values,
                         const struct tensor *out)
{
    struct block_values own = *values;

    block_value_bind(&own, search->context->group->branch, out->data);
    return block_run(block, &own, search->steps);
}

/* One micro-batch through every candidate that is still in; *met: it has tokens. */
static int score_batch(struct search *search, int64_t i, bool *met)
{
    const struct rewrite_context *context = search->context;
    struct block_values values;
    const struct plan *plan = plan_of_group(context->block->plan, context->group);
    int64_t tokens = 0, width = plan->values[context->group->branch].width;

    int rc = context->input(context->input_data, i, &values);
    if (rc == 0) {
        tokens = block_value(&values, context->group->input).shape[0];
    }
    *met = tokens > 0;
    if (rc != 0 || tokens == 0) {
        return rc;
    }
    if (search->target.shape[0] < tokens) { /* of a layer the first batch is a full one; an expert's differ */
        gpu_tensor_free(context->gpu, &search->target);
        gpu_tensor_free(context->gpu, &search->output);
        const int64_t shape[] = {tokens, width};
        rc = gpu_tensor_new(context->gpu, DTYPE_F32, 2, shape, &search->target);
        rc = rc != 0 ? rc : gpu_tensor_new(context->gpu, DTYPE_F32, 2, shape, &search->output);
    }
    if (rc != 0) {
        return rc;
    }
    struct tensor target = tensor_rows(&search->target, 0, tokens);
    struct tensor output = tensor_rows(&search->output, 0, tokens);
    rc = branch_output(search, context->block, &values, &target);
    for (int candidate = 0; rc == 0 && candidate < search->candidates; candidate++) {
        struct gpu_residual residual = {0};
        if (!isfinite(search->losses[candidate])) {
            continue;
        }
        rc = context->tick != NULL ? context->tick(context->tick_data) : 0;
        rc = rc != 0 ? rc : place_candidate(search, candidate);
        rc = rc != 0 ? rc : branch_output(search, &search->trial, &values, &output);
        rc = rc != 0 ? rc : context->gpu->ops->residual(context->stream, &residual, &target, &output, NULL, NULL, NULL);
        search->losses[candidate] += residual.nonfinite > 0 ? INFINITY : residual.error_sq;
    }
    return rc;
}

/* Leave the best few in, the earlier of equals, and s = 1. */
static void shorten_list(struct search *search)
{
    bool in[CANDIDATES_MAX] = {true};

    for (int k = 0; k < SHORTLIST; k++) {
        int best = -1;
        for (int i = 0; i < search->candidates; i++) {
            if (!in[i] && (best < 0 || search->losses[i] < search->losses[best])) {
                best = i;
            }
        }
        if (best >= 0) {
            in[best] = true;
        }
    }
    for (int i = 0; i < search->candidates; i++) {
        search->losses[i] = in[i] ? search->losses[i] : INFINITY;
    }
}

static int score(struct search *search)
{
    const struct rewrite_context *context = search->context;
    int64_t tokens = context->stats->tokens, batches = context->batches;
    int64_t count = tokens > 0 ? batches * SCORE_TOKENS / tokens : 1;
    bool shortened = false;
    int rc = 0;

    count = count < 1 ? 1 : count > batches ? batches : count;
    for (int64_t k = 0; rc == 0 && k < count; k++) {
        bool met = false;
        rc = score_batch(search, k * batches / count, &met);
        if (rc == 0 && met && !shortened) {
            shorten_list(search);
            shortened = true;
        }
    }
    return rc;
}

/* Copies of the readers that the trial block has in place of its own. */
static int search_place(struct search *search)
{
    const struct rewrite_context *context = search->context;
    int64_t widest = 0, groups = 0;
    int rc = gpu_tensor_new(context->gpu, DTYPE_F32, 1, &search->columns, &search->column);

    for (int i = 0; rc == 0 && i < context->group->count; i++) {
        const struct qscheme *scheme = reader(context, i);
        if (scheme == NULL) {
            continue;
        }
        const struct tensor *w = weight_of(context, i);
        int64_t count = tensor_count(w);
        widest = count > widest ? count : widest;
        groups = count / scheme->group_size > groups ? count / scheme->group_size : groups;
        rc = gpu_tensor_new(context->gpu, DTYPE_F32, 2, w->shape, &search->readers[i]);
        search->trial.modules[context->group->modules[i]].weight = search->readers[i];
    }
    rc = rc != 0 ? rc : gpu_tensor_new(context->gpu, DTYPE_U8, 1, &widest, &search->codes);
    rc = rc != 0 ? rc : gpu_tensor_new(context->gpu, DTYPE_F32, 1, &groups, &search->scale);
    return rc != 0 ? rc : gpu_tensor_new(context->gpu, DTYPE_F32, 1, &groups, &search->zero);
}

static int search_init(struct search *search, const struct rewrite_context *context)
{
    *search = (struct search){.context = context, .params = context->params, .columns = context->stats->columns};
    search->candidates = (int)search->params->n_grid + (search->params->duo_scaling ? 1 : 0);
    search->losses = calloc((size_t)search->candidates, sizeof(*search->losses));
    search->inputs = calloc((size_t)search->columns, sizeof(*search->inputs));
    search->weights = calloc((size_t)search->columns, sizeof(*search->weights));
    search->factors = calloc((size_t)search->columns, sizeof(*search->factors));
    search->readers = calloc((size_t)context->group->count, sizeof(*search->readers));
    if (search->losses == NULL || search->inputs == NULL || search->weights == NULL || search->factors == NULL ||
        search->readers == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a search over %lld columns",
                         (long long)search->columns);
    }
    plan_set used;
    if (!plan_steps(plan_of_group(context->block->plan, context->group), PLAN_BIT(context->group->input),
                    PLAN_BIT(context->group->branch), &search->steps, &used)) {
        return err_raise(ERR_INTERNAL, "the branch of value %d does not follow from it", context->group->input);
    }
    int rc = block_view(context->block, &search->trial);
    return rc != 0 ? rc : search_place(search);
}

static void search_deinit(struct search *search)
{
    const struct gpu *gpu = search->context->gpu;
    struct tensor *const all[] = {&search->codes,  &search->scale,  &search->zero,
                                  &search->column, &search->target, &search->output};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(gpu, all[i]);
    }
    for (int i = 0; search->readers != NULL && i < search->context->group->count; i++) {
        gpu_tensor_free(gpu, &search->readers[i]);
    }
    block_view_deinit(&search->trial);
    free(search->readers);
    free(search->losses);
    free(search->inputs);
    free(search->weights);
    free(search->factors);
}

static int best_of(const struct search *search)
{
    int best = 0;

    for (int i = 1; i < search->candidates; i++) {
        best = search->losses[i] < search->losses[best] ? i : best;
    }
    return best;
}

static int rewrite(const struct rewrite_context *context)
{
    struct search search;
    bool any = false;

    for (int i = 0; i < context->group->count; i++) {
        any = any || reader(context, i) != NULL;
    }
    if (!any || context->group->fold.kind == FOLD_NONE || context->group->branch < 0) {
        return 0;
    }
    int rc = search_init(&search, context);
    rc = rc != 0 ? rc : search_observe(&search);
    rc = rc != 0 ? rc : score(&search);
    int best = rc == 0 ? best_of(&search) : 0;
    if (best > 0) {
        set_factors(&search, best);
        rc = block_fold(context->block, context->group, search.factors, context->weight_dtype, context->gpu,
                        context->stream);
    }
    search_deinit(&search);
    return rc;
}

static int solve_linear(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job)
{
    const struct awq_params *params = job->params;
    enum quant_search searches[3] = {SEARCH_MINMAX}, asked = search_of(&params->common, SEARCH_MSE);
    int tries = 1;

    if (asked != SEARCH_MINMAX) {
        searches[tries++] = asked;
    }
    if (params->clip && !job->scores) {
        searches[tries++] = SEARCH_CLIP;
    }
    return search_solve(context, stats, job, searches, tries);
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    return quant_each(context, stats, jobs, count, solve_linear);
}

/* As an earlier stage of a recipe it makes weights easier for what rounds them to an integer grid. */
static int amend(const void *params, struct qscheme *scheme)
{
    (void)params;
    if (scheme->kind != QTENSOR_INT) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                           "awq's factors are chosen for integer grids, and the last method makes %s",
                           qtensor_kind_names[scheme->kind]);
        (void)err_set_param(rc, "/method");
        return err_set_hint(rc, "awq alone, or before rtn or gptq");
    }
    return 0;
}

static void check(const void *params, const char *pointer, struct validation_errors *errors)
{
    quant_common_check(params, pointer, errors);
    search_check(params, false, pointer, errors);
}

static const struct params_row awq_rows[] = {
    SEARCH_REFINE_ROWS("false", "2"),
    QUANT_ROW(PARAMS_INT, quant_common, refine_tokens, "8", .min = 0, .max = 4096,
              .help = "With refine_rounds: calibration tokens for each input column from which on a linear is refined; "
                      "over fewer, descent follows what is particular to them."),
    QUANT_ROW(PARAMS_INT, quant_common, bits, "4", .choices = bits_choices, .aliases = quant_bits_names,
              .help = "Bits of a weight's code."),
    QUANT_ROW(PARAMS_INT, quant_common, group_size, "128", .choices = group_choices, .aliases = quant_group_names,
              .help = "Inputs that share a scale; -1 = one scale for each output channel."),
    QUANT_ROW(PARAMS_BOOL, quant_common, sym, "false", .aliases = quant_sym_names,
              .help = "Symmetric grid, zero in its middle; else each group has its own zero point."),
    QUANT_ROW(PARAMS_INT, awq_params, n_grid, "20", .min = 1, .max = N_GRID_MAX,
              .help = "Exponents that are tried for the factors, beside leaving the weights as they are."),
    QUANT_ROW(PARAMS_BOOL, awq_params, duo_scaling, "true",
              .help = "Factors weigh the size of inputs against that of weights, instead of inputs alone."),
    QUANT_ROW(PARAMS_BOOL, awq_params, clip, "true",
              .help = "Cut each group's range where its output loses least; q and k are left whole."),
    QUANT_ROW(PARAMS_ENUM, awq_params, version, "\"gemm\"", .choices = versions,
              .help = "Layout of the awq format: only gemm is offered."),
    {.name = NULL},
};

static const struct params_row *const awq_params[] = {quant_base_rows, quant_search_rows, awq_rows, NULL};

const struct quantizer quantizer_awq = {
    .name = "awq",
    .title = "AWQ",
    .help =
        "Scales up the weights that meet large inputs, before rounding, and cuts ranges where the output loses least "
        "(Lin et al. 2023, arXiv 2306.00978). Asymmetric 4 bits by default; as good as GPTQ there and faster to load "
        "in some runtimes. Needs calibration data; may come before rtn or gptq in a recipe.",
    .stats = STATS_HESSIAN,
    .params = awq_params,
    .params_size = sizeof(struct awq_params),
    .check = check,
    .scheme = quant_common_scheme,
    .amend = amend,
    .rewrite_stats = STATS_RANGE,
    .rewrite = rewrite,
    .solve = solve,
};
