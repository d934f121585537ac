/* The GPTQ sweep over one block of 128 columns, fused (Frantar et al. 2022, Algorithm 1; CPU twin: gpu/cpu/sweep.c).
 *
 * Four lanes share a row, each holding 32 of its columns in registers, interleaved: lane l has columns 4k + l, so that
 * the work that is left stays even between the lanes as the sweep moves right. U's block lies in shared memory. Column
 * i's weight goes from its owner to the three others by a shuffle; all four compute the same code and error, and each
 * updates its own columns behind i. The loops are unrolled whole: every register index is a constant.
 *
 * Errors replace weights and leave for the product that updates the columns behind the block. */

#include "gpu/cuda/device.cuh"

#define COLS LAUNCH_SWEEP_COLS
#define LANES_PER_ROW 4
#define HELD (COLS / LANES_PER_ROW)
#define ROWS 64
#define THREADS (ROWS * LANES_PER_ROW)
#define GATHER_THREADS 256

struct sweep_shared {
    float u[COLS][COLS];
    int group[COLS];
};

static __device__ void load_factor(struct sweep_shared *shared, const struct launch_sweep &job)
{
    for (int at = threadIdx.x; at < COLS * COLS; at += THREADS) {
        int i = at / COLS, j = at % COLS;
        bool inside = i < job.cols && j < job.cols;
        /* past the end: an identity, so that padding columns stay zero */
        shared->u[i][j] = inside ? job.u[(job.first + i) * job.k + job.first + j] : i == j ? 1.0f : 0.0f;
    }
    for (int i = threadIdx.x; i < COLS; i += THREADS) {
        shared->group[i] = job.group[job.first + (i < job.cols ? i : 0)];
    }
    __syncthreads();
}

template <bool UNIFORM> static __global__ void __launch_bounds__(THREADS) sweep_kernel(struct launch_sweep job)
{
    struct sweep_shared *shared = dynamic_shared<struct sweep_shared>();
    int lane = threadIdx.x % LANES_PER_ROW;
    int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES_PER_ROW;
    bool live = row < job.rows;
    const float *scales = job.scale + (live ? row : 0) * job.groups, *zeros = job.zero + (live ? row : 0) * job.groups;
    float x[HELD];
    uint8_t code[HELD];

    load_factor(shared, job);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int col = k * LANES_PER_ROW + lane;
        x[k] = live && col < job.cols ? job.w[row * job.k + job.first + col] : 0.0f;
        code[k] = 0;
    }
    float scale = scales[shared->group[0]], zero = zeros[shared->group[0]];
#pragma unroll
    for (int i = 0; i < COLS; i++) {
        const int k = i / LANES_PER_ROW, owner = i % LANES_PER_ROW;
        float weight = __shfl_sync(FULL_MASK, x[k], owner, LANES_PER_ROW);
        if (!UNIFORM) {
            scale = scales[shared->group[i]];
            zero = zeros[shared->group[i]];
        }
        float r = rintf(fminf(fmaxf(weight / scale, -zero), job.top - zero));
        float e = (weight - scale * r) / shared->u[i][i];
        if (lane > owner) {
            x[k] -= e * shared->u[i][k * LANES_PER_ROW + lane];
        } else if (lane == owner) {
            x[k] = e;
            code[k] = (uint8_t)(r + zero);
        }
#pragma unroll
        for (int later = k + 1; later < HELD; later++) {
            x[later] -= e * shared->u[i][later * LANES_PER_ROW + lane];
        }
    }
    double loss = 0;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int col = k * LANES_PER_ROW + lane;
        float e = live && col < job.cols ? x[k] : 0.0f;
        loss += (double)e * e;
        if (live) {
            job.error[row * COLS + col] = e;
        }
        if (live && col < job.cols) {
            job.codes[row * job.k + job.first + col] = code[k];
        }
    }
    loss += __shfl_xor_sync(FULL_MASK, loss, 1, LANES_PER_ROW);
    loss += __shfl_xor_sync(FULL_MASK, loss, 2, LANES_PER_ROW);
    if (live && lane == 0) {
        job.loss[row] += loss;
    }
}

int launch_sweep(const struct launch_sweep *sweep, cudaStream_t stream)
{
    const int bytes = (int)sizeof(struct sweep_shared);
    unsigned blocks = blocks_of(sweep->rows, ROWS);
    cudaError_t status;

    if (sweep->rows == 0) {
        return 0;
    }
    if (sweep->uniform) {
        status = cudaFuncSetAttribute(sweep_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (status == cudaSuccess) {
            launch(sweep_kernel<true>, blocks, THREADS, bytes, stream, *sweep);
        }
    } else {
        status = cudaFuncSetAttribute(sweep_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (status == cudaSuccess) {
            launch(sweep_kernel<false>, blocks, THREADS, bytes, stream, *sweep);
        }
    }
    return status != cudaSuccess ? (int)status : (int)cudaGetLastError();
}

static __global__ void gather_kernel(float *to, const float *w, const int32_t *order, int64_t cols)
{
    int64_t row = blockIdx.y, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < cols) {
        to[row * cols + i] = w[row * cols + order[i]];
    }
}

/* Rows of one launch: the grid's second side is limited to 65535. */
#define GRID_ROWS 32768

int launch_gather_columns(float *to, const float *w, const int32_t *order, int64_t rows, int64_t cols,
                          cudaStream_t stream)
{
    for (int64_t first = 0; first < rows; first += GRID_ROWS) {
        int64_t count = rows - first < GRID_ROWS ? rows - first : GRID_ROWS;
        dim3 grid(blocks_of(cols, GATHER_THREADS), (unsigned)count);
        launch(gather_kernel, grid, GATHER_THREADS, 0, stream, to + first * cols, w + first * cols, order, cols);
    }
    return (int)cudaGetLastError();
}

static __global__ void scatter_kernel(uint8_t *codes, const uint8_t *from, const int32_t *order, int64_t cols)
{
    int64_t row = blockIdx.y, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < cols) {
        codes[row * cols + order[i]] = from[row * cols + i];
    }
}

int launch_scatter_codes(uint8_t *codes, const uint8_t *from, const int32_t *order, int64_t rows, int64_t cols,
                         cudaStream_t stream)
{
    for (int64_t first = 0; first < rows; first += GRID_ROWS) {
        int64_t count = rows - first < GRID_ROWS ? rows - first : GRID_ROWS;
        dim3 grid(blocks_of(cols, GATHER_THREADS), (unsigned)count);
        launch(scatter_kernel, grid, GATHER_THREADS, 0, stream, codes + first * cols, from + first * cols, order, cols);
    }
    return (int)cudaGetLastError();
}
