/* GGUF blocks of 256 whose sub-blocks have small integer scales: w = d sc u - dmin m.
 *
 * Each sub-block first gets the scale and minimum it would like as real numbers; d and dmin are the largest of them
 * over the largest integer. With those integers and the codes they give held, d and dmin follow by least squares over
 * all of the block; then each sub-block's integers move by one where that loses less, and again. Q6_K is the same
 * without minima and with signed scales. */

#include "gpu/cpu/blocks.h"

#include <math.h>
#include <string.h>

struct shape {
    int subs, width;
    float low, high; /* codes */
    int scale_low, scale_high;
    int minimum_high; /* 0: there are no minima */
};

static const struct shape shape_q4_k = {8, 32, 0, 15, 0, 63, 63};
static const struct shape shape_q6_k = {16, 16, -32, 31, -128, 127, 0};
const struct block_levels block_levels_q6_k = {-32, 31, NULL, 27.0f, 1.0f, 7};

/* Of one sub-block: sum w, sum w x. */
struct moments {
    double w, wx;
};

static struct block_sums sums_of(const struct block_task *task, const struct shape *shape, int sub,
                                 struct block_fit fit)
{
    struct block_sums sums;
    int64_t at = (int64_t)sub * shape->width;

    task->kernels->block_fit(&sums, task->x + at, task->weight + at, shape->width, fit.scale, block_inverse(fit.scale),
                             fit.minimum, shape->low, shape->high);
    return sums;
}

static void measure_moments(const struct block_task *task, const struct shape *shape, struct moments *out)
{
    for (int sub = 0; sub < shape->subs; sub++) {
        out[sub] = (struct moments){0, 0};
        for (int64_t i = (int64_t)sub * shape->width; i < (int64_t)(sub + 1) * shape->width; i++) {
            out[sub].w += (double)task->weight[i];
            out[sub].wx += (double)task->weight[i] * (double)task->x[i];
        }
    }
}

bool block_solve_pair(double p, double q, double r, double s, double t, struct block_fit *out)
{
    double det = p * r - q * q;
    double d = (s * r - q * t) / det, e = (q * s - p * t) / det;

    if (!(det > 1e-9 * p * r) || !(e >= 0)) {
        d = s / p;
        e = 0;
    }
    *out = (struct block_fit){(float)d, (float)e};
    return isfinite(out->scale) && isfinite(out->minimum);
}

/* Scale and minimum of a sub-block as real numbers. */
static struct block_fit fit_affine(const struct block_task *task, const struct shape *shape, int sub,
                                   const struct moments *moments)
{
    const float *x = task->x + (int64_t)sub * shape->width;
    float low = 0, high = 0;

    task->kernels->range(x, shape->width, &low, &high);
    struct block_fit best = {(high - low) / shape->high, -low};
    if (!task->search || !(best.scale > 0)) {
        return best;
    }
    float min = sums_of(task, shape, sub, best).error;
    for (int i = 0; i < 12; i++) { /* from a little wider than the range to much narrower, then what its codes want */
        struct block_fit fit = {(high - low) / (shape->high - 1.0f + 0.5f * (float)i), -low};
        for (int round = 0; round < 3; round++) {
            struct block_sums sums = sums_of(task, shape, sub, fit);
            if (sums.error < min) {
                min = sums.error;
                best = fit;
            }
            if (!block_solve_pair((double)sums.uu, (double)sums.u, moments->w, (double)sums.xu, moments->wx, &fit) ||
                !(fit.scale > 0)) {
                break;
            }
        }
    }
    return best;
}

static struct block_fit fit_of(const struct block_state *state, int sub)
{
    return (struct block_fit){state->d * (float)state->scales[sub], state->dmin * (float)state->minima[sub]};
}

static void k_measure(const struct block_task *task, const struct shape *shape, struct block_state *state)
{
    state->error = 0;
    for (int sub = 0; sub < shape->subs; sub++) {
        state->lost[sub] = sums_of(task, shape, sub, fit_of(state, sub)).error;
        state->error += (double)state->lost[sub];
    }
}

float block_half(float value)
{
    return dtype_round_finite(value, DTYPE_F16);
}

static int k_nearest(float value, int low, int high)
{
    float v = rintf(value);

    v = v > (float)low ? v : (float)low;
    return (int)(v < (float)high ? v : (float)high);
}

/* Integers for the target scales, the largest at the top. */
static void set_integers(const struct shape *shape, const struct block_fit *target, struct block_state *state)
{
    float scale = 0, minimum = 0;

    for (int sub = 0; sub < shape->subs; sub++) {
        scale = fmaxf(scale, fabsf(target[sub].scale));
        minimum = target[sub].minimum > minimum ? target[sub].minimum : minimum; /* -0 stays 0 */
    }
    state->d = block_half(scale / (float)shape->scale_high);
    state->dmin = shape->minimum_high > 0 ? block_half(minimum / (float)shape->minimum_high) : 0.0f;
    for (int sub = 0; sub < shape->subs; sub++) {
        state->scales[sub] =
            k_nearest(target[sub].scale * block_inverse(state->d), shape->scale_low, shape->scale_high);
        state->minima[sub] = k_nearest(target[sub].minimum * block_inverse(state->dmin), 0, shape->minimum_high);
    }
}

/* d and dmin for the codes that the state gives. */
static bool refit(const struct block_task *task, const struct shape *shape, const struct moments *moments,
                  struct block_state *state)
{
    double p = 0, q = 0, r = 0, s = 0, t = 0;
    struct block_fit fit;

    for (int sub = 0; sub < shape->subs; sub++) {
        struct block_sums sums = sums_of(task, shape, sub, fit_of(state, sub));
        double scale = state->scales[sub], minimum = state->minima[sub];
        p += scale * scale * (double)sums.uu;
        q += scale * minimum * (double)sums.u;
        r += minimum * minimum * moments[sub].w;
        s += scale * (double)sums.xu;
        t += minimum * moments[sub].wx;
    }
    if (!block_solve_pair(p, q, r, s, t, &fit)) {
        return false;
    }
    state->d = block_half(fit.scale);
    state->dmin = block_half(fit.minimum);
    return state->d != 0.0f;
}

/* Each sub-block's integers against their neighbours. */
static void step_integers(const struct block_task *task, const struct shape *shape, struct block_state *state)
{
    for (int sub = 0; sub < shape->subs; sub++) {
        int scale = state->scales[sub], minimum = state->minima[sub];
        for (int i = 0; i < (shape->minimum_high > 0 ? 9 : 3); i++) {
            struct block_state next = {.d = state->d, .dmin = state->dmin};
            next.scales[0] = scale + i % 3 - 1;
            next.minima[0] = minimum + i / 3 - (shape->minimum_high > 0 ? 1 : 0);
            if (next.scales[0] < shape->scale_low || next.scales[0] > shape->scale_high || next.minima[0] < 0 ||
                next.minima[0] > shape->minimum_high) {
                continue;
            }
            float error = sums_of(task, shape, sub, fit_of(&next, 0)).error;
            if (error < state->lost[sub]) {
                state->error += (double)error - (double)state->lost[sub];
                state->lost[sub] = error;
                state->scales[sub] = next.scales[0];
                state->minima[sub] = next.minima[0];
            }
        }
    }
}

static struct block_state k_solve(const struct block_task *task, const struct shape *shape)
{
    struct moments moments[BLOCK_SUBS_MAX];
    struct block_fit target[BLOCK_SUBS_MAX] = {{0, 0}};
    struct block_state best = {0};

    if (task->search) {
        measure_moments(task, shape, moments);
    }
    for (int sub = 0; sub < shape->subs; sub++) {
        int64_t at = (int64_t)sub * shape->width;
        if (shape->minimum_high > 0) {
            target[sub] = fit_affine(task, shape, sub, &moments[sub]);
        } else {
            target[sub].scale =
                block_scale(task, task->x + at, task->weight + at, shape->width, &block_levels_q6_k, DTYPE_F32);
        }
    }
    set_integers(shape, target, &best);
    if (!task->search) {
        return best;
    }
    k_measure(task, shape, &best);
    for (int round = 0; round < BLOCK_ROUNDS; round++) {
        struct block_state next = best;
        step_integers(task, shape, &next);
        if (refit(task, shape, moments, &next)) {
            k_measure(task, shape, &next);
        }
        if (!(next.error < best.error)) {
            break;
        }
        best = next;
    }
    return best;
}

static void put_half(uint8_t *out, float value)
{
    uint16_t bits = dtype_f32_to_f16(value);
    memcpy(out, &bits, sizeof(bits));
}

void block_set_q4_k(const struct block_fit target[8], struct block_state *state)
{
    set_integers(&shape_q4_k, target, state);
}

void block_write_q4_k(const struct kernels *kernels, const float *x, const struct block_state *state, uint8_t *out)
{
    memset(out, 0, 16);
    put_half(out, state->d);
    put_half(out + 2, state->dmin);
    for (int pair = 0; pair < 4; pair++) {
        uint8_t codes[2][32];
        for (int k = 0; k < 2; k++) {
            int sub = 2 * pair + k;
            struct block_fit fit = fit_of(state, sub);
            ggml_q4k_set_scale(out + 4, sub, (uint8_t)state->scales[sub], (uint8_t)state->minima[sub]);
            kernels->block_codes(codes[k], x + (ptrdiff_t)sub * 32, 32, block_inverse(fit.scale), fit.minimum, 0.0f,
                                 15.0f);
        }
        for (int j = 0; j < 32; j++) {
            out[16 + pair * 32 + j] = (uint8_t)(codes[0][j] | codes[1][j] << 4);
        }
    }
}

void block_encode_q4_k(const struct block_task *task, uint8_t *out)
{
    struct block_state state = k_solve(task, &shape_q4_k);

    block_write_q4_k(task->kernels, task->x, &state, out);
}

void block_set_q6_k(const struct block_fit target[16], struct block_state *state)
{
    set_integers(&shape_q6_k, target, state);
}

void block_write_q6_k(const struct kernels *kernels, const float *x, const struct block_state *state, uint8_t *out)
{
    uint8_t codes[256];

    for (int sub = 0; sub < 16; sub++) {
        kernels->block_codes(codes + (ptrdiff_t)sub * 16, x + (ptrdiff_t)sub * 16, 16,
                             block_inverse(fit_of(state, sub).scale), 0.0f, -32.0f, 31.0f);
    }
    for (int part = 0; part < 2; part++) {
        const uint8_t *of = codes + (ptrdiff_t)part * 128;
        uint8_t *low = out + (ptrdiff_t)part * 64, *high = out + 128 + (ptrdiff_t)part * 32;
        for (int j = 0; j < 32; j++) {
            low[j] = (uint8_t)((of[j] & 15) | (of[j + 64] & 15) << 4);
            low[j + 32] = (uint8_t)((of[j + 32] & 15) | (of[j + 96] & 15) << 4);
            high[j] = (uint8_t)(of[j] >> 4 | of[j + 32] >> 4 << 2 | of[j + 64] >> 4 << 4 | of[j + 96] >> 4 << 6);
        }
    }
    for (int sub = 0; sub < 16; sub++) {
        out[192 + sub] = (uint8_t)(int8_t)state->scales[sub];
    }
    put_half(out + 208, state->d);
}

void block_encode_q6_k(const struct block_task *task, uint8_t *out)
{
    struct block_state state = k_solve(task, &shape_q6_k);

    block_write_q6_k(task->kernels, task->x, &state, out);
}
