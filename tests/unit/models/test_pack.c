/* The words that the formats document, and the bit stream against a definition by single bits. */

#include "tests/unit/unit.h"

#include "models/pack.h"

#include <stdlib.h>
#include <string.h>

/* The definition: one bit after another. */
static void pack_naive(const uint8_t *codes, int64_t count, int64_t code_stride, int bits, uint32_t *words,
                       int64_t word_stride)
{
    for (int64_t w = 0; w < pack_words(count, bits); w++) {
        words[w * word_stride] = 0;
    }
    for (int64_t bit = 0; bit < count * bits; bit++) {
        uint32_t set = codes[bit / bits * code_stride] >> (bit % bits) & 1u;
        words[bit / 32 * word_stride] |= set << (bit % 32);
    }
}

static void unpack_naive(const uint32_t *words, int64_t count, int64_t word_stride, int bits, uint8_t *codes,
                         int64_t code_stride)
{
    for (int64_t i = 0; i < count; i++) {
        codes[i * code_stride] = 0;
    }
    for (int64_t bit = 0; bit < count * bits; bit++) {
        uint32_t set = words[bit / 32 * word_stride] >> (bit % 32) & 1u;
        codes[bit / bits * code_stride] |= (uint8_t)(set << (bit % bits));
    }
}

static void check_words(int bits, const uint8_t *codes, int count, const uint32_t *wanted, int words)
{
    uint32_t got[8] = {0};
    uint8_t back[64] = {0};

    ck_assert_int_eq(pack_words(count, bits), words);
    pack_stream(codes, count, 1, bits, got, 1);
    for (int i = 0; i < words; i++) {
        ck_assert_uint_eq(got[i], wanted[i]);
    }
    unpack_naive(got, count, 1, bits, back, 1);
    ck_assert_int_eq(memcmp(back, codes, (size_t)count), 0);
}

START_TEST(documented_words)
{
    static const uint8_t four[] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const uint8_t two[] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    static const uint8_t eight[] = {1, 2, 3, 4};
    uint8_t three[32];

    for (int i = 0; i < 32; i++) {
        three[i] = (uint8_t)(i % 8);
    }
    check_words(4, four, 8, (const uint32_t[]){0x87654321u}, 1);
    check_words(2, two, 16, (const uint32_t[]){0xE4E4E4E4u}, 1);
    check_words(8, eight, 4, (const uint32_t[]){0x04030201u}, 1);
    check_words(3, three, 32, (const uint32_t[]){0x88FAC688u, 0xC688FAC6u, 0xFAC688FAu}, 3);
}
END_TEST

/* compressed-tensors: signed q is stored as u = q + 2^(b-1). */
START_TEST(documented_signed_words)
{
    static const int low[] = {-8, -7, -6, -5, -4, -3, -2, -1}, middle[] = {-4, -3, -2, -1, 0, 1, 2, 3},
                     wide[] = {-128, -1, 0, 127};
    uint8_t u[8];

    for (int i = 0; i < 8; i++) {
        u[i] = (uint8_t)(low[i] + 8);
    }
    check_words(4, u, 8, (const uint32_t[]){0x76543210u}, 1);
    for (int i = 0; i < 8; i++) {
        u[i] = (uint8_t)(middle[i] + 8);
    }
    check_words(4, u, 8, (const uint32_t[]){0xBA987654u}, 1);
    for (int i = 0; i < 4; i++) {
        u[i] = (uint8_t)(wide[i] + 128);
    }
    check_words(8, u, 4, (const uint32_t[]){0xFF807F00u}, 1);
}
END_TEST

START_TEST(documented_zero_words)
{
    static const struct {
        int bits;
        uint32_t v1[3], v2[3];
    } rows[] = {
        {2, {0x55555555u}, {0xAAAAAAAAu}},
        {3, {0xDB6DB6DBu, 0xB6DB6DB6u, 0x6DB6DB6Du}, {0x24924924u, 0x49249249u, 0x92492492u}},
        {4, {0x77777777u}, {0x88888888u}},
        {8, {0x7F7F7F7Fu}, {0x80808080u}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int words = rows[i].bits == 3 ? 3 : 1, count = words * 32 / rows[i].bits;
        uint8_t codes[32];
        memset(codes, (1 << (rows[i].bits - 1)) - 1, sizeof(codes));
        check_words(rows[i].bits, codes, count, rows[i].v1, words);
        memset(codes, 1 << (rows[i].bits - 1), sizeof(codes));
        check_words(rows[i].bits, codes, count, rows[i].v2, words);
    }
}
END_TEST

static unsigned bit_of(const uint32_t *words, int64_t stride, int64_t bit)
{
    return words[bit / 32 * stride] >> (bit % 32) & 1;
}

/* Code i lies at bit i * bits, for every width, length and stride; what lies between the strides is not touched. */
START_TEST(the_stream_by_definition)
{
    enum { MOST = 77, STRIDE = 3 };
    uint8_t codes[MOST * STRIDE], back[MOST * STRIDE];
    uint32_t words[(MOST * 8 / 32 + 1) * STRIDE];
    uint32_t seed = 1;

    for (int bits = 1; bits <= 8; bits++) {
        for (int count = 0; count <= MOST; count++) {
            for (size_t i = 0; i < sizeof(codes); i++) {
                seed = seed * 1664525u + 1013904223u;
                codes[i] = (uint8_t)(seed >> 24 & ((1u << bits) - 1));
            }
            memset(words, 0xA5, sizeof(words));
            memset(back, 0xEE, sizeof(back));
            int64_t n = pack_words(count, bits);
            ck_assert_int_eq(n, ((int64_t)count * bits + 31) / 32);
            pack_stream(codes, count, STRIDE, bits, words, STRIDE);
            for (int64_t bit = 0; bit < n * 32; bit++) {
                int64_t code = bit / bits;
                unsigned wanted = code < count ? codes[code * STRIDE] >> (bit % bits) & 1u : 0; /* padding is zero */
                ck_assert_uint_eq(bit_of(words, STRIDE, bit), wanted);
            }
            for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
                ck_assert(((int64_t)i < n * STRIDE && i % STRIDE == 0) || words[i] == 0xA5A5A5A5u);
            }
            unpack_naive(words, count, STRIDE, bits, back, STRIDE);
            for (int i = 0; i < count; i++) {
                ck_assert_uint_eq(back[i * STRIDE], codes[i * STRIDE]);
                ck_assert_uint_eq(back[i * STRIDE + 1], 0xEE);
            }
        }
    }
}
END_TEST

/* Bytes of any value: codes beyond their bits are part of the contract. */
static uint8_t *noise(size_t size, uint32_t seed)
{
    uint8_t *bytes = malloc(size);

    ck_assert_ptr_nonnull(bytes);
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(seed >> 24);
    }
    return bytes;
}

static void check_codes_back(const uint8_t *codes, const uint8_t *back, int64_t count, int bits)
{
    for (int64_t i = 0; i < count; i++) {
        ck_assert_uint_eq(back[i], codes[i] & ((1u << bits) - 1));
    }
    ck_assert_uint_eq(back[count], 0xEE);
}

/* Codes that lie together, in buffers of exactly their size (so that the sanitizer sees a read or write beyond them),
 * from an odd address, for every tail. */
START_TEST(codes_that_lie_together)
{
    for (int bits = 1; bits <= 8; bits++) {
        for (int64_t count = 0; count < 150; count += count < 70 ? 1 : 13) {
            int64_t n = pack_words(count, bits), bytes = pack_bytes(count, bits);
            uint8_t *room = noise((size_t)count + 1, (uint32_t)count), *codes = room + 1;
            uint8_t *back = malloc((size_t)count + 1), *stream = malloc((size_t)bytes + 1);
            uint32_t *wanted = malloc((size_t)n * 4 + 4), *got = malloc((size_t)n * 4 + 4);
            ck_assert_int_eq(bytes, (count * bits + 7) / 8);
            pack_naive(codes, count, 1, bits, wanted, 1);
            got[n] = 0xA5A5A5A5u;
            pack_stream(codes, count, 1, bits, got, 1);
            ck_assert_int_eq(memcmp(got, wanted, (size_t)n * 4), 0);
            ck_assert_uint_eq(got[n], 0xA5A5A5A5u);
            stream[bytes] = 0xA5;
            pack_codes(codes, count, bits, stream);
            ck_assert_int_eq(memcmp(stream, wanted, (size_t)bytes), 0);
            ck_assert_uint_eq(stream[bytes], 0xA5);
            back[count] = 0xEE;
            unpack_naive(got, count, 1, bits, back, 1);
            check_codes_back(codes, back, count, bits);
            stream = realloc(stream, bytes > 0 ? (size_t)bytes : 1);
            memset(back, 0, (size_t)count);
            pack_uncodes(stream, count, bits, back);
            check_codes_back(codes, back, count, bits);
            free(room);
            free(back);
            free(stream);
            free(wanted);
            free(got);
        }
    }
}
END_TEST

/* One side with a stride and the other without. */
START_TEST(one_stride)
{
    enum { MOST = 131, STRIDE = 5 };
    uint8_t *codes = noise((size_t)MOST * STRIDE, 3), back[MOST * STRIDE];
    uint32_t wanted[(MOST * 8 / 32 + 1) * STRIDE], got[(MOST * 8 / 32 + 1) * STRIDE];

    for (int bits = 1; bits <= 8; bits++) {
        for (int count = MOST - 34; count <= MOST; count++) {
            for (int which = 0; which < 2; which++) {
                int64_t near = which == 0 ? 1 : STRIDE, far = which == 0 ? STRIDE : 1;
                memset(wanted, 0xA5, sizeof(wanted));
                memset(got, 0xA5, sizeof(got));
                pack_naive(codes, count, near, bits, wanted, far);
                pack_stream(codes, count, near, bits, got, far);
                ck_assert_int_eq(memcmp(got, wanted, sizeof(got)), 0);
                unpack_naive(got, count, far, bits, back, near);
                for (int i = 0; i < count; i++) {
                    ck_assert_uint_eq(back[i * near], codes[i * near] & ((1u << bits) - 1));
                }
            }
        }
    }
    free(codes);
}
END_TEST

/* Rows down columns: every width, shapes below, at and above a tile, words that are not filled. */
START_TEST(rows_down_columns)
{
    static const int64_t shapes[][2] = {{1, 1}, {3, 37}, {32, 256}, {33, 300}, {70, 2100}};

    for (int bits = 1; bits <= 8; bits++) {
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
            int64_t rows = shapes[s][0], cols = shapes[s][1], words = pack_words(cols, bits);
            size_t size = (size_t)(rows * words) * sizeof(uint32_t);
            uint8_t *codes = noise((size_t)(rows * cols), (uint32_t)s);
            uint32_t *wanted = malloc(size), *got = malloc(size);
            for (int64_t n = 0; n < rows; n++) {
                pack_naive(codes + n * cols, cols, 1, bits, wanted + n, rows);
            }
            pack_down(codes, rows, cols, bits, got);
            ck_assert_int_eq(memcmp(got, wanted, size), 0);
            free(codes);
            free(wanted);
            free(got);
        }
    }
}
END_TEST

START_TEST(a_bad_code_stays_in_its_place)
{
    static const uint8_t codes[] = {0xFF, 0, 0xFF, 0};
    uint32_t word;

    pack_stream(codes, 4, 1, 4, &word, 1);
    ck_assert_uint_eq(word, 0x0F0Fu);
}
END_TEST

START_TEST(large_counts_do_not_overflow)
{
    ck_assert_int_eq(pack_words(INT64_C(1) << 60, 8), INT64_C(1) << 58);
    ck_assert_int_eq(pack_bytes(INT64_C(1) << 60, 7), INT64_C(7) << 57);
}
END_TEST

UNIT_MAIN("pack", documented_words, documented_signed_words, documented_zero_words, the_stream_by_definition,
          codes_that_lie_together, one_stride, rows_down_columns, a_bad_code_stays_in_its_place,
          large_counts_do_not_overflow)
