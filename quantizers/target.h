#pragma once
/* What a linear should give, where the float model says so: the weight that a solve aims at in place of its own. Inside
 * the quantizers folder only. */

#include "quantizers/common.h"

/* The target of job's linear, F32 [N,K] on the device, which the caller frees: W + share G (H + damp)^-1, G being the
 * moments of stats (STATS_TARGET), the inverse as `factor` left it in u and order, the share larger the more tokens
 * there are for an input. No data where stats has no such moments or too few tokens, or where the result is not finite,
 * which job->note says then. */
int target_new(const struct solve_context *context, const struct layer_stats *stats, const struct tensor *u,
               const int32_t *order, struct linear_job *job, struct tensor *out);
