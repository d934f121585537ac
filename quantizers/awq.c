/* AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that are large on average get finer weights. A factor s_j for each
 * input j moves from what produces it to the linears that read it, X W^T = (X / s) (W s)^T, so that the rounding of the
 * columns that matter shrinks relative to them (awq_search.c); then ranges are cut where that lowers the output error.
 *
 * The clip search is per row and group, in solve: see gpu/cpu/clip.c. It needs the second moments of the inputs alone,
 * of which it takes the group's diagonal block; over the complete calibration set that is the reference's objective,
 * the mean squared error of the group's part of the output, which the reference samples at 512 tokens. q and k are not
 * clipped, since attention multiplies their outputs. Of the clipped and the unclipped linear the one that loses less
 * on its output is taken. */

#include "quantizers/awq_search.h"
#include "quantizers/search.h"

#include "base/err.h"

enum awq_version { AWQ_GEMM };
static const char *const versions[] = {"gemm", NULL};

/* The searches for scales of a linear, at most three. */
static int awq_list_searches(const struct awq_params *params, bool scores, enum quant_search searches[3])
{
    enum quant_search asked = search_of(&params->common, SEARCH_MSE);
    int tries = 0;

    searches[tries++] = SEARCH_MINMAX;
    if (asked != SEARCH_MINMAX) {
        searches[tries++] = asked;
    }
    if (params->clip && !scores) {
        searches[tries++] = SEARCH_CLIP;
    }
    return tries;
}

static void awq_cost(const void *values, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct awq_params *params = values;
    enum quant_search searches[3];
    int tries = awq_list_searches(params, shape->scores, searches);

    search_cost(&params->common, shape, searches, tries, out);
}

static int awq_solve_linear(const struct solve_context *context, const struct layer_stats *stats,
                            struct linear_job *job)
{
    enum quant_search searches[3];
    int tries = awq_list_searches(job->params, job->scores, searches);

    return search_solve(context, stats, job, searches, tries);
}

static int awq_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                     int count)
{
    return quant_each(context, stats, jobs, count, awq_solve_linear);
}

/* As an earlier stage of a recipe it makes weights easier for what rounds them to an integer grid. */
static int awq_amend(const void *params, struct qscheme *scheme)
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

static void awq_check(const void *params, const char *pointer, struct validation_errors *errors)
{
    quant_common_check(params, pointer, errors);
    search_check(params, false, pointer, errors);
}

static const struct params_row awq_rows[] = {
    SEARCH_REFINE_ROWS("false", "2"),
    QUANT_ROW(PARAMS_INT, quant_common, refine_tokens, "8", .min = 0, .max = 4096,
              .help = "With refine_rounds: calibration tokens for each input column from which on a linear is refined; "
                      "over fewer, descent overfits them."),
    QUANT_GRID_ROWS("false"),
    QUANT_ROW(PARAMS_INT, awq_params, n_grid, "20", .min = 1, .max = AWQ_GRID_MAX,
              .help = "Exponents that are tried for the factors, in addition to leaving the weights as they are."),
    QUANT_ROW(PARAMS_BOOL, awq_params, duo_scaling, "true",
              .help = "Factors weigh the size of inputs against that of weights, instead of inputs alone."),
    QUANT_ROW(PARAMS_BOOL, awq_params, clip, "true",
              .help = "Cut each group's range to where its output error is smallest; q and k are not cut."),
    QUANT_ROW(PARAMS_ENUM, awq_params, version, "\"gemm\"", .choices = versions,
              .help = "Layout of the awq format: only gemm is offered."),
    {.name = NULL},
};

static const struct params_row *const awq_tables[] = {quant_base_rows, quant_search_rows, awq_rows, NULL};

const struct quantizer quantizer_awq = {
    .name = "awq",
    .title = "AWQ",
    .help =
        "Scales up the weights that meet large inputs, before rounding, and cuts ranges to the smallest output error "
        "(Lin et al. 2023, arXiv 2306.00978). Asymmetric 4 bits by default; as good as GPTQ there and faster to load "
        "in some runtimes. Needs calibration data; may come before rtn or gptq in a recipe.",
    .stats = STATS_HESSIAN,
    .params = awq_tables,
    .params_size = sizeof(struct awq_params),
    .check = awq_check,
    .scheme = quant_common_scheme,
    .amend = awq_amend,
    .rewrite_stats = STATS_RANGE,
    .rewrite = awq_rewrite,
    .solve = awq_solve,
    .cost = awq_cost,
    .rewrite_cost = awq_rewrite_cost,
};
