/* Round to nearest: choose a grid for each group of weights, round to it, look at nothing else.
 *
 * The error of a weight inside the grid's range is at most half a scale. With mse_search the range is shrunk to what
 * loses least in sum |err|^2.4 (Frantar et al. 2022, arXiv 2210.17323, reference quantizer); min-max is a candidate. */

#include "quantizers/common.h"

#include "base/ids.h"

#include <math.h>

static int solve_linear(const struct solve_context *context, struct quant_work *work, struct linear_job *job)
{
    int rc = context->gpu->ops->grid(context->stream, &work->scale, &work->zero, &work->w, NULL, &work->grid);

    rc = rc != 0 ? rc : quant_work_round(context, work);
    return rc != 0 ? rc : quant_work_take(context, work, job);
}

int rtn_solve_linear(const struct solve_context *context, struct linear_job *job)
{
    struct quant_work work = {0};
    double start = clock_monotonic_seconds();

    int rc = quant_work_init(context, job, &work);
    rc = rc != 0 ? rc : solve_linear(context, &work, job);
    quant_work_deinit(&work, context->gpu);
    if (rc == 0) {
        job->loss = NAN;
        job->seconds = clock_monotonic_seconds() - start;
    }
    return rc;
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    int rc = 0;

    (void)stats;
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = quant_tick(context);
        rc = rc != 0 ? rc : rtn_solve_linear(context, &jobs[i]);
    }
    return rc;
}

static const struct params_row rtn_rows[] = {
    QUANT_ROW(PARAMS_BOOL, quant_common, mse_search, "false",
              .help = "Search the range that loses least in each group, instead of reaching the group's extremes."),
    {.name = NULL},
};

static const struct params_row *const rtn_params[] = {quant_base_rows, quant_common_rows, rtn_rows, NULL};

const struct quantizer quantizer_rtn = {
    .name = "rtn",
    .title = "Round to nearest",
    .help = "Rounds each weight to the nearest point of its group's grid. Needs no calibration and takes seconds. Good "
            "at 8 bits, usable at 4 with small groups; below that GPTQ loses far less.",
    .stats = STATS_NONE,
    .params = rtn_params,
    .params_size = sizeof(struct quant_common),
    .check = quant_common_check,
    .scheme = quant_common_scheme,
    .solve = solve,
};
