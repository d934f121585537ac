#pragma once
/* GGUF blocks of 256 whose sub-blocks have small integer scales: w = d sc u - dmin m, by a warp. CPU twin:
 * gpu/cpu/blocks_k.c. */

#include "gpu/cuda/blocks_fit.cuh"

#define SUBS_MAX 16
#define K_ROUNDS 3

struct shape {
    int subs, width;
    struct block_levels codes; /* for Q6_K also the search of a sub-block's scale */
    int scale_low, scale_high;
    int minimum_high; /* 0: there are no minima */
};

struct fit {
    float scale, minimum;
};

/* A block's integers, and what they lose. */
struct state {
    float d, dmin;
    int scales[SUBS_MAX], minima[SUBS_MAX];
    float lost[SUBS_MAX];
    double error;
};

/* Of one sub-block: sum w, sum w x. */
struct moments {
    double w, wx;
};

static __device__ struct block_sums sums_of(const struct block_task &task, const struct shape &shape, int sub,
                                            struct fit fit)
{
    return block_fit(task, sub * shape.width, shape.width, shape.codes, fit.scale, fit.minimum);
}

static __device__ void measure_moments(const struct block_task &task, const struct shape &shape, struct moments *out)
{
    for (int sub = 0; sub < shape.subs; sub++) {
        out[sub] = {0, 0};
        for (int i = sub * shape.width; i < (sub + 1) * shape.width; i++) {
            out[sub].w += (double)task.weight[i];
            out[sub].wx += (double)task.weight[i] * (double)task.x[i];
        }
    }
}

/* The d and e that minimise p d^2 - 2 q d e + r e^2 - 2 s d + 2 t e with e >= 0. */
static __device__ bool solve_pair(double p, double q, double r, double s, double t, struct fit *out)
{
    double det = p * r - q * q;
    double d = (s * r - q * t) / det, e = (q * s - p * t) / det;

    if (!(det > 1e-9 * p * r) || !(e >= 0)) {
        d = s / p;
        e = 0;
    }
    *out = {(float)d, (float)e};
    return isfinite(out->scale) && isfinite(out->minimum);
}

/* Scale and minimum of a sub-block as real numbers. */
static __device__ struct fit fit_affine(const struct block_task &task, const struct shape &shape, int sub,
                                        const struct moments &moments)
{
    float low = 0, high = 0;

    for (int i = sub * shape.width + (int)threadIdx.x % LANES; i < (sub + 1) * shape.width; i += LANES) {
        low = fminf(low, task.x[i]);
        high = fmaxf(high, task.x[i]);
    }
    low = -lanes_max(-low);
    high = lanes_max(high);
    struct fit best = {(high - low) / shape.codes.high, -low};
    if (!task.search || !(best.scale > 0)) {
        return best;
    }
    float min = sums_of(task, shape, sub, best).error;
    for (int i = 0; i < 12; i++) { /* from a little wider than the range to much narrower, then what its codes want */
        struct fit fit = {(high - low) / (shape.codes.high - 1.0f + 0.5f * (float)i), -low};
        for (int round = 0; round < 3; round++) {
            struct block_sums sums = sums_of(task, shape, sub, fit);
            if (sums.error < min) {
                min = sums.error;
                best = fit;
            }
            if (!solve_pair((double)sums.uu, (double)sums.u, moments.w, (double)sums.xu, moments.wx, &fit) ||
                !(fit.scale > 0)) {
                break;
            }
        }
    }
    return best;
}

static __device__ struct fit fit_of(const struct state &state, int sub)
{
    return {state.d * (float)state.scales[sub], state.dmin * (float)state.minima[sub]};
}

static __device__ void measure(const struct block_task &task, const struct shape &shape, struct state *state)
{
    state->error = 0;
    for (int sub = 0; sub < shape.subs; sub++) {
        state->lost[sub] = sums_of(task, shape, sub, fit_of(*state, sub)).error;
        state->error += (double)state->lost[sub];
    }
}

static __device__ int nearest(float value, int low, int high)
{
    return (int)clamped(rintf(value), (float)low, (float)high);
}

/* Integers for the target scales, the largest at the top. */
static __device__ void set_integers(const struct shape &shape, const struct fit *target, struct state *state)
{
    float scale = 0, minimum = 0;

    for (int sub = 0; sub < shape.subs; sub++) {
        scale = fmaxf(scale, fabsf(target[sub].scale));
        minimum = target[sub].minimum > minimum ? target[sub].minimum : minimum; /* -0 stays 0 */
    }
    state->d = half_of(scale / (float)shape.scale_high);
    state->dmin = shape.minimum_high > 0 ? half_of(minimum / (float)shape.minimum_high) : 0.0f;
    for (int sub = 0; sub < shape.subs; sub++) {
        state->scales[sub] = nearest(target[sub].scale * inverse_of(state->d), shape.scale_low, shape.scale_high);
        state->minima[sub] = nearest(target[sub].minimum * inverse_of(state->dmin), 0, shape.minimum_high);
    }
}

/* d and dmin for the codes that the state gives. */
static __device__ bool refit(const struct block_task &task, const struct shape &shape, const struct moments *moments,
                             struct state *state)
{
    double p = 0, q = 0, r = 0, s = 0, t = 0;
    struct fit fit;

    for (int sub = 0; sub < shape.subs; sub++) {
        struct block_sums sums = sums_of(task, shape, sub, fit_of(*state, sub));
        double scale = state->scales[sub], minimum = state->minima[sub];
        p += scale * scale * (double)sums.uu;
        q += scale * minimum * (double)sums.u;
        r += minimum * minimum * moments[sub].w;
        s += scale * (double)sums.xu;
        t += minimum * moments[sub].wx;
    }
    if (!solve_pair(p, q, r, s, t, &fit)) {
        return false;
    }
    state->d = half_of(fit.scale);
    state->dmin = half_of(fit.minimum);
    return state->d != 0.0f;
}

/* Each sub-block's integers against their neighbours. */
static __device__ void step_integers(const struct block_task &task, const struct shape &shape, struct state *state)
{
    bool minima = shape.minimum_high > 0;

    for (int sub = 0; sub < shape.subs; sub++) {
        int scale = state->scales[sub], minimum = state->minima[sub];
        for (int i = 0; i < (minima ? 9 : 3); i++) {
            int next = scale + i % 3 - 1, next_minimum = minimum + i / 3 - (minima ? 1 : 0);
            if (next < shape.scale_low || next > shape.scale_high || next_minimum < 0 ||
                next_minimum > shape.minimum_high) {
                continue;
            }
            struct fit fit = {state->d * (float)next, state->dmin * (float)next_minimum};
            float error = sums_of(task, shape, sub, fit).error;
            if (error < state->lost[sub]) {
                state->error += (double)error - (double)state->lost[sub];
                state->lost[sub] = error;
                state->scales[sub] = next;
                state->minima[sub] = next_minimum;
            }
        }
    }
}

static __device__ void solve(const struct block_task &task, const struct shape &shape, struct state *best)
{
    struct moments moments[SUBS_MAX];
    struct fit target[SUBS_MAX];

    measure_moments(task, shape, moments);
    for (int sub = 0; sub < shape.subs; sub++) {
        if (shape.minimum_high > 0) {
            target[sub] = fit_affine(task, shape, sub, moments[sub]);
        } else {
            target[sub] = {block_scale(task, sub * shape.width, shape.width, shape.codes, false), 0.0f};
        }
    }
    set_integers(shape, target, best);
    if (!task.search) {
        return;
    }
    measure(task, shape, best);
    for (int round = 0; round < K_ROUNDS; round++) {
        struct state next = *best;
        step_integers(task, shape, &next);
        if (refit(task, shape, moments, &next)) {
            measure(task, shape, &next);
        }
        if (!(next.error < best->error)) {
            break;
        }
        *best = next;
    }
}

/* Scale and minimum of sub-block j of a Q4_K block, six bits each, in 12 bytes. */
static __device__ void put_scales(uint8_t *packed, const struct state &state)
{
    for (int j = 0; j < 4; j++) {
        int scale = state.scales[j + 4], minimum = state.minima[j + 4];
        packed[j] = (uint8_t)(state.scales[j] | scale >> 4 << 6);
        packed[j + 4] = (uint8_t)(state.minima[j] | minimum >> 4 << 6);
        packed[j + 8] = (uint8_t)((scale & 15) | (minimum & 15) << 4);
    }
}

static __device__ void encode_q4_k(const struct block_task &task, uint8_t *out)
{
    const struct shape shape = {8, 32, {0, 15, 0, 0, 0, false}, 0, 63, 63};
    int lane = threadIdx.x % WARP;
    struct state state;

    solve(task, shape, &state);
    if (lane == 0) {
        put_half(out, state.d);
        put_half(out + 2, state.dmin);
        put_scales(out + 4, state);
    }
    for (int pair = 0; pair < 4; pair++) {
        int codes[2];
        for (int k = 0; k < 2; k++) {
            int sub = 2 * pair + k;
            struct fit fit = fit_of(state, sub);
            codes[k] = block_code(task.x[sub * 32 + lane], fit.scale, fit.minimum, 0.0f, 15.0f);
        }
        out[16 + pair * 32 + lane] = (uint8_t)(codes[0] | codes[1] << 4);
    }
}

static __device__ void encode_q6_k(const struct block_task &task, uint8_t *out)
{
    const struct shape shape = {16, 16, {-32, 31, 27.0f, 1.0f, 7, false}, -128, 127, 0};
    int lane = threadIdx.x % WARP;
    struct state state;

    solve(task, shape, &state);
    for (int part = 0; part < 2; part++) {
        int codes[4];
        for (int quarter = 0; quarter < 4; quarter++) {
            int i = part * 128 + quarter * 32 + lane;
            codes[quarter] = block_code(task.x[i], fit_of(state, i / 16).scale, 0.0f, -32.0f, 31.0f);
        }
        out[part * 64 + lane] = (uint8_t)((codes[0] & 15) | (codes[2] & 15) << 4);
        out[part * 64 + 32 + lane] = (uint8_t)((codes[1] & 15) | (codes[3] & 15) << 4);
        out[128 + part * 32 + lane] =
            (uint8_t)(codes[0] >> 4 | codes[1] >> 4 << 2 | codes[2] >> 4 << 4 | codes[3] >> 4 << 6);
    }
    if (lane < 16) {
        out[192 + lane] = (uint8_t)(int8_t)state.scales[lane];
    }
    if (lane == 0) {
        put_half(out + 208, state.d);
    }
}

/* Element i of a block read back. */
static __device__ float decode_q4_k(const uint8_t *block, int i)
{
    int sub = i / 32, scale, minimum;
    const uint8_t *packed = block + 4;

    if (sub < 4) {
        scale = packed[sub] & 63;
        minimum = packed[sub + 4] & 63;
    } else {
        scale = (packed[sub + 4] & 15) | packed[sub - 4] >> 6 << 4;
        minimum = packed[sub + 4] >> 4 | packed[sub] >> 6 << 4;
    }
    int byte = block[16 + sub / 2 * 32 + i % 32];
    float step = get_half(block) * (float)scale, min = get_half(block + 2) * (float)minimum;
    return step * (float)(sub % 2 == 0 ? byte & 15 : byte >> 4) - min;
}

static __device__ float decode_q6_k(const uint8_t *block, int i)
{
    int part = i / 128, quarter = i % 128 / 32, j = i % 32;
    int nibbles = block[part * 64 + quarter % 2 * 32 + j], high = block[128 + part * 32 + j];
    int code = (quarter < 2 ? nibbles & 15 : nibbles >> 4) | (high >> (2 * quarter) & 3) << 4;

    return get_half(block + 208) * (float)(int8_t)block[192 + i / 16] * (float)(code - 32);
}
