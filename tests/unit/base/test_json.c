/* JSON input: the depth guard, duplicates, where an error lies, and range-checked members. */

#include "tests/unit/unit.h"

#include "base/json.h"

#include <string.h>

static int parse(const char *text, int depth)
{
    json_t *value = NULL;
    int rc = json_parse(text, strlen(text), depth, &value);

    ck_assert((rc == 0) == (value != NULL));
    json_decref(value);
    return rc;
}

START_TEST(depth_is_counted_before_parsing)
{
    char bomb[4097];

    ck_assert_rc_ok(parse("[[[1]]]", 3));
    ck_assert_int_eq(parse("[[[1]]]", 2), ERR_INVALID_JSON);
    ck_assert_rc_ok(parse("[\"[[[[[[\", {\"\\\"[[[\": 1}]", 2)); /* brackets in strings are text */
    ck_assert_rc_ok(parse("[[1], [1], [1]]", 2));
    memset(bomb, '[', sizeof(bomb) - 1);
    bomb[sizeof(bomb) - 1] = '\0';
    ck_assert_int_eq(parse(bomb, 32), ERR_INVALID_JSON);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "32"));
}
END_TEST

START_TEST(what_is_wrong_is_refused)
{
    static const char *const rows[] = {
        "",
        "{",
        "[1,]",
        "{\"a\":1,\"a\":2}",
        "[1] x",
        "'a'",
        "nul",
        "\"\xff\"",
        "\"\\ud800\"",
        "[1e999]",
        "[9223372036854775808]",
        "{\"a\\u0000\": 1}",
        "\"\\",
        "[\"a",
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_int_eq(parse(rows[i], 8), ERR_INVALID_JSON);
    }
    ck_assert_int_eq(parse("{\n  \"a\": tru\n}", 8), ERR_INVALID_JSON);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "line 2"));
}
END_TEST

START_TEST(scalars_are_values)
{
    ck_assert_rc_ok(parse("1", 0));
    ck_assert_rc_ok(parse(" \"x\" ", 0));
    ck_assert_rc_ok(parse("null", 0));
}
END_TEST

START_TEST(members_are_checked)
{
    json_t *o = json_loads("{\"i\": 5, \"r\": 1.5, \"b\": true, \"s\": \"t\", \"n\": null}", 0, NULL);
    int64_t i = 99;
    double d = 99;
    bool b = false;

    ck_assert_int_eq(json_get_int(o, "i", 5, 5, &i), 1);
    ck_assert_int_eq(i, 5);
    ck_assert_int_eq(json_get_int(o, "i", 6, 9, &i), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_int(o, "i", -9, 4, &i), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_int(o, "r", 0, 9, &i), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_int(o, "n", 0, 9, &i), 0);
    ck_assert_int_eq(json_get_int(o, "absent", 0, 9, &i), 0);
    ck_assert_int_eq(json_get_int(NULL, "i", 0, 9, &i), 0);
    ck_assert_int_eq(i, 5);
    ck_assert_int_eq(json_get_number(o, "i", &d), 1);
    ck_assert_double_eq(d, 5);
    ck_assert_int_eq(json_get_number(o, "r", &d), 1);
    ck_assert_double_eq(d, 1.5);
    ck_assert_int_eq(json_get_number(o, "s", &d), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_number(o, "n", &d), 0);
    ck_assert_int_eq(json_get_bool(o, "b", &b), 1);
    ck_assert(b);
    ck_assert_int_eq(json_get_bool(o, "i", &b), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_bool(o, "n", &b), 0);
    ck_assert_str_eq(json_get_string(o, "s"), "t");
    ck_assert_ptr_null(json_get_string(o, "i"));
    ck_assert_ptr_null(json_get_string(o, "absent"));
    json_decref(o);
}
END_TEST

UNIT_MAIN("json", depth_is_counted_before_parsing, what_is_wrong_is_refused, scalars_are_values, members_are_checked)
