/* Error objects of failed jobs. */

#include "jobs/failure.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static json_t *failure_of(int code, const char *message, const struct model *model)
{
    struct err_record record;
    err_raise(code, "%s", message);
    err_take(&record);
    return failure_json(&record, 2, model);
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
    json_t *error = failure_json(&record, -1, NULL);

    ck_assert_str_eq(json_string_value(json_object_get(error, "hint")), "do this");
    ck_assert(json_is_null(json_object_get(error, "layer")));
    json_decref(error);
}
END_TEST

START_TEST(test_module_is_found_in_the_message)
{
    struct model *model;
    int root = open(MODEL_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(root, 0);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &model));
    json_t *error = failure_of(ERR_NON_FINITE_VALUE, "model.layers.3.mlp.up_proj.weight has NaN at 17; next", model);

    ck_assert_str_eq(json_string_value(json_object_get(error, "module")), "model.layers.3.mlp.up_proj");
    ck_assert_int_eq(json_integer_value(json_object_get(error, "layer")), 3);
    json_decref(error);
    error = failure_of(ERR_NON_FINITE_VALUE, "model.layers. is no module", model);
    ck_assert(json_is_null(json_object_get(error, "module")));
    json_decref(error);
    model_close(model);
    close(root);
}
END_TEST

UNIT_MAIN("failure", test_members_and_hint, test_own_hint_comes_first, test_module_is_found_in_the_message)
