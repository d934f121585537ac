/* Dense bit streams (the layout that GPTQ and compressed-tensors >= 0.17 share; they differ only in which axis is
 * packed and the order of the words, hence the strides).
 *
 * Eight codes of b bits are b bytes of the stream, whatever b is. They are brought together in one 64-bit register by
 * three steps that halve the number of lanes, and are written at once: no branch for a code, no state between eights.
 * Each width is compiled for itself, so that shifts and sizes are constants. */

#include "models/pack.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "streams are little-endian and so is the host");

#define EIGHT 8
#define CHUNK 32 /* codes that fill complete words, `bits` of them */
#define INLINE static inline __attribute__((always_inline))

/* Lanes of 8, 16 and 32 bits hold one, two and four codes at their low end; the upper of two moves down to the lower.
 */
INLINE uint64_t squeeze(uint64_t x, int bits)
{
    x &= (0xFFu >> (8 - bits)) * 0x0101010101010101u;
    x = (x & 0x00FF00FF00FF00FFu) | (x & 0xFF00FF00FF00FF00u) >> (8 - bits);
    x = (x & 0x0000FFFF0000FFFFu) | (x & 0xFFFF0000FFFF0000u) >> 2 * (8 - bits);
    return (x & 0x00000000FFFFFFFFu) | (x & 0xFFFFFFFF00000000u) >> 4 * (8 - bits);
}

INLINE uint64_t spread(uint64_t x, int bits)
{
    const uint64_t four = 0xFFFFFFFFu >> 4 * (8 - bits), two = 0xFFFFu >> 2 * (8 - bits), one = 0xFFu >> (8 - bits);

    x = (x & four) | (x & ~four) << 4 * (8 - bits);
    x = (x & two * 0x0000000100000001u) | (x << 2 * (8 - bits) & two * 0x0001000000010000u);
    return (x & one * 0x0001000100010001u) | (x << (8 - bits) & one * 0x0100010001000100u);
}

INLINE void pack_eights(const uint8_t *restrict codes, int64_t eights, int bits, uint8_t *restrict out)
{
    for (int64_t i = 0; i < eights; i++) {
        uint64_t x;
        memcpy(&x, codes + i * EIGHT, sizeof(x));
        x = squeeze(x, bits);
        memcpy(out + i * bits, &x, (size_t)bits);
    }
}

/* Widths that no load has the size of: read on into the next eight, as far as there is one; spread drops it. */
INLINE void unpack_eights(const uint8_t *restrict packed, int64_t eights, int bits, uint8_t *restrict codes)
{
    const bool uneven = (bits & (bits - 1)) != 0;
    int64_t beyond = uneven && eights > 8 / bits ? eights - 8 / bits : 0;
    uint64_t x;

    for (int64_t i = 0; i < beyond; i++) {
        memcpy(&x, packed + i * bits, sizeof(x));
        x = spread(x, bits);
        memcpy(codes + i * EIGHT, &x, sizeof(x));
    }
    for (int64_t i = beyond; i < eights; i++) {
        x = 0;
        memcpy(&x, packed + i * bits, (size_t)bits);
        x = spread(x, bits);
        memcpy(codes + i * EIGHT, &x, sizeof(x));
    }
}

#define WIDTH(bits)                                                                  \
    static void pack_##bits(const uint8_t *codes, int64_t eights, uint8_t *out)      \
    {                                                                                \
        pack_eights(codes, eights, bits, out);                                       \
    }                                                                                \
    static void unpack_##bits(const uint8_t *packed, int64_t eights, uint8_t *codes) \
    {                                                                                \
        unpack_eights(packed, eights, bits, codes);                                  \
    }
WIDTH(1)
WIDTH(2)
WIDTH(3)
WIDTH(4)
WIDTH(5)
WIDTH(6)
WIDTH(7)
WIDTH(8)

static const struct {
    void (*pack)(const uint8_t *codes, int64_t eights, uint8_t *out);
    void (*unpack)(const uint8_t *packed, int64_t eights, uint8_t *codes);
} widths[] = {{NULL, NULL},       {pack_1, unpack_1}, {pack_2, unpack_2}, {pack_3, unpack_3}, {pack_4, unpack_4},
              {pack_5, unpack_5}, {pack_6, unpack_6}, {pack_7, unpack_7}, {pack_8, unpack_8}};

int64_t pack_bytes(int64_t count, int bits)
{
    return count / 8 * bits + (count % 8 * bits + 7) / 8;
}

int64_t pack_words(int64_t count, int bits)
{
    return count / 32 * bits + (count % 32 * bits + 31) / 32;
}

void pack_codes(const uint8_t *codes, int64_t count, int bits, uint8_t *out)
{
    int64_t eights = count / EIGHT, rest = count % EIGHT;
    uint8_t last[EIGHT] = {0}, packed[EIGHT];

    assert(bits >= 1 && bits <= 8);
    widths[bits].pack(codes, eights, out);
    if (rest > 0) {
        memcpy(last, codes + eights * EIGHT, (size_t)rest);
        widths[bits].pack(last, 1, packed);
        memcpy(out + eights * bits, packed, (size_t)pack_bytes(rest, bits));
    }
}

void pack_uncodes(const uint8_t *packed, int64_t count, int bits, uint8_t *codes)
{
    int64_t eights = count / EIGHT, rest = count % EIGHT;
    uint8_t last[EIGHT] = {0}, wide[EIGHT];

    assert(bits >= 1 && bits <= 8);
    widths[bits].unpack(packed, eights, codes);
    if (rest > 0) {
        memcpy(last, packed + eights * bits, (size_t)pack_bytes(rest, bits));
        widths[bits].unpack(last, 1, wide);
        memcpy(codes + eights * EIGHT, wide, (size_t)rest);
    }
}

/* Complete words, the last one padded; both sides are contiguous. */
static void pack_row(const uint8_t *codes, int64_t count, int bits, uint32_t *words)
{
    int64_t bytes = pack_bytes(count, bits);

    pack_codes(codes, count, bits, (uint8_t *)words);
    memset((uint8_t *)words + bytes, 0, (size_t)(pack_words(count, bits) * 4 - bytes));
}

void pack_stream(const uint8_t *codes, int64_t count, int64_t code_stride, int bits, uint32_t *words,
                 int64_t word_stride)
{
    uint8_t near[CHUNK];
    uint32_t packed[8];

    if (code_stride == 1 && word_stride == 1) {
        pack_row(codes, count, bits, words);
        return;
    }
    for (int64_t at = 0; at < count; at += CHUNK) {
        int64_t part = count - at < CHUNK ? count - at : CHUNK;
        for (int64_t i = 0; i < part; i++) {
            near[i] = codes[(at + i) * code_stride];
        }
        pack_row(near, part, bits, packed);
        for (int64_t w = 0; w < pack_words(part, bits); w++) {
            words[(at / CHUNK * bits + w) * word_stride] = packed[w];
        }
    }
}

#define TILE_ROWS 32
#define TILE_WORDS 64

/* A tile of packed rows, written word by word of its width: TILE_ROWS neighbours at a time, complete cache lines. */
static void put_tile(const uint32_t *tile, int64_t rows, int64_t tile_words, int64_t stride, uint32_t *words)
{
    for (int64_t w = 0; w < tile_words; w++) {
        for (int64_t n = 0; n < rows; n++) {
            words[w * stride + n] = tile[n * TILE_WORDS + w];
        }
    }
}

void pack_down(const uint8_t *codes, int64_t rows, int64_t cols, int bits, uint32_t *words)
{
    uint32_t tile[TILE_ROWS * TILE_WORDS];
    const int64_t span = TILE_WORDS / bits * CHUNK; /* codes of a row in a tile: complete words */

    for (int64_t n = 0; n < rows; n += TILE_ROWS) {
        int64_t height = rows - n < TILE_ROWS ? rows - n : TILE_ROWS;
        for (int64_t k = 0; k < cols; k += span) {
            int64_t part = cols - k < span ? cols - k : span;
            for (int64_t i = 0; i < height; i++) {
                pack_row(codes + (n + i) * cols + k, part, bits, tile + i * TILE_WORDS);
            }
            put_tile(tile, height, pack_words(part, bits), rows, words + k / CHUNK * bits * rows + n);
        }
    }
}
