/* Text of a server on a terminal: nothing that moves the cursor, whatever bytes came. */

#include "cli/safe.h"
#include "tests/unit/unit.h"

#include <locale.h>
#include <string.h>

struct text_case {
    const char *in, *out;
};

static const struct text_case cases[] = {
    {"plain text", "plain text"},
    {"", ""},
    {"\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"},
    {"a\nb\rc\td", "a\\x0ab\\x0dc\\x09d"},
    {"\x7f", "\\x7f"},
    {"\xc2\x9b"
     "2J",
     "\\x9b2J"},
    {"\xe2\x80\xae"
     "fdp.exe",
     "\\u{202e}fdp.exe"},
    {"\xe2\x80\xa8", "\\u{2028}"},
    {"\xe2\x81\xa6", "\\u{2066}"},
    {"gr\xc3\xbc\xc3\x9f \xe6\xbc\xa2", "gr\xc3\xbc\xc3\x9f \xe6\xbc\xa2"},
    {"\xff\xfe", "\\xff\\xfe"},
    {"\xc3", "\\xc3"},
    {"\xed\xa0\x80", "\\xed\\xa0\\x80"}, /* half of a surrogate pair */
    {"\xc0\x9b", "\\xc0\\x9b"},          /* ESC in a form that is too long */
    {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},
};

START_TEST(test_copy)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *copy = NULL;
        ck_assert_rc_ok(safe_copy(cases[i].in, &copy));
        ck_assert_str_eq(copy, cases[i].out);
        free(copy);
    }
}
END_TEST

START_TEST(test_printf_keeps_its_own_newlines)
{
    char *text = NULL;
    size_t size = 0;

    FILE *out = open_memstream(&text, &size);
    safe_printf(out, "%s: %d\n", "a\nb\x1b[A", 3);
    safe_printf(out, "\n%s\n\n", "\nc\n");
    safe_printf(out, "\n%s", "");
    safe_printf(out, "\n");
    safe_printf(out, "end");
    fclose(out);
    ck_assert_str_eq(text, "a\\x0ab\\x1b[A: 3\n\n\\x0ac\\x0a\n\n\n\nend");
    free(text);
}
END_TEST

START_TEST(test_printf_is_bounded)
{
    char *text = NULL, *large = malloc(200000);
    size_t size = 0;

    memset(large, 'x', 199999);
    large[199999] = '\0';
    FILE *out = open_memstream(&text, &size);
    safe_printf(out, "%s\n", large);
    fclose(out);
    ck_assert_uint_gt(size, 60000);
    ck_assert_uint_le(size, 65537);
    free(text);
    free(large);
}
END_TEST

START_TEST(test_width)
{
    ck_assert_ptr_nonnull(setlocale(LC_CTYPE, "C.UTF-8"));
    ck_assert_uint_eq(safe_width("abc"), 3);
    ck_assert_uint_eq(safe_width("gr\xc3\xbc\xc3\x9f"), 4);
    ck_assert_uint_eq(safe_width("\xe6\xbc\xa2"), 2);
    ck_assert_uint_eq(safe_width("\xff"), 1);
}
END_TEST

UNIT_MAIN("cli_safe", test_copy, test_printf_keeps_its_own_newlines, test_printf_is_bounded, test_width)
