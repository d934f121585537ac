/* The parts of targets that are not products: weighted sums of two tensors, and columns put back where an order took
 * them from. Compiled without contraction. CPU twin: gpu/cpu/target.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

static __global__ void combine_kernel(float *y, float alpha, const float *a, float beta, const float *b, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        y[i] = alpha * a[i] + (b != NULL ? beta * b[i] : 0.0f);
    }
}

int launch_combine(float *y, float alpha, const float *a, float beta, const float *b, int64_t count,
                   cudaStream_t stream)
{
    launch(combine_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, y, alpha, a, beta, b, count);
    return (int)cudaGetLastError();
}

static __global__ void scatter_kernel(float *y, const float *from, const int32_t *order, int64_t cols)
{
    int64_t row = blockIdx.y, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < cols) {
        y[row * cols + order[i]] = from[row * cols + i];
    }
}

/* Rows of one launch: the grid's second side is limited to 65535. */
#define GRID_ROWS 32768

int launch_scatter_columns(float *y, const float *from, const int32_t *order, int64_t rows, int64_t cols,
                           cudaStream_t stream)
{
    for (int64_t first = 0; first < rows; first += GRID_ROWS) {
        int64_t count = rows - first < GRID_ROWS ? rows - first : GRID_ROWS;
        dim3 grid(blocks_of(cols, THREADS), (unsigned)count);
        launch(scatter_kernel, grid, THREADS, 0, stream, y + first * cols, from + first * cols, order, cols);
    }
    return (int)cudaGetLastError();
}
