/* The choice of scales, for every method on an integer grid.
 *
 * minmax reaches each group's extremes. mse shrinks the range to what loses least in sum |err|^2.4 (Frantar et al.
 * 2022, reference quantizer). imatrix weighs errors by their inputs' energy, E[x_j^2] = H_jj / 2: with exponent 2 that
 * is the expected squared error of the output where inputs do not correlate. hqq is gpu_ops.hqq, clip is gpu_ops.clip.
 *
 * A search by anything but the output error itself may lose to min-max on it, so where the inputs' second moments are
 * known every choice is measured by tr((W - Wq) H (W - Wq)^T) and the best is kept. */

#include "quantizers/search.h"

#include "base/err.h"
#include "base/ids.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define IMATRIX_NORM 2.0
#define CLIP_SHRINK 0.5
#define CLIP_STEPS 20

static const char *const choices[] = {"auto", "minmax", "mse", "imatrix", "hqq", NULL};

const struct params_row quant_search_rows[] = {
    QUANT_ROW(PARAMS_ENUM, quant_common, scale_search, "\"auto\"", .choices = choices,
              .help = "How scales are chosen: minmax reaches each group's extremes, mse shrinks the range to the least "
                      "error, imatrix weighs errors by the inputs' energy (needs calibration), hqq refines scale and "
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
    int rc = context->gpu->ops->descend(context->stream, &work->codes, &work->scale, &work->zero, job->weight, h,
                                        &work->grid, &spec, &job->unrefined_loss, &job->loss);
    job->refined = rc == 0;
    job->refined_loss = job->loss;
    work->rounded = false;
    return rc != 0 ? err_pass(rc, "refine %s", job->name) : 0;
}

int search_importance(const struct solve_context *context, const struct layer_stats *stats, struct tensor *out)
{
    const struct gpu_ops *ops = context->gpu->ops;
    float *diagonal = malloc((size_t)stats->columns * sizeof(*diagonal));

    if (diagonal == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a diagonal of %lld", (long long)stats->columns);
    }
    int rc = ops->diagonal(context->stream, diagonal, &stats->hessian);
    rc = rc != 0 ? rc
                 : gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 1, &stats->columns, diagonal, out);
    free(diagonal);
    return rc;
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
    int rc = ops->grid(context->stream, &work->scale, &work->zero, &work->w,
                       search == SEARCH_IMATRIX ? importance : NULL, &grid);
    if (rc == 0 && search == SEARCH_HQQ) {
        rc = ops->hqq(context->stream, &work->scale, &work->zero, &work->w, &grid);
    }
    return rc;
}

/* One linear under several searches. */
struct contest {
    const struct solve_context *context;
    const struct layer_stats *stats; /* NULL, or with a Hessian */
    struct tensor importance;        /* no data: not asked for */
    struct quant_work best;          /* no data: none yet */
    double least;
};

static int contest_init(struct contest *c, const struct linear_job *job, const enum quant_search *searches, int count)
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
    return weighs ? search_importance(c->context, c->stats, &c->importance) : 0;
}

/* Round under one search, and keep it if it is the best so far. */
static int contest_try(struct contest *c, const struct linear_job *job, enum quant_search search, bool alone)
{
    const struct solve_context *context = c->context;
    struct quant_work work = {0};
    double error = 0;

    int rc = quant_work_init(context, job, &work);
    rc = rc != 0 ? rc
                 : search_grid(context, &work, search, &c->importance, IMATRIX_NORM,
                               c->stats != NULL ? &c->stats->hessian : NULL);
    rc = rc != 0 ? rc : quant_work_round(context, &work);
    if (rc == 0 && !alone) {
        rc = context->gpu->ops->output_error(context->stream, &error, NULL, job->weight, &work.w, &c->stats->hessian);
    }
    if (rc == 0 && (c->best.w.data == NULL || error < c->least)) {
        quant_work_deinit(&c->best, context->gpu);
        c->best = work;
        c->least = error;
        return 0;
    }
    quant_work_deinit(&work, context->gpu);
    return rc;
}

/* Rounding follows the weights, descent the calibration set alone, and over few tokens it leaves the weights for it. */
static bool may_refine(const struct layer_stats *stats, struct linear_job *job)
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
    struct contest contest = {.context = context, .stats = stats};
    double start = clock_monotonic_seconds();

    int rc = contest_init(&contest, job, searches, count);
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = contest_try(&contest, job, searches[i], count == 1);
    }
    if (rc == 0) {
        job->loss = count > 1 ? contest.least : NAN;
        rc = may_refine(stats, job) ? search_refine(context, &stats->hessian, job, &contest.best) : 0;
    }
    rc = rc != 0 ? rc : quant_work_take(context, &contest.best, job);
    if (rc == 0) {
        job->seconds = clock_monotonic_seconds() - start;
    }
    quant_work_deinit(&contest.best, context->gpu);
    gpu_tensor_free(context->gpu, &contest.importance);
    return rc;
}
