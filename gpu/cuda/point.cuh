#pragma once
/* One point of a grid, as on the CPU: its scale as stored and the zero that answers it (gpu/cpu/grid.c); sums over
 * half a warp in the order of the CPU's vectors. For files compiled without contraction. */

#include "gpu/cuda/device.cuh"

#define LANES 16 /* lanes of a group, as in gpu/cpu */

struct point {
    float scale, zero;
};

/* Positive and finite as stored, as on the CPU. */
__device__ inline float storable(float scale, int dtype)
{
    float stored = scale, least = 0x1p-126f, most = 0x1.fep127f;
    if (dtype == LAUNCH_F16) {
        stored = __half2float(__float2half_rd(scale));
        least = 0x1p-24f;
        most = 65504.0f;
    } else if (dtype == LAUNCH_BF16) {
        stored = __bfloat162float(__float2bfloat16_rd(scale));
    }
    if (!(stored > 0.0f)) {
        return least;
    }
    if (isinf(stored)) {
        return most;
    }
    return dtype == LAUNCH_F16 || stored > 0x1p-126f ? stored : 0x1p-126f;
}

__device__ inline struct point grid_point(const struct launch_grid &spec, float low, float high)
{
    float top = (float)((1 << spec.bits) - 1);
    struct point point;

    if (spec.sym) {
        float absmax = -low > high ? -low : high;
        point.scale = storable(2.0f * absmax / top, spec.scale_dtype);
        point.zero = (float)(1 << (spec.bits - 1));
        return point;
    }
    point.scale = storable((high - low) / top, spec.scale_dtype);
    float zero = rintf(-low / point.scale);
    point.zero = zero < top ? zero : top;
    return point;
}

__device__ inline float round_clamped(float x, float low, float high)
{
    return rintf(fminf(fmaxf(x, low), high));
}

/* The sum over LANES lanes in the order of the CPU's vectors. */
template <typename T> __device__ inline T lanes_sum(T value)
{
    const int offsets[] = {8, 4, 1, 2};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        value += __shfl_xor_sync(FULL_MASK, value, offsets[i], LANES);
    }
    return value;
}

__device__ inline float lanes_max(float value)
{
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(FULL_MASK, value, offset, LANES));
    }
    return value;
}
