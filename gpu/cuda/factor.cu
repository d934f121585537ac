/* What surrounds the factorisation: reversal, permutation and damping on the way in, reversal on the way out. The
 * essay is in the CPU twin, gpu/cpu/factor.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

static __global__ void gather_kernel(float *to, const float *h, const int32_t *order, int64_t n, float damp)
{
    int64_t i = blockIdx.y, j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) {
        return;
    }
    int64_t row = n - 1 - i, col = n - 1 - j;
    row = order != NULL ? order[row] : row;
    col = order != NULL ? order[col] : col;
    float value = j <= i ? h[row * n + col] : 0.0f;
    if (i == j) {
        value = (value == 0.0f ? 1.0f : value) + damp;
    }
    to[i * n + j] = value;
}

int launch_factor_gather(float *to, const float *h, const int32_t *order, int64_t n, float damp, cudaStream_t stream)
{
    dim3 grid(blocks_of(n, THREADS), (unsigned)n); /* n < 65536 is checked by the caller */
    launch(gather_kernel, grid, THREADS, 0, stream, to, h, order, n, damp);
    return (int)cudaGetLastError();
}

static __global__ void reverse_kernel(float *a, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count / 2; i += stride) {
        float saved = a[i];
        a[i] = a[count - 1 - i];
        a[count - 1 - i] = saved;
    }
}

int launch_reverse(float *a, int64_t count, cudaStream_t stream)
{
    launch(reverse_kernel, flat_blocks(count / 2, THREADS), THREADS, 0, stream, a, count);
    return (int)cudaGetLastError();
}
