/* A layer of experts: who goes where, and rows that go there and come back. CPU twin: gpu/cpu/experts.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

static __device__ inline float rank_of(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

/* The expert after `last` in descending order of logits, ascending order of equals; last -1: the first. By a warp. */
static __device__ inline int next_expert(const float *logits, int64_t experts, int last)
{
    float after = last < 0 ? 0.0f : rank_of(logits[last]), best = 0;
    int found = -1;

    for (int e = (int)(threadIdx.x % WARP); e < experts; e += WARP) {
        float rank = rank_of(logits[e]);
        bool later = last < 0 || rank < after || (rank == after && e > last);
        if (later && (found < 0 || rank > best)) {
            found = e;
            best = rank;
        }
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        int other = __shfl_xor_sync(FULL_MASK, found, offset);
        float rank = __shfl_xor_sync(FULL_MASK, best, offset);
        if (other >= 0 && (found < 0 || rank > best || (rank == best && other < found))) {
            found = other;
            best = rank;
        }
    }
    return found;
}

/* A warp a token. */
static __global__ void route_kernel(int32_t *ids, float *weights, const float *logits, int64_t experts, int64_t top_k,
                                    int all, float factor)
{
    int64_t token = blockIdx.x;
    const float *row = logits + token * experts;
    int last = -1, first = -1;
    double sum = 0;

    for (int64_t i = 0; i < top_k; i++) {
        last = next_expert(row, experts, last);
        first = i == 0 ? last : first;
        if (threadIdx.x == 0) {
            ids[token * top_k + i] = last;
        }
    }
    __syncwarp();
    double largest = (double)row[first];
    int64_t count = all != 0 ? experts : top_k;
    for (int64_t i = threadIdx.x; i < count; i += WARP) {
        sum += exp((double)row[all != 0 ? i : ids[token * top_k + i]] - largest);
    }
    sum = warp_sum(sum);
    for (int64_t i = threadIdx.x; i < top_k; i += WARP) {
        weights[token * top_k + i] =
            (float)(exp((double)row[ids[token * top_k + i]] - largest) / sum * (double)factor);
    }
}

int launch_route(int32_t *ids, float *weights, const float *logits, int64_t tokens, int64_t experts, int64_t top_k,
                 int all, int normalize, float factor, cudaStream_t stream)
{
    if (tokens > 0) {
        launch(route_kernel, (unsigned)tokens, WARP, 0, stream, ids, weights, logits, experts, top_k,
               all != 0 && normalize == 0, factor);
    }
    return (int)cudaGetLastError();
}

/* offsets[e + 1] = how many choices are expert e. A block an expert. */
static __global__ void count_kernel(int64_t *offsets, const int32_t *ids, int64_t count)
{
    __shared__ int64_t shared[WARP];
    int64_t found = 0;

    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        found += ids[i] == (int)blockIdx.x;
    }
    found = block_sum(found, shared);
    if (threadIdx.x == 0) {
        offsets[blockIdx.x + 1] = found;
    }
}

static __global__ void offsets_kernel(int64_t *offsets, int64_t experts)
{
    offsets[0] = 0;
    for (int64_t e = 0; e < experts; e++) {
        offsets[e + 1] += offsets[e];
    }
}

static __global__ void place_kernel(int32_t *places, const int64_t *offsets, const int32_t *ids, int64_t count)
{
    __shared__ int counts[WARP];
    int64_t next = offsets[blockIdx.x];

    for (int64_t first = 0; first < count; first += blockDim.x) {
        int64_t i = first + threadIdx.x;
        bool chosen = i < count && ids[i] == (int)blockIdx.x;
        int total = 0, rank = block_rank(chosen, counts, &total);
        if (chosen) {
            places[next + rank] = (int32_t)i;
        }
        next += total;
        __syncthreads();
    }
}

int launch_group_places(int32_t *places, int64_t *offsets, const int32_t *ids, int64_t count, int64_t experts,
                        cudaStream_t stream)
{
    launch(count_kernel, (unsigned)experts, THREADS, 0, stream, offsets, ids, count);
    launch(offsets_kernel, 1, 1, 0, stream, offsets, experts);
    launch(place_kernel, (unsigned)experts, THREADS, 0, stream, places, (const int64_t *)offsets, ids, count);
    return (int)cudaGetLastError();
}

static __global__ void gather_kernel(float *y, const float *x, const int32_t *places, int64_t cols, int64_t k)
{
    int64_t row = blockIdx.x, from = places[row] / k * cols;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
        y[row * cols + c] = x[from + c];
    }
}

int launch_gather_rows(float *y, const float *x, const int32_t *places, int64_t rows, int64_t cols, int64_t k,
                       cudaStream_t stream)
{
    if (rows > 0) {
        launch(gather_kernel, (unsigned)rows, THREADS, 0, stream, y, x, places, cols, k);
    }
    return (int)cudaGetLastError();
}

/* No two rows go to one token. */
static __global__ void scatter_kernel(float *y, const float *x, const int32_t *places, const float *weights,
                                      int64_t cols, int64_t k)
{
    int64_t row = blockIdx.x, to = places[row] / k * cols;
    float weight = weights[places[row]];

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
        y[to + c] += weight * x[row * cols + c];
    }
}

int launch_scatter_rows(float *y, const float *x, const int32_t *places, const float *weights, int64_t rows,
                        int64_t cols, int64_t k, cudaStream_t stream)
{
    if (rows > 0) {
        launch(scatter_kernel, (unsigned)rows, THREADS, 0, stream, y, x, places, weights, cols, k);
    }
    return (int)cudaGetLastError();
}
