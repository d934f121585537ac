#pragma once
/* One point of an integer grid, and weights on it. Plain C, for hosts and devices; compiled without contraction. */

#include "gpu/shared/dtype.h"

struct grid_point {
    float scale, zero;
};

/* The scale as stored, positive and finite, so that weights near zero or beyond the type still get a grid. Where it
 * must be rounded it is rounded down: a symmetric grid's extremes lie halfway between two codes, and a scale that is a
 * trifle too large would move half of them inwards (at 2 bits they are nearly all of the range). */
GPU_SHARED float grid_scale(float scale, enum dtype dtype)
{
    float stored = dtype_round_down(scale, dtype), min = dtype_min_scale(dtype);

    if (!(stored > 0.0f)) {
        return min;
    }
    if (isinf(stored)) {
        return (float)dtype_max(dtype == DTYPE_F16 ? DTYPE_F16 : DTYPE_BF16);
    }
    return stored > min ? stored : min;
}

/* The grid of `bits` over the range [low, high], low <= 0 <= high: the scale as it is stored, the zero that fits it. */
GPU_SHARED struct grid_point grid_point(int bits, bool sym, enum dtype dtype, float low, float high)
{
    float top = (float)((1 << bits) - 1);
    struct grid_point point;

    if (sym) {
        float absmax = -low > high ? -low : high;
        point.scale = grid_scale(2.0f * absmax / top, dtype);
        point.zero = (float)(1 << (bits - 1));
        return point;
    }
    point.scale = grid_scale((high - low) / top, dtype);
    float zero = rintf(-low / point.scale);
    point.zero = zero < top ? zero : top;
    return point;
}

/* The code of the level nearest to x, the lower of two at one distance; levels that are NaN belong to no code. */
GPU_SHARED int grid_nearest(float x, const float *levels, int count)
{
    float min = INFINITY;
    int found = 0;

    for (int code = 0; code < count; code++) {
        float distance = fabsf(x - levels[code]);
        bool nearer = distance < min || (distance == min && levels[code] < levels[found]);
        min = nearer ? distance : min;
        found = nearer ? code : found;
    }
    return found;
}

/* The code of the grid's point nearest to w; top is the largest code. */
GPU_SHARED uint8_t grid_code(float w, float scale, float zero, float top)
{
    return (uint8_t)(rintf(fminf(fmaxf(w / scale, -zero), top - zero)) + zero);
}

GPU_SHARED float grid_weight(uint8_t code, float scale, float zero)
{
    return scale * ((float)code - zero);
}
