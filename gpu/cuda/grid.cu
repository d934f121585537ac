/* Grids, codes and back. Half a warp chooses the grid of one group: its 16 lanes stride over the weights as the CPU's
 * vectors do and add up in their order. Compiled without contraction, so scales, zeros and codes are the CPU's bit for
 * bit. CPU twins: gpu/cpu/grid.c, gpu/cpu/round.c. */

#include "gpu/cuda/point.cuh"

#define THREADS 256
#define MAGIC 0x1.8p23f /* x + MAGIC - MAGIC rounds to the nearest even integer for |x| < 2^22 */

/* a^p for a >= 0, the CPU's series operation by operation (power_lanes in gpu/cpu/kernels.inc), so that a search ends
 * at the same scale. */
static __device__ float power(float a, float p)
{
    int offset = __float_as_int(a) - 0x3f3504f3;
    float m = __int_as_float((offset & 0x7fffff) + 0x3f3504f3);
    float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
    float log2m = s * ((s2 * 0.577078017f + 0.961796694f) * s2 + 2.885390082f);
    float y = ((float)(offset >> 23) + log2m) * p;
    y = fminf(fmaxf(y, -126.0f), 126.0f);
    float shifted = y + MAGIC;
    float f = y - (shifted - MAGIC);
    float q = f * 1.33335581e-3f + 9.61812911e-3f;
    q = q * f + 5.55041087e-2f;
    q = q * f + 2.40226507e-1f;
    q = q * f + 6.93147181e-1f;
    q = q * f + 1.0f;
    unsigned exponent = ((unsigned)__float_as_int(shifted) + 127u) << 23; /* what stands above it falls out */
    return a > 0.0f ? q * __int_as_float((int)exponent) : 0.0f;
}

static __device__ float grid_error(const struct launch_grid &spec, const float *w, const float *importance, int lane,
                                   struct point point, float unit)
{
    float top = (float)((1 << spec.bits) - 1), inverse = 1.0f / point.scale, sum = 0;

    for (int64_t i = lane; i < spec.group; i += LANES) {
        float r = round_clamped(w[i] * inverse, -point.zero, top - point.zero);
        float e = fabsf(w[i] - r * point.scale) * unit;
        float cost = spec.norm == 2.0f ? e * e : power(e, spec.norm);
        sum += importance != NULL ? importance[i] * cost : cost;
    }
    return lanes_sum(sum);
}

static __device__ struct point search(const struct launch_grid &spec, const float *w, const float *importance, int lane,
                                      float low, float high)
{
    struct point best = grid_point(spec, low, high);
    float unit = 1.0f / best.scale;
    float least = grid_error(spec, w, importance, lane, best, unit);

    for (int i = 1; i < spec.candidates; i++) {
        float p = (float)(1.0 - (double)i / spec.steps);
        struct point point = grid_point(spec, p * low, p * high);
        float error = grid_error(spec, w, importance, lane, point, unit);
        if (error < least) {
            least = error;
            best = point;
        }
    }
    return best;
}

static __global__ void grid_kernel(float *scale, float *zero, const float *weights, const float *importance,
                                   struct launch_grid spec)
{
    int64_t groups = spec.cols / spec.group, tasks = spec.rows * groups;
    int64_t task = (int64_t)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    bool live = task < tasks;
    task = live ? task : tasks - 1; /* whole warps meet in the shuffles: the last one's idle half repeats a task */

    const float *w = weights + task * spec.group; /* groups tile the rows */
    const float *weight = importance != NULL ? importance + task % groups * spec.group : NULL;
    float low = 0, high = 0;
    for (int64_t i = lane; i < spec.group; i += LANES) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    low = -lanes_max(-low);
    high = lanes_max(high);
    struct point best = {1.0f, spec.sym ? (float)(1 << (spec.bits - 1)) : 0.0f};
    bool any = low < 0.0f || high > 0.0f;
    if (spec.mse) { /* a group of zeros searches too, since its neighbour may */
        struct point found = search(spec, w, weight, lane, low, high);
        best = any ? found : best;
    } else if (any) {
        best = grid_point(spec, low, high);
    }
    if (live && lane == 0) {
        scale[task] = best.scale;
        zero[task] = best.zero;
    }
}

int launch_grid(float *scale, float *zero, const float *w, const float *importance, const struct launch_grid *spec,
                cudaStream_t stream)
{
    int64_t tasks = spec->rows * (spec->cols / spec->group);
    if (tasks > 0) {
        launch(grid_kernel, blocks_of(tasks, THREADS / LANES), THREADS, 0, stream, scale, zero, w, importance, *spec);
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
    launch(round_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, codes, w, scale, zero, *spec, count);
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
    launch(dequantize_kernel, flat_blocks(count, THREADS), THREADS, 0, stream, w, codes, scale, zero, spec->group,
           count);
    return (int)cudaGetLastError();
}
