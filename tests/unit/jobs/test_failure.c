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

/* The module is a member of the error; a message that looks as if it named one changes nothing. */
START_TEST(test_module_and_its_layer)
{
    static const struct {
        const char *name, *module;
        int64_t layer; /* -1 = null */
    } rows[] = {
        {"model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj", 3},
        {"model.layers.12.self_attn.q_proj", "model.layers.12.self_attn.q_proj", 12},
        {"layers.0.input_layernorm.bias", "layers.0.input_layernorm", 0},
        {"model.embed_tokens.weight", "model.embed_tokens", -1},
        {"lm_head", "lm_head", -1},
        {"model.layers.x.mlp", "model.layers.x.mlp", -1},
        {"model.layers.99999999999999999999.mlp", "model.layers.99999999999999999999.mlp", -1},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_t *error = failure_of(ERR_NON_FINITE_VALUE, "NaN", rows[i].name);
        const json_t *layer = json_object_get(error, "layer");
        ck_assert_str_eq(json_string_value(json_object_get(error, "module")), rows[i].module);
        ck_assert_int_eq(json_is_null(layer) ? -1 : json_integer_value(layer), rows[i].layer);
        json_decref(error);
    }
    json_t *error = failure_of(ERR_DISK_FULL, "cannot write /data/model.layers.3.mlp.up_proj", NULL);
    ck_assert(json_is_null(json_object_get(error, "module")));
    ck_assert_int_eq(json_integer_value(json_object_get(error, "layer")), 2);
    json_decref(error);
}
END_TEST

UNIT_MAIN("failure", test_members_and_hint, test_own_hint_comes_first, test_module_and_its_layer)
