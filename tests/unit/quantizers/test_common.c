/* The registry, and what every method on an integer grid takes. */

#include "tests/unit/quantizers/support.h"

START_TEST(registry_finds_its_rows)
{
    int count = 0;
    for (const struct quantizer *const *row = quantizer_list(); *row != NULL; row++) {
        ck_assert_ptr_eq(quantizer_find((*row)->name), *row);
        count++;
    }
    ck_assert_int_ge(count, 2);
    ck_assert_ptr_nonnull(quantizer_find("rtn"));
    ck_assert_ptr_nonnull(quantizer_find("gptq"));
    ck_assert_ptr_null(quantizer_find("GPTQ"));
    ck_assert_ptr_null(quantizer_find(""));
}
END_TEST

START_TEST(defaults)
{
    const struct quantizer *rtn = quantizer_find("rtn");
    struct quant_common *common = params_new(rtn, "{}");
    ck_assert_int_eq(common->bits, 4);
    ck_assert_int_eq(common->group_size, 128);
    ck_assert(common->sym);
    ck_assert(!common->mse_search);
    ck_assert_ptr_null(common->base.modules_to_not_convert);
    params_free(rtn, common);
}
END_TEST

START_TEST(values_outside_the_table_are_errors)
{
    static const struct {
        const char *text, *pointer;
    } wrong[] = {
        {"{\"bits\":7}", "/q/bits"},
        {"{\"bits\":\"4\"}", "/q/bits"},
        {"{\"bits\":4.5}", "/q/bits"},
        {"{\"group_size\":0}", "/q/group_size"},
        {"{\"group_size\":48}", "/q/group_size"},
        {"{\"sym\":1}", "/q/sym"},
        {"{\"mse_search\":null}", "/q/mse_search"},
        {"{\"modules_to_not_convert\":[1]}", "/q/modules_to_not_convert"},
        {"{\"groupsize\":64}", "/q/groupsize"},
    };
    const struct quantizer *rtn = quantizer_find("rtn");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct validation_errors errors = {0};
        struct quant_common common = {0};
        json_t *object = json_loads(wrong[i].text, 0, NULL);
        ck_assert_int_ne(params_parse(rtn->params, object, "/q", &common, &errors), 0);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, wrong[i].pointer);
        json_decref(object);
    }
}
END_TEST

START_TEST(an_empty_pattern_is_an_error)
{
    const struct quantizer *rtn = quantizer_find("rtn");
    struct validation_errors errors = {0};
    struct quant_common *common = params_new(rtn, "{\"modules_to_not_convert\":[\"lm_head\",\"\"]}");
    quant_common_check(common, "/quantization", &errors);
    ck_assert_uint_eq(errors.count, 1);
    ck_assert_int_eq(errors.items[0].code, ERR_INVALID_PARAMETER);
    ck_assert_str_eq(errors.items[0].param, "/quantization/modules_to_not_convert/1");
    params_free(rtn, common);
}
END_TEST

START_TEST(scheme_follows_the_shape)
{
    struct quant_common common = {.bits = 3, .group_size = 64, .sym = true};
    struct qscheme scheme = {0};

    ck_assert_rc_ok(quant_common_scheme(&common, 10, 256, &scheme));
    ck_assert_int_eq(scheme.bits, 3);
    ck_assert_int_eq(scheme.group_size, 64);
    ck_assert(!scheme.per_channel && scheme.sym);

    common.group_size = -1;
    ck_assert_rc_ok(quant_common_scheme(&common, 10, 250, &scheme));
    ck_assert_int_eq(scheme.group_size, 250);
    ck_assert(scheme.per_channel);

    struct qscheme before = scheme;
    common.group_size = 128;
    ck_assert_int_eq(quant_common_scheme(&common, 10, 192, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_int_eq(quant_common_scheme(&common, 10, 64, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_int_eq(quant_common_scheme(&common, 0, 128, &scheme), ERR_INVALID_MODEL);
    ck_assert_int_eq(memcmp(&before, &scheme, sizeof(before)), 0);
}
END_TEST

START_TEST(grid_follows_the_parameters)
{
    struct quant_common common = {.bits = 2, .group_size = -1, .sym = false, .mse_search = true};
    struct gpu_grid grid = quant_common_grid(&common, 300, DTYPE_BF16);

    ck_assert_int_eq(grid.bits, 2);
    ck_assert_int_eq(grid.group_size, 300);
    ck_assert(!grid.sym && grid.mse);
    ck_assert_int_eq(grid.scale_dtype, DTYPE_BF16);
    ck_assert_int_eq(grid.steps, 100);
    ck_assert_near(grid.norm, 2.4, 0);
    ck_assert_near(grid.max_shrink, 0.8, 0);
    common.group_size = 32;
    ck_assert_int_eq(quant_common_grid(&common, 320, DTYPE_F16).group_size, 32);
}
END_TEST

UNIT_MAIN("quantizers/common", registry_finds_its_rows, defaults, values_outside_the_table_are_errors,
          an_empty_pattern_is_an_error, scheme_follows_the_shape, grid_follows_the_parameters)
