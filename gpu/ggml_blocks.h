#pragma once
/* The block types of GGUF files that are written here: sizes and the way back to floats. The layouts are those of
 * ggml's ggml-common.h; blocks are parts of a row, and a row has an integer number of them. No state; any thread. */

#include <stdint.h>

/* As numbered in the file. */
enum ggml_type {
    GGML_TYPE_F32 = 0,
    GGML_TYPE_F16 = 1,
    GGML_TYPE_Q4_0 = 2,
    GGML_TYPE_Q8_0 = 8,
    GGML_TYPE_Q4_K = 12,
    GGML_TYPE_Q6_K = 14,
    GGML_TYPE_IQ4_NL = 20,
    GGML_TYPE_BF16 = 30,
};

struct ggml_block {
    const char *name; /* "Q4_K" */
    int type;
    int64_t elements, bytes; /* of a block */
};

/* The quantized types; ends with name == NULL. */
extern const struct ggml_block ggml_blocks[];
/* NULL for what is not a quantized type here. */
const struct ggml_block *ggml_block_find(int type);
/* Bytes of a row of blocks; 0 when the type is unknown or its blocks do not divide cols. */
int64_t ggml_row_bytes(int type, int64_t cols);
/* The 16 levels of IQ4_NL, ascending. */
extern const int8_t ggml_iq4nl_levels[16];
/* A row of `cols` floats from its blocks; cols is a multiple of the block's elements and the type is known. */
void ggml_decode_row(int type, const uint8_t *blocks, int64_t cols, float *out);
/* Scale and minimum of sub-block j (0..7) of a Q4_K block's 12 packed bytes, six bits each. */
void ggml_q4k_scale(const uint8_t packed[12], int j, uint8_t *scale, uint8_t *minimum);
/* The way there; packed is zero where j was not set before. */
void ggml_q4k_set_scale(uint8_t packed[12], int j, uint8_t scale, uint8_t minimum);
