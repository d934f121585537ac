/* What goes along a sequence. CPU twin: gpu/cpu/recurrent.c.
 *
 * A recurrence: a warp has COLUMNS columns of one head's state in its registers, rows i mod 32 on lane i, and goes
 * through the tokens of one sequence; a token's sums over rows are warp sums. Columns do not depend on each other, so
 * heads, sequences and columns fill the device. */

#include "gpu/cuda/device.cuh"

#define THREADS 256
#define WARPS 4
#define COLUMNS 4
#define LENGTH_EPS 1e-6f

static __device__ inline float silu_of(float x)
{
    return x / (expf(-x) + 1.0f);
}

static __global__ void conv_kernel(struct launch_conv job)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, count = job.rows * job.cols;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int64_t row = i / job.cols, col = i % job.cols, before = row % job.length;
        const float *w = job.w + col * job.width, *x = job.x + i - (job.width - 1) * job.cols;
        float sum = job.bias != NULL ? job.bias[col] : 0.0f;
        for (int64_t j = before < job.width - 1 ? job.width - 1 - before : 0; j < job.width; j++) {
            sum += w[j] * x[j * job.cols];
        }
        job.y[i] = job.silu != 0 ? silu_of(sum) : sum;
    }
}

int launch_causal_conv(const struct launch_conv *conv, cudaStream_t stream)
{
    launch(conv_kernel, flat_blocks(conv->rows * conv->cols, THREADS), THREADS, 0, stream, *conv);
    return (int)cudaGetLastError();
}

static __device__ inline float softplus_of(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

/* A token's keys or queries, of length `length` or, 0, as they are. */
template <int ROWS>
static __device__ inline void load_keys(float (&to)[ROWS], const float *x, int64_t keys, int lane, float length)
{
    float squares = 0;

    for (int r = 0; r < ROWS; r++) {
        int64_t i = lane + (int64_t)r * WARP;
        to[r] = i < keys ? x[i] : 0.0f;
        squares += to[r] * to[r];
    }
    if (length != 0.0f) {
        float factor = length / sqrtf(warp_sum(squares) + LENGTH_EPS);
        for (int r = 0; r < ROWS; r++) {
            to[r] *= factor;
        }
    }
}

/* state = decay * state + k d, d = beta * (v - sum of decay * state * k) or, DELTA 0, beta * v; returns sum of state q.
 * All lanes get it. */
template <int ROWS, int DELTA>
static __device__ inline float next_state(float (&state)[ROWS], const float (&q)[ROWS], const float (&k)[ROWS], float v,
                                          float decay, float beta)
{
    float sum = 0, held = 0;

    for (int r = 0; r < ROWS; r++) {
        state[r] *= decay;
        held += state[r] * k[r];
    }
    float d = (DELTA != 0 ? v - warp_sum(held) : v) * beta;
    for (int r = 0; r < ROWS; r++) {
        state[r] += k[r] * d;
        sum += state[r] * q[r];
    }
    return warp_sum(sum);
}

template <int ROWS, int DELTA> static __global__ void recurrence_kernel(struct launch_recurrence job)
{
    int lane = (int)(threadIdx.x % WARP);
    int64_t tiles = (job.values + WARPS * COLUMNS - 1) / (WARPS * COLUMNS);
    int64_t head = blockIdx.x / tiles % job.heads, sequence = blockIdx.x / tiles / job.heads;
    int64_t first = (blockIdx.x % tiles * WARPS + threadIdx.x / WARP) * COLUMNS;
    int64_t keys = job.groups * job.keys, values = job.heads * job.values, row = 2 * keys + values;
    int64_t own = head / (job.heads / job.groups) * job.keys;
    int64_t at_q = DELTA != 0 ? own : values + keys + own, at_k = DELTA != 0 ? keys + own : values + own;
    int64_t at_v = (DELTA != 0 ? 2 * keys : 0) + head * job.values;
    float state[COLUMNS][ROWS] = {}, q[ROWS], k[ROWS], rate = expf(job.a_log[head]), bias = job.dt_bias[head];
    float length = DELTA != 0 ? 1.0f / sqrtf((float)job.keys) : 0.0f;

    for (int64_t t = sequence * job.length; t < (sequence + 1) * job.length; t++) {
        const float *x = job.x + t * row;
        float step = softplus_of(job.step[t * job.heads + head] + bias), beta;
        if (DELTA != 0) {
            beta = 1.0f / (1.0f + expf(-job.beta[t * job.heads + head]));
        } else {
            step = step < job.dt_min ? job.dt_min : step > job.dt_max ? job.dt_max : step;
            beta = step;
        }
        float decay = expf(-rate * step);
        load_keys<ROWS>(q, x + at_q, job.keys, lane, length);
        load_keys<ROWS>(k, x + at_k, job.keys, lane, DELTA != 0 ? 1.0f : 0.0f);
        for (int c = 0; c < COLUMNS; c++) {
            int64_t col = first + c;
            float v = col < job.values ? x[at_v + col] : 0.0f;
            float out = next_state<ROWS, DELTA>(state[c], q, k, v, decay, beta);
            if (lane == 0 && col < job.values) {
                job.y[t * values + head * job.values + col] = DELTA != 0 ? out : out + job.d[head] * v;
            }
        }
    }
}

typedef void (*recurrence_function)(struct launch_recurrence);

template <int DELTA> static recurrence_function recurrence_of(int64_t keys)
{
    return keys <= WARP       ? recurrence_kernel<1, DELTA>
           : keys <= 2 * WARP ? recurrence_kernel<2, DELTA>
           : keys <= 4 * WARP ? recurrence_kernel<4, DELTA>
                              : recurrence_kernel<8, DELTA>;
}

static int launch_recurrence(recurrence_function kernel, const struct launch_recurrence *job, cudaStream_t stream)
{
    int64_t tiles = (job->values + WARPS * COLUMNS - 1) / (WARPS * COLUMNS);

    if (job->sequences > 0) {
        launch(kernel, (unsigned)(job->sequences * job->heads * tiles), WARPS * WARP, 0, stream, *job);
    }
    return (int)cudaGetLastError();
}

int launch_delta_rule(const struct launch_recurrence *job, cudaStream_t stream)
{
    return launch_recurrence(recurrence_of<1>(job->keys), job, stream);
}

int launch_state_scan(const struct launch_recurrence *job, cudaStream_t stream)
{
    return launch_recurrence(recurrence_of<0>(job->keys), job, stream);
}

/* A block a run of columns. y may be x: a thread reads what it writes. */
static __global__ void gated_norm_kernel(float *y, const float *x, const float *gate, const float *weight, int64_t size,
                                         int64_t weights, float eps, int gate_first)
{
    __shared__ double shared[WARP];
    int64_t at = (int64_t)blockIdx.x * size;
    const float *own = weight + (int64_t)blockIdx.x * size % weights;
    double sum = 0;

    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
        float value = gate_first != 0 ? x[at + i] * silu_of(gate[at + i]) : x[at + i];
        y[at + i] = value;
        sum += (double)value * value;
    }
    sum = block_sum(sum, shared);
    float factor = (float)(1.0 / sqrt(sum / (double)size + (double)eps));
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
        float normed = y[at + i] * factor * own[i];
        y[at + i] = gate_first != 0 ? normed : normed * silu_of(gate[at + i]);
    }
}

int launch_gated_norm(float *y, const float *x, const float *gate, const float *weight, int64_t rows, int64_t cols,
                      int64_t size, int64_t weights, float eps, int gate_first, cudaStream_t stream)
{
    int threads = size <= 128 ? 32 : THREADS;

    if (rows > 0) {
        launch(gated_norm_kernel, (unsigned)(rows * (cols / size)), threads, 0, stream, y, x, gate, weight, size,
               weights, eps, gate_first);
    }
    return (int)cudaGetLastError();
}
