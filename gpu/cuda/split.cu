/* A float as the sum of two bfloat16, good to 16 bits: three products of such operands on the tensor cores stand for
 * one of floats where a sum of very many is all that is needed. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

static __global__ void split_kernel(__nv_bfloat16 *high, __nv_bfloat16 *low, const float *x, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        __nv_bfloat16 first = __float2bfloat16_rn(x[i]);
        high[i] = first;
        low[i] = __float2bfloat16_rn(x[i] - __bfloat162float(first));
    }
}

int launch_split(void *high, void *low, const float *x, int64_t count, cudaStream_t stream)
{
    launch(split_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, (__nv_bfloat16 *)high, (__nv_bfloat16 *)low,
           x, count);
    return (int)cudaGetLastError();
}
