/* What an artifact says of a quantized cache, to the letter. */

#include "formats/common.h"
#include "tests/unit/unit.h"

#include <string.h>

static const struct cache_scheme none = {DTYPE_F32, false}, per_tensor = {DTYPE_F8_E4M3, false},
                                 heads = {DTYPE_F8_E4M3, true}, integer = {DTYPE_I8, false};

START_TEST(config_object)
{
    static const struct {
        const struct cache_scheme *scheme;
        const char *text;
    } rows[] = {
        {&none, "null"},
        {&per_tensor,
         "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"tensor\",\"dynamic\":false,\"symmetric\":true}"},
        {&heads, "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"attn_head\",\"dynamic\":false,\"symmetric\":true}"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_t *object = format_cache_config(rows[i].scheme);
        char *text = json_dumps(object, JSON_COMPACT | JSON_ENCODE_ANY);
        ck_assert_str_eq(text, rows[i].text);
        free(text);
        json_decref(object);
    }
}
END_TEST

START_TEST(shapes)
{
    int64_t shape[TENSOR_RANK_MAX];

    ck_assert_int_eq(format_cache_shape(&per_tensor, "model.layers.0.self_attn.k_scale", 1, shape), 1);
    ck_assert_int_eq(shape[0], 1);
    ck_assert_int_eq(format_cache_shape(&heads, "model.layers.11.self_attn.v_scale", 8, shape), 3);
    ck_assert(shape[0] == 8 && shape[1] == 1 && shape[2] == 1);
    ck_assert_int_eq(format_cache_shape(&heads, "model.layers.0.self_attn.k_scale", 1, shape), 3);
    /* whatever the family calls its attention */
    ck_assert_int_eq(format_cache_shape(&heads, "backbone.layers.1.mixer.v_scale", 2, shape), 3);
    ck_assert_int_eq(format_cache_shape(&none, "model.layers.0.self_attn.k_scale", 1, shape), 0);
    ck_assert_int_eq(format_cache_shape(&heads, "model.layers.0.self_attn.k_proj.bias", 8, shape), 0);
    ck_assert_int_eq(format_cache_shape(&heads, "scale", 8, shape), 0);
}
END_TEST

START_TEST(only_what_runtimes_read)
{
    int carriers = 0;

    ck_assert_rc_ok(format_accepts_cache(&per_tensor));
    ck_assert_rc_ok(format_accepts_cache(&heads));
    ck_assert_rc_ok(format_accepts_cache(&integer));
    ck_assert_int_eq(format_accepts_cache(&none), ERR_INCOMPATIBLE_OPTIONS);
    for (const struct format *const *format = format_list(); *format != NULL; format++) {
        carriers += (*format)->accepts_cache != NULL;
        ck_assert((*format)->accepts_cache == NULL || (*format)->accepts_cache(&integer) == 0);
    }
    ck_assert_int_ge(carriers, 1);
}
END_TEST

UNIT_MAIN("storage/format_cache", config_object, shapes, only_what_runtimes_read)
