/* The search of blocks_k.c for two Q4_K blocks at once: their sixteen sub-blocks fill the lanes of the widest vectors.
 *
 * Each lane goes through the steps that k_solve gives one sub-block, with sums in the same order, and a block that ends
 * its rounds early keeps what it has while the other goes on: bytes are the same. */

#include "gpu/cpu/blocks.h"

#include <string.h>

#define SUBS 8
#define INTEGER_MAX 63

struct two_blocks {
    const struct kernels *kernels;
    struct affine_lanes lanes;
    float scale[LANES], minimum[LANES]; /* of the lanes' sub-blocks, where a step asks for them */
};

static void affine_load(struct two_blocks *two, const float *const x[2], const float *const weight[2])
{
    two->lanes.unit = weight == NULL;
    for (int l = 0; l < LANES; l++) {
        const float *from = x[l / SUBS] + (ptrdiff_t)(l % SUBS) * AFFINE_WIDTH;
        const float *w = weight != NULL ? weight[l / SUBS] + (ptrdiff_t)(l % SUBS) * AFFINE_WIDTH : NULL;
        for (int j = 0; j < AFFINE_WIDTH; j++) {
            two->lanes.x[j][l] = from[j];
            two->lanes.weight[j][l] = w != NULL ? w[j] : 1.0f;
        }
    }
}

static void affine_set_fits(struct two_blocks *two, const struct block_state states[2])
{
    for (int l = 0; l < LANES; l++) {
        const struct block_state *state = &states[l / SUBS];
        two->scale[l] = state->d * (float)state->scales[l % SUBS];
        two->minimum[l] = state->dmin * (float)state->minima[l % SUBS];
    }
}

static void affine_measure(struct two_blocks *two, struct block_state states[2], const bool active[2])
{
    float error[LANES];

    affine_set_fits(two, states);
    two->kernels->affine_errors(error, &two->lanes, two->scale, two->minimum);
    for (int b = 0; b < 2; b++) {
        if (!active[b]) {
            continue;
        }
        states[b].error = 0;
        for (int sub = 0; sub < SUBS; sub++) {
            states[b].lost[sub] = error[b * SUBS + sub];
            states[b].error += (double)states[b].lost[sub];
        }
    }
}

/* Each sub-block's integers against their neighbours. */
static void affine_step(struct two_blocks *two, struct block_state states[2])
{
    float d[LANES], dmin[LANES], scale[LANES], minimum[LANES], error[AFFINE_NEIGHBOURS][LANES];

    for (int l = 0; l < LANES; l++) {
        const struct block_state *state = &states[l / SUBS];
        d[l] = state->d;
        dmin[l] = state->dmin;
        scale[l] = (float)state->scales[l % SUBS];
        minimum[l] = (float)state->minima[l % SUBS];
    }
    two->kernels->affine_neighbours(error[0], &two->lanes, d, dmin, scale, minimum, INTEGER_MAX);
    for (int l = 0; l < LANES; l++) {
        struct block_state *state = &states[l / SUBS];
        int sub = l % SUBS;
        for (int i = 0; i < AFFINE_NEIGHBOURS; i++) {
            if (error[i][l] < state->lost[sub]) {
                state->error += (double)error[i][l] - (double)state->lost[sub];
                state->lost[sub] = error[i][l];
                state->scales[sub] = (int)scale[l] + i % 3 - 1;
                state->minima[sub] = (int)minimum[l] + i / 3 - 1;
            }
        }
    }
}

/* d and dmin of each for the codes that its state gives; fitted: which have them. */
static void affine_refit(struct two_blocks *two, struct block_state states[2], bool fitted[2])
{
    struct affine_sums sums;

    affine_set_fits(two, states);
    two->kernels->affine_sums(&sums, &two->lanes, two->scale, two->minimum);
    for (int b = 0; b < 2; b++) {
        struct block_state *state = &states[b];
        double p = 0, q = 0, r = 0, s = 0, t = 0;
        struct block_fit fit;
        for (int sub = 0; sub < SUBS; sub++) {
            int l = b * SUBS + sub;
            double scale = state->scales[sub], minimum = state->minima[sub];
            p += scale * scale * (double)sums.uu[l];
            q += scale * minimum * (double)sums.u[l];
            r += minimum * minimum * two->lanes.w[l];
            s += scale * (double)sums.xu[l];
            t += minimum * two->lanes.wx[l];
        }
        fitted[b] = block_solve_pair(p, q, r, s, t, &fit);
        if (fitted[b]) {
            state->d = block_half(fit.scale);
            state->dmin = block_half(fit.minimum);
            fitted[b] = state->d != 0.0f;
        }
    }
}

void block_search_two(const struct kernels *kernels, const float *const x[2], const float *const weight[2],
                      uint8_t *const out[2])
{
    struct two_blocks two = {.kernels = kernels};
    struct block_state best[2] = {{.d = 0}, {.d = 0}};
    bool active[2] = {true, true};

    affine_load(&two, x, weight);
    kernels->affine_search(&two.lanes, two.scale, two.minimum);
    for (int b = 0; b < 2; b++) {
        struct block_fit target[SUBS];
        for (int sub = 0; sub < SUBS; sub++) {
            target[sub] = (struct block_fit){two.scale[b * SUBS + sub], two.minimum[b * SUBS + sub]};
        }
        block_set_q4_k(target, &best[b]);
    }
    affine_measure(&two, best, active);
    for (int round = 0; round < BLOCK_ROUNDS && (active[0] || active[1]); round++) {
        struct block_state next[2] = {best[0], best[1]};
        bool fitted[2];
        affine_step(&two, next);
        affine_refit(&two, next, fitted);
        affine_measure(&two, next, fitted);
        for (int b = 0; b < 2; b++) {
            active[b] = active[b] && next[b].error < best[b].error;
            best[b] = active[b] ? next[b] : best[b];
        }
    }
    for (int b = 0; b < 2; b++) {
        block_write_q4_k(kernels, x[b], &best[b], out[b]);
    }
}
