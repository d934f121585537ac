#pragma once
/* What GPTQ computes once for all linears that read the same input. Inside the quantizers folder only. */

#include "quantizers/search.h"

/* What the linears of one input share. */
struct gptq_input {
    const struct solve_context *context;
    const struct layer_stats *stats;
    const char *first;        /* the linear that errors name */
    float *diagonal;          /* host [K] */
    int32_t *order;           /* host [K]; NULL = columns as they lie */
    struct tensor u;          /* F32 [K,K]; no data: not factored */
    struct tensor importance; /* F32 [K]: diag H, what an error in a column costs */
    int64_t dead;             /* columns that are never active */
    double damp;              /* that made it work */
    char note[96];            /* "", or what had to be done beyond damping */
};

/* Order, factor and importance from stats, whose Hessian must be finite (all of it is looked through only where its
 * diagonal is not, or where it cannot be factored); first: the name that errors give.
 * ERR_INSUFFICIENT_CALIBRATION without a Hessian, ERR_NON_FINITE_VALUE. An input that nothing can factor is left
 * without u, and its note says so. Deinit also after a failure. */
int gptq_input_init(const struct solve_context *context, const struct layer_stats *stats, const char *first,
                    double damp_percent, bool act_order, struct gptq_input *input);
/* order[count]: indices of finite values, the largest first, equal ones as they come. */
int gptq_falling_order(const float *values, int64_t count, int32_t *order);
void gptq_input_deinit(struct gptq_input *input); /* zeroed is fine */
CLEANUP_DEINIT(gptq_input, struct gptq_input, gptq_input_deinit)
