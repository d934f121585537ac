#pragma once
/* GPTQ as the start of methods that learn. Private to quantizers/. */

#include "quantizers/search.h"

enum quality { QUALITY_FAST, QUALITY_DEFAULT, QUALITY_BEST };

struct gptq_params {
    struct quant_common common;
    double damp_percent;
    int64_t block_size;
    bool act_order, desc_act, static_groups, true_sequential;
    bool float_targets;
    double residual_correction;
    int64_t target_tokens, resweep;
    bool output_moments;
    int64_t output_tokens;
    int quality; /* enum quality */
};

/* Its parameters but for `quality`. */
extern const struct params_row gptq_rows[];
/* The members of its row (quantizer.h). */
int gptq_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
               int count);
void gptq_check(const void *params, const char *pointer, struct validation_errors *errors);
bool gptq_targets(const void *params, struct quant_targets *out);
int64_t gptq_output_tokens(const void *params);
const char *gptq_preset(const void *params);
void gptq_cost(const void *params, const struct quant_shape *shape, struct quant_cost *out);
