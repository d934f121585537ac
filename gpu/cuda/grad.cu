/* Gradients of what is not a product: norms, activations, columns, quantized inputs, rows and routes of experts. All are
 * bound by memory. Sums over rows are taken in double by chunks of rows, joined in order. Compiled without contraction.
 * CPU twins: gpu/cpu/grad_linear.c, grad_norm.c, grad_elements.c, grad_experts.c. */

#include "gpu/cuda/device.cuh"
#include "gpu/cuda/launch_grad.h"

#define THREADS 256

/* A thread goes down LAUNCH_STATS_ROWS rows of one column; the partials are then joined in row order. */
static __global__ void column_part_kernel(double *parts, const float *x, int64_t rows, int64_t cols)
{
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = (int64_t)blockIdx.y * LAUNCH_STATS_ROWS;
    int64_t end = first + LAUNCH_STATS_ROWS < rows ? first + LAUNCH_STATS_ROWS : rows;
    double sum = 0;

    if (col >= cols) {
        return;
    }
    for (int64_t t = first; t < end; t++) {
        sum += (double)x[t * cols + col];
    }
    parts[blockIdx.y * cols + col] = sum;
}

/* d[i] += the sum over chunks of parts[chunk * stride + i], in order. */
static __global__ void join_kernel(float *d, const double *parts, int64_t chunks, int64_t stride, int64_t cols)
{
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;

    if (col >= cols) {
        return;
    }
    for (int64_t i = 0; i < chunks; i++) {
        sum += parts[i * stride + col];
    }
    d[col] = (float)((double)d[col] + sum);
}

int launch_column_sums(float *d, const float *x, int64_t rows, int64_t cols, double *parts, cudaStream_t stream)
{
    int64_t chunks = (rows + LAUNCH_STATS_ROWS - 1) / LAUNCH_STATS_ROWS;

    if (rows == 0 || cols == 0) {
        return 0;
    }
    dim3 grid(blocks_of(cols, THREADS), (unsigned)chunks);
    launch(column_part_kernel, grid, THREADS, 0, stream, parts, x, rows, cols);
    launch(join_kernel, blocks_of(cols, THREADS), THREADS, 0, stream, d, (const double *)parts, chunks, cols, cols);
    return (int)cudaGetLastError();
}

/* What a thread needs of one group of columns: n = (x - mean) * factor. */
struct normed {
    double mean;
    float factor;
    bool layer;
};

static __device__ inline float normed_at(const struct normed &n, float x)
{
    return (n.layer ? (float)((double)x - n.mean) : x) * n.factor;
}

static __device__ struct normed norm_of(const float *x, const struct launch_norm &spec, double *shared)
{
    struct normed n = {0, 0.0f, spec.layer != 0};
    double sum = 0;

    if (n.layer) {
        for (int64_t i = threadIdx.x; i < spec.size; i += blockDim.x) {
            sum += (double)x[i];
        }
        n.mean = block_sum(sum, shared) / (double)spec.size;
    }
    sum = 0;
    for (int64_t i = threadIdx.x; i < spec.size; i += blockDim.x) {
        float at = n.layer ? (float)((double)x[i] - n.mean) : x[i];
        sum += (double)at * at;
    }
    n.factor = (float)(1.0 / sqrt(block_sum(sum, shared) / (double)spec.size + (double)spec.eps));
    return n;
}

static __device__ void norm_input_grad(float *dx, const float *dy, const float *x, const struct normed &n,
                                       const struct launch_norm_grad &job, double *shared)
{
    int64_t size = job.spec.size;
    float offset = job.spec.unit_offset ? 1.0f : 0.0f;
    double mean = 0, slope = 0;

    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
        float g = job.weight != NULL ? dy[i] * (offset + job.weight[i]) : dy[i];
        mean += (double)g;
        slope += (double)g * normed_at(n, x[i]);
    }
    float middle = n.layer ? (float)(block_sum(mean, shared) / (double)size) : 0.0f;
    float tilt = (float)(block_sum(slope, shared) / (double)size);
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
        float g = job.weight != NULL ? dy[i] * (offset + job.weight[i]) : dy[i];
        dx[i] += n.factor * (g - middle - normed_at(n, x[i]) * tilt);
    }
}

/* A block goes through LAUNCH_NORM_GROUPS groups; a thread keeps the sums of its own columns in parts. */
static __global__ void norm_grad_kernel(struct launch_norm_grad job)
{
    __shared__ double shared[WARP];
    int64_t size = job.spec.size, first = (int64_t)blockIdx.x * LAUNCH_NORM_GROUPS;
    int64_t end = first + LAUNCH_NORM_GROUPS < job.spec.groups ? first + LAUNCH_NORM_GROUPS : job.spec.groups;
    double *weights = job.parts != NULL ? job.parts + (int64_t)blockIdx.x * 2 * size : NULL;
    double *biases = weights != NULL ? weights + size : NULL;

    for (int64_t group = first; group < end; group++) {
        const float *x = job.x + group * size, *dy = job.dy + group * size;
        struct normed n = norm_of(x, job.spec, shared);
        if (job.dx != NULL) {
            norm_input_grad(job.dx + group * size, dy, x, n, job, shared);
        }
        for (int64_t i = threadIdx.x; weights != NULL && i < size; i += blockDim.x) {
            double was = group > first ? weights[i] : 0, shift = group > first ? biases[i] : 0;
            weights[i] = was + (double)dy[i] * normed_at(n, x[i]);
            biases[i] = shift + (double)dy[i];
        }
    }
}

int launch_norm_grad(const struct launch_norm_grad *job, cudaStream_t stream)
{
    int64_t size = job->spec.size, chunks = (job->spec.groups + LAUNCH_NORM_GROUPS - 1) / LAUNCH_NORM_GROUPS;

    if (chunks == 0) {
        return 0;
    }
    launch(norm_grad_kernel, (unsigned)chunks, size <= 128 ? WARP : THREADS, 0, stream, *job);
    if (job->dweight != NULL) {
        launch(join_kernel, blocks_of(size, THREADS), THREADS, 0, stream, job->dweight, (const double *)job->parts, chunks,
               2 * size, size);
    }
    if (job->dbias != NULL) {
        launch(join_kernel, blocks_of(size, THREADS), THREADS, 0, stream, job->dbias, (const double *)job->parts + size,
               chunks, 2 * size, size);
    }
    return (int)cudaGetLastError();
}

/* act(g) and its derivative, without the factor of up; as on the CPU. */
template <int ACTIVATION> static __device__ inline float activation_slope(float g, float *value)
{
    if constexpr (ACTIVATION == GPU_SILU) {
        float s = 1.0f / (expf(-g) + 1.0f);
        *value = g * s;
        return s * (g * (1.0f - s) + 1.0f);
    } else if constexpr (ACTIVATION == GPU_GELU) {
        float s = 0.5f * (1.0f + erff(g * 0.70710678f));
        *value = g * s;
        return g * expf(g * g * -0.5f) * 0.398942280f + s;
    } else if constexpr (ACTIVATION == GPU_GELU_TANH) {
        float s = 1.0f / (expf((g * g * 0.044715f + 1.0f) * g * -1.5957691216f) + 1.0f);
        *value = g * s;
        /* far below zero s is 0, and the last factor may be infinite */
        return s > 0.0f && s < 1.0f ? g * s * (1.0f - s) * ((g * g * 0.134145f + 1.0f) * 1.5957691216f) + s : s;
    } else if constexpr (ACTIVATION == GPU_RELU) {
        *value = g > 0.0f ? g : 0.0f;
        return g > 0.0f ? 1.0f : 0.0f;
    } else if constexpr (ACTIVATION == GPU_RELU2) {
        float s = g > 0.0f ? g : 0.0f;
        *value = s * s;
        return s * 2.0f;
    } else if constexpr (ACTIVATION == GPU_SIGMOID) {
        float s = 1.0f / (expf(-g) + 1.0f);
        *value = s;
        return s * (1.0f - s);
    } else {
        float cut = g > 7.0f ? 7.0f : g, s = 1.0f / (expf(cut * -1.702f) + 1.0f);
        *value = cut * s;
        return g <= 7.0f ? s * (cut * 1.702f * (1.0f - s) + 1.0f) : 0.0f;
    }
}

/* What one element adds to dgate; to dup it is added here. */
template <int ACTIVATION>
static __device__ inline float activate_element(const struct launch_activate_grad &job, float g, int64_t i)
{
    float d = job.dy[i], u = job.up != NULL ? job.up[i] : 1.0f, value;
    float slope = activation_slope<ACTIVATION>(g, &value), passes = d * value;

    if constexpr (ACTIVATION == GPU_SWIGLU_CLAMPED) {
        passes = u >= -7.0f && u <= 7.0f ? passes : 0.0f;
        u = (u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u) + 1.0f;
    }
    if (job.dup != NULL) {
        job.dup[i] += passes;
    }
    return d * u * slope;
}

template <int ACTIVATION> static __global__ void activate_grad_kernel(struct launch_activate_grad job)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.rows * job.cols; i += stride) {
        float d = activate_element<ACTIVATION>(job, job.gate[i], i);
        if (job.dgate != NULL) {
            job.dgate[i] += d;
        }
    }
}

/* A gate of one column: a block a row. */
template <int ACTIVATION> static __global__ void activate_row_kernel(struct launch_activate_grad job)
{
    __shared__ double shared[WARP];
    int64_t row = blockIdx.x;
    double sum = 0;

    for (int64_t i = row * job.cols + threadIdx.x; i < (row + 1) * job.cols; i += blockDim.x) {
        sum += (double)activate_element<ACTIVATION>(job, job.gate[row], i);
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0 && job.dgate != NULL) {
        job.dgate[row] = (float)((double)job.dgate[row] + sum);
    }
}

template <int ACTIVATION>
static void launch_activation_grad(const struct launch_activate_grad *job, cudaStream_t stream)
{
    if (job->one) {
        launch(activate_row_kernel<ACTIVATION>, (unsigned)job->rows, THREADS, 0, stream, *job);
    } else {
        launch(activate_grad_kernel<ACTIVATION>, flat_blocks(job->rows * job->cols, THREADS), THREADS, 0, stream, *job);
    }
}

int launch_activate_grad(const struct launch_activate_grad *job, cudaStream_t stream)
{
    static void (*const launches[])(const struct launch_activate_grad *, cudaStream_t) = {
        launch_activation_grad<GPU_SILU>,      launch_activation_grad<GPU_GELU>,  launch_activation_grad<GPU_GELU_TANH>,
        launch_activation_grad<GPU_RELU>,      launch_activation_grad<GPU_RELU2>, launch_activation_grad<GPU_SIGMOID>,
        launch_activation_grad<GPU_SWIGLU_CLAMPED>};

    if (job->rows > 0) {
        launches[job->activation](job, stream);
    }
    return (int)cudaGetLastError();
}

static __global__ void soft_cap_grad_kernel(float *dx, const float *dy, const float *x, float cap, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float e = expf(fabsf(x[i]) / cap * -2.0f), one = e + 1.0f;
        dx[i] += dy[i] * (e * 4.0f / (one * one));
    }
}

int launch_soft_cap_grad(float *dx, const float *dy, const float *x, float cap, int64_t count, cudaStream_t stream)
{
    launch(soft_cap_grad_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, dx, dy, x, cap, count);
    return (int)cudaGetLastError();
}

/* A thread an element of y: where all heads go to one, it adds them in order. */
static __global__ void add_columns_kernel(float *y, const float *x, struct launch_columns spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, heads = spec.to_stride == 0 ? 1 : spec.heads;
    int64_t width = heads * spec.count, each = spec.to_stride == 0 ? spec.heads : 1;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < spec.rows * width; i += stride) {
        int64_t row = i / width, head = i % width / spec.count, col = i % spec.count;
        float *to = y + row * spec.to_cols + spec.to + head * spec.to_stride + col;
        const float *from = x + row * spec.from_cols + spec.from + head * spec.from_stride + col;
        float sum = *to;
        for (int64_t h = 0; h < each; h++) {
            sum += from[h * spec.from_stride];
        }
        *to = sum;
    }
}

int launch_add_columns(float *y, const float *x, const struct launch_columns *spec, cudaStream_t stream)
{
    int64_t count = spec->rows * (spec->to_stride == 0 ? 1 : spec->heads) * spec->count;
    launch(add_columns_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, y, x, *spec);
    return (int)cudaGetLastError();
}

static __global__ void input_grad_kernel(float *dx, const float *dy, const float *x, const float *outliers,
                                         struct launch_input spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    float limit = (float)dtype_max(spec.element);
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < spec.rows * spec.cols; i += stride) {
        bool passes = fabsf(x[i] / spec.scale) <= limit || (outliers != NULL && outliers[i % spec.cols] != 0.0f);
        dx[i] += passes ? dy[i] : 0.0f;
    }
}

int launch_quantize_input_grad(float *dx, const float *dy, const float *x, const float *outliers,
                               const struct launch_input *spec, cudaStream_t stream)
{
    launch(input_grad_kernel, flat_blocks(spec->rows * spec->cols, THREADS), THREADS, 0, stream, dx, dy, x, outliers,
           *spec);
    return (int)cudaGetLastError();
}

/* A block a row; no two rows have one place. */
static __global__ void row_dots_kernel(float *d, const float *a, const float *x, const int32_t *places, int64_t cols,
                                       int64_t k)
{
    __shared__ double shared[WARP];
    int64_t row = blockIdx.x, from = places[row] / k * cols;
    double sum = 0;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
        sum += (double)a[from + c] * x[row * cols + c];
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) {
        d[places[row]] = (float)((double)d[places[row]] + sum);
    }
}

int launch_row_dots(float *d, const float *a, const float *x, const int32_t *places, int64_t rows, int64_t cols,
                    int64_t k, cudaStream_t stream)
{
    if (rows > 0) {
        launch(row_dots_kernel, (unsigned)rows, THREADS, 0, stream, d, a, x, places, cols, k);
    }
    return (int)cudaGetLastError();
}

/* Of the chosen experts: a score for sigmoids, else its exp over the sum. Few: each thread for itself. */
static __device__ inline double route_score(const float *logits, int32_t id, bool sigmoid, double largest, double sum)
{
    double logit = (double)logits[id];
    return sigmoid ? 1 / (1 + exp(-logit)) : exp(logit - largest) / sum;
}

/* A warp a token: gpu/cpu/grad_experts.c has the formulas. */
static __global__ void route_grad_kernel(float *dlogits, const float *dweights, const int32_t *ids, const float *logits,
                                         struct launch_routing spec)
{
    int64_t token = blockIdx.x, k = spec.top_k;
    bool sigmoid = spec.sigmoid != 0, all = !sigmoid && spec.all != 0 && spec.normalize == 0;
    int64_t count = all ? spec.experts : k;
    const float *row = logits + token * spec.experts, *g = dweights + token * k;
    const int32_t *chosen = ids + token * k;
    float *d = dlogits + token * spec.experts;
    double largest = -INFINITY, sum = 0, dot = 0, scores = 0, factor = (double)spec.factor;

    for (int64_t i = threadIdx.x; i < count; i += WARP) {
        largest = fmax(largest, (double)row[all ? i : chosen[i]]);
    }
    largest = warp_max(largest);
    for (int64_t i = threadIdx.x; i < count && !sigmoid; i += WARP) {
        sum += exp((double)row[all ? i : chosen[i]] - largest);
    }
    sum = sigmoid ? 1 : warp_sum(sum);
    for (int64_t i = 0; i < k; i++) {
        double score = route_score(row, chosen[i], sigmoid, largest, sum);
        scores += score;
        dot += (double)g[i] * score;
    }
    double total = sigmoid && spec.normalize != 0 ? scores + (double)spec.epsilon : 1;
    dot = sigmoid ? (spec.normalize != 0 ? dot / total : 0) : dot;
    for (int64_t i = threadIdx.x; i < count; i += WARP) {
        int64_t e = all ? i : chosen[i];
        double own = all ? 0 : (double)g[i], score = route_score(row, (int32_t)e, sigmoid, largest, sum);
        for (int64_t j = 0; all && j < k; j++) {
            own = chosen[j] == e ? (double)g[j] : own;
        }
        double slope = sigmoid ? score * (1 - score) / total : score;
        d[e] = (float)((double)d[e] + factor * slope * (own - dot));
    }
}

int launch_route_grad(float *dlogits, const float *dweights, const int32_t *ids, const float *logits, int64_t tokens,
                      const struct launch_routing *spec, cudaStream_t stream)
{
    if (tokens > 0) {
        launch(route_grad_kernel, (unsigned)tokens, WARP, 0, stream, dlogits, dweights, ids, logits, *spec);
    }
    return (int)cudaGetLastError();
}
