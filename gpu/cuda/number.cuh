#pragma once
/* Numbers as I8 and F8_E4M3 keep them. For files compiled without contraction. */

#include "gpu/cuda/device.cuh"

#include <cuda_fp8.h>

/* The code of x as a number. */
__device__ inline float code_of_number(float x, float scale, enum dtype element)
{
    if (element == DTYPE_F8_E4M3) { /* the intrinsic saturates and rounds to nearest even, as the CPU's conversion does */
        __nv_fp8_e4m3 code(x / scale);
        return (float)code;
    }
    return fminf(fmaxf(rintf(x / scale), -127.0f), 127.0f);
}

__device__ inline float rounded(float x, float scale, enum dtype element)
{
    return code_of_number(x, scale, element) * scale;
}
