/* Conversions between F32, F16 and BF16 (round to nearest even), and the search for values that are not finite.
 * CPU twin: gpu/cpu/convert.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

static __global__ void convert_kernel(void *y, enum dtype y_dtype, const void *x, enum dtype x_dtype, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        store_float(y, y_dtype, i, load_float(x, x_dtype, i));
    }
}

/* The way that products take: four floats to four bfloat16 a step. */
static __global__ void narrow_kernel(uint2 *y, const float4 *x, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float4 v = x[i];
        __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
        uint2 packed;
        memcpy(&packed.x, &low, sizeof(packed.x));
        memcpy(&packed.y, &high, sizeof(packed.y));
        y[i] = packed;
    }
}

int launch_convert(void *y, enum dtype y_dtype, const void *x, enum dtype x_dtype, int64_t count, cudaStream_t stream)
{
    if (count == 0) {
        return 0;
    }
    bool aligned = ((uintptr_t)x % sizeof(float4) | (uintptr_t)y % sizeof(uint2)) == 0;
    if (x_dtype == DTYPE_F32 && y_dtype == DTYPE_BF16 && count % 4 == 0 && aligned) {
        launch(narrow_kernel, flat_blocks(count / 4, THREADS), THREADS, 0, stream, (uint2 *)y, (const float4 *)x,
               count / 4);
    } else {
        launch(convert_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, y, y_dtype, x, x_dtype, count);
    }
    return (int)cudaGetLastError();
}

static __global__ void nonfinite_kernel(long long *index, const void *x, enum dtype dtype, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        if (!isfinite(load_float(x, dtype, i))) {
            atomicMin(index, (long long)i); /* a minimum has no order */
            return;
        }
    }
}

static __global__ void set_index_kernel(long long *index)
{
    *index = INT64_MAX;
}

int launch_find_nonfinite(int64_t *index, const void *x, enum dtype dtype, int64_t count, cudaStream_t stream)
{
    launch(set_index_kernel, 1, 1, 0, stream, (long long *)index);
    if (count > 0) {
        launch(nonfinite_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, (long long *)index, x, dtype, count);
    }
    return (int)cudaGetLastError();
}
