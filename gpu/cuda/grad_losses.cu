/* Losses with their gradients, one partial a block in double; the host adds them in order. CPU twin:
 * gpu/cpu/grad_losses.c. */

#include "gpu/cuda/device.cuh"
#include "gpu/cuda/launch_grad.h"

#define THREADS 256

/* A block takes LAUNCH_MSE_TILE elements. */
static __global__ void mse_grad_kernel(double *parts, float *dy, const float *y, const float *target, float factor,
                                       int64_t count)
{
    __shared__ double shared[WARP];
    int64_t first = (int64_t)blockIdx.x * LAUNCH_MSE_TILE;
    int64_t end = first + LAUNCH_MSE_TILE < count ? first + LAUNCH_MSE_TILE : count;
    double sum = 0;

    for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        float e = y[i] - target[i];
        sum += (double)e * e;
        if (dy != NULL) {
            dy[i] += e * factor;
        }
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
    }
}

int launch_mse_grad(double *parts, float *dy, const float *y, const float *target, float factor, int64_t count,
                    cudaStream_t stream)
{
    if (count > 0) {
        launch(mse_grad_kernel, blocks_of(count, LAUNCH_MSE_TILE), THREADS, 0, stream, parts, dy, y, target, factor,
               count);
    }
    return (int)cudaGetLastError();
}

struct row_softmax {
    const float *x;
    float max;
    double sum;
};

static __device__ struct row_softmax row_softmax_of(const float *x, int64_t n, float *maxima, double *sums)
{
    struct row_softmax row = {x, -INFINITY, 0};

    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        row.max = fmaxf(row.max, x[i]);
    }
    row.max = block_max(row.max, maxima);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        row.sum += (double)expf(x[i] - row.max);
    }
    row.sum = block_sum(row.sum, sums);
    return row;
}

/* KL(r || x) of one row, and its gradient for x. */
static __device__ double row_divergence(float *d, const struct row_softmax &x, const struct row_softmax &r, int64_t n,
                                        double factor, double *sums)
{
    float x_factor = (float)(factor / x.sum), r_factor = (float)(factor / r.sum);
    double dot = 0;

    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float a = r.x[i] - r.max, b = x.x[i] - x.max, e = expf(a);
        dot += (double)e * (double)(a - b);
        if (d != NULL) {
            d[i] += expf(b) * x_factor - e * r_factor;
        }
    }
    return block_sum(dot, sums) / r.sum - log(r.sum) + log(x.sum);
}

static __device__ double row_likelihood(float *d, const struct row_softmax &x, int32_t label, int64_t n, double factor)
{
    float x_factor = (float)(factor / x.sum);

    for (int64_t i = threadIdx.x; d != NULL && i < n; i += blockDim.x) {
        float p = expf(x.x[i] - x.max) * x_factor;
        d[i] += p;
        if (i == label) {
            d[i] -= (float)factor;
        }
    }
    return log(x.sum) - ((double)x.x[label] - (double)x.max);
}

/* A block a token; teacher, or else labels. */
static __global__ void softmax_loss_kernel(struct launch_softmax_loss job)
{
    __shared__ double sums[WARP];
    __shared__ float maxima[WARP];
    int64_t token = blockIdx.x, n = job.vocabulary;
    float *d = job.dlogits != NULL ? job.dlogits + token * n : NULL;
    double loss = 0;

    if (job.teacher != NULL || job.labels[token] >= 0) { /* the same for all threads of the block */
        struct row_softmax x = row_softmax_of(job.logits + token * n, n, maxima, sums);
        if (job.teacher != NULL) {
            struct row_softmax r = row_softmax_of(job.teacher + token * n, n, maxima, sums);
            loss = row_divergence(d, x, r, n, job.factor, sums);
        } else {
            loss = row_likelihood(d, x, job.labels[token], n, job.factor);
        }
    }
    if (threadIdx.x == 0) {
        job.parts[token] = loss;
    }
}

int launch_softmax_loss(const struct launch_softmax_loss *job, cudaStream_t stream)
{
    if (job->tokens > 0) {
        launch(softmax_loss_kernel, (unsigned)job->tokens, THREADS, 0, stream, *job);
    }
    return (int)cudaGetLastError();
}
