#pragma once
/* How the scales of an integer grid are chosen: an option of every method on one, and the keeping of the best of
 * several choices. Private to quantizers/. */

#include "quantizers/common.h"

enum quant_search {
    SEARCH_AUTO,    /* as mse_search says */
    SEARCH_MINMAX,  /* reach the group's extremes */
    SEARCH_MSE,     /* shrink to the minimum of sum |err|^2.4 */
    SEARCH_IMATRIX, /* shrink to the minimum of sum E[x_j^2] |err_j|^norm */
    SEARCH_HQQ,     /* half-quadratic refinement; asymmetric grids */
    SEARCH_CLIP,    /* cut to the smallest loss of the group's output; awq's alone, not a value of scale_search */
};

/* scale_search. */
extern const struct params_row quant_search_rows[];
/* A row for mse_search, whose default is each method's own. */
#define SEARCH_ALIAS_ROW(fallback_)                                                                    \
    QUANT_ROW(PARAMS_BOOL, quant_common, mse_search, (fallback_),                                      \
              .help = "Older name: search the range with the smallest error in each group instead of " \
                      "reaching the group's extremes. Counts while scale_search is \"auto\".")

/* Rows for signed_scales and refine_rounds, whose defaults are each method's own. */
#define SEARCH_REFINE_ROWS(signed_, rounds_)                                                                         \
    QUANT_ROW(PARAMS_BOOL, quant_common, signed_scales, (signed_),                                                   \
              .help =                                                                                                \
                  "Let the search try scales of either sign. A symmetric grid reaches one step further below zero "  \
                  "than above; a negative scale turns that step to the side that needs it, in the same storage "     \
                  "(sym true, and a scale_search other than minmax)."),                                              \
        QUANT_ROW(PARAMS_INT, quant_common, refine_rounds, (rounds_), .min = 0, .max = 64,                           \
                  .help = "Rounds of coordinate descent on the output error after all codes are chosen: scales and " \
                          "zero points by least squares, then single codes; the error never rises (needs "           \
                          "calibration). 2 give nearly all of the gain; 0 = none.")

/* What the parameters ask for; `searched` is what mse_search stands for in this method. */
enum quant_search search_of(const struct quant_common *common, enum quant_search searched);
/* Contradictions: hqq on a symmetric grid, scale_search against an mse_search that is not its default. */
void search_check(const struct quant_common *common, bool mse_default, const char *pointer,
                  struct validation_errors *errors);
/* STATS_HESSIAN where diag H weighs the search or the result is refined. A quantizer's `needs`. */
unsigned search_needs(const void *params);

/* Choose work's scale and zero for work->w. importance: for SEARCH_IMATRIX, with its exponent; h: for SEARCH_CLIP. */
int search_grid(const struct solve_context *context, struct quant_work *work, enum quant_search search,
                const struct tensor *importance, double norm, const struct tensor *h);
/* Coordinate descent on work's codes and grid under h, as refine_rounds asks for: job's refined and its losses. work->w
 * is not what the codes stand for afterwards. */
int search_refine(const struct solve_context *context, const struct tensor *h, struct linear_job *job,
                  struct quant_work *work);
/* Round job's linear on the grid that each search gives, and take the one whose output error under the Hessian is
 * smallest, the earlier of equals; job->loss is that error, or NAN when there is one search only. stats may be NULL
 * then, unless the search itself needs them: ERR_INSUFFICIENT_CALIBRATION. With stats the result is refined
 * (search_refine). Sets result, loss and seconds. */
int search_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job,
                 const enum quant_search *searches, int count);
/* What that costs. */
void search_cost(const struct quant_common *common, const struct quant_shape *shape, const enum quant_search *searches,
                 int count, struct quant_cost *out);
/* Operations of one search for scales; of a descent under H, all its passes. */
double search_operations(const struct quant_common *common, const struct quant_shape *shape, enum quant_search search);
double search_refine_operations(const struct quant_common *common, const struct quant_shape *shape);
