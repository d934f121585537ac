/* Coordinate descent: what happens between the products of descend.c. A warp works on one row; lane l has columns
 * l, l + 32, ... All lanes of a warp work out each decision alike, so that no exchange is needed. Compiled without
 * contraction. CPU twin: gpu/cpu/descend.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 128
#define HELD (LAUNCH_DESCEND_COLS / WARP)

static __device__ int64_t row_of_warp(void)
{
    return (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
}

/* ones[j] = sum of H_ij over the columns i of j's group. */
static __global__ void ones_kernel(float *ones, const float *h, int64_t k, int64_t size)
{
    int64_t j = row_of_warp(), start = j / size * size;
    double sum = 0;

    if (j >= k) { /* all of a warp */
        return;
    }
    for (int64_t i = threadIdx.x % WARP; i < size; i += WARP) {
        sum += (double)h[j * k + start + i];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) {
        ones[j] = (float)sum;
    }
}

int launch_descend_ones(float *ones, const float *h, int64_t k, int64_t size, cudaStream_t stream)
{
    launch(ones_kernel, blocks_of(k, THREADS / WARP), THREADS, 0, stream, ones, h, k, size);
    return (int)cudaGetLastError();
}

/* Nothing of the group has moved; its codes less the zero point. */
static __global__ void open_kernel(struct launch_descend job, int64_t group)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, count = job.rows * job.size;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int64_t row = i / job.size, at = row * job.k + group * job.size + i % job.size;
        job.moves[at] = 0.0f;
        job.levels[i] = (float)job.codes[at] - job.zero[row * job.groups + group];
    }
}

int launch_descend_open(const struct launch_descend *job, int64_t group, cudaStream_t stream)
{
    launch(open_kernel, flat_blocks(job->rows * job->size, THREADS), THREADS, 0, stream, *job, group);
    return (int)cudaGetLastError();
}

/* The scale of one row's group. */
static __device__ double move_scale(const struct launch_descend &job, int64_t row, int64_t group, int lane)
{
    int64_t at = row * job.k + group * job.size;
    const float *levels = job.levels + row * job.size, *curves = job.curves + row * job.size;
    float *g = job.g + at, *moves = job.moves + at, scale = job.scale[row * job.groups + group];
    double curve = 0, slope = 0;

    for (int64_t j = lane; j < job.size; j += WARP) {
        curve += (double)levels[j] * (double)curves[j];
        slope += (double)levels[j] * (double)g[j];
    }
    curve = warp_sum(curve);
    slope = warp_sum(slope);
    float best = curve > 0 ? dtype_round((float)((double)scale + slope / curve), job.scale_dtype) : 0.0f;
    double t = (double)best - (double)scale, gain = t * (2 * slope - t * curve);
    if (!isfinite(best) || best == 0.0f || (best > 0.0f) != (scale > 0.0f) || !(gain > 0)) {
        return 0;
    }
    for (int64_t j = lane; j < job.size; j += WARP) {
        moves[j] += (float)t * levels[j];
        g[j] -= (float)t * curves[j];
    }
    __syncwarp();
    if (lane == 0) {
        job.scale[row * job.groups + group] = best;
    }
    __syncwarp();
    return gain;
}

/* The zero point of one row's group, by one step. */
static __device__ double move_zero(const struct launch_descend &job, int64_t row, int64_t group, int lane)
{
    int64_t at = row * job.k + group * job.size, point = row * job.groups + group;
    const float *ones = job.ones + group * job.size;
    float *g = job.g + at, *moves = job.moves + at;
    double slope = 0, curve = 0;

    for (int64_t j = lane; j < job.size; j += WARP) {
        slope += (double)g[j];
        curve += (double)ones[j];
    }
    slope = warp_sum(slope);
    curve = warp_sum(curve);
    float zero = job.zero[point], scale = job.scale[point];
    for (int step = -1; step <= 1; step += 2) {
        float t = -(float)step * scale;
        double gain = (double)t * (2 * slope - (double)t * curve);
        if (!(gain > 0) || zero + (float)step < 0.0f || zero + (float)step > job.top) {
            continue;
        }
        for (int64_t j = lane; j < job.size; j += WARP) {
            int code = job.codes[at + j] + step; /* of a column that is never active: its weight stays */
            bool dead = job.h[(group * job.size + j) * (job.k + 1)] == 0.0f;
            moves[j] += t;
            g[j] -= t * ones[j];
            job.codes[at + j] = dead && code >= 0 && code <= (int)job.top ? (uint8_t)code : job.codes[at + j];
        }
        __syncwarp();
        if (lane == 0) {
            job.zero[point] = zero + (float)step;
        }
        return gain;
    }
    return 0;
}

static __global__ void points_kernel(struct launch_descend job, int64_t group)
{
    int64_t row = row_of_warp();
    int lane = threadIdx.x % WARP;

    if (row >= job.rows) { /* all of a warp */
        return;
    }
    double gain = move_scale(job, row, group, lane);
    gain += job.sym ? 0 : move_zero(job, row, group, lane);
    if (lane == 0) {
        job.gain[row] += gain;
    }
}

int launch_descend_points(const struct launch_descend *job, int64_t group, cudaStream_t stream)
{
    launch(points_kernel, blocks_of(job->rows, THREADS / WARP), THREADS, 0, stream, *job, group);
    return (int)cudaGetLastError();
}

/* The codes of columns [first, first + cols); how far each moves to steps [rows, cols]. */
static __global__ void codes_kernel(struct launch_descend job, float *steps, int64_t first, int cols)
{
    int64_t row = row_of_warp(), at = row * job.k + first;
    int lane = threadIdx.x % WARP;
    float g[HELD], code[HELD], step[HELD];
    double gained = 0;

    if (row >= job.rows) { /* all of a warp */
        return;
    }
    float scale = job.scale[row * job.groups + first / job.size];
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int j = i * WARP + lane;
        g[i] = j < cols ? job.g[at + j] : 0.0f;
        code[i] = j < cols ? (float)job.codes[at + j] : 0.0f;
        step[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        for (int owner = 0; owner < WARP && i * WARP + owner < cols; owner++) {
            int j = i * WARP + owner;
            const float *h = job.h + (first + j) * job.k + first;
            float mine = h[j], old = __shfl_sync(FULL_MASK, code[i], owner);
            float slope = __shfl_sync(FULL_MASK, g[i], owner);
            if (!(mine > 0.0f)) {
                continue;
            }
            float next = fminf(fmaxf(rintf(old + slope / (mine * scale)), 0.0f), job.top);
            float t = scale * (next - old);
            double gain = (double)t * (2 * (double)slope - (double)t * (double)mine);
            if (!(gain > 0)) {
                continue;
            }
            gained += gain;
            if (lane == owner) {
                code[i] = next;
                step[i] = t;
            }
#pragma unroll
            for (int other = 0; other < HELD; other++) {
                int column = other * WARP + lane;
                g[other] -= column < cols ? t * h[column] : 0.0f;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int j = i * WARP + lane;
        if (j < cols) {
            job.g[at + j] = g[i];
            job.codes[at + j] = (uint8_t)code[i];
            job.moves[at + j] += step[i];
            steps[row * cols + j] = step[i];
        }
    }
    if (lane == 0) {
        job.gain[row] += gained;
    }
}

int launch_descend_codes(const struct launch_descend *job, float *steps, int64_t first, int cols, cudaStream_t stream)
{
    launch(codes_kernel, blocks_of(job->rows, THREADS / WARP), THREADS, 0, stream, *job, steps, first, cols);
    return (int)cudaGetLastError();
}
