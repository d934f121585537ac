/* Fault lists: order, bounds, and the error that the first one becomes. */

#include "tests/unit/unit.h"

#include "base/faults.h"

#include <string.h>

START_TEST(empty_is_success)
{
    struct faults faults = {0};
    ck_assert_rc_ok(faults_raise(&faults));
}
END_TEST

START_TEST(the_first_is_raised)
{
    struct faults faults = {0};

    faults_add(&faults, ERR_MISSING_PARAMETER, "/a", "\"a\" is %s", "required");
    faults_hint(&faults, "give %s", "it");
    faults_add(&faults, ERR_INVALID_PARAMETER, "/b", "is bad");
    ck_assert_int_eq(faults_raise(&faults), ERR_MISSING_PARAMETER);
    ck_assert_str_eq(err_last()->message, "\"a\" is required");
    ck_assert_str_eq(err_last()->hint, "give it");
    ck_assert_str_eq(err_last()->param, "/a");
    ck_assert_uint_eq(faults.count, 2);
    ck_assert_str_eq(faults.items[1].param, "/b");
    ck_assert_str_eq(faults.items[1].hint, "");
}
END_TEST

START_TEST(an_empty_pointer_is_the_body)
{
    struct faults faults = {0};
    faults_add(&faults, ERR_INVALID_JSON, "", "it is odd");
    ck_assert_int_eq(faults_raise(&faults), ERR_INVALID_JSON);
    ck_assert_str_eq(err_last()->message, "it is odd");
}
END_TEST

START_TEST(the_list_is_bounded)
{
    struct faults faults = {0};
    char large[4000];

    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    for (int i = 0; i < FAULTS_MAX + 5; i++) {
        faults_add(&faults, ERR_INVALID_PARAMETER, large, "%s", large);
    }
    faults_hint(&faults, "of a dropped one");
    ck_assert_str_eq(faults.items[FAULTS_MAX - 1].hint, "");
    ck_assert_uint_eq(faults.count, FAULTS_MAX);
    ck_assert_uint_eq(faults.dropped, 5);
    ck_assert_uint_eq(strlen(faults.items[0].param), sizeof(faults.items[0].param) - 1);
    ck_assert_uint_eq(strlen(faults.items[0].detail), sizeof(faults.items[0].detail) - 1);
}
END_TEST

UNIT_MAIN("faults", empty_is_success, the_first_is_raised, an_empty_pointer_is_the_body, the_list_is_bounded)
