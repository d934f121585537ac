/* The allocator: what it gives is of the size that was asked for, and what cannot be had raises and leaves the output.
 */

#include "tests/unit/unit.h"

#include "base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

START_TEST(arrays_are_zeroed)
{
    uint64_t *numbers = NULL;
    struct pair {
        int a, b;
    } *pair = NULL;

    ck_assert_rc_ok(mem_array(&numbers, 1000));
    ck_assert_rc_ok(mem_new(&pair));
    for (int i = 0; i < 1000; i++) {
        ck_assert_uint_eq(numbers[i], 0);
        numbers[i] = UINT64_MAX; /* the last byte belongs to it: the address sanitizer looks on */
    }
    ck_assert_int_eq(pair->a, 0);
    ck_assert_int_eq(pair->b, 0);
    free(numbers);
    free(pair);
}
END_TEST

START_TEST(nothing_is_not_a_failure)
{
    double *none = NULL;
    char *bytes = NULL;

    ck_assert_rc_ok(mem_array(&none, 0));
    ck_assert_ptr_nonnull(none);
    free(none);
    ck_assert_rc_ok(mem_buffer(&bytes, 0));
    ck_assert_ptr_nonnull(bytes);
    ck_assert_rc_ok(mem_resize(&bytes, 0));
    ck_assert_ptr_nonnull(bytes);
    free(bytes);
}
END_TEST

START_TEST(sizes_that_overflow_raise)
{
    double here = 0, *numbers = &here;

    ck_assert_int_eq(mem_array(&numbers, SIZE_MAX / 4), ERR_HOST_OUT_OF_MEMORY);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "elements of 8 bytes"));
    ck_assert_int_eq(mem_buffer(&numbers, SIZE_MAX / 8 + 1), ERR_HOST_OUT_OF_MEMORY);
    ck_assert_int_eq(mem_resize(&numbers, SIZE_MAX), ERR_HOST_OUT_OF_MEMORY);
    int64_t negative = -1;
    ck_assert_int_eq(mem_array(&numbers, (size_t)negative), ERR_HOST_OUT_OF_MEMORY);
    ck_assert_ptr_eq(numbers, &here);
}
END_TEST

START_TEST(resizing_keeps_what_is_there)
{
    uint16_t *values = NULL;

    ck_assert_rc_ok(mem_resize(&values, 2));
    values[0] = 7;
    values[1] = 9;
    ck_assert_rc_ok(mem_resize(&values, 3000));
    values[2999] = 1;
    ck_assert_uint_eq(values[0], 7);
    ck_assert_uint_eq(values[1], 9);
    ck_assert_int_eq(mem_resize(&values, SIZE_MAX), ERR_HOST_OUT_OF_MEMORY);
    ck_assert_uint_eq(values[2999], 1);
    free(values);
}
END_TEST

START_TEST(text_is_copied)
{
    char *copy = NULL;

    ck_assert_rc_ok(mem_strdup(&copy, "layer"));
    ck_assert_str_eq(copy, "layer");
    free(copy);
}
END_TEST

UNIT_MAIN("mem", arrays_are_zeroed, nothing_is_not_a_failure, sizes_that_overflow_raise, resizing_keeps_what_is_there,
          text_is_copied)
