#pragma once
/* Grids as on the CPU (gpu/shared/grid.h); sums over half a warp in the order of the CPU's vectors. For files compiled without contraction. */

#include "gpu/cuda/device.cuh"
#include "gpu/shared/grid.h"

#define LANES 16 /* lanes of a group, as in gpu/cpu */

__device__ inline struct grid_point grid_of(const struct launch_grid &spec, float low, float high)
{
    return grid_point(spec.bits, spec.sym, spec.scale_dtype, low, high);
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
