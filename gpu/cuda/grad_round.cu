/* Weights on a grid or on levels as functions of what is trained, and the steps that train it. A warp takes the gradients
 * of one group. Compiled without contraction, so that codes, weights and steps are the CPU's bit for bit. CPU twins:
 * gpu/cpu/grad_round.c, gpu/cpu/optimize.c. */

#include "gpu/cuda/device.cuh"
#include "gpu/cuda/launch_grad.h"

#define THREADS 256

/* One weight: its code less the zero, and whether no clamp cut it. low, high: the grid's ends less the zero. */
static __device__ inline float latent_round(float u, float low, float high, bool *inside)
{
    float r = rintf(fminf(fmaxf(u, low - 1.0f), high + 1.0f));

    *inside = r >= low && r <= high;
    return fminf(fmaxf(r, low), high);
}

static __device__ inline float fake_zero(float zero, float top)
{
    return fminf(fmaxf(rintf(zero), 0.0f), top);
}

static __global__ void fake_round_kernel(struct launch_fake job)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.points * job.group; i += stride) {
        float zero = fake_zero(job.zero[i / job.group], job.top);
        bool inside;
        float r = latent_round(job.u[i], -zero, job.top - zero, &inside);
        if (job.wq != NULL) {
            job.wq[i] = r * job.scale[i / job.group];
        }
        if (job.codes != NULL) {
            job.codes[i] = (uint8_t)(r + zero);
        }
    }
}

int launch_fake_round(const struct launch_fake *job, cudaStream_t stream)
{
    launch(fake_round_kernel, flat_blocks(job->points * job->group, THREADS), THREADS, 0, stream, *job);
    return (int)cudaGetLastError();
}

/* The group of this warp; the launch has as many warps as there are groups, or some more. */
static __device__ inline int64_t warp_point(void)
{
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
}

static __device__ inline void add_sum(float *d, int64_t at, double sum)
{
    if (d != NULL && threadIdx.x % WARP == 0) {
        d[at] = (float)((double)d[at] + sum);
    }
}

static __global__ void fake_round_grad_kernel(struct launch_fake job)
{
    int64_t point = warp_point();
    double scales = 0, outside = 0;

    if (point >= job.points) { /* a warp as one */
        return;
    }
    float scale = job.scale[point], zero = fake_zero(job.zero[point], job.top);
    for (int64_t i = point * job.group + threadIdx.x % WARP; i < (point + 1) * job.group; i += WARP) {
        bool inside;
        float d = job.dwq[i], r = latent_round(job.u[i], -zero, job.top - zero, &inside);
        scales += (double)d * r;
        outside += inside ? 0.0 : (double)d;
        if (job.du != NULL) {
            job.du[i] += inside ? d * scale : 0.0f;
        }
    }
    add_sum(job.dscale, point, warp_sum(scales));
    add_sum(job.dzero, point, -(double)scale * warp_sum(outside));
}

int launch_fake_round_grad(const struct launch_fake *job, cudaStream_t stream)
{
    if (job->points > 0) {
        launch(fake_round_grad_kernel, blocks_of(job->points * WARP, THREADS), THREADS, 0, stream, *job);
    }
    return (int)cudaGetLastError();
}

/* The table in shared memory, where threads read different places at once. All threads of the block. */
static __device__ inline void share_levels(float *values, const struct levels_sorted &levels)
{
    for (int i = (int)threadIdx.x; i < levels.count; i += (int)blockDim.x) {
        values[i] = levels.values[i];
    }
    __syncthreads();
}

static __global__ void fake_levels_kernel(struct launch_fake job, struct levels_sorted levels)
{
    __shared__ float values[LEVELS_MAX];
    int64_t stride = (int64_t)gridDim.x * blockDim.x;

    share_levels(values, levels);
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.points * job.group; i += stride) {
        int found = levels_nearest(values, levels.count, job.u[i]);
        if (job.wq != NULL) {
            job.wq[i] = job.scale[i / job.group] * values[found];
        }
        if (job.codes != NULL) {
            job.codes[i] = levels.codes[found];
        }
    }
}

int launch_fake_levels(const struct launch_fake *job, const struct levels_sorted *levels, cudaStream_t stream)
{
    launch(fake_levels_kernel, flat_blocks(job->points * job->group, THREADS), THREADS, 0, stream, *job, *levels);
    return (int)cudaGetLastError();
}

static __global__ void fake_levels_grad_kernel(struct launch_fake job, struct levels_sorted levels)
{
    __shared__ float values[LEVELS_MAX];
    int64_t point = warp_point();
    double sum = 0;

    share_levels(values, levels);
    if (point >= job.points) {
        return;
    }
    float scale = job.scale[point], low = values[0], high = values[levels.count - 1];
    for (int64_t i = point * job.group + threadIdx.x % WARP; i < (point + 1) * job.group; i += WARP) {
        float d = job.dwq[i], u = job.u[i];
        sum += (double)d * values[levels_nearest(values, levels.count, u)];
        if (job.du != NULL) {
            job.du[i] += u >= low && u <= high ? d * scale : 0.0f;
        }
    }
    add_sum(job.dscale, point, warp_sum(sum));
}

int launch_fake_levels_grad(const struct launch_fake *job, const struct levels_sorted *levels, cudaStream_t stream)
{
    if (job->points > 0) {
        launch(fake_levels_grad_kernel, blocks_of(job->points * WARP, THREADS), THREADS, 0, stream, *job, *levels);
    }
    return (int)cudaGetLastError();
}

static __global__ void sign_step_kernel(float *p, const float *g, const float *center, float lr, float low, float high,
                                        int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float step = (g[i] > 0.0f ? lr : 0.0f) - (g[i] < 0.0f ? lr : 0.0f), c = center != NULL ? center[i] : 0.0f;
        p[i] = fminf(fmaxf(p[i] - step, c + low), c + high);
    }
}

int launch_sign_step(float *p, const float *g, const float *center, float lr, float low, float high, int64_t count,
                     cudaStream_t stream)
{
    launch(sign_step_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, p, g, center, lr, low, high, count);
    return (int)cudaGetLastError();
}

static __global__ void adamw_kernel(float *p, float *m, float *v, const float *g, struct adamw_factors f, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float d = g[i] * f.factor;
        float first = f.beta1 * m[i] + f.rest1 * d, second = f.beta2 * v[i] + f.rest2 * (d * d);
        m[i] = first;
        v[i] = second;
        p[i] = p[i] * f.keep - f.step * first / (sqrtf(second) * f.root + f.eps);
    }
}

int launch_adamw(float *p, float *m, float *v, const float *g, const struct adamw_factors *factors, int64_t count,
                 cudaStream_t stream)
{
    launch(adamw_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, p, m, v, g, *factors, count);
    return (int)cudaGetLastError();
}
