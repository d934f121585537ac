/* Grids, codes and back. One warp chooses the grid of one group: its lanes stride over the weights, sums go through a
 * butterfly, which has one order. Compiled without contraction, so that codes are the CPU's. CPU twins: gpu/cpu/grid.c,
 * gpu/cpu/round.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 256

struct point {
    float scale, zero;
};

/* Positive and finite as stored, as on the CPU. */
static __device__ float storable(float scale, int dtype)
{
    float stored = scale, least = 0x1p-126f, most = 0x1.fep127f;
    if (dtype == LAUNCH_F16) {
        stored = __half2float(__float2half_rn(scale));
        least = 0x1p-24f;
        most = 65504.0f;
    } else if (dtype == LAUNCH_BF16) {
        stored = __bfloat162float(__float2bfloat16_rn(scale));
    }
    if (!(stored > 0.0f)) {
        return least;
    }
    if (isinf(stored)) {
        return most;
    }
    return dtype == LAUNCH_F16 || stored > 0x1p-126f ? stored : 0x1p-126f;
}

static __device__ struct point grid_point(const struct launch_grid &spec, float low, float high)
{
    float top = (float)((1 << spec.bits) - 1);
    struct point point;

    if (spec.sym) {
        float absmax = -low > high ? -low : high;
        point.scale = storable(2.0f * absmax / top, spec.scale_dtype);
        point.zero = (float)(1 << (spec.bits - 1));
        return point;
    }
    point.scale = storable((high - low) / top, spec.scale_dtype);
    float zero = rintf(-low / point.scale);
    point.zero = zero < top ? zero : top;
    return point;
}

static __device__ float round_clamped(float x, float low, float high)
{
    return rintf(fminf(fmaxf(x, low), high));
}

static __device__ float grid_error(const struct launch_grid &spec, const float *w, const float *importance, int lane,
                                   struct point point, float unit)
{
    float top = (float)((1 << spec.bits) - 1), inverse = 1.0f / point.scale, sum = 0;

    for (int64_t i = lane; i < spec.group; i += WARP) {
        float r = round_clamped(w[i] * inverse, -point.zero, top - point.zero);
        float e = fabsf(w[i] - r * point.scale) * unit;
        float cost = spec.norm == 2.0f ? e * e : e > 0.0f ? exp2f(spec.norm * log2f(e)) : 0.0f;
        sum += importance != NULL ? importance[i] * cost : cost;
    }
    return warp_sum(sum);
}

static __global__ void grid_kernel(float *scale, float *zero, const float *weights, const float *importance,
                                   struct launch_grid spec)
{
    int64_t groups = spec.cols / spec.group;
    int64_t task = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (task >= spec.rows * groups) {
        return;
    }
    const float *w = weights + task * spec.group; /* groups tile the rows */
    const float *weight = importance != NULL ? importance + task % groups * spec.group : NULL;
    float low = 0, high = 0;
    for (int64_t i = lane; i < spec.group; i += WARP) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    low = -warp_max(-low);
    high = warp_max(high);
    struct point best = {1.0f, spec.sym ? (float)(1 << (spec.bits - 1)) : 0.0f};
    if (low < 0.0f || high > 0.0f) {
        best = grid_point(spec, low, high);
    }
    if (spec.mse && (low < 0.0f || high > 0.0f)) {
        float unit = 1.0f / best.scale;
        float least = grid_error(spec, w, weight, lane, best, unit);
        for (int i = 1; i < spec.candidates; i++) {
            float p = (float)(1.0 - (double)i / spec.steps);
            struct point point = grid_point(spec, p * low, p * high);
            float error = grid_error(spec, w, weight, lane, point, unit);
            if (error < least) {
                least = error;
                best = point;
            }
        }
    }
    if (lane == 0) {
        scale[task] = best.scale;
        zero[task] = best.zero;
    }
}

int launch_grid(float *scale, float *zero, const float *w, const float *importance, const struct launch_grid *spec,
                cudaStream_t stream)
{
    int64_t tasks = spec->rows * (spec->cols / spec->group);
    if (tasks > 0) {
        grid_kernel<<<blocks_of(tasks, THREADS / WARP), THREADS, 0, stream>>>(scale, zero, w, importance, *spec);
    }
    return (int)cudaGetLastError();
}

static __global__ void round_kernel(uint8_t *codes, const float *w, const float *scale, const float *zero,
                                    struct launch_grid spec, int64_t count)
{
    float top = (float)((1 << spec.bits) - 1);
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float z = zero[i / spec.group];
        codes[i] = (uint8_t)(round_clamped(w[i] / scale[i / spec.group], -z, top - z) + z);
    }
}

int launch_round(uint8_t *codes, const float *w, const float *scale, const float *zero, const struct launch_grid *spec,
                 cudaStream_t stream)
{
    int64_t count = spec->rows * spec->cols;
    round_kernel<<<flat_blocks(count, THREADS), THREADS, 0, stream>>>(codes, w, scale, zero, *spec, count);
    return (int)cudaGetLastError();
}

static __global__ void dequantize_kernel(float *w, const uint8_t *codes, const float *scale, const float *zero,
                                         int64_t group, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        w[i] = scale[i / group] * ((float)codes[i] - zero[i / group]);
    }
}

int launch_dequantize(float *w, const uint8_t *codes, const float *scale, const float *zero,
                      const struct launch_grid *spec, cudaStream_t stream)
{
    int64_t count = spec->rows * spec->cols;
    dequantize_kernel<<<flat_blocks(count, THREADS), THREADS, 0, stream>>>(w, codes, scale, zero, spec->group, count);
    return (int)cudaGetLastError();
}
