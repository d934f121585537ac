#pragma once
/* The constants of a step of AdamW, in double on the host and rounded once, so that all backends take the same step. */

#include <math.h>
#include <stdint.h>

/* p = p * keep - step * m / (sqrt(v) * root + eps), m = beta1 m + rest1 d, v = beta2 v + rest2 d^2, d = factor * g. */
struct adamw_factors {
    float factor, beta1, rest1, beta2, rest2, keep, step, root, eps;
};

static inline struct adamw_factors adamw_factors_of(double lr, double beta1, double beta2, double eps, double decay,
                                                    double factor, int64_t step)
{
    struct adamw_factors f;

    f.factor = (float)factor;
    f.beta1 = (float)beta1;
    f.rest1 = (float)(1 - beta1);
    f.beta2 = (float)beta2;
    f.rest2 = (float)(1 - beta2);
    f.keep = (float)(1 - lr * decay);
    f.step = (float)(lr / (1 - pow(beta1, (double)step)));
    f.root = (float)(1 / sqrt(1 - pow(beta2, (double)step)));
    f.eps = (float)eps;
    return f;
}
