/* The words that the formats document, and the bit stream against a definition by single bits. */

#include "tests/unit/unit.h"

#include "storage/pack.h"

#include <string.h>

static void check_words(int bits, const uint8_t *codes, int count, const uint32_t *wanted, int words)
{
    uint32_t got[8] = {0};
    uint8_t back[64] = {0};

    ck_assert_int_eq(pack_words(count, bits), words);
    pack_stream(codes, count, 1, bits, got, 1);
    for (int i = 0; i < words; i++) {
        ck_assert_uint_eq(got[i], wanted[i]);
    }
    pack_unstream(got, count, 1, bits, back, 1);
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
            pack_unstream(words, count, STRIDE, bits, back, STRIDE);
            for (int i = 0; i < count; i++) {
                ck_assert_uint_eq(back[i * STRIDE], codes[i * STRIDE]);
                ck_assert_uint_eq(back[i * STRIDE + 1], 0xEE);
            }
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
}
END_TEST

UNIT_MAIN("pack", documented_words, documented_signed_words, documented_zero_words, the_stream_by_definition,
          a_bad_code_stays_in_its_place, large_counts_do_not_overflow)
