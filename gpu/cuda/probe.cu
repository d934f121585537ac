/* What meson tries nvcc on: headers of the libraries that are needed, and a kernel for every architecture. */

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

__global__ void probe(__nv_bfloat16 *values)
{
    values[threadIdx.x] = __float2bfloat16(0.0f);
}
