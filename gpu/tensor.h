#pragma once
/* Element types as rows, and the plain view of a dense row-major tensor. A view never owns its memory. */

#include "gpu/shared/dtype.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dtype_row {
    const char *name;    /* of those that are stored, as safetensors spells it */
    uint8_t bytes, bits; /* of an element in memory; of its code */
    bool stored;         /* checkpoints hold tensors of it */
    bool is_float;
    double max, min_normal, min; /* largest finite magnitude, smallest normal and smallest positive one */
};

/* dtype_rows[DTYPE_F32].name == "F32", ... */
extern const struct dtype_row dtype_rows[DTYPE_COUNT];
/* Of those that are stored; -1 when unknown. */
int dtype_from_name(const char *name);

#define TENSOR_RANK_MAX 4

struct tensor {
    void *data; /* in the memory of the device that it was allocated on */
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK_MAX]; /* unused dimensions are 1 */
};

struct tensor tensor_1d(void *data, enum dtype dtype, int64_t n);
struct tensor tensor_2d(void *data, enum dtype dtype, int64_t rows, int64_t cols);
int64_t tensor_count(const struct tensor *tensor);
size_t tensor_bytes(const struct tensor *tensor);
/* The view, with its ownership; *from has no data from then on. */
struct tensor tensor_move(struct tensor *from);
/* A tensor as a matrix: the last dimension against all before it. */
int64_t matrix_cols(const struct tensor *tensor);
int64_t matrix_rows(const struct tensor *tensor);
/* Rows [begin, begin+count) of a rank-2 tensor, as a view. */
struct tensor tensor_rows(const struct tensor *tensor, int64_t begin, int64_t count);

/* The first NaN or Inf among count elements of a float type; -1 when there is none, or the type holds none. */
int64_t dtype_find_nonfinite(enum dtype dtype, const void *data, int64_t count);

/* The 16 levels of NF4, ascending (Dettmers et al. 2023, arXiv 2305.14314, appendix E), and the nearest one's number,
 * the lower of equals. */
extern const float dtype_nf4_levels[16];
uint8_t dtype_f32_to_nf4(float value);
/* What a code stands for: of U8 the code, of I8 code - 128, of E4M3, E5M2, E2M1 and NF4 their element; where that has
 * four bits, the upper four bits of the code are ignored. */
float dtype_decode(enum dtype element, uint8_t code);
