#pragma once
/* What smoothquant.c and its search for alpha share. Private to quantizers/smoothquant*.c. */

#include "quantizers/common.h"

struct smoothquant_params {
    struct quant_base base;
    double smoothing_strength;                    /* NAN: not given */
    int alpha_search, smooth_down, smooth_output; /* enum params_switch */
    bool activation_dynamic;
    int64_t activation_bits;
    int input_range;
};

/* One group's modules and what they read. */
struct smoothing {
    const struct rewrite_context *context;
    const struct smoothquant_params *params;
    int64_t columns;
    float *inputs, *weights, *factors, *best; /* host [columns]: max |X_j|, max |W_j|, s tried, s chosen */
};

/* s->factors = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4), 1 where either is 0. */
void smoothing_set_factors(struct smoothing *s, double alpha);
/* s->best = the factors with the smallest output error of the group's modules; *gain is false where leaving the group
 * alone is as good as any. */
int smoothing_search(struct smoothing *s, bool *gain);
/* What that costs. */
void smoothing_search_cost(const struct quant_group *group, struct quant_cost *out);
