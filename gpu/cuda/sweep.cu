/* The GPTQ sweep over one block of 128 columns, fused (Frantar et al. 2022, Algorithm 1; CPU twin: gpu/cpu/sweep.c).
 *
 * Columns go in strips of 16, four side by side for each of the four lanes that share a row, so a lane reads weights
 * and U, and writes errors and codes, four at a time. A lane holds its 32 columns of two rows in registers: what it
 * reads of U serves both, since shared memory is what limits the kernel. All lanes compute a code and an error for a
 * column of theirs; the owner of the column whose turn it is sends its error to the others by a shuffle, and each lane
 * updates what it holds from this strip on. U's block lies in shared memory strip by strip, from each strip's first
 * column on, with zeros up to the diagonal, so that columns that are done stay as they are.
 *
 * Strips are unrolled, so that every register index is a constant; turns of the lanes within a strip are not, which
 * keeps the code within the instruction cache.
 *
 * Errors replace weights and leave for the products that update the columns behind the block. Padding columns have
 * neither weights nor a factor: their errors are zero. */

#include "gpu/cuda/device.cuh"

#define COLS LAUNCH_SWEEP_COLS
#define LANES_PER_ROW 4
#define QUAD 4                       /* columns of a lane in a strip */
#define STRIP (LANES_PER_ROW * QUAD) /* columns */
#define STRIPS (COLS / STRIP)
#define HELD (COLS / LANES_PER_ROW)
#define TOGETHER 2 /* rows of a lane */
#define ROWS 32
#define APART (ROWS / TOGETHER) /* a lane's rows */
#define THREADS (APART * LANES_PER_ROW)
#define RESIDENT 6 /* blocks of a multiprocessor */
/* Loads of U in flight; a thread's loads of a strip are one less than of the strip before. */
#define FETCHES (STRIPS * (STRIPS + 1) / 2)
#define IN_FLIGHT 12
#define MAGIC 0x1.8p23f
#define GATHER_THREADS 256

static_assert(THREADS == STRIP * LANES_PER_ROW && FETCHES % IN_FLIGHT == 0, "a strip is loaded by whole blocks");

struct sweep_shared {
    float4 u[FETCHES * THREADS];
    float inverse[COLS]; /* of U's diagonal */
    int group[COLS];
};

/* Quads of U before a strip, and in a row of it. */
static __device__ constexpr int strip_begins(int strip)
{
    return (strip * STRIPS - strip * (strip - 1) / 2) * THREADS;
}

static __device__ constexpr int strip_width(int strip)
{
    return (COLS - strip * STRIP) / QUAD;
}

/* `left` columns are there, the others are zero. Where memory is aligned, quads are whole. */
template <bool ALIGNED> static __device__ float4 load_quad(const float *from, int left)
{
    float4 quad = {0, 0, 0, 0};

    if (ALIGNED) {
        return left > 0 ? *(const float4 *)from : quad;
    }
    quad.x = left > 0 ? from[0] : 0.0f;
    quad.y = left > 1 ? from[1] : 0.0f;
    quad.z = left > 2 ? from[2] : 0.0f;
    quad.w = left > 3 ? from[3] : 0.0f;
    return quad;
}

/* This thread's quad of U in its at-th round. */
template <bool ALIGNED> static __device__ float4 fetch_factor(const struct launch_sweep &job, int at)
{
    int strip = 0;
    while (at * THREADS >= strip_begins(strip + 1)) {
        strip++;
    }
    int place = at * THREADS - strip_begins(strip) + (int)threadIdx.x;
    int i = strip * STRIP + place / strip_width(strip), j = strip * STRIP + place % strip_width(strip) * QUAD;
    float4 quad = load_quad<ALIGNED>(job.u + (job.first + i) * job.k + job.first + j, i < job.cols ? job.cols - j : 0);

    quad.x = j > i ? quad.x : 0.0f;
    quad.y = j + 1 > i ? quad.y : 0.0f;
    quad.z = j + 2 > i ? quad.z : 0.0f;
    quad.w = j + 3 > i ? quad.w : 0.0f;
    return quad;
}

template <bool ALIGNED> static __device__ void load_factor(struct sweep_shared *shared, const struct launch_sweep &job)
{
#pragma unroll
    for (int first = 0; first < FETCHES; first += IN_FLIGHT) {
        float4 quads[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            quads[i] = fetch_factor<ALIGNED>(job, first + i);
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            shared->u[(first + i) * THREADS + threadIdx.x] = quads[i];
        }
    }
    for (int i = threadIdx.x; i < COLS; i += THREADS) {
        shared->inverse[i] = i < job.cols ? 1.0f / job.u[(job.first + i) * job.k + job.first + i] : 0.0f;
        shared->group[i] = job.group[job.first + (i < job.cols ? i : 0)];
    }
    __syncthreads();
}

/* A group's grid. The inverse of its scale in two parts gives w / scale to 47 bits before it is rounded: a quotient
 * half way between two points is exact, as after a division, and the chain from column to column is much shorter. */
struct point {
    float scale, inverse, rest, low, high;
};

static __device__ struct point load_point(const struct launch_sweep &job, int64_t row, int group)
{
    float scale = job.scale[row * job.groups + group], zero = job.zero[row * job.groups + group];
    float inverse = 1.0f / scale;
    return {scale, inverse, fmaf(-scale, inverse, 1.0f) * inverse, -zero, job.top - zero};
}

static __device__ float round_to(const struct point &p, float weight)
{
    float quotient = fmaf(weight, p.inverse, weight * p.rest);
    return (fminf(fmaxf(quotient, p.low), p.high) + MAGIC) - MAGIC;
}

/* What a thread holds: columns 16 s + 4 lane + c of its rows at [4 s + c]; codes are those of the current strip. */
struct held {
    float x[TOGETHER][HELD];
    float level[TOGETHER][QUAD];
    double loss[TOGETHER];
};

static __device__ void update(struct held &held, const float (&error)[TOGETHER], const float4 *u, int strip)
{
#pragma unroll
    for (int later = strip; later < STRIPS; later++) {
        float4 quad = u[(later - strip) * LANES_PER_ROW];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            float *x = held.x[r] + later * QUAD;
            x[0] = fmaf(-error[r], quad.x, x[0]);
            x[1] = fmaf(-error[r], quad.y, x[1]);
            x[2] = fmaf(-error[r], quad.z, x[2]);
            x[3] = fmaf(-error[r], quad.w, x[3]);
        }
    }
}

/* u: this lane's quads of the strip. */
template <bool UNIFORM>
static __device__ void sweep_strip(struct held &held, const struct point (&points)[TOGETHER][UNIFORM ? 1 : QUAD],
                                   const float4 *u, const float4 &inverse, int strip)
{
    const float inverses[QUAD] = {inverse.x, inverse.y, inverse.z, inverse.w};
    int lane = threadIdx.x % LANES_PER_ROW;

#pragma unroll 1
    for (int owner = 0; owner < LANES_PER_ROW; owner++) {
#pragma unroll
        for (int c = 0; c < QUAD; c++) {
            float error[TOGETHER], all[TOGETHER], level[TOGETHER];
#pragma unroll
            for (int r = 0; r < TOGETHER; r++) {
                const struct point &p = points[r][UNIFORM ? 0 : c];
                float weight = held.x[r][strip * QUAD + c];
                level[r] = round_to(p, weight);
                error[r] = fmaf(-p.scale, level[r], weight) * inverses[c];
                all[r] = __shfl_sync(FULL_MASK, error[r], owner, LANES_PER_ROW);
            }
            update(held, all, u, strip);
            u += strip_width(strip);
#pragma unroll
            for (int r = 0; r < TOGETHER; r++) {
                held.x[r][strip * QUAD + c] = lane == owner ? error[r] : held.x[r][strip * QUAD + c];
                held.level[r][c] = lane == owner ? level[r] : held.level[r][c];
            }
        }
    }
}

/* The errors and codes of a lane's quad, of which `left` columns are there. */
template <bool ALIGNED>
static __device__ void store_quad(float *error, uint8_t *codes, const float *x, const uint8_t (&code)[QUAD], int left)
{
    if constexpr (ALIGNED) {
        if (left > 0) {
            *(float4 *)error = {x[0], x[1], x[2], x[3]};
            *(uchar4 *)codes = {code[0], code[1], code[2], code[3]};
        }
    } else {
#pragma unroll
        for (int c = 0; c < QUAD; c++) {
            if (c < left) {
                error[c] = x[c];
                codes[c] = code[c];
            }
        }
    }
}

template <bool UNIFORM, bool ALIGNED>
static __device__ void finish_strip(struct held &held, const struct point (&points)[TOGETHER][UNIFORM ? 1 : QUAD],
                                    const struct launch_sweep &job, int64_t row, int col, int strip)
{
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        const float *x = held.x[r] + strip * QUAD;
        uint8_t code[QUAD];
#pragma unroll
        for (int c = 0; c < QUAD; c++) {
            code[c] = (uint8_t)(held.level[r][c] - points[r][UNIFORM ? 0 : c].low);
            held.loss[r] += (double)x[c] * x[c];
        }
        int64_t at = row + r * APART;
        if (at < job.rows) {
            store_quad<ALIGNED>(job.error + at * job.error_stride + col, job.codes + at * job.k + job.first + col, x,
                                code, job.cols - col);
        }
    }
}

template <bool UNIFORM>
static __device__ void load_points(struct point (&points)[TOGETHER][UNIFORM ? 1 : QUAD], const struct launch_sweep &job,
                                   const int *group, int64_t row)
{
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        int64_t at = row + r * APART < job.rows ? row + r * APART : 0;
#pragma unroll
        for (int c = 0; c < (UNIFORM ? 1 : QUAD); c++) {
            points[r][c] = load_point(job, at, group[c]);
        }
    }
}

template <bool ALIGNED>
static __device__ void load_weights(struct held &held, const struct launch_sweep &job, int64_t row, int lane)
{
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        int64_t at = row + r * APART;
        held.loss[r] = 0;
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) {
            int col = strip * STRIP + lane * QUAD;
            float4 quad = load_quad<ALIGNED>(job.w + at * job.k + job.first + col, at < job.rows ? job.cols - col : 0);
            held.x[r][strip * QUAD] = quad.x;
            held.x[r][strip * QUAD + 1] = quad.y;
            held.x[r][strip * QUAD + 2] = quad.z;
            held.x[r][strip * QUAD + 3] = quad.w;
        }
    }
}

template <bool UNIFORM, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS, RESIDENT) sweep_kernel(struct launch_sweep job)
{
    struct sweep_shared *shared = dynamic_shared<struct sweep_shared>();
    int lane = threadIdx.x % LANES_PER_ROW;
    int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES_PER_ROW;
    struct point points[TOGETHER][UNIFORM ? 1 : QUAD];
    struct held held;

    load_weights<ALIGNED>(held, job, row, lane);
    load_factor<ALIGNED>(shared, job);
    if (UNIFORM) {
        load_points<UNIFORM>(points, job, shared->group, row);
    }
#pragma unroll
    for (int strip = 0; strip < STRIPS; strip++) {
        int col = strip * STRIP + lane * QUAD;
        const float4 inverse = *(const float4 *)(shared->inverse + col);
        if (!UNIFORM) {
            load_points<UNIFORM>(points, job, shared->group + col, row);
        }
        sweep_strip<UNIFORM>(held, points, shared->u + strip_begins(strip) + lane, inverse, strip);
        finish_strip<UNIFORM, ALIGNED>(held, points, job, row, col, strip);
    }
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        double loss = held.loss[r];
        loss += __shfl_xor_sync(FULL_MASK, loss, 1, LANES_PER_ROW);
        loss += __shfl_xor_sync(FULL_MASK, loss, 2, LANES_PER_ROW);
        if (lane == 0 && row + r * APART < job.rows) {
            job.loss[row + r * APART] += loss;
        }
    }
}

static bool is_aligned(const struct launch_sweep *sweep)
{
    uintptr_t wide = (uintptr_t)sweep->w | (uintptr_t)sweep->u | (uintptr_t)sweep->error;
    return wide % sizeof(float4) == 0 && (uintptr_t)sweep->codes % sizeof(uchar4) == 0 &&
           (sweep->k | sweep->first | sweep->error_stride) % QUAD == 0;
}

int launch_sweep(const struct launch_sweep *sweep, cudaStream_t stream)
{
    void (*const kernels[2][2])(struct launch_sweep) = {{sweep_kernel<false, false>, sweep_kernel<false, true>},
                                                        {sweep_kernel<true, false>, sweep_kernel<true, true>}};

    if (sweep->rows == 0) {
        return 0;
    }
    launch(kernels[sweep->uniform != 0][is_aligned(sweep)], blocks_of(sweep->rows, ROWS), THREADS,
           sizeof(struct sweep_shared), stream, *sweep);
    return (int)cudaGetLastError();
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
