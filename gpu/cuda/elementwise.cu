/* The operations between the products of a decoder block, all bound by memory. CPU twin: gpu/cpu/elementwise.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256
#define TILE 32

static __global__ void embed_kernel(float *y, const void *table, enum dtype dtype, const int32_t *ids, int64_t width)
{
    int64_t token = blockIdx.x, from = (int64_t)ids[token] * width;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
        y[token * width + i] = load_float(table, dtype, from + i);
    }
}

int launch_embed(float *y, const void *table, enum dtype dtype, const int32_t *ids, int64_t tokens, int64_t width,
                 cudaStream_t stream)
{
    if (tokens > 0) {
        launch(embed_kernel, (unsigned)tokens, THREADS, 0, stream, y, table, dtype, ids, width);
    }
    return (int)cudaGetLastError();
}

/* One block per group: sums in double, as on the CPU. x may be y: a thread reads and writes its own elements alone. */
static __global__ void norm_kernel(float *y, const float *x, const float *weight, const float *bias,
                                   struct launch_norm spec)
{
    __shared__ double shared[WARP];
    const float *row = x + (int64_t)blockIdx.x * spec.size;
    float *out = y + (int64_t)blockIdx.x * spec.size;
    float offset = spec.unit_offset ? 1.0f : 0.0f;
    double mean = 0, sum = 0;

    if (spec.layer) {
        for (int64_t i = threadIdx.x; i < spec.size; i += blockDim.x) {
            mean += (double)row[i];
        }
        mean = block_sum(mean, shared) / (double)spec.size;
    }
    for (int64_t i = threadIdx.x; i < spec.size; i += blockDim.x) {
        float at = spec.layer ? (float)((double)row[i] - mean) : row[i];
        sum += (double)at * at;
    }
    sum = block_sum(sum, shared);
    float factor = (float)(1.0 / sqrt(sum / (double)spec.size + (double)spec.eps));
    for (int64_t i = threadIdx.x; i < spec.size; i += blockDim.x) {
        float at = (spec.layer ? (float)((double)row[i] - mean) : row[i]) * factor;
        at = weight != NULL ? at * (offset + weight[i]) : at;
        out[i] = bias != NULL ? at + bias[i] : at;
    }
}

int launch_norm(float *y, const float *x, const float *weight, const float *bias, const struct launch_norm *spec,
                cudaStream_t stream)
{
    int threads = spec->size <= 128 ? 32 : THREADS;
    if (spec->groups > 0) {
        launch(norm_kernel, (unsigned)spec->groups, threads, 0, stream, y, x, weight, bias, *spec);
    }
    return (int)cudaGetLastError();
}

static __global__ void rope_kernel(float *x, const float *cosine, const float *sine, struct launch_rope spec)
{
    int64_t row = blockIdx.x, half = spec.rotated / 2, pairs = spec.cols / spec.head_dim * half;
    const float *c = cosine + row % spec.length * half, *s = sine + row % spec.length * half;
    for (int64_t pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
        int64_t i = pair % half;
        float *head = x + row * spec.cols + pair / half * spec.head_dim;
        float *low = head + (spec.interleaved ? 2 * i : i), *high = low + (spec.interleaved ? 1 : half);
        float a = *low, b = *high, turned = s[i] * spec.turn;
        *low = a * c[i] - b * turned;
        *high = b * c[i] + a * turned;
    }
}

int launch_rope(float *x, const float *cosine, const float *sine, const struct launch_rope *spec, cudaStream_t stream)
{
    if (spec->rows > 0) {
        launch(rope_kernel, (unsigned)spec->rows, THREADS, 0, stream, x, cosine, sine, *spec);
    }
    return (int)cudaGetLastError();
}

static __global__ void copy_columns_kernel(float *y, const float *x, struct launch_columns spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, width = spec.heads * spec.count;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < spec.rows * width; i += stride) {
        int64_t row = i / width, head = i % width / spec.count, col = i % spec.count;
        y[row * spec.to_cols + spec.to + head * spec.to_stride + col] =
            x[row * spec.from_cols + spec.from + head * spec.from_stride + col];
    }
}

int launch_copy_columns(float *y, const float *x, const struct launch_columns *spec, cudaStream_t stream)
{
    int64_t count = spec->rows * spec->heads * spec->count;
    launch(copy_columns_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, y, x, *spec);
    return (int)cudaGetLastError();
}

/* act(g) * u, as on the CPU; NaN stays NaN. */
template <int ACTIVATION> static __device__ inline float activated(float g, float u)
{
    if constexpr (ACTIVATION == GPU_SILU) {
        return g / (expf(-g) + 1.0f) * u;
    } else if constexpr (ACTIVATION == GPU_GELU) {
        return g * 0.5f * (1.0f + erff(g * 0.70710678f)) * u;
    } else if constexpr (ACTIVATION == GPU_GELU_TANH) {
        return g / (expf((g * g * 0.044715f + 1.0f) * g * -1.5957691216f) + 1.0f) * u;
    } else if constexpr (ACTIVATION == GPU_RELU) {
        return (g < 0.0f ? 0.0f : g) * u;
    } else if constexpr (ACTIVATION == GPU_RELU2) {
        return (g < 0.0f ? 0.0f : g * g) * u;
    } else if constexpr (ACTIVATION == GPU_SIGMOID) {
        return 1.0f / (expf(-g) + 1.0f) * u;
    } else {
        g = g > 7.0f ? 7.0f : g;
        u = u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u;
        return g / (expf(g * -1.702f) + 1.0f) * (u + 1.0f);
    }
}

/* cols: 0 where the gate has all columns, else the columns of a row, which share one. */
template <int ACTIVATION>
static __global__ void activate_kernel(float *y, const float *gate, const float *up, int64_t count, int64_t cols)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        y[i] = activated<ACTIVATION>(gate[cols > 0 ? i / cols : i], up != NULL ? up[i] : 1.0f);
    }
}

template <int ACTIVATION>
static void launch_activation(float *y, const float *gate, const float *up, int64_t count, int64_t cols,
                              cudaStream_t stream)
{
    launch(activate_kernel<ACTIVATION>, flat_blocks(count, THREADS), THREADS, 0, stream, y, gate, up, count, cols);
}

int launch_activate(float *y, const float *gate, int one, const float *up, int64_t count, int64_t cols,
                    enum gpu_activation activation, cudaStream_t stream)
{
    static void (*const launches[])(float *, const float *, const float *, int64_t, int64_t, cudaStream_t) = {
        launch_activation<GPU_SILU>,      launch_activation<GPU_GELU>,  launch_activation<GPU_GELU_TANH>,
        launch_activation<GPU_RELU>,      launch_activation<GPU_RELU2>, launch_activation<GPU_SIGMOID>,
        launch_activation<GPU_SWIGLU_CLAMPED>};

    launches[activation](y, gate, up, count, one ? cols : 0, stream);
    return (int)cudaGetLastError();
}

static __global__ void soft_cap_kernel(float *y, const float *x, float cap, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        y[i] = cap * tanhf(x[i] / cap);
    }
}

int launch_soft_cap(float *y, const float *x, float cap, int64_t count, cudaStream_t stream)
{
    launch(soft_cap_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, y, x, cap, count);
    return (int)cudaGetLastError();
}

static __global__ void add_kernel(float *y, const float *x, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        y[i] += x[i];
    }
}

int launch_add(float *y, const float *x, int64_t count, cudaStream_t stream)
{
    launch(add_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, y, x, count);
    return (int)cudaGetLastError();
}

static __global__ void add_rows_kernel(float *y, const float *bias, int64_t cols, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        y[i] += bias[i % cols];
    }
}

int launch_add_rows(float *y, const float *bias, int64_t rows, int64_t cols, cudaStream_t stream)
{
    launch(add_rows_kernel, flat_blocks(rows * cols, THREADS), THREADS, 0, stream, y, bias, cols, rows * cols);
    return (int)cudaGetLastError();
}

static __global__ void subtract_kernel(float *d, const float *a, const float *b, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        d[i] = a[i] - b[i];
    }
}

int launch_subtract(float *d, const float *a, const float *b, int64_t count, cudaStream_t stream)
{
    launch(subtract_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, d, a, b, count);
    return (int)cudaGetLastError();
}

/* A thread goes down LAUNCH_STATS_ROWS rows of one column; the partials are then joined in row order. */
static __global__ void stats_part_kernel(float *max, double *sum, const float *x, int64_t rows, int64_t cols)
{
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = (int64_t)blockIdx.y * LAUNCH_STATS_ROWS;
    if (col >= cols) {
        return;
    }
    int64_t end = first + LAUNCH_STATS_ROWS < rows ? first + LAUNCH_STATS_ROWS : rows;
    float m = 0;
    double s = 0;
    for (int64_t t = first; t < end; t++) {
        float magnitude = fabsf(x[t * cols + col]);
        m = magnitude > m ? magnitude : m;
        s += (double)magnitude;
    }
    max[blockIdx.y * cols + col] = m;
    sum[blockIdx.y * cols + col] = s;
}

static __global__ void stats_join_kernel(float *absmax, float *abssum, const float *max, const double *sum,
                                         int64_t chunks, int64_t cols)
{
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) {
        return;
    }
    float m = absmax != NULL ? absmax[col] : 0;
    double s = 0;
    for (int64_t i = 0; i < chunks; i++) {
        m = max[i * cols + col] > m ? max[i * cols + col] : m;
        s += sum[i * cols + col];
    }
    if (absmax != NULL) {
        absmax[col] = m;
    }
    if (abssum != NULL) {
        abssum[col] = (float)((double)abssum[col] + s);
    }
}

int launch_column_stats(float *absmax, float *abssum, const float *x, int64_t rows, int64_t cols, float *max,
                        double *sum, cudaStream_t stream)
{
    int64_t chunks = (rows + LAUNCH_STATS_ROWS - 1) / LAUNCH_STATS_ROWS;
    if (rows == 0 || cols == 0) {
        return 0;
    }
    dim3 grid(blocks_of(cols, THREADS), (unsigned)chunks);
    launch(stats_part_kernel, grid, THREADS, 0, stream, max, sum, x, rows, cols);
    launch(stats_join_kernel, blocks_of(cols, THREADS), THREADS, 0, stream, absmax, abssum, max, sum, chunks, cols);
    return (int)cudaGetLastError();
}

/* A square tile on or above the diagonal is scaled and mirrored through shared memory. */
static __global__ void symmetrize_kernel(float *h, int64_t n, float scale)
{
    __shared__ float tile[TILE][TILE + 1];
    int64_t row0 = (int64_t)blockIdx.y * TILE, col0 = (int64_t)blockIdx.x * TILE;
    if (col0 < row0) {
        return;
    }
    for (int r = threadIdx.y; r < TILE; r += blockDim.y) {
        int64_t i = row0 + r, j = col0 + threadIdx.x;
        if (i < n && j < n) {
            float value = h[i * n + j] * scale;
            tile[r][threadIdx.x] = value;
            if (j >= i) {
                h[i * n + j] = value;
            }
        }
    }
    __syncthreads();
    for (int r = threadIdx.y; r < TILE; r += blockDim.y) {
        int64_t i = col0 + r, j = row0 + threadIdx.x; /* the mirror image, below the diagonal */
        if (i < n && j < n && i > j) {
            h[i * n + j] = tile[threadIdx.x][r];
        }
    }
}

int launch_symmetrize(float *h, int64_t n, float scale, cudaStream_t stream)
{
    dim3 grid(blocks_of(n, TILE), blocks_of(n, TILE)), threads(TILE, 8);
    if (n > 0) {
        launch(symmetrize_kernel, grid, threads, 0, stream, h, n, scale);
    }
    return (int)cudaGetLastError();
}

static __global__ void zero_dead_kernel(float *w, const float *h, int64_t n, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int64_t j = i % n;
        if (h[j * n + j] == 0.0f) {
            w[i] = 0.0f;
        }
    }
}

int launch_zero_dead(float *w, const float *h, int64_t rows, int64_t n, cudaStream_t stream)
{
    if (rows * n > 0) {
        launch(zero_dead_kernel, flat_blocks(rows * n, THREADS), THREADS, 0, stream, w, h, n, rows * n);
    }
    return (int)cudaGetLastError();
}

static __global__ void diagonal_kernel(float *diagonal, const float *h, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        diagonal[i] = h[i * n + i];
    }
}

int launch_diagonal(float *diagonal, const float *h, int64_t n, cudaStream_t stream)
{
    if (n > 0) {
        launch(diagonal_kernel, blocks_of(n, THREADS), THREADS, 0, stream, diagonal, h, n);
    }
    return (int)cudaGetLastError();
}

static __global__ void floor_diagonal_kernel(float *h, int64_t n, float min)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && h[i * n + i] != 0.0f && h[i * n + i] < min) {
        h[i * n + i] = min;
    }
}

int launch_floor_diagonal(float *h, int64_t n, float min, cudaStream_t stream)
{
    if (n > 0) {
        launch(floor_diagonal_kernel, blocks_of(n, THREADS), THREADS, 0, stream, h, n, min);
    }
    return (int)cudaGetLastError();
}
