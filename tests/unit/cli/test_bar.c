/* Bars and strips. */

#include "cli/bar.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

START_TEST(test_fill)
{
    char out[BAR_SIZE];

    ck_assert_str_eq(bar_fill(0, 10, out), "----------");
    ck_assert_str_eq(bar_fill(0.46, 10, out), "####------");
    ck_assert_str_eq(bar_fill(1, 10, out), "##########");
    ck_assert_str_eq(bar_fill(7, 4, out), "####");
    ck_assert_str_eq(bar_fill(-7, 4, out), "----");
    ck_assert_str_eq(bar_fill(NAN, 4, out), "----");
    ck_assert_str_eq(bar_fill(0.5, -1, out), "");
    ck_assert_uint_eq(strlen(bar_fill(0.5, 100000, out)), BAR_MAX);
}
END_TEST

START_TEST(test_log)
{
    char out[BAR_SIZE];

    ck_assert_str_eq(bar_log(1e-2, 1e-4, 1e-2, 8, false, out), "########");
    ck_assert_str_eq(bar_log(1e-3, 1e-4, 1e-2, 8, false, out), "####");
    ck_assert_str_eq(bar_log(1e-3, 1e-4, 1e-2, 1, true, out), "\xe2\x96\x8c"); /* half a block */
    ck_assert_str_eq(bar_log(1e-2, 1e-4, 1e-2, 2, true, out), "\xe2\x96\x88\xe2\x96\x88");
    ck_assert_str_eq(bar_log(0, 1e-4, 1e-2, 8, false, out), "");
    ck_assert_str_eq(bar_log(NAN, 1e-4, 1e-2, 8, false, out), "");
    ck_assert_str_eq(bar_log(INFINITY, 1e-4, 1e-2, 8, false, out), "");
    ck_assert_str_eq(bar_log(5, 5, 5, 3, false, out), "###");
    ck_assert_uint_lt(strlen(bar_log(1, 1e-300, 1, 100000, true, out)), BAR_SIZE);
}
END_TEST

START_TEST(test_strip)
{
    const double values[] = {1e-4, 0, 1e-2, 1e-3, NAN, INFINITY};
    char out[BAR_SIZE];

    ck_assert_str_eq(bar_strip(values, 6, 100, false, out), "1.84..");
    ck_assert_str_eq(bar_strip(values, 4, 2, false, out), "18"); /* the larger of each pair */
    ck_assert_str_eq(bar_strip(values, 3, 100, true, out), "\xe2\x96\x81.\xe2\x96\x88");
    ck_assert_str_eq(bar_strip(values, 0, 10, true, out), "");
    ck_assert_str_eq(bar_strip(values, 1, 10, false, out), "1");
}
END_TEST

UNIT_MAIN("cli_bar", test_fill, test_log, test_strip)
