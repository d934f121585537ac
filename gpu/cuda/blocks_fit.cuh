#pragma once
/* Fitting one scale to weights, by a warp: what the kernels of blocks.cu share. Each half of a warp does the same, its
 * lanes being those of the CPU's vectors, and every lane knows what is decided. */

#include "gpu/cuda/point.cuh"

#define BLOCK_MAX 256       /* elements of the largest block */
#define BLOCK_BYTES_MAX 256 /* its bytes, and some */

struct block_levels {
    float low, high;
    float first, step; /* candidates of a search: the largest |weight| over first, first + step, ... */
    int count;
    bool table; /* the values are those of the task's table, else every integer of [low, high] */
};

/* One block on its way to bytes: x and weight in shared memory. */
struct block_task {
    const float *x, *weight, *table; /* table: [16], ascending */
    bool search;
};

/* Of n weights x against u = clamp((x + minimum) / scale): sum w (scale u - minimum - x)^2, w u^2, w u, w x u. */
struct block_sums {
    float error, uu, u, xu;
};

static __device__ float inverse_of(float scale)
{
    return fabsf(scale) > 0x1p-120f ? 1.0f / scale : 0.0f;
}

static __device__ float clamped(float v, float low, float high)
{
    v = v > low ? v : low;
    return v < high ? v : high;
}

static __device__ int block_code(float x, float scale, float minimum, float low, float high)
{
    return (int)(clamped((x + minimum) * inverse_of(scale), low, high) - low + 0.5f);
}

static __device__ int table_code(float x, float scale, const float *table)
{
    float v = x * inverse_of(scale);
    int code = 0;

    for (int j = 0; j < 15; j++) {
        code += v > 0.5f * (table[j] + table[j + 1]);
    }
    return code;
}

/* Weights [at, at + n) of the block. */
static __device__ struct block_sums block_fit(const struct block_task &task, int at, int n,
                                              const struct block_levels &levels, float scale, float minimum)
{
    float sums[4] = {0, 0, 0, 0};

    for (int i = at + (int)threadIdx.x % LANES; i < at + n; i += LANES) {
        float x = task.x[i], u;
        if (levels.table) {
            u = task.table[table_code(x, scale, task.table)];
        } else {
            u = (float)block_code(x, scale, minimum, levels.low, levels.high) + levels.low;
        }
        float error = u * scale - minimum - x, wu = task.weight[i] * u;
        sums[0] += task.weight[i] * error * error;
        sums[1] += wu * u;
        sums[2] += wu;
        sums[3] += wu * x;
    }
    return {lanes_sum(sums[0]), lanes_sum(sums[1]), lanes_sum(sums[2]), lanes_sum(sums[3])};
}

static __device__ float half_of(float value)
{
    return dtype_round_finite(value, DTYPE_F16);
}

/* As stored, and finite. */
static __device__ float scale_stored(float scale, bool half)
{
    return half ? half_of(scale) : clamped(scale, -0x1p127f, 0x1p127f);
}

struct choice {
    float scale, error;
};

/* Keep scale if it loses less; returns the best scale for the codes that it gave, or 0. */
static __device__ float consider(const struct block_task &task, int at, int n, const struct block_levels &levels,
                                 float scale, struct choice *best)
{
    struct block_sums sums = block_fit(task, at, n, levels, scale, 0.0f);

    if (sums.error < best->error) {
        *best = {scale, sums.error};
    }
    float fitted = sums.xu / sums.uu;
    return isfinite(fitted) ? fitted : 0.0f;
}

/* The scale of weights [at, at + n) as stored, in half precision or not: it puts the extreme at the lowest level, or
 * has the smallest loss. */
static __device__ float block_scale(const struct block_task &task, int at, int n, const struct block_levels &levels,
                                    bool half)
{
    float extreme = 0;

    for (int i = at; i < at + n; i++) {
        extreme = fabsf(task.x[i]) > fabsf(extreme) ? task.x[i] : extreme;
    }
    float plain = scale_stored((levels.low == -levels.high ? fabsf(extreme) : -extreme) / -levels.low, half);
    if (!task.search || plain == 0.0f) {
        return plain;
    }
    struct choice best = {plain, INFINITY};
    (void)consider(task, at, n, levels, plain, &best);
    for (int i = 0; i < 2 * levels.count; i++) {
        float reach = levels.first + levels.step * (float)(i / 2);
        float scale = scale_stored((i % 2 == 0 ? extreme : -extreme) / reach, half);
        float after = scale != 0.0f ? consider(task, at, n, levels, scale, &best) : 0.0f;
        after = scale_stored(after, half);
        if (after != 0.0f && after != scale) {
            (void)consider(task, at, n, levels, after, &best);
        }
    }
    for (int i = 0; i < 4; i++) {
        struct choice before = best;
        float fitted = scale_stored(consider(task, at, n, levels, best.scale, &before), half);
        if (fitted == 0.0f || fitted == best.scale) {
            break;
        }
        (void)consider(task, at, n, levels, fitted, &best);
        if (best.scale != fitted) {
            break;
        }
    }
    return best.scale;
}

static __device__ void put_half(uint8_t *out, float value)
{
    unsigned short bits = __half_as_ushort(__float2half_rn(value));

    out[0] = (uint8_t)(bits & 255);
    out[1] = (uint8_t)(bits >> 8);
}

static __device__ float get_half(const uint8_t *bytes)
{
    return __half2float(__ushort_as_half((unsigned short)(bytes[0] | bytes[1] << 8)));
}
