/* Fault lists: order, bounds, and the error that the first one becomes. */

#include "tests/unit/unit.h"

#include "base/validation.h"

#include <string.h>

START_TEST(empty_is_success)
{
    struct validation_errors errors = {0};
    ck_assert_rc_ok(validation_raise(&errors));
}
END_TEST

START_TEST(the_first_is_raised)
{
    struct validation_errors errors = {0};

    validation_add(&errors, ERR_MISSING_PARAMETER, "/a", "\"a\" is %s", "required");
    validation_hint(&errors, "give %s", "it");
    validation_add(&errors, ERR_INVALID_PARAMETER, "/b", "is bad");
    ck_assert_int_eq(validation_raise(&errors), ERR_MISSING_PARAMETER);
    ck_assert_str_eq(err_last()->message, "\"a\" is required");
    ck_assert_str_eq(err_last()->hint, "give it");
    ck_assert_str_eq(err_last()->param, "/a");
    ck_assert_uint_eq(errors.count, 2);
    ck_assert_str_eq(errors.items[1].param, "/b");
    ck_assert_str_eq(errors.items[1].hint, "");
}
END_TEST

START_TEST(an_empty_pointer_is_the_body)
{
    struct validation_errors errors = {0};
    validation_add(&errors, ERR_INVALID_JSON, "", "it is odd");
    ck_assert_int_eq(validation_raise(&errors), ERR_INVALID_JSON);
    ck_assert_str_eq(err_last()->message, "it is odd");
}
END_TEST

START_TEST(the_list_is_bounded)
{
    struct validation_errors errors = {0};
    char large[4000];

    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    for (int i = 0; i < VALIDATION_ERRORS_MAX + 5; i++) {
        validation_add(&errors, ERR_INVALID_PARAMETER, large, "%s", large);
    }
    validation_hint(&errors, "of a dropped one");
    ck_assert_str_eq(errors.items[VALIDATION_ERRORS_MAX - 1].hint, "");
    ck_assert_uint_eq(errors.count, VALIDATION_ERRORS_MAX);
    ck_assert_uint_eq(errors.dropped, 5);
    ck_assert_uint_eq(strlen(errors.items[0].param), sizeof(errors.items[0].param) - 1);
    ck_assert_uint_eq(strlen(errors.items[0].detail), sizeof(errors.items[0].detail) - 1);
}
END_TEST

UNIT_MAIN("errors", empty_is_success, the_first_is_raised, an_empty_pointer_is_the_body, the_list_is_bounded)
