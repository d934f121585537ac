/* The search of blocks_k.c for a Q6_K block with its sixteen sub-blocks in the lanes of the widest vectors.
 *
 * Each lane goes through the steps that block_scale and k_solve give one sub-block, with sums in the same order: bytes
 * are the same. A lane that a step would end early is masked from there on. */

#include "gpu/cpu/blocks.h"

#include <math.h>
#include <string.h>

#define SCALE_LOW (-128)
#define SCALE_HIGH 127
#define NEIGHBOURS 3

struct signed_search {
    const struct kernels *kernels;
    struct signed_lanes lanes;
    float scale[LANES], error[LANES]; /* the best so far */
};

static void signed_load(struct signed_search *s, const float *x, const float *weight)
{
    s->lanes.unit = weight == NULL;
    for (int l = 0; l < LANES; l++) {
        for (int j = 0; j < SIGNED_WIDTH; j++) {
            s->lanes.x[j][l] = x[l * SIGNED_WIDTH + j];
            s->lanes.weight[j][l] = weight != NULL ? weight[l * SIGNED_WIDTH + j] : 1.0f;
        }
    }
}

/* Keep scales that lose less, unless `keep` is false; fitted: the best ones for the codes that they gave. Of the lanes
 * `in`. */
static void signed_consider(struct signed_search *s, const float *scale, const bool *in, bool keep, float *fitted)
{
    struct affine_sums sums;

    s->kernels->signed_sums(&sums, &s->lanes, scale);
    for (int l = 0; l < LANES; l++) {
        float best = sums.xu[l] / sums.uu[l];
        bool less = keep && in[l] && sums.error[l] < s->error[l];
        s->scale[l] = less ? scale[l] : s->scale[l];
        s->error[l] = less ? sums.error[l] : s->error[l];
        fitted[l] = block_storable(in[l] && isfinite(best) ? best : 0.0f, DTYPE_F32);
    }
}

static bool signed_any(const bool in[LANES])
{
    bool any = false;

    for (int l = 0; l < LANES; l++) {
        any = any || in[l];
    }
    return any;
}

/* Scales around the one that reaches the extreme, of either sign, and what their codes want. */
static void signed_try(struct signed_search *s, const float extreme[LANES], const bool in[LANES])
{
    float scale[LANES], after[LANES], unused[LANES];
    bool first[LANES], second[LANES];

    for (int i = 0; i < 2 * block_levels_q6_k.count; i++) {
        int step = i / 2;
        float reach = block_levels_q6_k.first + block_levels_q6_k.step * (float)step;
        for (int l = 0; l < LANES; l++) {
            scale[l] = block_storable((i % 2 == 0 ? extreme[l] : -extreme[l]) / reach, DTYPE_F32);
            first[l] = in[l] && scale[l] != 0.0f;
        }
        signed_consider(s, scale, first, true, after);
        for (int l = 0; l < LANES; l++) {
            second[l] = first[l] && after[l] != 0.0f && after[l] != scale[l];
        }
        if (signed_any(second)) {
            signed_consider(s, after, second, true, unused);
        }
    }
}

/* From the best scale to what its codes want, while that is better. */
static void signed_follow(struct signed_search *s, bool in[LANES])
{
    float fitted[LANES], unused[LANES];

    for (int i = 0; i < 4 && signed_any(in); i++) {
        signed_consider(s, s->scale, in, false, fitted);
        for (int l = 0; l < LANES; l++) {
            in[l] = in[l] && fitted[l] != 0.0f && fitted[l] != s->scale[l];
        }
        signed_consider(s, fitted, in, true, unused);
        for (int l = 0; l < LANES; l++) {
            in[l] = in[l] && s->scale[l] == fitted[l];
        }
    }
}

/* block_scale of each sub-block, to s->scale. */
static void signed_find_scales(struct signed_search *s)
{
    float extreme[LANES] = {0}, unused[LANES];
    bool in[LANES];

    for (int j = 0; j < SIGNED_WIDTH; j++) {
        for (int l = 0; l < LANES; l++) {
            float x = s->lanes.x[j][l];
            extreme[l] = fabsf(x) > fabsf(extreme[l]) ? x : extreme[l];
        }
    }
    for (int l = 0; l < LANES; l++) {
        s->scale[l] = block_storable(-extreme[l] / -block_levels_q6_k.low, DTYPE_F32);
        s->error[l] = INFINITY;
        in[l] = s->scale[l] != 0.0f;
    }
    if (signed_any(in)) {
        signed_consider(s, s->scale, in, true, unused);
        signed_try(s, extreme, in);
        signed_follow(s, in);
    }
}

static void signed_set_fits(const struct block_state *state, int step, float scale[LANES])
{
    for (int l = 0; l < LANES; l++) {
        scale[l] = state->d * (float)(state->scales[l] + step);
    }
}

static void signed_measure(struct signed_search *s, struct block_state *state)
{
    float scale[LANES];

    signed_set_fits(state, 0, scale);
    s->kernels->signed_errors(state->lost, &s->lanes, scale);
    state->error = 0;
    for (int l = 0; l < LANES; l++) {
        state->error += (double)state->lost[l];
    }
}

/* Each sub-block's integer against its neighbours. */
static void signed_step(struct signed_search *s, struct block_state *state)
{
    float scale[LANES], error[NEIGHBOURS][LANES];

    for (int i = 0; i < NEIGHBOURS; i++) {
        signed_set_fits(state, i - 1, scale);
        s->kernels->signed_errors(error[i], &s->lanes, scale);
    }
    for (int l = 0; l < LANES; l++) {
        int before = state->scales[l];
        for (int i = 0; i < NEIGHBOURS; i++) {
            int next = before + i - 1;
            if (next >= SCALE_LOW && next <= SCALE_HIGH && error[i][l] < state->lost[l]) {
                state->error += (double)error[i][l] - (double)state->lost[l];
                state->lost[l] = error[i][l];
                state->scales[l] = next;
            }
        }
    }
}

/* d for the codes that the state gives. */
static bool signed_refit(struct signed_search *s, struct block_state *state)
{
    struct affine_sums sums;
    struct block_fit fit;
    float at[LANES];
    double p = 0, q = 0, t = 0;

    signed_set_fits(state, 0, at);
    s->kernels->signed_sums(&sums, &s->lanes, at);
    for (int l = 0; l < LANES; l++) {
        double scale = state->scales[l];
        p += scale * scale * (double)sums.uu[l];
        q += scale * 0.0 * (double)sums.u[l];
        t += scale * (double)sums.xu[l];
    }
    if (!block_solve_pair(p, q, 0, t, 0, &fit)) {
        return false;
    }
    state->d = block_half(fit.scale);
    state->dmin = block_half(fit.minimum);
    return state->d != 0.0f;
}

void block_search_q6_k(const struct kernels *kernels, const float *x, const float *weight, uint8_t *out)
{
    struct signed_search search = {.kernels = kernels};
    struct block_fit target[BLOCK_SUBS_MAX];
    struct block_state best = {.d = 0};

    signed_load(&search, x, weight);
    signed_find_scales(&search);
    for (int l = 0; l < LANES; l++) {
        target[l] = (struct block_fit){search.scale[l], 0.0f};
    }
    block_set_q6_k(target, &best);
    signed_measure(&search, &best);
    for (int round = 0; round < BLOCK_ROUNDS; round++) {
        struct block_state next = best;
        signed_step(&search, &next);
        if (signed_refit(&search, &next)) {
            signed_measure(&search, &next);
        }
        if (!(next.error < best.error)) {
            break;
        }
        best = next;
    }
    block_write_q6_k(kernels, x, &best, out);
}
