#pragma once
/* What the files of encode_blocks share. Private to the CPU backend. */

#include "gpu/cpu/internal.h"
#include "gpu/ggml_blocks.h"

#define BLOCK_MAX 256       /* elements of the largest block */
#define BLOCK_BYTES_MAX 256 /* its bytes, and some */

/* Values that codes of one scale stand for: every integer of [low, high], or a table of 16. */
struct block_levels {
    float low, high;
    const float *table;
    float first, step; /* candidates of a search: the largest |weight| over first, first + step, ... */
    int count;
};

/* One block on its way to bytes: x and weight [n], none of them NaN. */
struct block_task {
    const struct kernels *kernels;
    const float *x, *weight;
    bool search; /* else the scales that reach the extremes */
};

/* 1 / scale, or 0 where that would not be finite. */
float block_inverse(float scale);
/* The scale of n weights as `store` holds it, positive or negative: it puts the extreme at the lowest level, or has
 * the smallest sum weight * error^2. */
float block_scale(const struct block_task *task, const float *x, const float *weight, int64_t n,
                  const struct block_levels *levels, enum dtype store);

/* As stored, and finite. */
static inline float block_storable(float scale, enum dtype store)
{
    float max = store == DTYPE_F16 ? (float)dtype_max(DTYPE_F16) : 0x1p127f;

    scale = scale < max ? scale : max;
    scale = scale > -max ? scale : -max;
    return dtype_round(scale, store);
}

/* --- blocks_k.c: the types with scales of scales. */

#define BLOCK_SUBS_MAX 16
#define BLOCK_ROUNDS 3 /* of integers moved and d and dmin fitted to them */

struct block_fit {
    float scale, minimum;
};

/* A block's integers, and what they lose. */
struct block_state {
    float d, dmin;
    int scales[BLOCK_SUBS_MAX], minima[BLOCK_SUBS_MAX];
    float lost[BLOCK_SUBS_MAX];
    double error;
};

/* The d and e that minimise p d^2 - 2 q d e + r e^2 - 2 s d + 2 t e with e >= 0; false where they are not finite. */
bool block_solve_pair(double p, double q, double r, double s, double t, struct block_fit *out);
float block_half(float value); /* as F16 holds it, finite */
extern const struct block_levels block_levels_q6_k;
/* A Q6_K block's integers for real scales; its bytes. */
void block_set_q6_k(const struct block_fit target[16], struct block_state *state);
void block_write_q6_k(const struct kernels *kernels, const float *x, const struct block_state *state, uint8_t *out);
/* A Q4_K block's integers for real scales and minima; its bytes. */
void block_set_q4_k(const struct block_fit target[8], struct block_state *state);
void block_write_q4_k(const struct kernels *kernels, const float *x, const struct block_state *state, uint8_t *out);
void block_encode_q4_k(const struct block_task *task, uint8_t *out);
void block_encode_q6_k(const struct block_task *task, uint8_t *out);
/* blocks_affine.c: two Q4_K blocks by a search, in vectors, to the bytes that one by one have. x, weight: of each,
 * [256]; weight NULL: all are 1. */
void block_search_two(const struct kernels *kernels, const float *const x[2], const float *const weight[2],
                      uint8_t *const out[2]);

/* blocks_signed.c: a Q6_K block by a search, in vectors, to the bytes that block_encode_q6_k finds. weight NULL: all
 * are 1. */
void block_search_q6_k(const struct kernels *kernels, const float *x, const float *weight, uint8_t *out);
