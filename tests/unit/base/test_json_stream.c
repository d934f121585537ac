/* The pull parser: tokens of good text, refusal of everything that RFC 8259 refuses, bounds on depth and memory. */

#include "base/json_stream.h"
#include "tests/unit/unit.h"

#include <string.h>

static struct json_stream stream_of(const char *text, size_t size)
{
    struct json_stream stream;
    json_stream_init(&stream, text, size);
    return stream;
}

/* Read to the end; true when the text is one valid value. */
static bool accepts(const char *text, size_t size)
{
    struct json_stream stream = stream_of(text, size);
    enum json_token token;

    do {
        token = json_stream_next(&stream);
    } while (token != JSON_TOKEN_END && token != JSON_TOKEN_ERROR);
    ck_assert_int_eq(token == JSON_TOKEN_ERROR, stream.error != NULL);
    ck_assert_uint_le(stream.at, size);
    json_stream_deinit(&stream);
    return token == JSON_TOKEN_END;
}

static void expect_text(const struct json_stream *stream, const char *text)
{
    ck_assert_uint_eq(stream->length, strlen(text));
    ck_assert_int_eq(memcmp(stream->text, text, stream->length), 0);
}

START_TEST(test_tokens)
{
    static const char text[] =
        " {\"a\": [1, -2.5e+3, true, false, null], \"\\u00e9\\n\": {\"x\": \"y\"}, \"e\": {}} \n";
    struct json_stream s = stream_of(text, sizeof(text) - 1);

    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_OBJECT_BEGIN);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_KEY);
    expect_text(&s, "a");
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_ARRAY_BEGIN);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_NUMBER);
    expect_text(&s, "1");
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_NUMBER);
    expect_text(&s, "-2.5e+3");
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_TRUE);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_FALSE);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_NULL);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_ARRAY_END);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_KEY);
    expect_text(&s, "\xc3\xa9\n");
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_OBJECT_BEGIN);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_KEY);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_STRING);
    expect_text(&s, "y");
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_OBJECT_END);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_KEY);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_OBJECT_BEGIN);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_OBJECT_END);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_OBJECT_END);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_END);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_END);
    json_stream_deinit(&s);
}
END_TEST

START_TEST(test_escapes)
{
    static const struct {
        const char *json, *text;
    } rows[] = {
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u20AC\"", "A\xe2\x82\xac"},
        {"\"\\ud83d\\ude00!\"", "\xf0\x9f\x98\x80!"},
        {"\"\xf4\x8f\xbf\xbf\"", "\xf4\x8f\xbf\xbf"},
        {"\"\"", ""},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct json_stream s = stream_of(rows[i].json, strlen(rows[i].json));
        ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_STRING);
        expect_text(&s, rows[i].text);
        ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_END);
        json_stream_deinit(&s);
    }
    struct json_stream s = stream_of("\"a\\u0000b\"", 10);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_STRING);
    ck_assert_uint_eq(s.length, 3);
    ck_assert_int_eq(memcmp(s.text, "a\0b", 3), 0);
    json_stream_deinit(&s);
}
END_TEST

START_TEST(test_refuses)
{
    static const char *const rows[] = {
        "",
        " ",
        "{",
        "[",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{a:1}",
        "{\"a\" 1}",
        "{\"a\":}",
        "{1:2}",
        "]",
        "}",
        "[}",
        "{]",
        "1 2",
        "{} {}",
        "nul",
        "tru",
        "falsee",
        "True",
        "NaN",
        "01",
        "-",
        "-01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "+1",
        "0x10",
        "--1",
        "Infinity",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u123g\"",
        "\"\\ud800\"",
        "\"\\ud800x\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\\",
        "\"\n\"",
        "\"\t\"",
        "\"\x80\"",
        "\"\xc0\xaf\"",
        "\"\xe0\x80\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xf5\x80\x80\x80\"",
        "\"\xc3\"",
        "\"\xe2\x82\"",
        "\"\\\xc3\xa9\"",
        "/* */ 1",
        "[1] //",
        "\xef\xbb\xbf{}",
        "\x01",
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_msg(!accepts(rows[i], strlen(rows[i])), "accepted: %s", rows[i]);
    }
    ck_assert(!accepts("\0", 1));
    ck_assert(!accepts("1\0", 2));
    ck_assert(!accepts("\"a\0b\"", 5));
}
END_TEST

/* Whatever a good text is cut to, it is refused, and never read past its end. */
START_TEST(test_prefixes)
{
    static const char text[] =
        "{\"k\\u00e9\\ud83d\\ude00\": [1.5e-3, \"\xc3\xa9\\n\", {}, [], true, null], \"z\": {\"a\": false}}";

    ck_assert(accepts(text, sizeof(text) - 1));
    for (size_t size = 0; size < sizeof(text) - 1; size++) {
        char *copy = malloc(size + 1); /* the sanitizer guards its end */
        memcpy(copy, text, size);
        char *exact = realloc(copy, size > 0 ? size : 1);
        ck_assert(!accepts(exact, size));
        free(exact);
    }
}
END_TEST

START_TEST(test_depth)
{
    char text[2 * JSON_STREAM_DEPTH_MAX + 2];

    memset(text, '[', JSON_STREAM_DEPTH_MAX);
    memset(text + JSON_STREAM_DEPTH_MAX, ']', JSON_STREAM_DEPTH_MAX);
    ck_assert(accepts(text, (size_t)2 * JSON_STREAM_DEPTH_MAX));
    memset(text, '[', JSON_STREAM_DEPTH_MAX + 1);
    memset(text + JSON_STREAM_DEPTH_MAX + 1, ']', JSON_STREAM_DEPTH_MAX + 1);
    ck_assert(!accepts(text, sizeof(text)));
}
END_TEST

START_TEST(test_skip)
{
    static const char text[] = "[{\"a\": [1, {\"b\": []}]}, \"s\", 7]";
    struct json_stream s = stream_of(text, sizeof(text) - 1);

    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_ARRAY_BEGIN);
    ck_assert(json_stream_skip(&s, json_stream_next(&s)));
    ck_assert(json_stream_skip(&s, json_stream_next(&s)));
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_NUMBER);
    expect_text(&s, "7");
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_ARRAY_END);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_END);
    json_stream_deinit(&s);

    s = stream_of("[[1, ?]]", 8);
    ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_ARRAY_BEGIN);
    ck_assert(!json_stream_skip(&s, json_stream_next(&s)));
    ck_assert(!json_stream_skip(&s, json_stream_next(&s)));
    json_stream_deinit(&s);
}
END_TEST

START_TEST(test_u64)
{
    static const struct {
        const char *text;
        bool good;
        uint64_t value;
    } rows[] = {
        {"0", true, 0},
        {"18446744073709551615", true, UINT64_MAX},
        {"18446744073709551616", false, 0},
        {"-1", false, 0},
        {"1.0", false, 0},
        {"1e3", false, 0},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct json_stream s = stream_of(rows[i].text, strlen(rows[i].text));
        uint64_t value = 0;
        ck_assert_int_eq(json_stream_next(&s), JSON_TOKEN_NUMBER);
        ck_assert_int_eq(json_stream_u64(&s, &value), rows[i].good);
        ck_assert_uint_eq(value, rows[i].value);
        json_stream_deinit(&s);
    }
}
END_TEST

UNIT_MAIN("json_stream", test_tokens, test_escapes, test_refuses, test_prefixes, test_depth, test_skip, test_u64)
