#pragma once
/* The range of static inputs: the one scale, shared by linears that read the same input, whose outputs have the
 * smallest error. */

#include "quantizers/quantizer.h"

struct input_range {
    float scale;  /* as stored */
    double share; /* of the range that the largest input needs */
    double error; /* sum |(Q(x) - x) W^T|^2 / sum |x W^T|^2, mean over the linears; NAN where nothing measured it */
    double error_absmax; /* the same with the scale that reaches absmax */
};

/* Search ranges of absmax * 2^(-i/2), i = 0 .. 20, then in steps of an eighth of an octave around the best: the widest
 * whose error is at most 2 % above the smallest. input: the element; its scale is what is searched. weights: F32
 * [N,K]. Scales are rounded to context->scale_dtype. */
int input_range_search(const struct solve_context *context, const struct input_sample *sample,
                       const struct tensor *const *weights, int count, const struct gpu_input *input, float absmax,
                       struct input_range *out);
/* The scale that reaches `absmax`, as stored: never zero, never infinite. */
float input_range_scale(float absmax, enum dtype element, enum dtype dtype);
