#pragma once
/* The constants of a step of AdamW, in double on the host and rounded once, so that all backends take the same step. */

#include "gpu/gpu.h"

#include <math.h>

/* p = p * keep - step * m / (sqrt(v) * root + eps), m = beta1 m + rest1 d, v = beta2 v + rest2 d^2, d = factor * g. */
struct adamw_factors {
    float factor, beta1, rest1, beta2, rest2, keep, step, root, eps;
};

static inline struct adamw_factors adamw_factors_of(const struct gpu_adamw *spec)
{
    double steps = (double)spec->step;

    return (struct adamw_factors){.factor = (float)spec->factor,
                                  .beta1 = (float)spec->beta1,
                                  .rest1 = (float)(1 - spec->beta1),
                                  .beta2 = (float)spec->beta2,
                                  .rest2 = (float)(1 - spec->beta2),
                                  .keep = (float)(1 - spec->lr * spec->decay),
                                  .step = (float)(spec->lr / (1 - pow(spec->beta1, steps))),
                                  .root = (float)(1 / sqrt(1 - pow(spec->beta2, steps))),
                                  .eps = (float)spec->eps};
}
