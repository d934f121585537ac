#pragma once
/* Bit packing: codes of 1..8 bits as a dense little-endian stream in 32-bit words, code i at bit i * bits. */

#include <stdint.h>

/* Words that `count` codes fill, the last one padded with zero bits. */
int64_t pack_words(int64_t count, int bits);
/* Pack codes[i * code_stride] into words[w * word_stride]. Bits of a code above `bits` are dropped, so that a bad code
 * cannot reach its neighbours. Any bits 1..8: 2, 4 and 8 never straddle a word, 3 does (32 codes fill three words). */
void pack_stream(const uint8_t *codes, int64_t count, int64_t code_stride, int bits, uint32_t *words,
                 int64_t word_stride);
/* The inverse. */
void pack_unstream(const uint32_t *words, int64_t count, int64_t word_stride, int bits, uint8_t *codes,
                   int64_t code_stride);
