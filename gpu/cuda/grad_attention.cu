/* The middle of attention's gradient: one block turns one query's scores q k and products do v into its weights and the
 * gradients of its scores. CPU twin: gpu/cpu/grad_attention.c. */

#include "gpu/cuda/device.cuh"
#include "gpu/cuda/launch_grad.h"

#define THREADS 128

struct grad_row {
    const float *scores, *products;
    int64_t low, query; /* the keys that are visible */
    float scale, cap, sink;
};

/* Score i of the row, scaled and capped; *slope: of the cap at it, times the scale. */
static __device__ inline float grad_score(const struct grad_row &row, int64_t i, float *slope)
{
    float score = capped_score(row.scores[i], row.scale, row.cap), t = row.cap > 0.0f ? score / row.cap : 0.0f;

    *slope = row.scale * (1.0f - t * t);
    return score;
}

struct grad_sums {
    float max, inverse; /* of the softmax: exp(score - max) * inverse */
    double mean;        /* sum of weights times products */
    double sink;        /* the weight that the sink takes */
};

static __device__ struct grad_sums grad_sums_of(float max, double sum, double mean, float sink)
{
    struct grad_sums out;
    double over = (double)sink - (double)max, total = sum + (isinf(sink) ? 0 : exp(over));

    out.max = max;
    out.inverse = (float)(1 / total);
    out.mean = mean / total;
    out.sink = isinf(sink) ? 0 : 1 / (1 + sum * exp(-over));
    return out;
}

/* Of a row that fits the registers of a block, HELD scores a thread: each is read once. weights and grads are written
 * after all was read: they may be scores and products. */
template <int HELD>
static __device__ struct grad_sums short_grad(void *weights, void *grads, enum dtype dtype, int64_t at,
                                              const struct grad_row &row, float *maxima, double *sums)
{
    float x[HELD], d[HELD], slope[HELD], max = -INFINITY;
    double sum = 0, mean = 0;

#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int64_t i = row.low + threadIdx.x + k * THREADS;
        slope[k] = 0.0f;
        x[k] = i <= row.query ? grad_score(row, i, &slope[k]) : -INFINITY;
        d[k] = i <= row.query ? row.products[i] : 0.0f;
        max = fmaxf(max, x[k]);
    }
    max = block_max(max, maxima);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        x[k] = expf(x[k] - max);
        sum += (double)x[k];
        mean += (double)x[k] * d[k];
    }
    sum = block_sum(sum, sums);
    struct grad_sums out = grad_sums_of(max, sum, block_sum(mean, sums), row.sink);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int64_t i = row.low + threadIdx.x + k * THREADS;
        float p = x[k] * out.inverse;
        if (i <= row.query) {
            store_float(weights, dtype, at + i, p);
            store_float(grads, dtype, at + i, p * (d[k] - (float)out.mean) * slope[k]);
        }
    }
    return out;
}

static __device__ struct grad_sums long_grad(void *weights, void *grads, enum dtype dtype, int64_t at,
                                             const struct grad_row &row, float *maxima, double *sums)
{
    float max = -INFINITY, slope;
    double sum = 0, mean = 0;

    for (int64_t i = row.low + threadIdx.x; i <= row.query; i += THREADS) {
        max = fmaxf(max, grad_score(row, i, &slope));
    }
    max = block_max(max, maxima);
    for (int64_t i = row.low + threadIdx.x; i <= row.query; i += THREADS) {
        float e = expf(grad_score(row, i, &slope) - max);
        sum += (double)e;
        mean += (double)e * row.products[i];
    }
    sum = block_sum(sum, sums);
    struct grad_sums out = grad_sums_of(max, sum, block_sum(mean, sums), row.sink);
    for (int64_t i = row.low + threadIdx.x; i <= row.query; i += THREADS) {
        float p = expf(grad_score(row, i, &slope) - max) * out.inverse;
        float d = p * (row.products[i] - (float)out.mean) * slope;
        store_float(weights, dtype, at + i, p);
        store_float(grads, dtype, at + i, d);
    }
    return out;
}

/* HELD 0: rows of any length. */
template <int HELD>
static __global__ void softmax_grad_kernel(void *weights, void *grads, enum dtype dtype, const float *scores,
                                           const float *products, double *sinks, struct launch_softmax spec)
{
    __shared__ float maxima[WARP];
    __shared__ double sums[WARP];
    int64_t at = (int64_t)blockIdx.x * spec.keys, query = spec.first + blockIdx.x % spec.queries;
    int64_t low = attention_first(spec.window, spec.chunk, query);
    float sink = spec.sinks != NULL ? spec.sinks[blockIdx.x / spec.queries * spec.sink_step] : -INFINITY;
    struct grad_row row = {scores + at, products + at, low, query, spec.scale, spec.cap, sink};
    struct grad_sums out;

    if constexpr (HELD > 0) {
        out = short_grad<HELD>(weights, grads, dtype, at, row, maxima, sums);
    } else {
        out = long_grad(weights, grads, dtype, at, row, maxima, sums);
    }
    if (threadIdx.x == 0 && sinks != NULL) {
        sinks[blockIdx.x] = -out.sink * out.mean;
    }
    for (int64_t i = threadIdx.x; i < low; i += THREADS) {
        store_float(weights, dtype, at + i, 0.0f);
        store_float(grads, dtype, at + i, 0.0f);
    }
    for (int64_t i = query + 1 + threadIdx.x; i < spec.keys; i += THREADS) {
        store_float(weights, dtype, at + i, 0.0f);
        store_float(grads, dtype, at + i, 0.0f);
    }
}

template <int HELD>
static void launch_grad_rows(void *weights, void *grads, enum dtype dtype, const float *scores, const float *products,
                             double *sinks, const struct launch_softmax *spec, cudaStream_t stream)
{
    launch(softmax_grad_kernel<HELD>, (unsigned)(spec->heads * spec->queries), THREADS, 0, stream, weights, grads, dtype,
           scores, products, sinks, *spec);
}

int launch_softmax_grad(void *weights, void *grads, enum dtype dtype, const float *scores, const float *products,
                        double *sinks, const struct launch_softmax *spec, cudaStream_t stream)
{
    if (spec->heads == 0 || spec->queries == 0) {
        return 0;
    }
    int64_t visible = attention_reach(spec->window, spec->chunk, spec->keys); /* at most */
    if (visible <= 4 * THREADS) {
        launch_grad_rows<4>(weights, grads, dtype, scores, products, sinks, spec, stream);
    } else if (visible <= 8 * THREADS) {
        launch_grad_rows<8>(weights, grads, dtype, scores, products, sinks, spec, stream);
    } else if (visible <= 16 * THREADS) {
        launch_grad_rows<16>(weights, grads, dtype, scores, products, sinks, spec, stream);
    } else {
        launch_grad_rows<0>(weights, grads, dtype, scores, products, sinks, spec, stream);
    }
    return (int)cudaGetLastError();
}

/* A block a head. */
static __global__ void sinks_part_kernel(double *totals, const double *parts, int64_t queries, int64_t step)
{
    __shared__ double shared[WARP];
    double sum = 0;

    for (int64_t i = threadIdx.x; i < queries; i += blockDim.x) {
        sum += parts[blockIdx.x * queries + i];
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) {
        totals[blockIdx.x * step] += sum;
    }
}

int launch_sinks_part(double *totals, const double *parts, int64_t heads, int64_t queries, int64_t step,
                      cudaStream_t stream)
{
    launch(sinks_part_kernel, (unsigned)heads, THREADS, 0, stream, totals, parts, queries, step);
    return (int)cudaGetLastError();
}

static __global__ void sinks_add_kernel(float *d, const double *totals, int64_t heads)
{
    int64_t head = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (head < heads) {
        d[head] = (float)((double)d[head] + totals[head]);
    }
}

int launch_sinks_add(float *d, const double *totals, int64_t heads, cudaStream_t stream)
{
    launch(sinks_add_kernel, blocks_of(heads, THREADS), THREADS, 0, stream, d, totals, heads);
    return (int)cudaGetLastError();
}
