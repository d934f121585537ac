/* GGUF blocks back to floats. Layouts (ggml-common.h; d and dmin are F16):
 *
 *   Q4_0    32: d | 16 bytes, byte j = element j low, element j+16 high             w = d (u - 8)
 *   Q8_0    32: d | 32 signed bytes                                                 w = d q
 *   Q4_K   256: d dmin | 12 bytes of 6-bit scales and minima | 128 bytes: bytes 32c.. hold sub-block 2c low, 2c+1 high
 *                                                                                   w = d sc u - dmin m
 *   Q6_K   256: 128 low nibbles | 64 bytes of two high bits | 16 signed scales | d  w = d sc (u - 32)
 *   IQ4_NL  32: as Q4_0, with a table                                               w = d T[u] */

#include "gpu/ggml_blocks.h"

#include "gpu/tensor.h"

#include <stddef.h>
#include <string.h>

const struct ggml_block ggml_blocks[] = {
    {"Q4_0", GGML_TYPE_Q4_0, 32, 18},   {"Q8_0", GGML_TYPE_Q8_0, 32, 34},     {"Q4_K", GGML_TYPE_Q4_K, 256, 144},
    {"Q6_K", GGML_TYPE_Q6_K, 256, 210}, {"IQ4_NL", GGML_TYPE_IQ4_NL, 32, 18}, {NULL, 0, 0, 0},
};

const int8_t ggml_iq4nl_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

const struct ggml_block *ggml_block_find(int type)
{
    for (const struct ggml_block *block = ggml_blocks; block->name != NULL; block++) {
        if (block->type == type) {
            return block;
        }
    }
    return NULL;
}

int64_t ggml_row_bytes(int type, int64_t cols)
{
    const struct ggml_block *block = ggml_block_find(type);

    return block == NULL || cols % block->elements != 0 ? 0 : cols / block->elements * block->bytes;
}

static float load_half(const uint8_t *bytes)
{
    uint16_t bits;
    memcpy(&bits, bytes, sizeof(bits));
    return dtype_f16_to_f32(bits);
}

static void decode_nibbles(int type, const uint8_t *block, float *out)
{
    float d = load_half(block);

    for (int j = 0; j < 16; j++) {
        uint8_t low = block[2 + j] & 15, high = block[2 + j] >> 4;
        out[j] = d * (float)(type == GGML_TYPE_Q4_0 ? low - 8 : ggml_iq4nl_levels[low]);
        out[j + 16] = d * (float)(type == GGML_TYPE_Q4_0 ? high - 8 : ggml_iq4nl_levels[high]);
    }
}

static void decode_q8_0(const uint8_t *block, float *out)
{
    float d = load_half(block);

    for (int j = 0; j < 32; j++) {
        out[j] = d * (float)(int8_t)block[2 + j];
    }
}

void ggml_q4k_scale(const uint8_t packed[12], int j, uint8_t *scale, uint8_t *minimum)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *minimum = packed[j + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
        *minimum = (uint8_t)((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
}

void ggml_q4k_set_scale(uint8_t packed[12], int j, uint8_t scale, uint8_t minimum)
{
    if (j < 4) {
        packed[j] |= scale;
        packed[j + 4] |= minimum;
    } else {
        packed[j + 4] |= (uint8_t)((scale & 15) | (minimum & 15) << 4);
        packed[j - 4] |= (uint8_t)(scale >> 4 << 6);
        packed[j] |= (uint8_t)(minimum >> 4 << 6);
    }
}

static void decode_q4_k(const uint8_t *block, float *out)
{
    float d = load_half(block), dmin = load_half(block + 2);
    const uint8_t *codes = block + 16;

    for (int sub = 0; sub < 8; sub++) {
        uint8_t scale, minimum;
        ggml_q4k_scale(block + 4, sub, &scale, &minimum);
        float step = d * (float)scale, min = dmin * (float)minimum;
        for (int j = 0; j < 32; j++) {
            uint8_t byte = codes[sub / 2 * 32 + j];
            out[sub * 32 + j] = step * (float)(sub % 2 == 0 ? byte & 15 : byte >> 4) - min;
        }
    }
}

static void decode_q6_k(const uint8_t *block, float *out)
{
    const uint8_t *low = block, *high = block + 128;
    const int8_t *scales = (const int8_t *)block + 192;
    float d = load_half(block + 208);

    for (int i = 0; i < 256; i++) {
        int half = i / 128, at = i % 128, quarter = at / 32, j = at % 32;
        uint8_t nibbles = low[half * 64 + (quarter % 2) * 32 + j];
        int code = (quarter < 2 ? nibbles & 15 : nibbles >> 4) | ((high[half * 32 + j] >> (2 * quarter)) & 3) << 4;
        int8_t scale = scales[i / 16];
        out[i] = d * (float)scale * (float)(code - 32);
    }
}

void ggml_decode_row(int type, const uint8_t *blocks, int64_t cols, float *out)
{
    const struct ggml_block *block = ggml_block_find(type);

    for (int64_t at = 0; at < cols; at += block->elements, blocks += block->bytes) {
        switch (type) {
        case GGML_TYPE_Q8_0:
            decode_q8_0(blocks, out + at);
            break;
        case GGML_TYPE_Q4_K:
            decode_q4_k(blocks, out + at);
            break;
        case GGML_TYPE_Q6_K:
            decode_q6_k(blocks, out + at);
            break;
        default:
            decode_nibbles(type, blocks, out + at);
        }
    }
}
