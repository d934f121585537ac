/* What a change costs, one partial a row in double; the host adds the rows in order. CPU twins: gpu/cpu/round.c
 * (residual), gpu/cpu/losses.c. */

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
