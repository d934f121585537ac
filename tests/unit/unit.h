#pragma once
/* What every unit test program shares: `UNIT_MAIN("name", test_a, test_b)` runs libcheck tests as one suite, and
 * `UNIT_MAIN_AFTER(set_up, ...)` calls a function once before them, whose results each test's process inherits. */

#include "base/err.h"

#include <check.h>
#include <stdlib.h>

#define UNIT_MAIN(suite_name, ...) UNIT_MAIN_AFTER(NULL, suite_name, __VA_ARGS__)

#define UNIT_MAIN_AFTER(set_up, suite_name, ...)                        \
    int main(void)                                                      \
    {                                                                   \
        const TTest *const tests[] = {__VA_ARGS__};                     \
        Suite *suite = suite_create(suite_name);                        \
        TCase *tcase = tcase_create("all");                             \
        tcase_set_timeout(tcase, 120);                                  \
        tcase_add_unchecked_fixture(tcase, set_up, NULL);               \
        for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) { \
            tcase_add_test(tcase, tests[i]);                            \
        }                                                               \
        suite_add_tcase(suite, tcase);                                  \
        SRunner *runner = srunner_create(suite);                        \
        srunner_run_all(runner, CK_ENV);                                \
        int failed = srunner_ntests_failed(runner);                     \
        srunner_free(runner);                                           \
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;               \
    }

/* Assert success, showing the error record when it is not. */
#define ck_assert_rc_ok(expression)                                                               \
    do {                                                                                          \
        int ck_rc_ = (expression);                                                                \
        ck_assert_msg(ck_rc_ == 0, "%s = %d (%s): %s", #expression, ck_rc_, err_api_code(ck_rc_), \
                      err_last()->message);                                                       \
    } while (0)
