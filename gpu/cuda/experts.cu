/* A layer of experts: who goes where, and rows that go there and come back. CPU twin: gpu/cpu/experts.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

static __device__ inline float rank_of(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

/* The expert after `last` in descending order of `keys`, ascending order of equals; last -1: the first. By a warp. */
static __device__ inline int next_expert(const float *keys, int64_t experts, int last)
{
    float after = last < 0 ? 0.0f : rank_of(keys[last]), best = 0;
    int found = -1;

    for (int e = (int)(threadIdx.x % WARP); e < experts; e += WARP) {
        float rank = rank_of(keys[e]);
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

static __device__ inline double sigmoid_of(float logit)
{
    return 1 / (1 + exp(-(double)logit));
}

/* Sum over `count` of what softmax gives logits[ids[i]], or logits[i] where ids is NULL. */
static __device__ inline double softmax_sum(const float *logits, const int32_t *ids, int64_t count, double largest)
{
    double sum = 0;

    for (int64_t i = threadIdx.x; i < count; i += WARP) {
        sum += exp((double)logits[ids != NULL ? ids[i] : i] - largest);
    }
    return warp_sum(sum);
}

/* Scores with the bias: what a choice is by that the order of logits does not give. */
static __device__ inline void keys_of(float *keys, const float *row, const float *bias, const struct launch_routing &spec)
{
    bool sigmoid = spec.sigmoid != 0;
    double largest = (double)row[next_expert(row, spec.experts, -1)];
    double sum = sigmoid ? 1 : softmax_sum(row, NULL, spec.experts, largest);

    for (int64_t e = threadIdx.x; e < spec.experts; e += WARP) {
        keys[e] = (float)(sigmoid ? sigmoid_of(row[e]) : exp((double)row[e] - largest) / sum);
        keys[e] += bias != NULL ? bias[e] : 0.0f;
    }
    __syncwarp();
}

/* The keys of experts outside the best groups: -inf, as what is not a number has. */
static __device__ inline void mask_groups(float *keys, float *groups, const struct launch_routing &spec)
{
    int64_t size = spec.experts / spec.groups;
    int last = -1;

    for (int64_t g = 0; g < spec.groups; g++) {
        const float *own = keys + g * size;
        int first = next_expert(own, size, -1);
        int second = spec.group_pairs != 0 ? next_expert(own, size, first) : -1;
        if (threadIdx.x == 0) {
            groups[g] = rank_of(own[first]) + (second >= 0 ? rank_of(own[second]) : 0.0f);
        }
    }
    __syncwarp();
    for (int64_t i = 0; i < spec.groups; i++) {
        last = next_expert(groups, spec.groups, last);
        for (int64_t e = threadIdx.x; i >= spec.group_top_k && e < size; e += WARP) {
            keys[last * size + e] = -INFINITY;
        }
    }
    __syncwarp();
}

/* What the choice is by where it is not by logits. */
struct route_shared {
    float keys[LAUNCH_ROUTE_EXPERTS_MAX], groups[LAUNCH_ROUTE_EXPERTS_MAX];
};

/* Keys by scores, or by logits where groups alone count. */
static __device__ inline const float *route_keys(struct route_shared *shared, const float *row, const float *bias,
                                                 const struct launch_routing &spec)
{
    if (bias != NULL || spec.group_pairs != 0) {
        keys_of(shared->keys, row, bias, spec);
    } else {
        for (int64_t e = threadIdx.x; e < spec.experts; e += WARP) {
            shared->keys[e] = row[e];
        }
        __syncwarp();
    }
    if (spec.groups > 1) {
        mask_groups(shared->keys, shared->groups, spec);
    }
    return shared->keys;
}

static __device__ inline void sigmoid_weights(float *weights, const int32_t *ids, const float *row,
                                              const struct launch_routing &spec)
{
    double sum = 0;

    for (int64_t i = 0; i < spec.top_k; i++) { /* few: each thread for itself */
        sum += sigmoid_of(row[ids[i]]);
    }
    sum = spec.normalize != 0 ? sum + (double)spec.epsilon : 1;
    for (int64_t i = threadIdx.x; i < spec.top_k; i += WARP) {
        weights[i] = (float)(sigmoid_of(row[ids[i]]) / sum * (double)spec.factor);
    }
}

static __device__ inline void softmax_weights(float *weights, const int32_t *ids, const float *row,
                                              const struct launch_routing &spec)
{
    bool all = spec.all != 0 && spec.normalize == 0;
    double largest = (double)row[ids[0]];

    if (all) { /* which a bias or groups may have left out */
        largest = (double)row[next_expert(row, spec.experts, -1)];
    }
    for (int64_t i = 1; i < spec.top_k; i++) {
        largest = fmax(largest, (double)row[ids[i]]);
    }
    double sum = softmax_sum(row, all ? NULL : ids, all ? spec.experts : spec.top_k, largest);
    for (int64_t i = threadIdx.x; i < spec.top_k; i += WARP) {
        weights[i] = (float)(exp((double)row[ids[i]] - largest) / sum * (double)spec.factor);
    }
}

/* A warp a token. */
static __global__ void route_kernel(int32_t *ids, float *weights, const float *logits, const float *bias,
                                    struct launch_routing spec)
{
    int64_t token = blockIdx.x;
    const float *row = logits + token * spec.experts;
    bool by_logits = bias == NULL && spec.groups == 1;
    const float *keys = by_logits ? row : route_keys(dynamic_shared<struct route_shared>(), row, bias, spec);
    int last = -1;

    for (int64_t i = 0; i < spec.top_k; i++) {
        last = next_expert(keys, spec.experts, last);
        if (threadIdx.x == 0) {
            ids[token * spec.top_k + i] = last;
        }
    }
    __syncwarp();
    if (spec.sigmoid != 0) {
        sigmoid_weights(weights + token * spec.top_k, ids + token * spec.top_k, row, spec);
    } else {
        softmax_weights(weights + token * spec.top_k, ids + token * spec.top_k, row, spec);
    }
}

int launch_route(int32_t *ids, float *weights, const float *logits, const float *bias, int64_t tokens,
                 const struct launch_routing *spec, cudaStream_t stream)
{
    bool keys = bias != NULL || spec->groups > 1;
    size_t shared = keys ? sizeof(struct route_shared) : 0;

    if (tokens > 0) {
        launch(route_kernel, (unsigned)tokens, WARP, shared, stream, ids, weights, logits, bias, *spec);
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

static __global__ void gather_kernel(float *y, const float *x, const int32_t *places, const float *weights,
                                     int64_t cols, int64_t k)
{
    int64_t row = blockIdx.x, from = places[row] / k * cols;
    float weight = weights != NULL ? weights[places[row]] : 1.0f;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
        y[row * cols + c] = weight * x[from + c];
    }
}

int launch_gather_rows(float *y, const float *x, const int32_t *places, const float *weights, int64_t rows,
                       int64_t cols, int64_t k, cudaStream_t stream)
{
    if (rows > 0) {
        launch(gather_kernel, (unsigned)rows, THREADS, 0, stream, y, x, places, weights, cols, k);
    }
    return (int)cudaGetLastError();
}

/* No two rows go to one token. */
static __global__ void scatter_kernel(float *y, const float *x, const int32_t *places, const float *weights,
                                      int64_t cols, int64_t k)
{
    int64_t row = blockIdx.x, to = places[row] / k * cols;
    float weight = weights != NULL ? weights[places[row]] : 1.0f;

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
