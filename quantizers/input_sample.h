#pragma once
/* A sample of a group's inputs that stands for all of them, those that reach farthest included. */

#include "gpu/gpu.h"

#define INPUT_SAMPLE_ROWS 1024
#define INPUT_SAMPLE_STRATA 256

/* Up to INPUT_SAMPLE_ROWS inputs: all are kept. More: they are divided into INPUT_SAMPLE_STRATA strata of
 * consecutive inputs, and of each stratum the input with the largest magnitude is kept, which stands for itself, and up
 * to three others at places that depend on the stratum's number alone, which stand for the rest of it. */
struct input_sample {
    int64_t columns, tokens, seen; /* tokens: of the complete set */
    int64_t width;                 /* of a stratum; 0: all inputs are kept */
    int64_t strata;
    float *max;          /* host [strata]: magnitude of the farthest input, -1 = none yet */
    int64_t *farthest;   /* host [strata]: its place in the stratum */
    struct tensor rows;  /* F32 [n, columns] */
    struct tensor reach; /* F32 [INPUT_SAMPLE_ROWS, 1]: magnitudes of what is being added */
};

int input_sample_init(struct input_sample *sample, int64_t tokens, int64_t columns, const struct gpu *gpu);
/* The next inputs, F32 [T, columns], in the set's order: micro-batches make no difference (waits). */
int input_sample_add(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                     const struct tensor *x);
/* How many inputs each row stands for; [rows.shape[0]], 0 of a row that holds none. They add up to tokens. */
void input_sample_weights(const struct input_sample *sample, float *weights);
void input_sample_deinit(struct input_sample *sample, const struct gpu *gpu); /* zeroed is fine */
