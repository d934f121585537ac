/* Cholesky factor and its inverse of one block of up to 128 x 128, in shared memory, by one sweep over the pivots.
 *
 * Step k divides by the pivot's root and takes what row k of the inverse and column k of the factor do to the rows below:
 * r holds the one left of the diagonal and the other right of it, so that both are one update. Afterwards row k is the
 * inverse's, and the factor's column k is not needed any more. */

#include "gpu/cuda/device.cuh"

#define SIZE LAUNCH_TRIANGLE
#define THREADS 512

struct triangle_shared {
    float a[SIZE][SIZE + 1]; /* the lower triangle: inverse up to the pivot's row, below what is left to do */
    float r[SIZE];
};

static __global__ void __launch_bounds__(THREADS)
    triangle_kernel(float *x, const float *a, int64_t n, int64_t at, int size, int *info)
{
    struct triangle_shared *shared = dynamic_shared<struct triangle_shared>();
    int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    int64_t corner = at * n + at;

    for (int i = warp; i < size; i += THREADS / WARP) {
        for (int j = lane; j <= i; j += WARP) {
            shared->a[i][j] = a[corner + i * n + j];
        }
    }
    __syncthreads();
    for (int k = 0; k < size; k++) {
        float pivot = shared->a[k][k], d = 1.0f / sqrtf(pivot);
        if (thread == 0 && !(pivot > 0.0f) && *info == 0) {
            *info = (int)(at + k + 1);
        }
        if (thread < size) {
            shared->r[thread] = thread < k ? shared->a[k][thread] * d : thread == k ? d : shared->a[thread][k] * d;
        }
        __syncthreads();
        if (thread <= k) {
            shared->a[k][thread] = shared->r[thread];
        }
        for (int i = k + 1 + warp; i < size; i += THREADS / WARP) {
            float l = shared->r[i];
            for (int j = lane; j <= i; j += WARP) {
                float kept = j == k ? 0.0f : shared->a[i][j];
                shared->a[i][j] = kept - l * shared->r[j];
            }
        }
        __syncthreads();
    }
    for (int i = warp; i < size; i += THREADS / WARP) {
        for (int j = lane; j <= i; j += WARP) {
            x[corner + i * n + j] = shared->a[i][j];
        }
    }
}

int launch_triangle(float *x, const float *a, int64_t n, int64_t at, int size, int *info, cudaStream_t stream)
{
    const int bytes = (int)sizeof(struct triangle_shared);
    cudaError_t status = cudaFuncSetAttribute(triangle_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);

    if (status == cudaSuccess) {
        launch(triangle_kernel, 1, THREADS, bytes, stream, x, a, n, at, size, info);
    }
    return status != cudaSuccess ? (int)status : (int)cudaGetLastError();
}
