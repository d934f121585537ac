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

/* The code of x: (x + minimum) / scale to the nearest, halves up, in [low, high]; returned from 0. */
int block_code(float x, float scale, float minimum, float low, float high);
/* 1 / scale, or 0 where that would not be finite. */
float block_inverse(float scale);
/* The scale of n weights as `store` holds it, positive or negative: it puts the extreme at the lowest level, or has
 * the smallest sum weight * error^2. */
float block_scale(const struct block_task *task, const float *x, const float *weight, int64_t n,
                  const struct block_levels *levels, enum dtype store);

/* blocks_k.c: the types with scales of scales. */
void block_encode_q4_k(const struct block_task *task, uint8_t *out);
void block_encode_q6_k(const struct block_task *task, uint8_t *out);
