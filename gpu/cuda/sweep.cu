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
 * Errors replace weights and leave for the products that update the columns after the block. Padding columns have
 * neither weights nor a factor: their errors are zero. */

#include "gpu/cuda/device.cuh"
#include "gpu/shared/grid.h"

#define COLS LAUNCH_SWEEP_COLS
#define LANES_PER_ROW 4
#define QUAD 4                       /* columns of a lane in a strip */
#define STRIP (LANES_PER_ROW * QUAD) /* columns */
#define STRIPS (COLS / STRIP)
#define HELD (COLS / LANES_PER_ROW)
#define TOGETHER 2 /* rows of a lane */
#define ROWS 32
#define ROW_STEP (ROWS / TOGETHER) /* a lane's rows */
#define THREADS (ROW_STEP * LANES_PER_ROW)
#define RESIDENT 6 /* blocks of a multiprocessor, with one group; grids of several need more registers */
#define RESIDENT_OTHERS 4
#define FETCHES (STRIPS * (STRIPS + 1) / 2) /* quads of U that a thread loads, and how many at once */
#define IN_FLIGHT 12
#define MAGIC 0x1.8p23f /* x + it - it rounds x < 2^22 to even */
#define GATHER_THREADS 256
#define LEVEL_THREADS 64

static_assert(THREADS == STRIP * LANES_PER_ROW, "four threads load a row of a strip of U");
static_assert(FETCHES % IN_FLIGHT == 0, "rounds of loads are alike");

struct sweep_shared {
    float4 u[FETCHES * THREADS];
    float inverse[COLS]; /* of U's diagonal */
    int group[COLS];     /* where there are several */
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

/* `left` columns are there, the others are zero; of a complete block all are, and quads are aligned. */
template <bool COMPLETE> static __device__ float4 load_quad(const float *from, int left)
{
    if constexpr (COMPLETE) {
        return *(const float4 *)from;
    } else {
        return {left > 0 ? from[0] : 0.0f, left > 1 ? from[1] : 0.0f, left > 2 ? from[2] : 0.0f,
                left > 3 ? from[3] : 0.0f};
    }
}

/* Zeros up to the diagonal, for a quad that begins `right` columns to the right of it; an element on it is kept. */
static __device__ void cut_diagonal(float4 &quad, int right, float *diagonal)
{
    if (right <= 0 && right > -QUAD) {
        *diagonal = right == 0 ? quad.x : right == -1 ? quad.y : right == -2 ? quad.z : quad.w;
    }
    quad.x = right > 0 ? quad.x : 0.0f;
    quad.y = right > -1 ? quad.y : 0.0f;
    quad.z = right > -2 ? quad.z : 0.0f;
    quad.w = right > -3 ? quad.w : 0.0f;
}

/* The strip of a thread's at-th quad. */
static __device__ constexpr int strip_of(int at)
{
    int strip = 0;
    while (at * THREADS >= strip_begins(strip + 1)) {
        strip++;
    }
    return strip;
}

/* Four threads load every fourth quad each of a row of a strip. */
template <bool COMPLETE> static __device__ void load_factor(struct sweep_shared *shared, const struct launch_sweep &job)
{
    int i = threadIdx.x / LANES_PER_ROW, lane = threadIdx.x % LANES_PER_ROW;

    for (int at = threadIdx.x; at < COLS && job.only_group < 0; at += THREADS) {
        shared->group[at] = job.group[job.first + (at < job.cols ? at : 0)];
    }
    const float *u = job.u + (job.first + i) * job.k + job.first + lane * QUAD;
#pragma unroll
    for (int round = 0; round < FETCHES; round += IN_FLIGHT) {
        float4 quads[IN_FLIGHT];
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; n++) {
            const int strip = strip_of(round + n), part = round + n - strip_begins(strip) / THREADS;
            const int col = (strip + part) * STRIP;
            int left = strip * STRIP + i < job.cols ? job.cols - col - lane * QUAD : 0;
            quads[n] = load_quad<COMPLETE>(u + strip * STRIP * job.k + col, left);
            if (part == 0) {
                cut_diagonal(quads[n], lane * QUAD - i, &shared->inverse[strip * STRIP + i]);
            }
        }
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; n++) {
            const int strip = strip_of(round + n), part = round + n - strip_begins(strip) / THREADS;
            shared->u[strip_begins(strip) + i * strip_width(strip) + part * LANES_PER_ROW + lane] = quads[n];
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < COLS; at += THREADS) {
        shared->inverse[at] = at < job.cols ? 1.0f / shared->inverse[at] : 0.0f;
    }
    __syncthreads();
}

/* A group's grid. The inverse of its scale in two parts gives w / scale to 47 bits before it is rounded: a quotient
 * half way between two points is exact, as after a division, and the dependency from column to column is shorter. */
struct point {
    float scale, inverse, rest, low, high;
};

/* For each row of a thread, its group, or its groups of a quad's columns. */
template <bool UNIFORM, typename T> using by_group = T[TOGETHER][UNIFORM ? 1 : QUAD];

static __device__ float round_to(const struct point &p, float weight)
{
    float quotient = fmaf(weight, p.inverse, weight * p.rest);
    return (fminf(fmaxf(quotient, p.low), p.high) + MAGIC) - MAGIC;
}

/* What a thread holds: columns 16 s + 4 lane + c of its rows at x[4 s + c], a weight and then its error. */
struct held {
    float x[TOGETHER][HELD];
    float level[TOGETHER][QUAD]; /* codes less zeros, of the current strip */
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
static __device__ void sweep_strip(struct held &held, const by_group<UNIFORM, struct point> &points, const float4 *u,
                                   const float4 &inverse, int strip)
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
template <bool COMPLETE>
static __device__ void store_quad(float *error, uint8_t *codes, const float *x, const uint8_t (&code)[QUAD], int left)
{
    if constexpr (COMPLETE) {
        *(float4 *)error = {x[0], x[1], x[2], x[3]};
        *(uchar4 *)codes = {code[0], code[1], code[2], code[3]};
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

template <bool UNIFORM, bool COMPLETE>
static __device__ void finish_strip(struct held &held, const by_group<UNIFORM, struct point> &points,
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
        int64_t at = row + r * ROW_STEP;
        if (at < job.rows) {
            store_quad<COMPLETE>(job.error + at * job.error_stride + col + strip * STRIP,
                              job.codes + at * job.k + job.first + col + strip * STRIP, x, code,
                              job.cols - col - strip * STRIP);
        }
    }
}

/* Rows past the end do what the last one does, but store nothing. */
static __device__ int64_t row_at(const struct launch_sweep &job, int64_t row, int r)
{
    return row + r * ROW_STEP < job.rows ? row + r * ROW_STEP : job.rows - 1;
}

/* Scales and zeros, as `low`; group: those of a quad, or the only one. */
template <bool UNIFORM>
static __device__ void load_points(by_group<UNIFORM, struct point> &points, const struct launch_sweep &job, int64_t row,
                                   const int *group)
{
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        const float *scale = job.scale + row_at(job, row, r) * job.groups;
        const float *zero = job.zero + row_at(job, row, r) * job.groups;
#pragma unroll
        for (int c = 0; c < (UNIFORM ? 1 : QUAD); c++) {
            points[r][c].scale = scale[group[c]];
            points[r][c].low = -zero[group[c]];
        }
    }
}

/* The rest of what load_points began. */
template <bool UNIFORM>
static __device__ void complete_points(by_group<UNIFORM, struct point> &points,
                                       const by_group<UNIFORM, struct point> &loaded, float top)
{
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
#pragma unroll
        for (int c = 0; c < (UNIFORM ? 1 : QUAD); c++) {
            float scale = loaded[r][c].scale, low = loaded[r][c].low, inverse = 1.0f / scale;
            points[r][c] = {scale, inverse, fmaf(-scale, inverse, 1.0f) * inverse, low, top + low};
        }
    }
}

template <bool COMPLETE>
static __device__ void load_weights(struct held &held, const struct launch_sweep &job, int64_t row, int col)
{
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        const float *w = job.w + row_at(job, row, r) * job.k + job.first + col;
        held.loss[r] = 0;
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) {
            float4 quad = load_quad<COMPLETE>(w + strip * STRIP, job.cols - col - strip * STRIP);
            held.x[r][strip * QUAD] = quad.x;
            held.x[r][strip * QUAD + 1] = quad.y;
            held.x[r][strip * QUAD + 2] = quad.z;
            held.x[r][strip * QUAD + 3] = quad.w;
        }
    }
}

template <bool UNIFORM, bool COMPLETE>
static __global__ void __launch_bounds__(THREADS, !UNIFORM || !COMPLETE ? RESIDENT_OTHERS : RESIDENT)
    sweep_kernel(struct launch_sweep job)
{
    struct sweep_shared *shared = dynamic_shared<struct sweep_shared>();
    int lane = threadIdx.x % LANES_PER_ROW, col = lane * QUAD;
    int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES_PER_ROW;
    by_group<UNIFORM, struct point> points, loaded;
    struct held held;

    if (UNIFORM) {
        load_points<UNIFORM>(loaded, job, row, &job.only_group);
    }
    load_weights<COMPLETE>(held, job, row, col);
    load_factor<COMPLETE>(shared, job);
    if (!UNIFORM) {
        load_points<UNIFORM>(loaded, job, row, shared->group + col);
    }
#pragma unroll
    for (int strip = 0; strip < STRIPS; strip++) {
        const float4 inverse = *(const float4 *)(shared->inverse + strip * STRIP + col);
        if (!UNIFORM || strip == 0) {
            complete_points<UNIFORM>(points, loaded, job.top);
        }
        if (!UNIFORM && strip + 1 < STRIPS) { /* they arrive while this strip is swept */
            load_points<UNIFORM>(loaded, job, row, shared->group + (strip + 1) * STRIP + col);
        }
        sweep_strip<UNIFORM>(held, points, shared->u + strip_begins(strip) + lane, inverse, strip);
        finish_strip<UNIFORM, COMPLETE>(held, points, job, row, col, strip);
    }
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
        double loss = held.loss[r];
        loss += __shfl_xor_sync(FULL_MASK, loss, 1, LANES_PER_ROW);
        loss += __shfl_xor_sync(FULL_MASK, loss, 2, LANES_PER_ROW);
        if (lane == 0 && row + r * ROW_STEP < job.rows) {
            job.loss[row + r * ROW_STEP] += loss;
        }
    }
}

static bool is_whole(const struct launch_sweep *sweep)
{
    uintptr_t wide = (uintptr_t)sweep->w | (uintptr_t)sweep->u | (uintptr_t)sweep->error;
    return sweep->cols == COLS && wide % sizeof(float4) == 0 && (uintptr_t)sweep->codes % sizeof(uchar4) == 0 &&
           (sweep->k | sweep->first | sweep->error_stride) % QUAD == 0;
}

/* Over a table of levels, a thread a row: lanes do not share a row, since no method that runs often needs it yet. The
 * errors replace weights in the row's place of `error`. */
static __global__ void levels_kernel(struct launch_sweep job)
{
    int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= job.rows) {
        return;
    }
    float *x = job.error + row * job.error_stride;
    const float *scale = job.scale + row * job.groups;
    double loss = 0;

    for (int i = 0; i < job.cols; i++) {
        x[i] = job.w[row * job.k + job.first + i];
    }
    for (int i = 0; i < job.cols; i++) {
        const float *u = job.u + (job.first + i) * job.k + job.first;
        float s = scale[job.group[job.first + i]];
        int code = grid_nearest(x[i] / s, job.levels, job.level_count);
        float error = (x[i] - s * job.levels[code]) / u[i];
        job.codes[row * job.k + job.first + i] = (uint8_t)code;
        x[i] = error;
        loss += (double)error * (double)error;
        for (int j = i + 1; j < job.cols; j++) {
            x[j] -= error * u[j];
        }
    }
    job.loss[row] += loss;
}

int launch_sweep(const struct launch_sweep *sweep, cudaStream_t stream)
{
    if (sweep->levels != NULL && sweep->rows > 0) {
        launch(levels_kernel, blocks_of(sweep->rows, LEVEL_THREADS), LEVEL_THREADS, 0, stream, *sweep);
        return (int)cudaGetLastError();
    }
    void (*const kernels[2][2])(struct launch_sweep) = {{sweep_kernel<false, false>, sweep_kernel<false, true>},
                                                        {sweep_kernel<true, false>, sweep_kernel<true, true>}};

    if (sweep->rows == 0) {
        return 0;
    }
    launch(kernels[sweep->only_group >= 0][is_whole(sweep)], blocks_of(sweep->rows, ROWS), THREADS,
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
