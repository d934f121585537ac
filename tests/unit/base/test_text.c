/* UTF-8 repair against every boundary of the encoding, and JSON Pointers. */

#include "tests/unit/unit.h"

#include "base/text.h"

#include <string.h>

START_TEST(valid_text_stays)
{
    static const char *const rows[] = {"",
                                       "plain",
                                       "\xc2\x80",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "a\xc3\xa9z"};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char text[16];
        strcpy(text, rows[i]);
        text_repair(text);
        ck_assert_str_eq(text, rows[i]);
    }
}
END_TEST

START_TEST(invalid_bytes_become_question_marks)
{
    static const struct {
        const char *in, *out;
    } rows[] = {
        {"\x80", "?"},      /* alone */
        {"\xc0\xaf", "??"}, /* overlong */
        {"\xc1\xbf", "??"},
        {"\xe0\x9f\xbf", "???"},
        {"\xf0\x8f\xbf\xbf", "????"},
        {"\xed\xa0\x80", "???"},      /* surrogate */
        {"\xf4\x90\x80\x80", "????"}, /* above U+10FFFF */
        {"\xf5\x80", "??"},
        {"ab\xe2\x82", "ab??"}, /* cut off */
        {"\xc3"
         "A\xff"
         "B",
         "?A?B"},
        {"\xe2\x82"
         "A",
         "??A"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char text[16];
        strcpy(text, rows[i].in);
        text_repair(text);
        ck_assert_str_eq(text, rows[i].out);
    }
}
END_TEST

START_TEST(pointers_escape_and_fit)
{
    char out[64];
    text_pointer(out, sizeof(out), "/a", "b/c~d");
    ck_assert_str_eq(out, "/a/b~1c~0d");
    text_pointer(out, sizeof(out), "", "");
    ck_assert_str_eq(out, "/");
    text_pointer(out, 8, "/abc", "d/e");
    ck_assert_str_eq(out, "/abc/d"); /* half an escape would be another pointer */
    text_pointer(out, 8, "/abcdefgh", "x");
    ck_assert_str_eq(out, "/abcdef");
    text_pointer(out, 4, "", "a\xc3\xa9");
    ck_assert_str_eq(out, "/a?");
}
END_TEST

START_TEST(names_are_guessed)
{
    static const char *const names[] = {"bits", "group_size", "damp_percent", "act_order", "sym", "fp8_e4m3", NULL};
    static const struct {
        const char *word, *name; /* NULL: none is near */
    } rows[] = {
        {"groupsize", "group_size"},
        {"group_szie", "group_size"},
        {"group", "group_size"},
        {"Bits", "bits"},
        {"bist", "bits"},
        {"damp", "damp_percent"},
        {"fp8", "fp8_e4m3"},
        {"colour", NULL},
        {"", NULL},
        {"x", NULL},
        {"temperature", NULL},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct text_guess guess = {.word = rows[i].word};
        for (size_t k = 0; names[k] != NULL; k++) {
            text_guess_offer(&guess, names[k]);
        }
        ck_assert_msg((guess.name == NULL) == (rows[i].name == NULL), "%s", rows[i].word);
        ck_assert_msg(guess.name == NULL || strcmp(guess.name, rows[i].name) == 0, "%s: %s", rows[i].word, guess.name);
    }
    char large[400];
    memset(large, 'g', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    struct text_guess guess = {.word = large};
    text_guess_offer(&guess, large);
    ck_assert_ptr_null(guess.name);
    ck_assert(text_same_name("LLM.int8()", "llm_int8"));
    ck_assert(!text_same_name("gptq_v2", "gptq"));
    ck_assert(!text_same_name("", ""));
    ck_assert(!text_same_name(large, large));
}
END_TEST

UNIT_MAIN("text", valid_text_stays, invalid_bytes_become_question_marks, pointers_escape_and_fit, names_are_guessed)
