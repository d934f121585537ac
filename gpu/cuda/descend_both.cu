/* Coordinate descent on tr(O D H D^T): what happens between the products of descend_both.c. Rows depend on each other,
 * so one block of threads visits all of them in order: a warp decides for 32 rows, one after another, by what the rows
 * before them moved; then all threads add up what that is to every row. Compiled without contraction; decisions are
 * those of the CPU twin, gpu/cpu/descend_both.c. */

#include "gpu/cuda/device.cuh"

#define ROWS LAUNCH_BOTH_ROWS
#define THREADS 1024
#define TILE 32

static_assert(ROWS == WARP, "a lane has one row");

/* D^T: to[j, i] = target - scale * (code - zero) of row i and column j. */
static __global__ void both_start_kernel(struct launch_both job, const float *target, float *to)
{
    __shared__ float tile[TILE][TILE + 1];
    int64_t row = (int64_t)blockIdx.y * TILE + threadIdx.y, j = (int64_t)blockIdx.x * TILE + threadIdx.x;

    if (row < job.n && j < job.k) {
        int64_t at = row * job.k + j, point = row * job.groups + j / job.size;
        tile[threadIdx.y][threadIdx.x] = target[at] - job.scale[point] * ((float)job.codes[at] - job.zero[point]);
    }
    __syncthreads();
    row = (int64_t)blockIdx.y * TILE + threadIdx.x;
    j = (int64_t)blockIdx.x * TILE + threadIdx.y;
    if (row < job.n && j < job.k) {
        to[j * job.n + row] = tile[threadIdx.x][threadIdx.y];
    }
}

int launch_both_start(const struct launch_both *job, const float *target, float *to, cudaStream_t stream)
{
    if (job->n > 0 && job->k > 0) {
        launch(both_start_kernel, dim3(blocks_of(job->k, TILE), blocks_of(job->n, TILE)), dim3(TILE, TILE), 0, stream,
               *job, target, to);
    }
    return (int)cudaGetLastError();
}

static __global__ void both_levels_kernel(struct launch_both job, int64_t group)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, count = job.size * job.n;

    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
        int64_t i = at % job.n, j = at / job.n;
        job.levels[at] = (float)job.codes[i * job.k + group * job.size + j] - job.zero[i * job.groups + group];
    }
}

int launch_both_levels(const struct launch_both *job, int64_t group, cudaStream_t stream)
{
    launch(both_levels_kernel, flat_blocks(job->size * job->n, 256), 256, 0, stream, *job, group);
    return (int)cudaGetLastError();
}

/* sum over the group's columns of a[., i] b[., p], in their order */
static __device__ double both_dot(const struct launch_both &job, const float *a, int64_t i, const float *b, int64_t p)
{
    double sum = 0;

    for (int64_t j = 0; j < job.size; j++) {
        sum += (double)a[j * job.n + i] * (double)b[j * job.n + p];
    }
    return sum;
}

/* The scale of row i moves by what is returned, or stays: 0. */
static __device__ float both_scale(const struct launch_both &job, int64_t i, int64_t group, double slope, double curve,
                                   double *gained)
{
    float *scale = &job.scale[i * job.groups + group];
    float best = curve > 0 ? dtype_round((float)((double)*scale + slope / curve), job.scale_dtype) : 0.0f;
    double t = (double)best - (double)*scale, gain = t * (2 * slope - t * curve);

    if (!(curve > 0) || !isfinite(best) || best == 0.0f || (best > 0.0f) != (*scale > 0.0f) || !(gain > 0)) {
        return 0.0f;
    }
    *scale = best;
    *gained += gain;
    return (float)t;
}

/* Scales of rows [first, first + count), whose levels and curves become what they moved by. One block. */
static __global__ void both_scales_kernel(struct launch_both job, int64_t group, int64_t first, int count)
{
    __shared__ double cross[ROWS][ROWS + 1], slopes[ROWS];
    __shared__ float by[ROWS];
    int lane = threadIdx.x % WARP, other = threadIdx.x / WARP;

    if (lane < count && other <= lane) {
        cross[lane][other] = both_dot(job, job.levels, first + lane, job.curves, first + other);
    }
    if (lane < count && other == WARP - 1) {
        slopes[lane] = both_dot(job, job.levels, first + lane, job.g, first + lane);
    }
    __syncthreads();
    if (other == 0) {
        int64_t i = first + lane;
        double slope = lane < count ? slopes[lane] : 0, gained = 0;
        for (int r = 0; r < count; r++) {
            float t = 0.0f;
            if (lane == r) {
                t = both_scale(job, i, group, slope, (double)job.o[i * (job.n + 1)] * cross[r][r], &gained);
                by[r] = t;
            }
            t = __shfl_sync(FULL_MASK, t, r);
            if (t != 0.0f && lane > r && lane < count) {
                slope -= (double)t * (double)job.o[(first + r) * job.n + i] * cross[lane][r];
            }
        }
        gained = warp_sum(gained);
        if (lane == 0) {
            *job.gain += gained;
        }
    }
    __syncthreads();
    for (int64_t j = other; j < job.size && lane < count; j += THREADS / WARP) {
        job.levels[j * job.n + first + lane] *= by[lane];
        job.curves[j * job.n + first + lane] *= by[lane];
    }
}

int launch_both_scales(const struct launch_both *job, int64_t group, int64_t first, int count, cudaStream_t stream)
{
    launch(both_scales_kernel, 1, THREADS, 0, stream, *job, group, first, count);
    return (int)cudaGetLastError();
}

/* How far the code of row i moves its weight, which is 0 where it stays. */
static __device__ float both_code(const struct launch_both &job, int64_t i, int64_t j, float own, float slope,
                                  double *gained)
{
    float curve = job.o[i * (job.n + 1)] * own, scale = job.scale[i * job.groups + j / job.size];
    uint8_t *code = &job.codes[i * job.k + j];
    float old = (float)*code;

    if (!(curve > 0.0f)) {
        return 0.0f;
    }
    float best = rintf(old + slope / (curve * scale));
    best = best > 0.0f ? best : 0.0f; /* of a NaN, too */
    best = best < job.top ? best : job.top;
    float t = scale * (best - old);
    double gain = (double)t * (2 * (double)slope - (double)t * (double)curve);
    if (!(gain > 0)) {
        return 0.0f;
    }
    *code = (uint8_t)best;
    *gained += gain;
    return t;
}

/* The codes of column j, whose G is g [n]; lost [n]: what its M loses. One block. */
static __global__ void both_column_kernel(struct launch_both job, int64_t j, const float *g, float *lost)
{
    __shared__ float moved[ROWS];
    float own = job.h[j * (job.k + 1)];
    int lane = threadIdx.x % WARP;
    double gained = 0;

    for (int64_t p = threadIdx.x; p < job.n; p += THREADS) {
        lost[p] = 0.0f;
    }
    __syncthreads();
    for (int64_t first = 0; own > 0.0f && first < job.n; first += ROWS) {
        if (threadIdx.x < WARP) {
            int64_t i = first + lane;
            float mine = i < job.n ? lost[i] : 0.0f;
            for (int r = 0; r < ROWS; r++) {
                float t = lane == r && i < job.n ? both_code(job, i, j, own, g[i] - own * mine, &gained) : 0.0f;
                if (lane == r) {
                    moved[r] = t;
                }
                t = __shfl_sync(FULL_MASK, t, r);
                mine += t != 0.0f && i < job.n ? t * job.o[(first + r) * job.n + i] : 0.0f;
            }
        }
        __syncthreads();
        for (int r = 0; r < ROWS; r++) {
            float t = moved[r];
            for (int64_t p = threadIdx.x; t != 0.0f && p < job.n; p += THREADS) {
                lost[p] += t * job.o[(first + r) * job.n + p];
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < WARP) {
        gained = warp_sum(gained);
        if (lane == 0) {
            *job.gain += gained;
        }
    }
}

int launch_both_column(const struct launch_both *job, int64_t j, const float *g, float *lost, cudaStream_t stream)
{
    launch(both_column_kernel, 1, THREADS, 0, stream, *job, j, g, lost);
    return (int)cudaGetLastError();
}

/* M of column j, and G of the `later` columns after it in its block, once it moved. */
static __global__ void both_follow_kernel(struct launch_both job, int64_t j, float *g, const float *lost, int later)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= job.n || lost[i] == 0.0f) {
        return;
    }
    job.m[j * job.n + i] -= lost[i];
    for (int c = 1; c <= later; c++) {
        g[c * job.n + i] -= job.h[j * job.k + j + c] * lost[i];
    }
}

int launch_both_follow(const struct launch_both *job, int64_t j, float *g, const float *lost, int later,
                       cudaStream_t stream)
{
    launch(both_follow_kernel, blocks_of(job->n, 256), 256, 0, stream, *job, j, g, lost, later);
    return (int)cudaGetLastError();
}
