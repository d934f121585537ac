/* Error objects of failed jobs. */

#include "jobs/failure.h"
#include "tests/unit/unit.h"

#include <string.h>

static json_t *failure_of(int code, const char *message, const char *module)
{
    struct err_record record;
    int rc = err_raise(code, "%s", message);
    if (module != NULL) {
        err_set_module(rc, module);
    }
    err_take(&record);
    return failure_json(&record, 2);
}

START_TEST(test_members_and_hint)
{
    json_t *error = failure_of(ERR_DISK_FULL, "cannot write", NULL);

    ck_assert_str_eq(json_string_value(json_object_get(error, "code")), "disk_full");
    ck_assert_str_eq(json_string_value(json_object_get(error, "message")), "cannot write");
    ck_assert(json_is_null(json_object_get(error, "param")));
    ck_assert_int_eq(json_integer_value(json_object_get(error, "layer")), 2);
    ck_assert(json_is_null(json_object_get(error, "module")));
    ck_assert_ptr_nonnull(strstr(json_string_value(json_object_get(error, "hint")), "free space"));
    ck_assert(json_is_true(json_object_get(error, "retryable")));
    json_decref(error);
}
END_TEST

START_TEST(test_own_hint_comes_first)
{
    struct err_record record;
    err_set_hint(err_raise(ERR_NON_FINITE_VALUE, "NaN"), "do this");
    err_take(&record);
    json_t *error = failure_json(&record, -1);

    ck_assert_str_eq(json_string_value(json_object_get(error, "hint")), "do this");
    ck_assert(json_is_null(json_object_get(error, "layer")));
    json_decref(error);
}
END_TEST

/* The module is a member of the error; neither it nor a message that looks as if it named one says anything of the
 * layer.
 */
START_TEST(test_module)
{
    json_t *error = failure_of(ERR_NON_FINITE_VALUE, "NaN", "model.layers.3.mlp.up_proj.weight");
    ck_assert_str_eq(json_string_value(json_object_get(error, "module")), "model.layers.3.mlp.up_proj");
    ck_assert_int_eq(json_integer_value(json_object_get(error, "layer")), 2);
    json_decref(error);
    error = failure_of(ERR_DISK_FULL, "cannot write /data/model.layers.3.mlp.up_proj", NULL);
    ck_assert(json_is_null(json_object_get(error, "module")));
    ck_assert_int_eq(json_integer_value(json_object_get(error, "layer")), 2);
    json_decref(error);
}
END_TEST

UNIT_MAIN("failure", test_members_and_hint, test_own_hint_comes_first, test_module)
