/* compressed-tensors beyond packed integers: forms, config groups, static scales, mixtures and refusals. */

#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/encode.h"
#include "tests/unit/json.h"

static const struct format *row(void)
{
    return format_find("compressed-tensors");
}

/* group_rows -1: all rows of the weight. */
static const struct qscheme int8 = {.kind = QTENSOR_INT,
                                    .bits = 8,
                                    .per_channel = true,
                                    .sym = true,
                                    .scale_dtype = DTYPE_BF16,
                                    .input = {DTYPE_I8, true, 0, 0}};
static const struct qscheme fp8 = {.kind = QTENSOR_FLOAT8,
                                   .bits = 8,
                                   .per_channel = true,
                                   .group_rows = 1,
                                   .sym = true,
                                   .element = DTYPE_F8_E4M3,
                                   .scale_dtype = DTYPE_BF16,
                                   .input = {DTYPE_F8_E4M3, true, 0, 0}};

/* All linears with scheme a, down_proj with b. Caller frees. */
static int modules_of(const struct model *model, struct qscheme a, struct qscheme b, struct format_module **out)
{
    int count = checkpoint_modules(model, 4, 128, true, DTYPE_BF16, out);

    for (int i = 0; i < count; i++) {
        struct format_module *m = &(*out)[i];
        m->scheme = i % LLAMA_MODULES == LLAMA_DOWN ? b : a;
        m->scheme.group_size = m->scheme.per_channel ? m->cols : m->scheme.group_size;
        m->scheme.group_rows = m->scheme.group_rows < 0 ? m->rows : m->scheme.group_rows;
    }
    return count;
}

static json_t *config_of(const struct model *model, struct qscheme a, struct qscheme b)
{
    struct format_module *modules;
    struct validation_errors errors = {0};
    int count = modules_of(model, a, b, &modules);
    const struct format_config config = {.modules = modules, .count = count, .model = model};

    ck_assert_rc_ok(format_check(row(), &config, "", &errors));
    json_t *object = row()->config(&config);
    free(modules);
    return object;
}

static void assert_group(const struct model *model, struct qscheme scheme, const char *form, const char *weights,
                         const char *inputs)
{
    json_t *object = config_of(model, scheme, scheme);
    const json_t *group = json_object_get(json_object_get(object, "config_groups"), "group_0");

    ck_assert_str_eq(json_string_value(json_object_get(object, "format")), form);
    ck_assert_ptr_null(json_object_get(group, "format")); /* older libraries forbid it */
    assert_json_take(json_incref(json_object_get(group, "weights")), weights);
    assert_json_take(json_incref(json_object_get(group, "input_activations")), inputs);
    json_decref(object);
}

#define ARGUMENTS(type, strategy, size, dynamic, block, observer)                                            \
    "{'num_bits': 8, 'type': '" type "', 'symmetric': true, 'strategy': '" strategy "', 'group_size': " size \
    ", 'dynamic': " dynamic ", 'block_structure': " block ", 'actorder': null, 'observer': " observer        \
    ", 'observer_kwargs': {}}"

START_TEST(config_groups)
{
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");
    struct qscheme scheme = int8;

    assert_group(model, scheme, "int-quantized", ARGUMENTS("int", "channel", "null", "false", "null", "'minmax'"),
                 ARGUMENTS("int", "token", "null", "true", "null", "null"));
    scheme.input.dynamic = false;
    assert_group(model, scheme, "int-quantized", ARGUMENTS("int", "channel", "null", "false", "null", "'minmax'"),
                 ARGUMENTS("int", "tensor", "null", "false", "null", "'minmax'"));
    scheme = fp8;
    assert_group(model, scheme, "float-quantized", ARGUMENTS("float", "channel", "null", "false", "null", "'minmax'"),
                 ARGUMENTS("float", "token", "null", "true", "null", "null"));
    scheme.group_rows = -1;
    scheme.input.dynamic = false;
    assert_group(model, scheme, "float-quantized", ARGUMENTS("float", "tensor", "null", "false", "null", "'minmax'"),
                 ARGUMENTS("float", "tensor", "null", "false", "null", "'minmax'"));
    scheme = fp8;
    scheme.per_channel = false;
    scheme.group_size = scheme.group_rows = scheme.input.group_size = 128;
    assert_group(model, scheme, "float-quantized",
                 ARGUMENTS("float", "block", "null", "false", "[128, 128]", "'minmax'"),
                 ARGUMENTS("float", "group", "128", "true", "null", "null"));
    scheme = fp8;
    scheme.input.element = DTYPE_F32;
    assert_group(model, scheme, "naive-quantized", ARGUMENTS("float", "channel", "null", "false", "null", "'minmax'"),
                 "null");
    model_close(model);
}
END_TEST

/* Modules stored in two ways: the groups say which. */
START_TEST(mixtures)
{
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");
    struct qscheme floats = int8;

    floats.input.element = DTYPE_F32;
    json_t *object = config_of(model, int8, floats);
    const json_t *groups = json_object_get(object, "config_groups");
    ck_assert_str_eq(json_string_value(json_object_get(object, "format")), "mixed-precision");
    ck_assert_str_eq(json_string_value(json_object_get(object, "version")), "0.18.0");
    assert_json_take(json_incref(json_object_get(json_object_get(groups, "group_0"), "format")), "'int-quantized'");
    assert_json_take(json_incref(json_object_get(json_object_get(groups, "group_1"), "format")), "'pack-quantized'");
    ck_assert_uint_eq(json_array_size(json_object_get(json_object_get(groups, "group_1"), "targets")), 4);
    json_decref(object);
    model_close(model);
}
END_TEST

/* 448 and -0.5 at scale 2, and codes of INT8 with their sign. */
START_TEST(bytes_of_eight_bits)
{
    struct qscheme scheme = fp8;
    struct qtensor q;
    struct stored stored;

    scheme.group_size = 2;
    scheme.input.dynamic = false;
    qtensor_random("m", &scheme, 1, 2, 1, &q);
    q.codes[0] = dtype_f32_to_e4m3(448);
    q.codes[1] = dtype_f32_to_e4m3(-0.5f);
    q.scales[0] = 2;
    stored_encode(row(), &q, &stored);
    ck_assert_int_eq(stored.count, 3);
    ck_assert_int_eq(memcmp(stored.items[0].data, (const uint8_t[]){0x7E, 0xB0}, 2), 0);
    ck_assert_int_eq(*(const uint16_t *)stored.items[1].data, 0x4000);
    ck_assert_int_eq(*(const uint16_t *)stored.items[2].data, dtype_f32_to_bf16(0.125f));
    stored_deinit(&stored);
    qtensor_deinit(&q);

    scheme = int8;
    scheme.group_size = 4;
    qtensor_random("m", &scheme, 1, 4, 1, &q);
    memcpy(q.codes, (const uint8_t[]){0, 127, 128, 255}, 4);
    stored_encode(row(), &q, &stored);
    ck_assert_int_eq(stored.count, 2);
    ck_assert_int_eq(memcmp(stored.items[0].data, (const int8_t[]){-128, -1, 0, 127}, 4), 0);
    stored_deinit(&stored);
    qtensor_deinit(&q);
}
END_TEST

START_TEST(refusals)
{
    const struct {
        struct qscheme scheme;
        const char *hint;
    } rows[] = {
        {{.kind = QTENSOR_INT, .bits = 4, .group_size = 32, .sym = true, .input = int8.input}, "bits 8, group_size -1"},
        {{.kind = QTENSOR_INT,
          .bits = 8,
          .group_size = 64,
          .per_channel = true,
          .sym = true,
          .input = int8.input,
          .input_threshold = 6},
         "bitsandbytes"},
        {{.kind = QTENSOR_FLOAT8, .bits = 8, .group_size = 64, .per_channel = true, .element = DTYPE_F8_E5M2}, "e4m3"},
        {{.kind = QTENSOR_NF4, .bits = 4, .group_size = 64}, "output.format"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_int_eq(row()->accepts(&rows[i].scheme, 32, 64), ERR_INCOMPATIBLE_OPTIONS);
        ck_assert_msg(strstr(err_last()->hint, rows[i].hint) != NULL, "%zu: %s", i, err_last()->hint);
    }
}
END_TEST

/* vLLM joins linears and wants each but the last to end with a block. */
START_TEST(blocks_at_edges)
{
    struct qscheme block = fp8;
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");
    struct format_module *modules;

    block.per_channel = false;
    block.group_size = block.group_rows = 128;
    block.input.group_size = 128;
    int count = modules_of(model, block, block, &modules);
    const struct format_config config = {.modules = modules, .count = count, .model = model};
    for (int role = 0; role < LLAMA_MODULES; role++) {
        bool inner = role == LLAMA_Q || role == LLAMA_K || role == LLAMA_GATE;
        struct format_module *m = &modules[LLAMA_MODULES + role];
        json_t *warnings = json_array();
        int64_t rows = m->rows;
        m->rows = 200;
        ck_assert_rc_ok(row()->accepts(&m->scheme, m->rows, m->cols));
        ck_assert_rc_ok(format_warnings(row(), &config, warnings));
        ck_assert_uint_eq(json_array_size(warnings), inner);
        ck_assert(!inner ||
                  strstr(text_at(json_array_get(warnings, 0), "message"), "the 200 outputs of model.layers.1") != NULL);
        m->rows = rows;
        json_decref(warnings);
    }
    free(modules);
    model_close(model);
}
END_TEST

UNIT_MAIN("ct", config_groups, mixtures, bytes_of_eight_bits, refusals, blocks_at_edges)
