#pragma once
/* The checks of operations: for each one function of its arguments, called with the operation's name.
 * A wrong argument is a bug in the caller: it raises ERR_INTERNAL with the operation's and the tensor's name rather
 * than crash a kernel. What comes from a user's file (token numbers) raises ERR_INVALID_MODEL. Private to gpu/. */

#include "base/err.h"
#include "gpu/gpu.h"

#define GPU_OP(group, name, does, ...) int check_##name(const char *op GPU_PARAMETERS(__VA_ARGS__));
#include "gpu/ops.def"

/* ERR_INTERNAL unless tensor has memory, if it has elements, and that is aligned to them. */
int check_data(const char *op, const char *name, const struct tensor *tensor);
/* ERR_INTERNAL unless tensor has this type, matrix shape (-1: any; each side below 2^31) and memory. */
int check_matrix(const char *op, const char *name, const struct tensor *tensor, enum dtype dtype, int64_t rows,
                 int64_t cols);
/* The same of F32. */
int check_f32(const char *op, const char *name, const struct tensor *tensor, int64_t rows, int64_t cols);
/* ERR_INTERNAL unless tensor is F32 with `count` elements in any shape; NULL is fine where `optional`. */
int check_vector(const char *op, const char *name, const struct tensor *tensor, int64_t count);
int check_optional(const char *op, const char *name, const struct tensor *tensor, int64_t count);
/* F32, F16 or BF16. */
bool check_is_plain(enum dtype dtype);
/* F32, F16 or BF16 of that matrix shape. */
int check_weight(const char *op, const char *name, const struct tensor *w, int64_t rows, int64_t cols);
/* A permutation of 0..n-1 in host memory; NULL is the identity. */
int check_order(const char *op, const int32_t *order, int64_t n);
/* ERR_INTERNAL when an output shares memory with an input that is still read while it is written. */
int check_separate(const char *op, const char *name, const struct tensor *out, const char *other,
                   const struct tensor *in);
/* I32 of that many elements in any shape. */
int check_numbers(const char *op, const char *name, const struct tensor *tensor, int64_t count);

/* Arguments that operations of several groups have: queries, keys and values; columns of heads (sums: those of y may be
 * one head's for all); logits of experts; weights with a scale and a zero for each group, or with a scale and a table
 * of levels; U8 codes of weights. */
int check_heads(const char *op, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                const struct gpu_attention *spec);
int check_placement(const char *op, const struct tensor *y, const struct tensor *x, const struct gpu_columns *spec,
                    bool sums);
int check_choices(const char *op, const struct tensor *logits, const struct gpu_route *spec);
int check_points(const char *op, const struct tensor *w, const struct tensor *scale, const struct tensor *zero,
                 const struct gpu_grid *spec);
int check_levels(const char *op, const struct tensor *w, const struct tensor *scale, const struct gpu_levels *levels);
int check_codes(const char *op, const struct tensor *codes, const struct tensor *w);
