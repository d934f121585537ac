/* Keys and values as a quantized cache gives them back, and what that does to attention between its products. CPU twin:
 * gpu/cpu/cache.c. Rounding is the CPU's bit for bit; of the errors each query leaves its sums in double, which one
 * block adds in a fixed order. */

#include "gpu/cuda/number.cuh"

#define THREADS 256

static __global__ void symmetric_kernel(float *y, const float *x, const float *scale, struct launch_cache spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, count = spec.rows * spec.cols;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        y[i] = rounded(x[i], scale[i % spec.cols / spec.group_size], spec.element);
    }
}

int launch_cache_symmetric(float *y, const float *x, const float *scale, const struct launch_cache *spec,
                           cudaStream_t stream)
{
    launch(symmetric_kernel, flat_blocks(spec->rows * spec->cols, THREADS), THREADS, 0, stream, y, x, scale, *spec);
    return (int)cudaGetLastError();
}

/* `threads` of them for a group, 1 or a warp: groups of few columns side by side share what is read. */
static __global__ void asymmetric_kernel(float *y, const float *x, struct launch_cache spec, int threads)
{
    int64_t groups = spec.cols / spec.group_size, tiles = (spec.length + spec.tokens - 1) / spec.tokens;
    int64_t task = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / threads, tile = task / groups;
    int64_t first = tile / tiles * spec.length + tile % tiles * spec.tokens; /* row */
    int64_t left = spec.length - tile % tiles * spec.tokens;
    int64_t count = (left < spec.tokens ? left : spec.tokens) * spec.group_size;
    int64_t at = first * spec.cols + task % groups * spec.group_size;
    float min = INFINITY, max = -INFINITY, top = (float)((1 << spec.bits) - 1);

    if (first >= spec.rows) { /* all of a warp, or a thread that no shuffle involves */
        return;
    }
    for (int64_t i = threadIdx.x % threads; i < count; i += threads) {
        float value = x[at + i / spec.group_size * spec.cols + i % spec.group_size];
        min = fminf(min, value);
        max = fmaxf(max, value);
    }
    if (threads > 1) {
        min = -warp_max(-min);
        max = warp_max(max);
    }
    float low = dtype_round_finite(min, DTYPE_F16), step = dtype_round_finite((max - low) / top, DTYPE_F16);
    for (int64_t i = threadIdx.x % threads; i < count; i += threads) {
        int64_t place = at + i / spec.group_size * spec.cols + i % spec.group_size;
        float code = step > 0 ? fminf(fmaxf(rintf((x[place] - low) / step), 0.0f), top) : 0.0f;
        y[place] = code * step + low;
    }
}

int launch_cache_asymmetric(float *y, const float *x, const struct launch_cache *spec, cudaStream_t stream)
{
    int threads = spec->group_size < WARP ? 1 : WARP;
    int64_t tiles = (spec->length + spec->tokens - 1) / spec->tokens;
    int64_t tasks = spec->rows / spec->length * tiles * (spec->cols / spec->group_size);

    if (tasks > 0) {
        launch(asymmetric_kernel, blocks_of(tasks, THREADS / threads), THREADS, 0, stream, y, x, *spec, threads);
    }
    return (int)cudaGetLastError();
}

/* What of its keys, or values, query t finds quantized, counted from position 0. */
static __device__ int64_t frontier(const struct launch_attention_error &spec, int64_t t, bool keys)
{
    int64_t end = t + 1;

    if (spec.recent > 0) {
        end = keys ? t / spec.recent * spec.recent : t - spec.recent;
    }
    return end > 0 ? end : 0;
}

/* One query of one head: the scores of both sides [keys] become weights, those of the quantized side divided by whether
 * their values are quantized. */
static __global__ void weigh_kernel(struct launch_attention_part *parts, float *plain, float *quantized, float *split,
                                    struct launch_attention_error spec)
{
    __shared__ double shared[WARP];
    __shared__ float maxima[WARP];
    int64_t position = spec.first + blockIdx.x % spec.queries, at = (int64_t)blockIdx.x * spec.keys;
    int64_t low = attention_first(spec.window, spec.chunk, position);
    float sink = spec.sinks != NULL ? spec.sinks[blockIdx.x / spec.queries] : -INFINITY;
    int64_t key_edge = frontier(spec, position, true), value_edge = frontier(spec, position, false);
    struct launch_attention_part part = {0, 0, 0, 0, 0, 0};
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    for (int64_t i = low + threadIdx.x; i <= position; i += blockDim.x) {
        float a = plain[at + i], b = i < key_edge ? quantized[at + i] : a;
        double difference = (double)a - (double)b;
        part.score_error += difference * difference;
        part.score_signal += (double)a * (double)a;
        max[0] = fmaxf(max[0], a);
        max[1] = fmaxf(max[1], b);
    }
    max[0] = capped_score(block_max(max[0], maxima), spec.scale, spec.cap);
    max[1] = capped_score(block_max(max[1], maxima), spec.scale, spec.cap);
    for (int64_t i = low + threadIdx.x; i <= position; i += blockDim.x) {
        float a = plain[at + i], b = i < key_edge ? quantized[at + i] : a;
        sum[0] += expf(capped_score(a, spec.scale, spec.cap) - max[0]);
        sum[1] += expf(capped_score(b, spec.scale, spec.cap) - max[1]);
    }
    sum[0] = 1.0f / (block_sum(sum[0], maxima) + expf(sink - max[0]));
    sum[1] = 1.0f / (block_sum(sum[1], maxima) + expf(sink - max[1]));
    for (int64_t i = threadIdx.x; i < spec.keys; i += blockDim.x) {
        float a = 0, b = 0;
        if (i >= low && i <= position) {
            float score = plain[at + i], other = i < key_edge ? quantized[at + i] : score;
            a = expf(capped_score(score, spec.scale, spec.cap) - max[0]) * sum[0];
            b = expf(capped_score(other, spec.scale, spec.cap) - max[1]) * sum[1];
            double difference = (double)a - (double)b;
            part.weight_error += difference * difference;
            part.weight_signal += (double)a * (double)a;
        }
        plain[at + i] = a;
        quantized[at + i] = i < value_edge ? b : 0.0f;
        split[at + i] = i < value_edge ? 0.0f : b;
    }
    part.score_error = block_sum(part.score_error, shared);
    part.score_signal = block_sum(part.score_signal, shared);
    part.weight_error = block_sum(part.weight_error, shared);
    part.weight_signal = block_sum(part.weight_signal, shared);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = part;
    }
}

int launch_attention_weigh(struct launch_attention_part *parts, float *plain, float *quantized, float *split,
                           const struct launch_attention_error *spec, cudaStream_t stream)
{
    launch(weigh_kernel, (unsigned)(spec->heads * spec->queries), THREADS, 0, stream, parts, plain, quantized, split,
           *spec);
    return (int)cudaGetLastError();
}

/* A warp a query of a head. */
static __global__ void output_kernel(struct launch_attention_part *parts, const float *plain, const float *quantized,
                                     int64_t rows, int64_t dim)
{
    int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    double error = 0, signal = 0;

    if (row >= rows) {
        return;
    }
    for (int64_t i = threadIdx.x % WARP; i < dim; i += WARP) {
        double a = plain[row * dim + i], difference = a - (double)quantized[row * dim + i];
        error += difference * difference;
        signal += a * a;
    }
    error = warp_sum(error);
    signal = warp_sum(signal);
    if (threadIdx.x % WARP == 0) {
        parts[row].output_error = error;
        parts[row].output_signal = signal;
    }
}

/* One block: totals += the parts, each thread's in order, then the threads'. */
static __global__ void add_parts_kernel(struct launch_attention_part *total, const struct launch_attention_part *parts,
                                        int64_t rows)
{
    __shared__ double shared[WARP];
    double sums[6] = {0, 0, 0, 0, 0, 0};

    for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
        sums[0] += parts[row].score_error;
        sums[1] += parts[row].score_signal;
        sums[2] += parts[row].weight_error;
        sums[3] += parts[row].weight_signal;
        sums[4] += parts[row].output_error;
        sums[5] += parts[row].output_signal;
    }
    for (int i = 0; i < 6; i++) {
        sums[i] = block_sum(sums[i], shared);
    }
    if (threadIdx.x == 0) {
        total->score_error += sums[0];
        total->score_signal += sums[1];
        total->weight_error += sums[2];
        total->weight_signal += sums[3];
        total->output_error += sums[4];
        total->output_signal += sums[5];
    }
}

int launch_attention_outputs(struct launch_attention_part *total, struct launch_attention_part *parts,
                             const float *plain, const float *quantized, int64_t rows, int64_t dim, cudaStream_t stream)
{
    launch(output_kernel, blocks_of(rows, THREADS / WARP), THREADS, 0, stream, parts, plain, quantized, rows, dim);
    launch(add_parts_kernel, 1, THREADS, 0, stream, total, parts, rows);
    return (int)cudaGetLastError();
}
