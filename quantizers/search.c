/* The choice of scales, for every method on an integer grid.
 *
 * minmax reaches each group's extremes. mse shrinks the range to the minimum of sum |err|^2.4 (Frantar et al.
 * 2022, reference quantizer). imatrix weighs errors by their inputs' energy, E[x_j^2] = H_jj / 2: with exponent 2 that
 * is the expected squared error of the output where inputs do not correlate. hqq is gpu_ops.hqq, clip is gpu_ops.clip.
 *
 * A search by anything but the output error itself may lose to min-max on it, so where the inputs' second moments are
 * known every choice is measured by tr((W - Wq) H (W - Wq)^T) and the best is chosen. */

#include "quantizers/search.h"

#include "base/err.h"
#include "base/ids.h"
#include "gpu/scratch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define IMATRIX_NORM 2.0
#define CLIP_SHRINK 0.5
#define CLIP_STEPS 20

static const char *const choices[] = {"auto", "minmax", "mse", "imatrix", "hqq", NULL};

const struct params_row quant_search_rows[] = {
    QUANT_ROW(
        PARAMS_ENUM, quant_common, scale_search, "\"auto\"", .choices = choices,
        .help =
            "How scales are chosen: minmax reaches each group's extremes, mse shrinks the range to the "
            "smallest error, imatrix weighs errors by the inputs' energy (needs calibration), hqq refines scale and "
            "zero point for the bulk of the weights (sym false); auto follows mse_search."),
    {.name = NULL},
};

enum quant_search search_of(const struct quant_common *common, enum quant_search searched)
{
    if (common->scale_search != SEARCH_AUTO) {
        return (enum quant_search)common->scale_search;
    }
    return common->mse_search ? searched : SEARCH_MINMAX;
}

void search_check(const struct quant_common *common, bool mse_default, const char *pointer,
                  struct validation_errors *errors)
{
    bool searches = common->scale_search != SEARCH_MINMAX;
    char at[192];

    if (common->scale_search == SEARCH_HQQ && common->sym) {
        snprintf(at, sizeof(at), "%.150s/scale_search", pointer);
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"scale_search\" hqq moves zero points, which a symmetric grid does not have");
        validation_hint(errors, "sym false, or another scale_search");
    }
    if (common->signed_scales && (!common->sym || search_of(common, SEARCH_MSE) == SEARCH_MINMAX)) {
        snprintf(at, sizeof(at), "%.150s/signed_scales", pointer);
        validation_add(
            errors, ERR_INCOMPATIBLE_OPTIONS, at,
            "scales of either sign are found by a search on a symmetric grid: sym true and scale_search mse or "
            "imatrix");
    }
    if (common->scale_search != SEARCH_AUTO && common->mse_search != mse_default && common->mse_search != searches) {
        snprintf(at, sizeof(at), "%.150s/mse_search", pointer);
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"mse_search\" contradicts \"scale_search\", which is \"%s\"; give one of them",
                       choices[common->scale_search]);
    }
}

unsigned search_needs(const void *params)
{
    const struct quant_common *common = params;

    return common->scale_search == SEARCH_IMATRIX || common->refine_rounds > 0 ? STATS_HESSIAN : STATS_NONE;
}

int search_refine(const struct solve_context *context, const struct tensor *h, struct linear_job *job,
                  struct quant_work *work)
{
    const struct quant_common *common = job->params;
    const struct gpu_descend spec = {.passes = (int)common->refine_rounds, .scales = true};

    if (common->refine_rounds == 0) {
        return 0;
    }
    TRY(context->gpu->ops->descend(context->stream, &work->codes, &work->scale, &work->zero, job->weight, h,
                                   &work->grid, &spec, &job->unrefined_loss, &job->loss));
    job->refined = true;
    job->refined_loss = job->loss;
    work->rounded = false;
    return 0;
}

int search_grid(const struct solve_context *context, struct quant_work *work, enum quant_search search,
                const struct tensor *importance, double norm, const struct tensor *h)
{
    const struct gpu_ops *ops = context->gpu->ops;
    struct gpu_grid grid = work->grid;

    grid.mse = search == SEARCH_MSE || search == SEARCH_IMATRIX;
    if (search == SEARCH_IMATRIX) {
        grid.norm = norm;
    }
    if (search == SEARCH_CLIP) {
        grid.max_shrink = CLIP_SHRINK;
        grid.steps = CLIP_STEPS;
        return ops->clip(context->stream, &work->scale, &work->zero, &work->w, h, &grid);
    }
    TRY(ops->grid(context->stream, &work->scale, &work->zero, &work->w, search == SEARCH_IMATRIX ? importance : NULL,
                  &grid));
    return search == SEARCH_HQQ ? ops->hqq(context->stream, &work->scale, &work->zero, &work->w, &grid) : 0;
}

/* The choice among several searches for one linear. */
struct choice {
    const struct solve_context *context;
    const struct layer_stats *stats; /* NULL, or with a Hessian */
    struct tensor importance;        /* no data: not asked for */
    struct quant_work best;          /* no data: none yet */
    double min_error;
};

static void search_choice_deinit(struct choice *c)
{
    quant_work_deinit(&c->best);
    gpu_tensor_free(c->context->gpu, &c->importance);
}
CLEANUP_DEINIT(choice, struct choice, search_choice_deinit)

/* Have what the searches need: ERR_INSUFFICIENT_CALIBRATION where that is a Hessian and there is none. */
static int search_prepare(struct choice *c, const struct linear_job *job, const enum quant_search *searches, int count)
{
    bool has = c->stats != NULL && (c->stats->flags & STATS_HESSIAN) != 0;
    bool weighs = false, needs = count > 1;

    for (int i = 0; i < count; i++) {
        weighs = weighs || searches[i] == SEARCH_IMATRIX;
        needs = needs || weighs || searches[i] == SEARCH_CLIP;
    }
    if (needs && !has) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "the search for scales of %s needs calibration inputs",
                         job->name);
    }
    if (needs && c->stats->columns != job->weight->shape[1]) {
        return err_raise(ERR_INTERNAL, "%s has %lld inputs, its statistics %lld", job->name,
                         (long long)job->weight->shape[1], (long long)c->stats->columns);
    }
    return weighs ? quant_importance(c->context, c->stats, &c->importance) : 0;
}

/* Round under one search; it replaces the best so far where it loses less. */
static int search_try(struct choice *c, const struct linear_job *job, enum quant_search search, bool alone)
{
    const struct solve_context *context = c->context;
    const struct tensor *h = c->stats != NULL ? &c->stats->hessian : NULL;
    AUTO(quant_work) struct quant_work work = {0};
    double error = 0;

    TRY(quant_work_init(context, job, &work));
    TRY(search_grid(context, &work, search, &c->importance, IMATRIX_NORM, h));
    TRY(quant_work_round(context, &work));
    if (!alone) {
        TRY(context->gpu->ops->output_error(context->stream, &error, NULL, job->weight, &work.w, h));
    }
    if (c->best.w.data == NULL || error < c->min_error) {
        struct quant_work swapped = c->best;
        c->best = work;
        c->min_error = error;
        work = swapped;
    }
    return 0;
}

/* Rounding follows the weights; descent follows the calibration set alone, and fits its noise where tokens are few. */
static bool search_may_refine(const struct layer_stats *stats, struct linear_job *job)
{
    const struct quant_common *common = job->params;

    if (stats == NULL || common->refine_rounds == 0) {
        return false;
    }
    if ((double)stats->tokens < (double)common->refine_tokens * (double)stats->columns) {
        snprintf(job->note, sizeof(job->note), "not refined: %lld calibration tokens for %lld inputs",
                 (long long)stats->tokens, (long long)stats->columns);
        return false;
    }
    return true;
}

int search_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job,
                 const enum quant_search *searches, int count)
{
    AUTO(choice) struct choice choice = {.context = context, .stats = stats};
    double start = clock_monotonic_seconds();

    TRY(search_prepare(&choice, job, searches, count));
    for (int i = 0; i < count; i++) {
        TRY(search_try(&choice, job, searches[i], count == 1));
    }
    job->loss = count > 1 ? choice.min_error : NAN;
    if (search_may_refine(stats, job)) {
        TRY(search_refine(context, &stats->hessian, job, &choice.best));
    }
    TRY(quant_work_take(context, &choice.best, job));
    job->seconds = clock_monotonic_seconds() - start;
    return 0;
}

double search_operations(const struct quant_common *common, const struct quant_shape *shape, enum quant_search search)
{
    double elements = (double)(shape->rows * shape->cols);
    double signs = common->signed_scales && common->sym ? 2 : 1;

    switch (search) {
    case SEARCH_MSE:
    case SEARCH_IMATRIX:
        return 600 * signs * elements;
    case SEARCH_HQQ:
        return 400 * elements;
    case SEARCH_CLIP:
        return 2 * CLIP_SHRINK * CLIP_STEPS * (double)quant_group_columns(common, shape->cols) * elements;
    default:
        return 10 * elements;
    }
}

double search_refine_operations(const struct quant_common *common, const struct quant_shape *shape)
{
    double product = 2 * (double)shape->rows * (double)shape->cols * (double)shape->cols;

    return common->refine_rounds > 0 ? (double)(1 + common->refine_rounds) * product : 0;
}

void search_cost(const struct quant_common *common, const struct quant_shape *shape, const enum quant_search *searches,
                 int count, struct quant_cost *out)
{
    int64_t group = quant_group_columns(common, shape->cols), work = quant_work_bytes(shape, group);
    double product = (double)shape->rows * (double)shape->cols * (double)shape->cols;
    bool refines =
        shape->tokens > 0 && common->refine_rounds > 0 && shape->tokens >= common->refine_tokens * shape->cols;
    int64_t judged = count > 1 ? gpu_scratch_output_error(shape->threads, shape->rows, shape->cols) : 0;
    int64_t descent = refines ? gpu_scratch_descend(shape->threads, shape->rows, shape->cols, group) : 0;

    *out = (struct quant_cost){.solving = count > 1 ? 2 * work : work,
                               .solved = work,
                               .scratch = judged > descent ? judged : descent,
                               .operations = refines ? search_refine_operations(common, shape) : 0};
    for (int i = 0; i < count; i++) {
        out->operations += search_operations(common, shape, searches[i]) + (count > 1 ? 4 * product : 0);
        int64_t clip = searches[i] == SEARCH_CLIP ? gpu_scratch_clip(shape->threads, group) : 0;
        out->scratch = clip > out->scratch ? clip : out->scratch;
    }
}
