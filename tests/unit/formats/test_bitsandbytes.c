/* bitsandbytes: bytes of the documented example, the quant_state to the letter, the config, and what is refused. */

#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/encode.h"
#include "tests/unit/json.h"

static const struct format *row(void)
{
    return format_find("bitsandbytes");
}

static const struct qscheme nf4 = {
    .kind = QTENSOR_NF4, .bits = 4, .group_size = 64, .scale_dtype = DTYPE_F32, .weight_dtype = DTYPE_BF16};

static void assert_state(const struct stored *stored, const char *expected)
{
    int i = stored_find(stored, ".weight.quant_state.bitsandbytes__nf4");

    ck_assert_int_ge(i, 0);
    ck_assert_int_eq(stored->items[i].shape[0], (int64_t)strlen(expected));
    ck_assert_int_eq(memcmp(stored->items[i].data, expected, strlen(expected)), 0);
}

START_TEST(documented_bytes)
{
    static const uint8_t codes[6] = {15, 0, 7, 12, 10, 6}, bytes[3] = {0xF0, 0x7C, 0xA6};
    struct qtensor q;
    struct stored stored;

    qtensor_random("m", &nf4, 2, 3, 1, &q);
    memcpy(q.codes, codes, sizeof(codes));
    stored_encode(row(), &q, &stored);
    ck_assert_int_eq(stored.count, 4);
    ck_assert_int_eq(memcmp(stored.items[0].data, bytes, 3), 0);
    assert_state(&stored, "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [2, 3]}");
    stored_deinit(&stored);
    qtensor_deinit(&q);
}
END_TEST

/* An offset of any size is written in as many bytes, and read back to the bit. */
START_TEST(nested_state)
{
    static const float offsets[] = {0.0445f, 0.0f, 1.0f / 3, 65504.0f, 1e-30f};
    static const char *const texts[] = {"4.45000008e-02", "0.00000000e+00", "3.33333343e-01", "6.55040000e+04",
                                        "1.00000000e-30"};
    struct qscheme scheme = nf4;
    struct qtensor q;

    scheme.nested = true;
    scheme.weight_dtype = DTYPE_F16;
    qtensor_random("m", &scheme, 64, 8, 1, &q);
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        char expected[256];
        struct stored stored;
        q.tables[1] = offsets[i];
        stored_encode(row(), &q, &stored);
        snprintf(expected, sizeof(expected),
                 "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [64, 8],"
                 " \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": %s}",
                 texts[i]);
        assert_state(&stored, expected);
        ck_assert(strtof(texts[i], NULL) == offsets[i]);
        stored_deinit(&stored);
    }
    qtensor_deinit(&q);
}
END_TEST

static json_t *config_of(const struct model *model, struct qscheme scheme)
{
    struct format_module *modules;
    int count = checkpoint_modules(model, 4, 128, true, DTYPE_F32, &modules);

    for (int i = 0; i < count; i++) {
        modules[i].scheme = scheme;
        modules[i].scheme.group_size = scheme.kind == QTENSOR_INT ? modules[i].cols : 64;
    }
    const struct format_config config = {.modules = modules, .count = count - 1, .model = model, .method = "nf4"};
    json_t *object = row()->config(&config);
    free(modules);
    return object;
}

/* The threshold is a number with a decimal point: the library refuses 6. */
START_TEST(config)
{
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");
    const struct qscheme int8 = {.kind = QTENSOR_INT,
                                 .bits = 8,
                                 .per_channel = true,
                                 .sym = true,
                                 .input = {DTYPE_I8, true, 0, 0},
                                 .input_threshold = 4};
    static const char *const rest = "'bnb_4bit_compute_dtype': 'bfloat16', 'bnb_4bit_quant_storage': 'uint8',"
                                    " 'llm_int8_skip_modules': ['lm_head', 'model.layers.3.mlp.down_proj'],"
                                    " 'llm_int8_enable_fp32_cpu_offload': false, 'llm_int8_has_fp16_weight': false}";
    char expected[640];

    snprintf(
        expected, sizeof(expected),
        "{'quant_method': 'bitsandbytes', 'load_in_4bit': true, 'load_in_8bit': false, 'bnb_4bit_quant_type': 'nf4',"
        " 'bnb_4bit_use_double_quant': false, 'llm_int8_threshold': 6.0, %s",
        rest);
    assert_json_take(config_of(model, nf4), expected);
    snprintf(
        expected, sizeof(expected),
        "{'quant_method': 'bitsandbytes', 'load_in_4bit': false, 'load_in_8bit': true, 'bnb_4bit_quant_type': 'nf4',"
        " 'bnb_4bit_use_double_quant': false, 'llm_int8_threshold': 4.0, %s",
        rest);
    json_t *object = config_of(model, int8);
    ck_assert(json_is_real(json_object_get(object, "llm_int8_threshold")));
    assert_json_take(object, expected);
    model_close(model);
}
END_TEST

START_TEST(refusals)
{
    struct qscheme scheme = nf4;

    ck_assert_rc_ok(row()->accepts(&scheme, 10, 10));
    scheme.group_size = 16;
    ck_assert_int_eq(row()->accepts(&scheme, 10, 10), ERR_INCOMPATIBLE_OPTIONS);
    scheme = nf4;
    scheme.input.element = DTYPE_I8;
    ck_assert_int_eq(row()->accepts(&scheme, 10, 10), ERR_INCOMPATIBLE_OPTIONS);
    const struct qscheme alone = {.kind = QTENSOR_INT, .bits = 8, .group_size = 10, .per_channel = true, .sym = true};
    ck_assert_int_eq(row()->accepts(&alone, 10, 10), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_ptr_nonnull(strstr(err_last()->hint, "llm_int8"));
}
END_TEST

UNIT_MAIN("bitsandbytes", documented_bytes, nested_state, config, refusals)
