/* The format rows: tensors and words as documented, configs to the letter, and what they refuse. */

#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/encode.h"
#include "tests/unit/json.h"

static const struct format *row(const char *name)
{
    const struct format *format = format_find(name);
    ck_assert_ptr_nonnull(format);
    return format;
}

static struct model *tiny(void)
{
    return checkpoint_open(TEST_DATA, "tiny-llama");
}

/* [32, 32], one group: u = k % 2^b, symmetric. */
static struct qtensor ramp(int bits)
{
    const struct qscheme scheme = {
        .bits = bits, .group_size = 32, .sym = true, .per_channel = true, .scale_dtype = DTYPE_F16};
    struct qtensor q;

    qtensor_random("m", &scheme, 32, 32, 1, &q);
    for (int i = 0; i < 32 * 32; i++) {
        q.codes[i] = (uint8_t)(i % 32 % (1 << bits));
    }
    return q;
}

START_TEST(gptq_words)
{
    static const struct {
        int bits;
        uint32_t weight[3], v1[3], v2[3];
    } rows[] = {
        {2, {0xE4E4E4E4u}, {0x55555555u}, {0xAAAAAAAAu}},
        {3,
         {0x88FAC688u, 0xC688FAC6u, 0xFAC688FAu},
         {0xDB6DB6DBu, 0xB6DB6DB6u, 0x6DB6DB6Du},
         {0x24924924u, 0x49249249u, 0x92492492u}},
        {4, {0x76543210u, 0xFEDCBA98u}, {0x77777777u, 0x77777777u}, {0x88888888u, 0x88888888u}},
        {8, {0x03020100u, 0x07060504u}, {0x7F7F7F7Fu, 0x7F7F7F7Fu}, {0x80808080u, 0x80808080u}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct qtensor q = ramp(rows[i].bits);
        for (int version = 1; version <= 2; version++) {
            struct stored stored;
            stored_encode(row(version == 1 ? "gptq" : "gptq_v2"), &q, &stored);
            const uint32_t *weight = stored.items[stored_find(&stored, ".qweight")].data;
            const uint32_t *zeros = stored.items[stored_find(&stored, ".qzeros")].data;
            int words = rows[i].bits == 2 ? 1 : rows[i].bits == 3 ? 3 : 2;
            for (int w = 0; w < words; w++) {
                for (int n = 0; n < 32; n++) {
                    ck_assert_uint_eq(weight[w * 32 + n], rows[i].weight[w]);
                }
                ck_assert_uint_eq(zeros[w], version == 1 ? rows[i].v1[w] : rows[i].v2[w]);
            }
            stored_deinit(&stored);
        }
        qtensor_deinit(&q);
    }
}
END_TEST

/* 4-bit: the CT words are the GPTQ words transposed, zero points likewise (version 2), scales too. */
START_TEST(one_canonical_layout)
{
    const struct qscheme scheme = {.bits = 4, .group_size = 32, .sym = false, .scale_dtype = DTYPE_F16};
    struct qtensor q;
    struct stored ct, gptq;

    qtensor_random("m", &scheme, 24, 128, 7, &q);
    stored_encode(row("compressed-tensors"), &q, &ct);
    stored_encode(row("gptq_v2"), &q, &gptq);
    const uint32_t *packed = ct.items[stored_find(&ct, ".weight_packed")].data;
    const uint32_t *qweight = gptq.items[stored_find(&gptq, ".qweight")].data;
    for (int n = 0; n < 24; n++) {
        for (int w = 0; w < 16; w++) {
            ck_assert_uint_eq(packed[n * 16 + w], qweight[w * 24 + n]);
        }
    }
    const uint32_t *points = ct.items[stored_find(&ct, ".weight_zero_point")].data;
    const uint32_t *qzeros = gptq.items[stored_find(&gptq, ".qzeros")].data;
    for (int g = 0; g < 4; g++) {
        for (int w = 0; w < 3; w++) {
            ck_assert_uint_eq(points[w * 4 + g], qzeros[g * 3 + w]);
        }
    }
    stored_deinit(&ct);
    stored_deinit(&gptq);
    qtensor_deinit(&q);
}
END_TEST

/* [8, 32], one group: u of output n is n, then n + 1. */
START_TEST(awq_words)
{
    static const uint32_t words[2] = {0x75316420u, 0x86427531u};
    const struct qscheme scheme = {.bits = 4, .group_size = 32, .sym = true, .scale_dtype = DTYPE_F16};

    for (int add = 0; add < 2; add++) {
        struct qtensor q;
        struct stored stored;
        qtensor_random("m", &scheme, 8, 32, 1, &q);
        for (int i = 0; i < 8 * 32; i++) {
            q.codes[i] = (uint8_t)(i / 32 + add);
        }
        stored_encode(row("awq"), &q, &stored);
        const uint32_t *weight = stored.items[stored_find(&stored, ".qweight")].data;
        const uint32_t *zeros = stored.items[stored_find(&stored, ".qzeros")].data;
        for (int k = 0; k < 32; k++) {
            ck_assert_uint_eq(weight[k], words[add]);
        }
        ck_assert_uint_eq(zeros[0], 0x88888888u);
        for (int n = 0; n < 8; n++) {
            q.zeros[n] = (uint8_t)(n + add);
        }
        uint32_t points;
        ck_assert_rc_ok(row("awq")->encode(&q, 1, &points));
        ck_assert_uint_eq(points, words[add]);
        stored_deinit(&stored);
        qtensor_deinit(&q);
    }
}
END_TEST

/* The same asymmetric 4-bit result reads back as the same weights from every format that takes it; version 1 of gptq
 * does not. */
START_TEST(one_asymmetric_result_in_every_format)
{
    const struct qscheme scheme = {.bits = 4, .group_size = 64, .sym = false, .scale_dtype = DTYPE_F16};
    struct qtensor q;
    int taken = 0;

    qtensor_random("m", &scheme, 40, 192, 5, &q);
    for (const struct format *const *format = format_list(); *format != NULL; format++) {
        if ((*format)->accepts(&scheme, 40, 192) == 0) {
            float *w = encode_and_decode(*format, &q);
            assert_close_weights(*format, w, &q);
            free(w);
            taken++;
        }
    }
    ck_assert_int_ge(taken, 3);
    ck_assert_int_eq(row("gptq")->accepts(&scheme, 40, 192), ERR_INCOMPATIBLE_OPTIONS);
    qtensor_deinit(&q);
}
END_TEST

START_TEST(one_result_in_three_formats)
{
    const struct qscheme scheme = {.bits = 4, .group_size = 64, .sym = true, .scale_dtype = DTYPE_F16};
    struct qtensor q;

    qtensor_random("m", &scheme, 40, 192, 3, &q);
    for (const struct format *const *format = format_list(); *format != NULL; format++) {
        if ((*format)->accepts(&scheme, 40, 192) == 0) {
            float *w = encode_and_decode(*format, &q);
            assert_close_weights(*format, w, &q);
            free(w);
        }
    }
    qtensor_deinit(&q);
}
END_TEST

START_TEST(bad_scales_are_refused)
{
    static const struct {
        float value;
        int code;
    } rows[] = {{0.0f, ERR_NON_FINITE_VALUE},      {-1.0f, 0},
                {-INFINITY, ERR_NON_FINITE_VALUE}, {INFINITY, ERR_NON_FINITE_VALUE},
                {NAN, ERR_NON_FINITE_VALUE},       {70000.0f, ERR_NON_FINITE_VALUE},
                {1.0f / 3, ERR_INTERNAL},          {1e-9f, ERR_INTERNAL}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct qtensor q = ramp(4);
        uint16_t out[32];
        q.scales[5] = rows[i].value;
        ck_assert_int_eq(row("gptq")->encode(&q, 2, out), rows[i].code);
        qtensor_deinit(&q);
    }
}
END_TEST

static json_t *config_of(const char *format, const struct model *model, int bits, int64_t group, bool sym,
                         const char *parameters)
{
    struct format_module *modules;
    json_t *values = parameters == NULL ? NULL : json_of(parameters);
    int count = checkpoint_modules(model, bits, group, sym, DTYPE_BF16, &modules);
    const struct format_config config = {
        .modules = modules, .count = count, .model = model, .method = "gptq", .parameters = values};
    json_t *object = row(format)->config(&config);

    ck_assert_ptr_nonnull(object);
    free(modules);
    json_decref(values);
    return object;
}

static void check_ct(const struct model *model, int bits, int64_t group, bool sym, const char *version)
{
    char expected[1024], size[16];

    snprintf(size, sizeof(size), "%d", (int)group);
    snprintf(expected, sizeof(expected),
             "{'quant_method': 'compressed-tensors', 'version': '%s', 'format': 'pack-quantized',"
             " 'quantization_status': 'compressed', 'global_compression_ratio': null, 'ignore': ['lm_head'],"
             " 'kv_cache_scheme': null, 'config_groups': {'group_0': {'targets': ['Linear'], 'weights':"
             " {'num_bits': %d, 'type': 'int', 'symmetric': %s, 'strategy': '%s', 'group_size': %s, 'dynamic': false,"
             " 'block_structure': null, 'actorder': null, 'observer': 'minmax', 'observer_kwargs': {}},"
             " 'input_activations': null, 'output_activations': null}}}",
             version, bits, sym ? "true" : "false", group < 0 ? "channel" : "group", group < 0 ? "null" : size);
    assert_json_take(config_of("compressed-tensors", model, bits, group, sym, NULL), expected);
}

START_TEST(compressed_tensors_config)
{
    struct model *model = tiny();

    check_ct(model, 4, 128, true, "0.15.0");
    check_ct(model, 4, 64, false, "0.15.0");
    check_ct(model, 8, -1, true, "0.15.0");
    check_ct(model, 3, 128, true, "0.18.0"); /* dense words of 3 bits: nothing older reads them */
    model_close(model);
}
END_TEST

START_TEST(gptq_config)
{
    static const char expected[] = "{'quant_method': 'gptq', 'checkpoint_format': 'gptq', 'bits': 4, 'group_size': 128,"
                                   " 'desc_act': false, 'sym': true, 'lm_head': false, 'true_sequential': true,"
                                   " 'static_groups': false, 'damp_percent': 0.01, 'pack_dtype': 'int32',"
                                   " 'meta': {'quantizer': ['quantd:" QUANTD_VERSION "']}}";
    struct model *model = tiny();

    assert_json_take(config_of("gptq", model, 4, 128, true, NULL), expected);
    json_t *object = config_of("gptq_v2", model, 2, -1, false, "{'damp_percent': 0.05, 'true_sequential': false}");
    ck_assert_str_eq(text_at(object, "checkpoint_format"), "gptq_v2");
    ck_assert_int_eq(int_at(object, "group_size"), -1);
    ck_assert(json_is_false(json_object_get(object, "sym")));
    ck_assert(json_is_false(json_object_get(object, "true_sequential")));
    ck_assert_double_eq(json_real_value(json_object_get(object, "damp_percent")), 0.05);
    json_decref(object);
    object = config_of("gptq", model, 4, 128, true, "{'damp_percent': 0, 'true_sequential': 'x'}");
    assert_json_take(object, expected); /* loaders refuse 0 */
    model_close(model);
}
END_TEST

START_TEST(awq_config)
{
    struct model *model = tiny();

    assert_json_take(config_of("awq", model, 4, 128, false, NULL),
                     "{'quant_method': 'awq', 'bits': 4, 'group_size': 128, 'zero_point': true, 'version': 'gemm',"
                     " 'modules_to_not_convert': null}");
    assert_json_take(config_of("awq", model, 4, -1, true, NULL),
                     "{'quant_method': 'awq', 'bits': 4, 'group_size': -1, 'zero_point': true, 'version': 'gemm',"
                     " 'modules_to_not_convert': null}");
    model_close(model);
}
END_TEST

/* What is left in float is named, each in its format's words; fused siblings go together. */
START_TEST(modules_left_in_float)
{
    static const char dynamic_without_down[] = "{'-:^model\\\\.layers\\\\.0\\\\.mlp\\\\.down_proj$': {},"
                                               " '-:^model\\\\.layers\\\\.1\\\\.mlp\\\\.down_proj$': {},"
                                               " '-:^model\\\\.layers\\\\.2\\\\.mlp\\\\.down_proj$': {},"
                                               " '-:^model\\\\.layers\\\\.3\\\\.mlp\\\\.down_proj$': {}}";
    struct model *model = tiny();
    struct format_module *all, some[28];
    int count = checkpoint_modules(model, 4, 128, true, DTYPE_BF16, &all), count_some = 0;
    struct validation_errors errors = {0};

    for (int i = 0; i < count; i++) {
        if (i % LLAMA_MODULES != LLAMA_DOWN) {
            some[count_some++] = all[i];
        }
    }
    struct format_config config = {.modules = some, .count = count_some, .model = model};
    json_t *object = row("gptq")->config(&config);
    assert_json_take(json_incref(json_object_get(object, "modules_in_block_to_quantize")),
                     "[['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'], ['self_attn.o_proj'],"
                     " ['mlp.gate_proj', 'mlp.up_proj']]");
    assert_json_take(json_incref(json_object_get(object, "dynamic")), dynamic_without_down);
    json_decref(object);
    object = row("compressed-tensors")->config(&config);
    assert_json_take(json_incref(json_object_get(object, "ignore")),
                     "['lm_head', 'model.layers.0.mlp.down_proj', 'model.layers.1.mlp.down_proj',"
                     " 'model.layers.2.mlp.down_proj', 'model.layers.3.mlp.down_proj']");
    json_decref(object);
    object = row("awq")->config(&config);
    assert_json_take(json_incref(json_object_get(object, "modules_to_not_convert")),
                     "['lm_head', 'model.layers.0.mlp.down_proj', 'model.layers.1.mlp.down_proj',"
                     " 'model.layers.2.mlp.down_proj', 'model.layers.3.mlp.down_proj']");
    assert_json_take(json_incref(json_object_get(object, "dynamic")), dynamic_without_down);
    json_decref(object);
    config.count = count_some - 1; /* up_proj of the last block is missing */
    ck_assert_int_eq(format_check(row("compressed-tensors"), &config, "/output/format", &errors),
                     ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_ptr_nonnull(strstr(errors.items[0].detail, "gate and up of block 3"));
    config.count = count_some - 3; /* o, gate and up of the last block: alike, but gptq cannot say it */
    errors = (struct validation_errors){0};
    ck_assert_rc_ok(format_check(row("compressed-tensors"), &config, "/output/format", &errors));
    ck_assert_int_eq(format_check(row("gptq"), &config, "/output/format", &errors), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_ptr_nonnull(strstr(errors.items[0].hint, "formats that carry it: compressed-tensors"));
    free(all);
    model_close(model);
}
END_TEST

START_TEST(several_geometries)
{
    struct model *model = tiny();
    struct format_module *modules;
    int count = checkpoint_modules(model, 4, 128, true, DTYPE_BF16, &modules);
    struct validation_errors errors = {0};

    for (int i = LLAMA_DOWN; i < count; i += LLAMA_MODULES) {
        modules[i].scheme.bits = 8;
    }
    const struct format_config config = {.modules = modules, .count = count, .model = model};
    ck_assert_int_eq(format_check(row("gptq"), &config, "/output/format", &errors), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_str_eq(errors.items[0].param, "/output/format");
    errors = (struct validation_errors){0};
    ck_assert_rc_ok(format_check(row("compressed-tensors"), &config, "", &errors));
    json_t *object = row("compressed-tensors")->config(&config);
    const json_t *groups = json_object_get(object, "config_groups");
    ck_assert_uint_eq(json_object_size(groups), 2);
    const json_t *second = json_object_get(groups, "group_1");
    ck_assert_int_eq(int_at(json_object_get(second, "weights"), "num_bits"), 8);
    assert_json_take(json_incref(json_object_get(second, "targets")),
                     "['model.layers.0.mlp.down_proj', 'model.layers.1.mlp.down_proj', 'model.layers.2.mlp.down_proj',"
                     " 'model.layers.3.mlp.down_proj']");
    ck_assert_uint_eq(json_array_size(json_object_get(json_object_get(groups, "group_0"), "targets")), 24);
    json_decref(object);
    modules[LLAMA_K].scheme.group_size = 64; /* k unlike q and v */
    ck_assert_int_eq(format_check(row("compressed-tensors"), &config, "", &errors), ERR_INCOMPATIBLE_OPTIONS);
    free(modules);
    model_close(model);
}
END_TEST

START_TEST(each_reason_is_told_once)
{
    struct model *model = tiny();
    struct format_module *modules;
    int count = checkpoint_modules(model, 5, 128, false, DTYPE_BF16, &modules);
    const struct format_config config = {.modules = modules, .count = count, .model = model};
    struct validation_errors errors = {0};

    ck_assert_int_eq(format_check(row("gptq"), &config, "/output/format", &errors), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_uint_eq(errors.count, 1);
    ck_assert_ptr_nonnull(strstr(errors.items[0].detail, "2, 3, 4 or 8 bits and not 5"));
    ck_assert_ptr_nonnull(strstr(errors.items[0].hint, "formats that carry it: dense"));
    free(modules);
    model_close(model);
}
END_TEST

START_TEST(the_list_is_a_registry)
{
    ck_assert_str_eq(format_list()[0]->name, "compressed-tensors"); /* the default */
    ck_assert_ptr_null(format_find("no-such"));
    ck_assert_ptr_null(format_find(NULL));
    ck_assert_int_eq(row("compressed-tensors")->scale_dtype(DTYPE_BF16), DTYPE_BF16);
    ck_assert_int_eq(row("gptq")->scale_dtype(DTYPE_BF16), DTYPE_F16);
}
END_TEST

UNIT_MAIN("formats", gptq_words, awq_words, one_asymmetric_result_in_every_format, awq_config, one_canonical_layout,
          one_result_in_three_formats, bad_scales_are_refused, compressed_tensors_config, gptq_config,
          modules_left_in_float, several_geometries, each_reason_is_told_once, the_list_is_a_registry)
