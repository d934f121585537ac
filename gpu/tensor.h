#pragma once
/* Element types as rows, and the plain view of a dense row-major tensor. A view never owns its memory. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F64,
    DTYPE_BOOL,
    DTYPE_U8,
    DTYPE_I8,
    DTYPE_I16,
    DTYPE_U16,
    DTYPE_I32,
    DTYPE_U32,
    DTYPE_I64,
    DTYPE_U64,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_F8_E8M0,
    DTYPE_COUNT
};

struct dtype_row {
    const char *name; /* as safetensors spells it */
    uint8_t bytes;
    bool is_float;
};

/* dtype_rows[DTYPE_F32].name == "F32", ... */
extern const struct dtype_row dtype_rows[DTYPE_COUNT];
/* -1 when unknown. */
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
/* A tensor as a matrix: the last dimension against all before it. */
int64_t matrix_cols(const struct tensor *tensor);
int64_t matrix_rows(const struct tensor *tensor);
/* Rows [begin, begin+count) of a rank-2 tensor, as a view. */
struct tensor tensor_rows(const struct tensor *tensor, int64_t begin, int64_t count);

/* The first NaN or Inf among count elements of a float type; -1 when there is none, or the type holds none. */
int64_t dtype_find_nonfinite(enum dtype dtype, const void *data, int64_t count);

/* Scalar conversions, round to nearest even; the truth that packed kernels are held to. */
float dtype_bf16_to_f32(uint16_t bits);
uint16_t dtype_f32_to_bf16(float value); /* NaN stays NaN */
float dtype_f16_to_f32(uint16_t bits);
uint16_t dtype_f32_to_f16(float value); /* overflow -> Inf, subnormals kept */
/* E4M3FN: bias 7, largest 448, no Inf, NaN 0x7f. Saturating, ties to even, straight from F32. */
uint8_t dtype_f32_to_e4m3(float value);
float dtype_e4m3_to_f32(uint8_t bits);
/* E5M2: bias 15, largest 57344; saturating, so never Inf. */
uint8_t dtype_f32_to_e5m2(float value);
float dtype_e5m2_to_f32(uint8_t bits);
/* The 16 levels of NF4, ascending (Dettmers et al. 2023, arXiv 2305.14314, appendix E), and the nearest one's number,
 * the lower of equals. */
extern const float dtype_nf4_levels[16];
uint8_t dtype_f32_to_nf4(float value);
#define DTYPE_E4M3_MAX 448.0f
#define DTYPE_E5M2_MAX 57344.0f
/* value rounded to what `dtype` (F32, F16 or BF16) stores. */
float dtype_round(float value, enum dtype dtype);
/* The largest number of `dtype` (F32, F16 or BF16) that is not above value; value is not negative. */
float dtype_round_down(float value, enum dtype dtype);
