#pragma once
/* The range of static inputs: the one scale, shared by linears that read the same input, with which their outputs lose
 * least. */

#include "quantizers/quantizer.h"

struct input_range {
    float scale;  /* as stored */
    double share; /* of the range that the largest input needs */
    double error; /* sum |(Q(x) - x) W^T|^2 / sum |x W^T|^2, mean over the linears; NAN where nothing measured it */
    double error_whole; /* the same with the whole range */
};

/* Search ranges of absmax * 2^(-i/2), i = 0 .. 20, then in steps of an eighth of an octave around the best: the widest
 * that loses no more than 2 % above the least. input: number; its scale is what is searched. weights: F32 [N,K]. Scales
 * are rounded to context->scale_dtype. */
int input_range_search(const struct solve_context *context, const struct input_sample *sample,
                       const struct tensor *const *weights, int count, const struct gpu_input *input, float absmax,
                       struct input_range *out);
/* The scale that reaches `most`, as stored: never zero, never infinite. */
float input_range_scale(float most, enum dtype element, enum dtype dtype);
