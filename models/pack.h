#pragma once
/* Bit packing: codes of 1..8 bits as a dense little-endian stream, code i at bit i * bits. As bytes (blocks' files) or
 * as 32-bit words (artifacts): the same bits on a little-endian host, the last byte or word padded with zeros. Bits of
 * a code above `bits` are dropped, so that a bad code cannot reach its neighbours. Any thread; nothing fails. */

#include <stdint.h>

/* Bytes and words that `count` codes fill. */
int64_t pack_bytes(int64_t count, int bits);
int64_t pack_words(int64_t count, int bits);
/* codes[count] to pack_bytes of out, and back. */
void pack_codes(const uint8_t *codes, int64_t count, int bits, uint8_t *out);
void pack_uncodes(const uint8_t *packed, int64_t count, int bits, uint8_t *codes);
/* Pack codes[i * code_stride] into words[w * word_stride]. Any bits 1..8: 2, 4 and 8 never straddle a word, 3 does (32
 * codes fill three words). Fastest with both strides 1. */
void pack_stream(const uint8_t *codes, int64_t count, int64_t code_stride, int bits, uint32_t *words,
                 int64_t word_stride);
/* codes [rows, cols], every row a stream down a column of words [pack_words(cols), rows]. */
void pack_down(const uint8_t *codes, int64_t rows, int64_t cols, int bits, uint32_t *words);
