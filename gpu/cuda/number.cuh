#pragma once
/* Numbers as INT8 and E4M3 keep them. For files compiled without contraction. */

#include "gpu/cuda/device.cuh"

#include <cuda_fp8.h>

__device__ inline float rounded(float x, float scale, int e4m3)
{
    if (e4m3) { /* the intrinsic saturates and rounds to nearest even, as the CPU's conversion does */
        __nv_fp8_e4m3 code(x / scale);
        return (float)code * scale;
    }
    return fminf(fmaxf(rintf(x / scale), -127.0f), 127.0f) * scale;
}
