/* AWQ's search for the factors of one input group (Lin et al. 2023, arXiv 2306.00978, section 3.2).
 *
 * x_j = mean |X_j|, w_j = mean over the rows of all readers of |W_ij| / max of its group (eq. 4; w_j by the reference
 * code's duo scaling). Candidates: s = 1, and for r = 0, 1/n .. (n-1)/n
 *
 *   s_j = x_j^r / (w_j^(1-r) + 1e-4)        with duo_scaling
 *   s_j = x_j^r                              without; r = 0 is s = 1 then and not tried twice
 *
 * divided by sqrt(max s * min s). Inputs with x_j = 0 or w_j = 0 keep 1 and do not count for the extremes, nor do
 * factors that are not finite. Each candidate is Q(W s) / s, on the grid that the solver will use, in the block itself:
 * the output of attention with o_proj (for q, k, v), of the MLP (gate, up), of the linear (o, down) is compared with
 * the float block's, and the smallest sum of squares wins, ties to the earlier. A candidate whose output is not finite
 * is out. s = 1 is always a candidate, so no group loses to rounding on what is scored.
 *
 * How candidates are scored, all of them roughly and a few in full: awq_score.c. The winner is folded before the next
 * group is examined, so that its statistics and float outputs are those of the folded block. */

#include "quantizers/awq_search.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>

#define DUO_FLOOR 1e-4

const struct qscheme *awq_reader(const struct rewrite_context *context, int i)
{
    const struct qscheme *scheme = rewrite_scheme(context, i);

    return scheme != NULL && scheme->kind == QTENSOR_INT && scheme->group_rows <= 1 ? scheme : NULL;
}

/* Add |w| over the maximum of its group to the columns' sums. */
static void awq_add_weights(const float *w, int64_t rows, int64_t cols, int64_t group, double *sums)
{
    for (int64_t at = 0; at < rows * cols; at += group) {
        float max = 0;
        for (int64_t i = 0; i < group; i++) {
            max = fmaxf(max, fabsf(w[at + i]));
        }
        for (int64_t i = 0; max > 0 && i < group; i++) {
            sums[at % cols + i] += (double)(fabsf(w[at + i]) / max);
        }
    }
}

/* x_j and w_j. */
static int awq_observe(struct awq_search *search)
{
    const struct rewrite_context *context = search->context;
    const struct gpu_ops *ops = context->gpu->ops;
    AUTO_FREE double *sums = NULL;
    int64_t rows = 0;

    TRY(mem_array(&sums, (size_t)search->columns));
    TRY(ops->download(context->stream, search->inputs, context->stats->absmean.data,
                      (size_t)search->columns * sizeof(float)));
    for (int i = 0; i < context->group->count; i++) {
        const struct qscheme *scheme = awq_reader(context, i);
        const struct tensor *weight = rewrite_weight(context, i);
        AUTO_FREE float *host = NULL;
        if (scheme == NULL) {
            continue;
        }
        TRY(mem_buffer(&host, (size_t)tensor_count(weight)));
        TRY(ops->download(context->stream, host, weight->data, tensor_bytes(weight)));
        awq_add_weights(host, weight->shape[0], weight->shape[1], scheme->group_size, sums);
        rows += weight->shape[0];
    }
    for (int64_t j = 0; j < search->columns; j++) {
        search->weights[j] = (float)(sums[j] / (double)rows);
    }
    return 0;
}

/* s_j of candidate i > 0, before it is divided by the geometric middle; NAN: leave this input alone. */
static double awq_raw_factor(const struct awq_search *search, int candidate, int64_t j)
{
    bool duo = search->params->duo_scaling;
    double r = (double)(duo ? candidate - 1 : candidate) / (double)search->params->n_grid;
    double x = (double)search->inputs[j], w = (double)search->weights[j];

    if (!(x > 0) || !(w > 0) || !isfinite(x) || !isfinite(w)) {
        return NAN;
    }
    return duo ? pow(x, r) / (pow(w, 1 - r) + DUO_FLOOR) : fmax(pow(x, r), DUO_FLOOR);
}

static void awq_set_factors(struct awq_search *search, int candidate)
{
    double low = INFINITY, high = 0;

    for (int64_t j = 0; j < search->columns; j++) {
        double s = candidate > 0 ? awq_raw_factor(search, candidate, j) : NAN;
        low = s < low ? s : low;
        high = s > high ? s : high;
    }
    double middle = sqrt(low * high);
    for (int64_t j = 0; j < search->columns; j++) {
        double s = candidate > 0 ? awq_raw_factor(search, candidate, j) / middle : NAN;
        search->factors[j] = s > 0x1p-60 && s < 0x1p60 ? (float)s : 1.0f;
    }
}

static int awq_upload_factors(struct awq_search *search, bool inverse)
{
    const struct rewrite_context *context = search->context;
    AUTO_FREE float *column = NULL;

    TRY(mem_buffer(&column, (size_t)search->columns));
    for (int64_t j = 0; j < search->columns; j++) {
        column[j] = inverse ? 1.0f / search->factors[j] : search->factors[j];
    }
    return gpu_tensor_upload(context->gpu, context->stream, &search->column, column);
}

/* Round a reader's weights, in buffers that are large enough for any. */
static int awq_round_reader(struct awq_search *search, const struct tensor *w, const struct qscheme *scheme)
{
    const struct rewrite_context *context = search->context;
    const struct gpu_grid grid = quant_scheme_grid(scheme);
    int64_t rows = w->shape[0], groups = w->shape[1] / scheme->group_size;
    const struct tensor codes = tensor_2d(search->codes.data, DTYPE_U8, rows, w->shape[1]);
    const struct tensor scale = tensor_2d(search->scale.data, DTYPE_F32, rows, groups);
    const struct tensor zero = tensor_2d(search->zero.data, DTYPE_F32, rows, groups);

    return quant_round_nearest(context->gpu, context->stream, &grid, w, &codes, &scale, &zero);
}

int awq_place_candidate(struct awq_search *search, int candidate, int64_t rows)
{
    const struct rewrite_context *context = search->context;
    const struct gpu_ops *ops = context->gpu->ops;

    awq_set_factors(search, candidate);
    for (int pass = 0; pass < 2; pass++) {
        TRY(awq_upload_factors(search, pass == 1));
        for (int i = 0; i < context->group->count; i++) {
            const struct qscheme *scheme = awq_reader(context, i);
            if (scheme == NULL) {
                continue;
            }
            const struct tensor *weight = rewrite_weight(context, i);
            int64_t count = rows > 0 && rows < weight->shape[0] ? rows : weight->shape[0];
            struct tensor from = tensor_rows(weight, 0, count), to = tensor_rows(&search->readers[i], 0, count);
            if (pass == 0) {
                TRY(ops->convert(context->stream, &to, &from));
            }
            TRY(ops->scale(context->stream, &to, NULL, &search->column));
            if (pass == 0) {
                TRY(awq_round_reader(search, &to, scheme));
            }
        }
    }
    return 0;
}

/* Copies of the readers that the trial block has in place of its own. */
static int awq_place_readers(struct awq_search *search)
{
    const struct rewrite_context *context = search->context;
    const struct gpu *gpu = context->gpu;
    int64_t max_count = 0, max_groups = 0;

    for (int i = 0; i < context->group->count; i++) {
        const struct qscheme *scheme = awq_reader(context, i);
        const struct tensor *w = rewrite_weight(context, i);
        if (scheme == NULL) {
            continue;
        }
        int64_t count = tensor_count(w), groups = count / scheme->group_size;
        max_count = count > max_count ? count : max_count;
        max_groups = groups > max_groups ? groups : max_groups;
        TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, w->shape, &search->readers[i]));
        search->trial.modules[context->group->modules[i]].weight = search->readers[i];
    }
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &search->columns, &search->column));
    TRY(gpu_tensor_new(gpu, DTYPE_U8, 1, &max_count, &search->codes));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &max_groups, &search->scale));
    return gpu_tensor_new(gpu, DTYPE_F32, 1, &max_groups, &search->zero);
}

static int awq_search_init(struct awq_search *search)
{
    const struct rewrite_context *context = search->context;
    size_t columns = (size_t)search->columns;
    plan_set used;

    search->candidates = (int)search->params->n_grid + (search->params->duo_scaling ? 1 : 0);
    TRY(mem_array(&search->losses, (size_t)search->candidates));
    TRY(mem_array(&search->inputs, columns));
    TRY(mem_array(&search->weights, columns));
    TRY(mem_array(&search->factors, columns));
    TRY(mem_array(&search->readers, (size_t)context->group->count));
    const struct plan *plan = plan_of_group(context->block->plan, context->group);
    if (!plan_steps(plan, PLAN_BIT(context->group->input) | plan_taken(plan), PLAN_BIT(context->group->branch),
                    &search->steps, &used)) {
        return err_raise(ERR_INTERNAL, "the branch of value %d does not follow from it", context->group->input);
    }
    TRY(block_view(context->block, &search->trial));
    return awq_place_readers(search);
}

static void awq_search_deinit(struct awq_search *search)
{
    const struct gpu *gpu = search->context->gpu;
    struct tensor *const all[] = {&search->codes,  &search->scale,  &search->zero,   &search->column,
                                  &search->target, &search->output, &search->moments};

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
CLEANUP_DEINIT(awq_search, struct awq_search, awq_search_deinit)

int awq_rewrite(const struct rewrite_context *context)
{
    AUTO(awq_search)
    struct awq_search search = {.context = context, .params = context->params, .columns = context->stats->columns};
    bool any = false;
    int best = 0;

    for (int i = 0; i < context->group->count; i++) {
        any = any || awq_reader(context, i) != NULL;
    }
    if (!any || context->group->fold.kind == FOLD_NONE || context->group->branch < 0) {
        return 0;
    }
    TRY(awq_search_init(&search));
    TRY(awq_observe(&search));
    TRY(awq_score(&search));
    for (int i = 1; i < search.candidates; i++) {
        best = search.losses[i] < search.losses[best] ? i : best;
    }
    if (best == 0) {
        return 0;
    }
    awq_set_factors(&search, best);
    return block_fold(context->block, context->group, search.factors, context->weight_dtype, context->gpu,
                      context->stream);
}

void awq_rewrite_cost(const void *values, const struct quant_group *group, struct quant_cost *out)
{
    const struct awq_params *params = values;
    int64_t largest = group->linear.rows * group->linear.cols;

    *out = (struct quant_cost){
        .solving = (group->elements + group->linear.cols) * (int64_t)sizeof(float) + largest +
                   2 * (largest / group->group_size) * (int64_t)sizeof(float),
        .host = largest * (int64_t)sizeof(float),
    };
    awq_score_cost((double)params->n_grid + (params->duo_scaling ? 1 : 0), group, out);
}
