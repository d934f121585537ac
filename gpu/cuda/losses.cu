/* What a change costs, one partial a row in double; the host adds the rows in order. CPU twins: gpu/cpu/round.c
 * (residual), gpu/cpu/distribution.c, gpu/cpu/losses.c. */

#include "gpu/cuda/device.cuh"

#include <limits.h>

#define THREADS 256

static __global__ void residual_kernel(struct launch_residual_row *rows, const float *w, const float *wq,
                                       const float *scale, const float *zero, struct launch_grid spec)
{
    __shared__ double shared[WARP];
    __shared__ long long counts[WARP];
    int64_t row = blockIdx.x, at = row * spec.cols;
    float top = (float)((1 << spec.bits) - 1);
    struct launch_residual_row sum = {0, 0, 0, 0, 0, 0, 0, 0, 0};

    for (int64_t i = threadIdx.x; i < spec.cols; i += blockDim.x) {
        float a = w[at + i], b = wq[at + i];
        if (!isfinite(a) || !isfinite(b)) {
            sum.nonfinite++;
            continue;
        }
        double error = (double)a - (double)b;
        sum.error_sq += error * error;
        sum.weight_sq += (double)a * a;
        sum.dot += (double)a * b;
        sum.quant_sq += (double)b * b;
        sum.max_abs = fmax(sum.max_abs, fabs(error));
        sum.weight_max = fmax(sum.weight_max, fabs((double)a));
        if (scale != NULL) {
            int64_t point = (at + i) / spec.group;
            float first = scale[point] * -zero[point], last = scale[point] * (top - zero[point]);
            if (a < fminf(first, last) || a > fmaxf(first, last)) {
                sum.clipped++;
                sum.clipped_sq += error * error;
            }
        }
    }
    sum.error_sq = block_sum(sum.error_sq, shared);
    sum.weight_sq = block_sum(sum.weight_sq, shared);
    sum.dot = block_sum(sum.dot, shared);
    sum.quant_sq = block_sum(sum.quant_sq, shared);
    sum.clipped_sq = block_sum(sum.clipped_sq, shared);
    sum.max_abs = block_max(sum.max_abs, shared);
    sum.weight_max = block_max(sum.weight_max, shared);
    sum.clipped = block_sum((long long)sum.clipped, counts);
    sum.nonfinite = block_sum((long long)sum.nonfinite, counts);
    if (threadIdx.x == 0) {
        rows[row] = sum;
    }
}

int launch_residual(struct launch_residual_row *rows, const float *w, const float *wq, const float *scale,
                    const float *zero, const struct launch_grid *spec, cudaStream_t stream)
{
    if (spec->rows > 0) {
        launch(residual_kernel, (unsigned)spec->rows, THREADS, 0, stream, rows, w, wq, scale, zero, *spec);
    }
    return (int)cudaGetLastError();
}

template <typename T> static __global__ void row_dot_kernel(T *out, const float *a, const float *b, int64_t cols)
{
    __shared__ double shared[WARP];
    int64_t at = (int64_t)blockIdx.x * cols;
    double sum = 0;

    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
        sum += (double)a[at + i] * b[at + i];
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = (T)sum;
    }
}

int launch_row_dot(double *out, const float *a, const float *b, int64_t rows, int64_t cols, cudaStream_t stream)
{
    if (rows > 0) {
        launch(row_dot_kernel<double>, (unsigned)rows, THREADS, 0, stream, out, a, b, cols);
    }
    return (int)cudaGetLastError();
}

int launch_row_dot_narrow(float *out, const float *a, const float *b, int64_t rows, int64_t cols, cudaStream_t stream)
{
    if (rows > 0) {
        launch(row_dot_kernel<float>, (unsigned)rows, THREADS, 0, stream, out, a, b, cols);
    }
    return (int)cudaGetLastError();
}

/* The lower median of n magnitudes, cut to BF16, by bisection over their upper halves, which have their order. All
 * threads of the block. */
static __device__ float block_median(const float *w, int64_t n, float max, long long *counts)
{
    int low = 0, high = __float_as_int(max) >> 16;

    while (low < high) {
        int middle = low + (high - low) / 2;
        long long count = 0;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            count += __float_as_int(fabsf(w[i])) >> 16 <= middle;
        }
        if (block_sum(count, counts) >= (n + 1) / 2) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return __int_as_float(low << 16);
}

/* Parts of DISTRIBUTION_PART weights, one warp each: this thread's share of their ranges, and of the sums. */
static __device__ float add_parts(struct launch_distribution_row *sum, const float *w, int64_t n)
{
    int lane = threadIdx.x % WARP;
    float max = 0.0f;

    static_assert(DISTRIBUTION_PART == WARP, "a part is a warp's");
    for (int64_t first = threadIdx.x - lane; first < n; first += blockDim.x) {
        float x = first + lane < n ? w[first + lane] : 0.0f, part = warp_max(fabsf(x));
        double square = (double)x * x;
        sum->square += square;
        sum->fourth += square * square;
        if (lane == 0) {
            sum->part_range_sq += (double)(n - first < WARP ? n - first : WARP) * part * part;
        }
        max = fmaxf(max, part);
    }
    return max;
}

static __global__ void distribution_kernel(struct launch_distribution_row *rows, const float *w, int64_t cols,
                                           int64_t group)
{
    __shared__ double shared[WARP];
    __shared__ float maxima[WARP];
    __shared__ long long counts[WARP];
    struct launch_distribution_row sum = {0, 0, 0, 0, 0, 0};
    long long far_count = 0;

    for (int64_t col = 0; col < cols; col += group) {
        const float *first = w + (int64_t)blockIdx.x * cols + col;
        float max = block_max(add_parts(&sum, first, group), maxima);
        float median = block_median(first, group, max, counts);
        sum.range_sq += (double)group * max * max; /* the same in all threads, as are max and median */
        for (int64_t i = threadIdx.x; median > 0.0f && i < group; i += blockDim.x) {
            far_count += fabsf(first[i]) > DISTRIBUTION_FAR * median;
        }
        sum.max_to_median = median > 0.0f ? fmax(sum.max_to_median, (double)max / median) : sum.max_to_median;
    }
    sum.square = block_sum(sum.square, shared);
    sum.fourth = block_sum(sum.fourth, shared);
    sum.part_range_sq = block_sum(sum.part_range_sq, shared);
    sum.far = block_sum(far_count, counts);
    if (threadIdx.x == 0) {
        rows[blockIdx.x] = sum;
    }
}

int launch_distribution(struct launch_distribution_row *rows, const float *w, int64_t count, int64_t cols,
                        int64_t group, cudaStream_t stream)
{
    if (count > 0) {
        int threads = group >= THREADS ? THREADS : group > WARP ? 2 * WARP : WARP;
        launch(distribution_kernel, (unsigned)count, threads, 0, stream, rows, w, cols, group);
    }
    return (int)cudaGetLastError();
}

static __global__ void column_energy_kernel(double *signal, double *error, const float *w, const float *wq,
                                            int64_t rows, int64_t cols)
{
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, strip = blockIdx.y;
    int64_t first = strip * LAUNCH_ENERGY_ROWS;
    int64_t end = first + LAUNCH_ENERGY_ROWS < rows ? first + LAUNCH_ENERGY_ROWS : rows;
    double a = 0, e = 0;

    if (col >= cols) {
        return;
    }
    for (int64_t row = first; row < end; row++) {
        double x = w[row * cols + col], lost = x - (double)wq[row * cols + col];
        a += x * x;
        e += lost * lost;
    }
    signal[strip * cols + col] = a;
    error[strip * cols + col] = e;
}

int launch_column_energy(double *signal, double *error, const float *w, const float *wq, int64_t rows, int64_t cols,
                         cudaStream_t stream)
{
    if (rows > 0 && cols > 0) {
        dim3 grid(blocks_of(cols, THREADS), blocks_of(rows, LAUNCH_ENERGY_ROWS));
        launch(column_energy_kernel, grid, THREADS, 0, stream, signal, error, w, wq, rows, cols);
    }
    return (int)cudaGetLastError();
}

static __device__ double exp_sum(const float *x, int64_t n, float shift, double *shared)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        sum += (double)expf(x[i] - shift);
    }
    return block_sum(sum, shared);
}

static __device__ float row_max(const float *x, int64_t n, float *shared)
{
    float max = -INFINITY;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        max = fmaxf(max, x[i]);
    }
    return block_max(max, shared);
}

/* The first place of a value; INT_MAX where no element equals it. All threads of the block get it. */
static __device__ int first_at(const float *x, int64_t n, float value, int *shared)
{
    if (threadIdx.x == 0) {
        *shared = INT_MAX;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        if (x[i] == value) {
            atomicMin(shared, (int)i);
            break;
        }
    }
    __syncthreads();
    int first = *shared;
    __syncthreads(); /* before another call writes there */
    return first;
}

static __global__ void nll_kernel(struct launch_nll_row *out, const float *logits, const float *reference,
                                  const int32_t *targets, int64_t n)
{
    __shared__ double sums[WARP];
    __shared__ float maxima[WARP];
    __shared__ int place;
    int64_t token = blockIdx.x;
    int32_t target = targets[token];
    struct launch_nll_row row = {0, 0, 0};

    if (target >= 0) { /* the same for all threads of the block */
        const float *x = logits + token * n;
        float max = row_max(x, n, maxima);
        double log_sum = log(exp_sum(x, n, max, sums));
        row.nll = log_sum - ((double)x[target] - (double)max);
        if (reference != NULL) {
            const float *r = reference + token * n;
            float r_most = row_max(r, n, maxima);
            double r_sum = exp_sum(r, n, r_most, sums), dot = 0;
            for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
                float a = r[i] - r_most, b = x[i] - max;
                dot += (double)expf(a) * (double)(a - b);
            }
            dot = block_sum(dot, sums);
            row.kl = dot / r_sum - log(r_sum) + log_sum;
            int first = first_at(x, n, max, &place);
            row.agree = first == first_at(r, n, r_most, &place) && first != INT_MAX ? 1 : 0;
        }
    }
    if (threadIdx.x == 0) {
        out[token] = row;
    }
}

int launch_nll(struct launch_nll_row *out, const float *logits, const float *reference, const int32_t *targets,
               int64_t tokens, int64_t vocabulary, cudaStream_t stream)
{
    if (tokens > 0) {
        launch(nll_kernel, (unsigned)tokens, THREADS, 0, stream, out, logits, reference, targets, vocabulary);
    }
    return (int)cudaGetLastError();
}
