/* Dense bit streams (the layout that GPTQ and compressed-tensors >= 0.17 share; they differ only in which axis is
 * packed and how the words lie, hence the two strides). The accumulator is 64 bits wide: at most 31 + 8 are ever in
 * use. */

#include "storage/pack.h"

#include <assert.h>

int64_t pack_words(int64_t count, int bits)
{
    return count / 32 * bits + (count % 32 * bits + 31) / 32;
}

void pack_stream(const uint8_t *codes, int64_t count, int64_t code_stride, int bits, uint32_t *words,
                 int64_t word_stride)
{
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    uint64_t pending = 0;
    int held = 0;

    assert(bits >= 1 && bits <= 8);
    for (int64_t i = 0; i < count; i++) {
        pending |= (codes[i * code_stride] & mask) << held;
        held += bits;
        if (held >= 32) {
            *words = (uint32_t)pending;
            words += word_stride;
            pending >>= 32;
            held -= 32;
        }
    }
    if (held > 0) {
        *words = (uint32_t)pending;
    }
}

void pack_unstream(const uint32_t *words, int64_t count, int64_t word_stride, int bits, uint8_t *codes,
                   int64_t code_stride)
{
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    uint64_t pending = 0;
    int held = 0;

    assert(bits >= 1 && bits <= 8);
    for (int64_t i = 0; i < count; i++) {
        if (held < bits) {
            pending |= (uint64_t)*words << held;
            words += word_stride;
            held += 32;
        }
        codes[i * code_stride] = (uint8_t)(pending & mask);
        pending >>= bits;
        held -= bits;
    }
}
