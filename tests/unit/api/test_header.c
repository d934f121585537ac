/* Header values: what is understood, and that nonsense has one defined meaning. */

#include "../unit.h"
#include "api/header.h"

#include <string.h>

START_TEST(test_header_tokens)
{
    ck_assert(header_is_token("X-Request-Id", 12));
    ck_assert(!header_is_token("", 0));
    ck_assert(!header_is_token("a b", 3));
    ck_assert(!header_is_token("a\0b", 3));
    ck_assert(!header_is_token("\xc3\xa4", 2));
    ck_assert(header_is_value("a\tb \xc3\xa4", 6));
    ck_assert(!header_is_value("a\0b", 3));
    ck_assert(!header_is_value("a\rb", 3));
}
END_TEST

START_TEST(test_header_media_types)
{
    ck_assert(header_media_type_is("application/json", "application/json"));
    ck_assert(header_media_type_is(" Application/JSON ; charset=\"UTF-8\"", "application/json"));
    ck_assert(header_media_type_is("application/json;x=y;charset=utf-8", "application/json"));
    ck_assert(!header_media_type_is("application/json; charset=latin1", "application/json"));
    ck_assert(!header_media_type_is("application/json; charset=", "application/json"));
    ck_assert(!header_media_type_is("application/jsonx", "application/json"));
    ck_assert(!header_media_type_is("text/plain, application/json", "application/json"));
    ck_assert(!header_media_type_is(NULL, "application/json"));
}
END_TEST

START_TEST(test_header_negotiation)
{
    static const char *const offers[] = {"application/json", "text/csv", NULL};
    static const struct {
        const char *accept;
        int choice;
    } rows[] = {
        {NULL, 0},
        {"", 0},
        {"*/*", 0},
        {"text/csv", 1},
        {"text/*", 1},
        {"TEXT/CSV;q=0.5, application/json;q=0.4", 1},
        {"text/csv;q=0.5, */*;q=0.5", 0},
        {"application/json;q=0, */*", 1},
        {"text/html", -1},
        {"text/csv;q=0", -1},
        {"text/csv;q=x, application/json;q=0.001", 0},
        {";;,,", -1},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_msg(header_negotiate(rows[i].accept, offers) == rows[i].choice, "row %zu", i);
    }
}
END_TEST

START_TEST(test_header_codings)
{
    static const struct {
        const char *value;
        bool accepted;
    } rows[] = {
        {"gzip", true},
        {"GZIP", true},
        {"deflate, gzip;q=1.0, *;q=0.5", true},
        {"*", true},
        {"br, *;q=0.1", true},
        {"gzip ;q=0.001", true},
        {NULL, false},
        {"", false},
        {"identity", false},
        {"gzip;q=0", false},
        {"gzip;q=0, *", false},
        {"*;q=0", false},
        {"gzipped", false},
        {"x-gzip", false},
        {";;,,", false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_msg(header_accepts_coding(rows[i].value, "gzip") == rows[i].accepted, "row %zu", i);
    }
}
END_TEST

START_TEST(test_header_etags)
{
    ck_assert(header_etag_matches("\"a\"", "\"a\"", false));
    ck_assert(header_etag_matches("\"b\", \"a\"", "\"a\"", false));
    ck_assert(header_etag_matches("W/\"a\"", "\"a\"", true));
    ck_assert(!header_etag_matches("W/\"a\"", "\"a\"", false));
    ck_assert(header_etag_matches("*", "\"a\"", false));
    ck_assert(!header_etag_matches("a", "\"a\"", true));
    ck_assert(!header_etag_matches("\"a", "\"a\"", true));
    ck_assert(!header_etag_matches("", "\"a\"", true));
    ck_assert(!header_etag_matches(NULL, "\"a\"", true));
}
END_TEST

START_TEST(test_header_ranges)
{
    static const struct {
        const char *value;
        int64_t size;
        enum header_range kind;
        int64_t first, last;
    } rows[] = {
        {"bytes=0-0", 10, HEADER_RANGE_ONE, 0, 0},
        {"Bytes=2-", 10, HEADER_RANGE_ONE, 2, 9},
        {"bytes=2-100", 10, HEADER_RANGE_ONE, 2, 9},
        {"bytes=-4", 10, HEADER_RANGE_ONE, 6, 9},
        {"bytes=-40", 10, HEADER_RANGE_ONE, 0, 9},
        {"bytes=10-", 10, HEADER_RANGE_UNSATISFIABLE, 0, 0},
        {"bytes=-0", 10, HEADER_RANGE_UNSATISFIABLE, 0, 0},
        {"bytes=0-", 0, HEADER_RANGE_UNSATISFIABLE, 0, 0},
        {"bytes=4-2", 10, HEADER_RANGE_NONE, 0, 0},
        {"bytes=0-1,3-4", 10, HEADER_RANGE_NONE, 0, 0},
        {"bytes=-", 10, HEADER_RANGE_NONE, 0, 0},
        {"bytes=a-b", 10, HEADER_RANGE_NONE, 0, 0},
        {"bytes=99999999999999999999-", 10, HEADER_RANGE_NONE, 0, 0},
        {"lines=0-1", 10, HEADER_RANGE_NONE, 0, 0},
        {NULL, 10, HEADER_RANGE_NONE, 0, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int64_t first = 0, last = 0;
        ck_assert_msg(header_range_parse(rows[i].value, rows[i].size, &first, &last) == rows[i].kind, "row %zu", i);
        ck_assert_int_eq(first, rows[i].first);
        ck_assert_int_eq(last, rows[i].last);
    }
}
END_TEST

START_TEST(test_header_prefer)
{
    ck_assert_int_eq(header_prefer_wait("wait=10", 60), 10);
    ck_assert_int_eq(header_prefer_wait("respond-async, wait=100", 60), 60);
    ck_assert_int_eq(header_prefer_wait("wait=5;x=y", 60), 5);
    ck_assert_int_eq(header_prefer_wait("wait=-5", 60), 0);
    ck_assert_int_eq(header_prefer_wait("wait=", 60), 0);
    ck_assert_int_eq(header_prefer_wait(NULL, 60), 0);
}
END_TEST

START_TEST(test_header_decoding)
{
    char out[8];
    ck_assert(header_percent_decode("a%20b+c", 7, false, out, sizeof(out)));
    ck_assert_str_eq(out, "a b+c");
    ck_assert(header_percent_decode("a%20b+c", 7, true, out, sizeof(out)));
    ck_assert_str_eq(out, "a b c");
    ck_assert(header_percent_decode("", 0, true, out, sizeof(out)));
    ck_assert_str_eq(out, "");
    ck_assert(header_percent_decode("1234567", 7, true, out, sizeof(out)));
    ck_assert(!header_percent_decode("12345678", 8, true, out, sizeof(out)));
    ck_assert(!header_percent_decode("%4", 2, true, out, sizeof(out)));
    ck_assert(!header_percent_decode("%", 1, true, out, sizeof(out)));
    ck_assert(!header_percent_decode("%00", 3, true, out, sizeof(out)));
    ck_assert(!header_percent_decode("%g0", 3, true, out, sizeof(out)));
    ck_assert(!header_percent_decode("a", 1, true, out, 0));
}
END_TEST

START_TEST(test_header_numbers)
{
    int64_t value = -1;
    ck_assert(header_parse_u63("9223372036854775807", 19, &value));
    ck_assert_int_eq(value, INT64_MAX);
    ck_assert(!header_parse_u63("9223372036854775808", 19, &value));
    ck_assert(!header_parse_u63("", 0, &value));
    ck_assert(!header_parse_u63("1 ", 2, &value));
}
END_TEST

UNIT_MAIN("header", test_header_tokens, test_header_media_types, test_header_negotiation, test_header_codings,
          test_header_etags, test_header_ranges, test_header_prefer, test_header_decoding, test_header_numbers)
