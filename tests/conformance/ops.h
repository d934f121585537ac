#pragma once
/* One body per operation of struct gpu_ops, for any backend: inputs from a seed, uploaded, run, downloaded. What comes
 * back is a list of numbers, so that a backend can be held to the CPU, and to itself, row by row of `ops_cases`. */

#include "gpu/gpu.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A device, a stream, and all that the body allocated on it. */
#define OPS_TENSORS_MAX 24
struct ops_rig {
    struct gpu gpu;
    struct gpu_stream *stream;
    struct tensor tensors[OPS_TENSORS_MAX];
    int count;
};
/* 0 or raised. A stream of its own on an open device. */
int ops_rig_init(struct ops_rig *rig, const struct gpu *gpu);
/* Gives the tensors back but keeps the stream. */
void ops_rig_clear(struct ops_rig *rig);
void ops_rig_deinit(struct ops_rig *rig);

struct ops_output {
    double *values;
    size_t count, capacity;
};
void ops_output_deinit(struct ops_output *out);

enum ops_measure {
    OPS_EXACT, /* the same numbers */
    OPS_NMSE,  /* sum (a - b)^2 / sum b^2 */
    OPS_CODES, /* the fraction that differs, since a tie may fall either way and what follows moves with it */
};

struct ops_case {
    const char *name;
    int (*body)(struct ops_rig *rig, int variant, struct ops_output *out); /* 0 or the operation's code */
    int variant;
    enum ops_measure measure;
    double bound, bound_bf16; /* at most this far from the CPU; where products take BF16 operands */
};
extern const struct ops_case ops_cases[];
extern const size_t ops_case_count;

/* How far `got` is from `want` by the case's measure; INFINITY when the counts differ or a number is not one. */
double ops_distance(enum ops_measure measure, const struct ops_output *want, const struct ops_output *got);

/* --- for bodies */
int ops_new(struct ops_rig *rig, enum dtype dtype, int64_t rows, int64_t cols, struct tensor *out);
/* F32 from `values`. */
int ops_upload(struct ops_rig *rig, const float *values, int64_t rows, int64_t cols, struct tensor *out);
/* Normal numbers from a seed; dtype F32, F16 or BF16. */
int ops_random(struct ops_rig *rig, enum dtype dtype, int64_t rows, int64_t cols, uint64_t seed, struct tensor *out);
/* Append a tensor's elements (F32, F16, BF16, U8, I32), or single numbers. */
int ops_put(struct ops_rig *rig, struct ops_output *out, const struct tensor *tensor);
int ops_put_number(struct ops_output *out, double value);
float ops_normal(uint64_t *state);
