/* Round to nearest: choose a grid for each group of weights, round to it, look at nothing else.
 *
 * The error of a weight inside the grid's range is at most half a scale. scale_search gives up some of the range for
 * finer steps (search.c); what inputs are known then keep the searches that look beyond single weights from losing to
 * min-max on the output. */

#include "quantizers/search.h"

int rtn_solve_linear(const struct solve_context *context, struct linear_job *job)
{
    enum quant_search search = search_of(job->params, SEARCH_MSE);

    search = search == SEARCH_IMATRIX ? SEARCH_MSE : search; /* whoever falls back has no inputs to weigh by */
    return search_solve(context, NULL, job, &search, 1);
}

static int rtn_solve_best(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job)
{
    const struct quant_common *common = job->params;
    const enum quant_search searches[] = {SEARCH_MINMAX, search_of(job->params, SEARCH_MSE)};
    bool measured = stats != NULL && (stats->flags & STATS_HESSIAN) != 0;

    if (searches[1] == SEARCH_IMATRIX || (searches[1] == SEARCH_HQQ && measured)) {
        return search_solve(context, stats, job, searches, 2);
    }
    return search_solve(context, common->refine_rounds > 0 ? stats : NULL, job, &searches[1], 1);
}

/* Searches that look at single weights alone. */
static bool rtn_data_free(const void *params)
{
    const struct quant_common *common = params;
    enum quant_search search = search_of(common, SEARCH_MSE);

    return (search == SEARCH_MINMAX || search == SEARCH_MSE) && common->refine_rounds == 0;
}

static bool rtn_rows_alone(const void *params, int64_t cols)
{
    (void)cols;
    return rtn_data_free(params);
}

/* As rtn_solve_best chooses. */
static void rtn_cost(const void *params, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct quant_common *common = params;
    const enum quant_search searches[] = {SEARCH_MINMAX, search_of(common, SEARCH_MSE)};
    bool both = searches[1] == SEARCH_IMATRIX || (searches[1] == SEARCH_HQQ && shape->tokens > 0);

    search_cost(common, shape, both ? searches : &searches[1], both ? 2 : 1, out);
}

static int rtn_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                     int count)
{
    return quant_each(context, stats, jobs, count, rtn_solve_best);
}

static void rtn_check(const void *params, const char *pointer, struct validation_errors *errors)
{
    quant_common_check(params, pointer, errors);
    search_check(params, false, pointer, errors);
}

static const struct params_row rtn_rows[] = {
    SEARCH_ALIAS_ROW("false"),
    SEARCH_REFINE_ROWS("false", "0"),
    {.name = NULL},
};

static const struct params_row *const rtn_params[] = {quant_base_rows, quant_common_rows, quant_search_rows, rtn_rows,
                                                      NULL};

const struct quantizer quantizer_rtn = {
    .name = "rtn",
    .title = "Round to nearest",
    .help =
        "Rounds each weight to the nearest point of its group's grid. Needs no calibration (but for scale_search "
        "imatrix) and takes seconds. Good at 8 bits, usable at 4 with small groups; below that GPTQ loses far less.",
    .stats = STATS_NONE,
    .needs = search_needs,
    .data_free = rtn_data_free,
    .rows_alone = rtn_rows_alone,
    .params = rtn_params,
    .params_size = sizeof(struct quant_common),
    .check = rtn_check,
    .scheme = quant_common_scheme,
    .solve = rtn_solve,
    .cost = rtn_cost,
};
