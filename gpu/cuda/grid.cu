/* Grids, codes and back. Half a warp chooses the grid of one group: its 16 lanes stride over the weights as the CPU's
 * vectors do and add up in their order. Compiled without contraction, so scales, zeros and codes are the CPU's bit for
 * bit. CPU twins: gpu/cpu/grid.c, gpu/cpu/round.c. */

#include "gpu/cuda/point.cuh"

#define THREADS 256
#define MAGIC 0x1.8p23f /* x + MAGIC - MAGIC rounds to the nearest even integer for |x| < 2^22 */
#define TOGETHER 4      /* candidates that meet a weight at once, and share the shuffles of their sums */

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

/* The power of two that brings a scale into [1, 2), as on the CPU. */
static __device__ float unit_of(float scale)
{
    int exponent = __float_as_int(scale) >> 23;
    return __int_as_float((exponent < 253 ? 254 - exponent : 1) << 23);
}

/* One lane's part of a group, weights in units: in registers where HELD of them are all, else in memory. */
template <int HELD> struct part {
    const float *weights, *importance; /* importance: or NULL */
    float w[HELD > 0 ? HELD : 1], cares[HELD > 0 ? HELD : 1];
    float unit;
};

template <int HELD> static __device__ void hold(struct part<HELD> &part, int lane)
{
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        part.w[i] = part.weights[i * LANES + lane] * part.unit;
        part.cares[i] = part.importance != NULL ? part.importance[i * LANES + lane] : 1.0f;
    }
}

/* A point as its errors need it: in units, with the codes less the zero from low to high. */
struct candidate {
    float scale, inverse, low, high;
};

/* sum += cares |w - wq|^norm for each candidate. NORM: the norm where a product gives it, or 0. */
template <int NORM>
static __device__ void add_errors(float (&sum)[TOGETHER], const struct candidate (&candidates)[TOGETHER], float w,
                                  float cares, float norm)
{
#pragma unroll
    for (int c = 0; c < TOGETHER; c++) {
        const struct candidate &grid = candidates[c];
        float r = (fminf(fmaxf(w * grid.inverse, grid.low), grid.high) + MAGIC) - MAGIC;
        float e = fabsf(w - r * grid.scale);
        float cost = NORM == 2 ? e * e : NORM == 3 ? e * e * e : power(e, norm);
        sum[c] += cares * cost;
    }
}

/* Which of the candidates' sums a lane gets from sum_of_mine. */
static __device__ int mine_of(int lane)
{
    return lane / 8 * 2 + lane / 4 % 2;
}

/* lanes_sum of one of four numbers, the lane's own, by as many shuffles as one and a bit: each half, then each quarter
 * of the lanes sends what the other continues with. */
static __device__ float sum_of_mine(const float (&sum)[TOGETHER], int lane)
{
    bool upper = lane / 8 != 0, odd = lane / 4 % 2 != 0;
    float a = (upper ? sum[2] : sum[0]) + __shfl_xor_sync(FULL_MASK, upper ? sum[0] : sum[2], 8, LANES);
    float b = (upper ? sum[3] : sum[1]) + __shfl_xor_sync(FULL_MASK, upper ? sum[1] : sum[3], 8, LANES);
    float mine = (odd ? b : a) + __shfl_xor_sync(FULL_MASK, odd ? a : b, 4, LANES);

    mine += __shfl_xor_sync(FULL_MASK, mine, 1, LANES);
    return mine + __shfl_xor_sync(FULL_MASK, mine, 2, LANES);
}

template <int HELD, int NORM>
static __device__ float error_of_mine(const struct launch_grid &spec, const struct part<HELD> &part,
                                      const struct candidate (&candidates)[TOGETHER], int lane)
{
    float sum[TOGETHER] = {0, 0, 0, 0};

    if (HELD > 0) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            add_errors<NORM>(sum, candidates, part.w[i], part.cares[i], spec.norm);
        }
    } else {
#pragma unroll 1
        for (int64_t i = lane; i < spec.group; i += LANES) {
            add_errors<NORM>(sum, candidates, part.weights[i] * part.unit,
                             part.importance != NULL ? part.importance[i] : 1.0f, spec.norm);
        }
    }
    return sum_of_mine(sum, lane);
}

static __device__ struct grid_point shrunk(const struct launch_grid &spec, int candidate, float low, float high)
{
    float p = (float)(1.0 - (double)(spec.signs ? candidate / 2 : candidate) / spec.steps);
    struct grid_point point = grid_of(spec, p * low, p * high);
    point.scale = spec.signs && candidate % 2 != 0 ? -point.scale : point.scale;
    return point;
}

/* Each lane works out the point of one candidate in LANES, and has the error of one in TOGETHER. Candidates past the
 * last repeat it, which never wins. */
template <int HELD, int NORM>
static __device__ struct grid_point search(const struct launch_grid &spec, struct part<HELD> &part, int lane, float low,
                                      float high)
{
    float top = (float)((1 << spec.bits) - 1), min = INFINITY;
    int last = spec.candidates > 1 ? spec.candidates - 1 : 0, best = 0;

    part.unit = unit_of(shrunk(spec, 0, low, high).scale);
    hold(part, lane);
    for (int first = 0; first <= last; first += LANES) {
        struct grid_point point = shrunk(spec, first + lane < last ? first + lane : last, low, high);
        float scale = point.scale * part.unit, inverse = 1.0f / scale;
#pragma unroll 1
        for (int at = 0; at < LANES && first + at <= last; at += TOGETHER) {
            struct candidate candidates[TOGETHER];
#pragma unroll
            for (int c = 0; c < TOGETHER; c++) {
                float zero = __shfl_sync(FULL_MASK, point.zero, at + c, LANES);
                candidates[c].scale = __shfl_sync(FULL_MASK, scale, at + c, LANES);
                candidates[c].inverse = __shfl_sync(FULL_MASK, inverse, at + c, LANES);
                candidates[c].low = -zero;
                candidates[c].high = top - zero;
            }
            float error = error_of_mine<HELD, NORM>(spec, part, candidates, lane);
            int index = first + at + mine_of(lane);
            error = index == 0 && isnan(error) ? -INFINITY : error; /* nothing is less than that */
            best = error < min ? index : best;
            min = error < min ? error : min;
        }
    }
#pragma unroll
    for (int offset = 4; offset < LANES; offset *= 2) {
        float error = __shfl_xor_sync(FULL_MASK, min, offset, LANES);
        int index = __shfl_xor_sync(FULL_MASK, best, offset, LANES);
        best = error < min || (error == min && index < best) ? index : best;
        min = fminf(error, min);
    }
    return shrunk(spec, best, low, high);
}

/* HELD: weights of a group that a lane holds in registers, or 0 for groups of any size. NORM: the norm of a search
 * where a product gives it, or 0. */
template <int HELD, int NORM>
static __global__ void __launch_bounds__(THREADS)
    grid_kernel(float *scale, float *zero, const float *weights, const float *importance, struct launch_grid spec)
{
    int64_t groups = spec.cols / spec.group, tasks = spec.rows * groups;
    int64_t task = (int64_t)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    bool live = task < tasks;
    task = live ? task : tasks - 1; /* all lanes shuffle: the last warp's idle half repeats a task */

    struct part<HELD> part;
    part.weights = weights + task * spec.group; /* groups tile the rows */
    part.importance = importance != NULL ? importance + task % groups * spec.group : NULL;
    float low = 0, high = 0;
    for (int64_t i = lane; i < spec.group; i += LANES) {
        low = fminf(low, part.weights[i]);
        high = fmaxf(high, part.weights[i]);
    }
    low = -lanes_max(-low);
    high = lanes_max(high);
    struct grid_point best = {1.0f, spec.sym ? (float)(1 << (spec.bits - 1)) : 0.0f};
    bool any = low < 0.0f || high > 0.0f;
    if (spec.mse) { /* a group of zeros searches too, since its neighbour may */
        struct grid_point found = search<HELD, NORM>(spec, part, lane, low, high);
        best = any ? found : best;
    } else if (any) {
        best = grid_of(spec, low, high);
    }
    if (live && lane == 0) {
        scale[task] = best.scale;
        zero[task] = best.zero;
    }
}

typedef void (*grid_function)(float *, float *, const float *, const float *, struct launch_grid);

template <int NORM> static grid_function held_kernel(int64_t group)
{
    switch (group) {
    case 32:
        return grid_kernel<32 / LANES, NORM>;
    case 64:
        return grid_kernel<64 / LANES, NORM>;
    case 128:
        return grid_kernel<128 / LANES, NORM>;
    default:
        return grid_kernel<0, NORM>;
    }
}

int launch_grid(float *scale, float *zero, const float *w, const float *importance, const struct launch_grid *spec,
                cudaStream_t stream)
{
    int64_t tasks = spec->rows * (spec->cols / spec->group);
    grid_function kernel = spec->mse && spec->norm == 3.0f   ? held_kernel<3>(spec->group)
                           : spec->mse && spec->norm == 2.0f ? held_kernel<2>(spec->group)
                                                             : grid_kernel<0, 0>;
    if (tasks > 0) {
        launch(kernel, blocks_of(tasks, THREADS / LANES), THREADS, 0, stream, scale, zero, w, importance, *spec);
    }
    return (int)cudaGetLastError();
}

static __global__ void round_kernel(uint8_t *codes, const float *w, const float *scale, const float *zero,
                                    struct launch_grid spec, int64_t count)
{
    float top = (float)((1 << spec.bits) - 1);
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        codes[i] = grid_code(w[i], scale[i / spec.group], zero[i / spec.group], top);
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
        w[i] = grid_weight(codes[i], scale[i / group], zero[i / group]);
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
