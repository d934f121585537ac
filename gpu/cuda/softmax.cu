/* The middle of attention: one block turns one query's scores into weights under the causal mask, window and chunk, with a
 * cap and a sink where there are.
 * CPU twin: gpu/cpu/attention.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 128

struct row {
    const float *scores;
    int64_t low, query; /* the keys that are visible */
    float scale, cap, sink;
};

static __device__ inline float weighed(const struct row &row, float score)
{
    return capped_score(score, row.scale, row.cap);
}

/* Of a row that fits the registers of a block, HELD scores a thread: each is read once. */
template <int HELD>
static __device__ void short_row(void *out, enum dtype dtype, int64_t at, const struct row &row, float *shared)
{
    float x[HELD], max = -INFINITY, sum = 0;

#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int64_t i = row.low + threadIdx.x + k * THREADS;
        x[k] = i <= row.query ? weighed(row, row.scores[i]) : -INFINITY;
        max = fmaxf(max, x[k]);
    }
    max = block_max(max, shared);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        x[k] = expf(x[k] - max);
        sum += x[k];
    }
    float inverse = 1.0f / (block_sum(sum, shared) + expf(row.sink - max));
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int64_t i = row.low + threadIdx.x + k * THREADS;
        if (i <= row.query) {
            store_float(out, dtype, at + i, x[k] * inverse);
        }
    }
}

static __device__ void long_row(void *out, enum dtype dtype, int64_t at, const struct row &row, float *shared)
{
    float max = -INFINITY, sum = 0;

    for (int64_t i = row.low + threadIdx.x; i <= row.query; i += THREADS) {
        max = fmaxf(max, row.scores[i]);
    }
    max = weighed(row, block_max(max, shared));
    for (int64_t i = row.low + threadIdx.x; i <= row.query; i += THREADS) {
        sum += expf(weighed(row, row.scores[i]) - max);
    }
    float inverse = 1.0f / (block_sum(sum, shared) + expf(row.sink - max));
    for (int64_t i = row.low + threadIdx.x; i <= row.query; i += THREADS) {
        store_float(out, dtype, at + i, expf(weighed(row, row.scores[i]) - max) * inverse);
    }
}

/* HELD 0: rows of any length. */
template <int HELD>
static __global__ void softmax_kernel(void *out, enum dtype dtype, const float *scores, struct launch_softmax spec)
{
    __shared__ float shared[WARP];
    int64_t at = (int64_t)blockIdx.x * spec.keys, query = spec.first + blockIdx.x % spec.queries;
    int64_t low = attention_first(spec.window, spec.chunk, query);
    float sink = spec.sinks != NULL ? spec.sinks[blockIdx.x / spec.queries * spec.sink_step] : -INFINITY;
    struct row row = {scores + at, low, query, spec.scale, spec.cap, sink};

    if constexpr (HELD > 0) {
        short_row<HELD>(out, dtype, at, row, shared);
    } else {
        long_row(out, dtype, at, row, shared);
    }
    for (int64_t i = threadIdx.x; i < low; i += THREADS) {
        store_float(out, dtype, at + i, 0.0f);
    }
    for (int64_t i = query + 1 + threadIdx.x; i < spec.keys; i += THREADS) {
        store_float(out, dtype, at + i, 0.0f);
    }
}

template <int HELD>
static void launch_rows(void *out, enum dtype dtype, const float *scores, const struct launch_softmax *spec,
                        cudaStream_t stream)
{
    launch(softmax_kernel<HELD>, (unsigned)(spec->heads * spec->queries), THREADS, 0, stream, out, dtype, scores,
           *spec);
}

int launch_softmax(void *out, enum dtype out_dtype, const float *scores, const struct launch_softmax *spec,
                   cudaStream_t stream)
{
    if (spec->heads == 0 || spec->queries == 0) {
        return 0;
    }
    int64_t visible = attention_reach(spec->window, spec->chunk, spec->keys); /* at most */
    if (visible <= 4 * THREADS) {
        launch_rows<4>(out, out_dtype, scores, spec, stream);
    } else if (visible <= 8 * THREADS) {
        launch_rows<8>(out, out_dtype, scores, spec, stream);
    } else if (visible <= 16 * THREADS) {
        launch_rows<16>(out, out_dtype, scores, spec, stream);
    } else {
        launch_rows<0>(out, out_dtype, scores, spec, stream);
    }
    return (int)cudaGetLastError();
}
