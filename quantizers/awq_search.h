#pragma once
/* AWQ's parameters and its search for factors. Private to quantizers/awq*.c. */

#include "quantizers/common.h"

#define AWQ_GRID_MAX 200

struct awq_params {
    struct quant_common common;
    int64_t n_grid;
    bool duo_scaling, clip;
    int version; /* enum awq_version */
};

/* Search the factors of the context's input group and fold them into its block. A group that has no module on an
 * integer grid, or nothing to take up the factors, stays as it is. A quantizer's `rewrite`. */
int awq_rewrite(const struct rewrite_context *context);
/* Its `rewrite_cost`. */
void awq_rewrite_cost(const void *values, const struct quant_group *group, struct quant_cost *out);
