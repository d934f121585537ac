/* Requests held against a model: patterns, shapes, lengths, formats. */

#include "base/json.h"
#include "jobs/spec.h"
#include "pipeline/check.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static struct model *model;

static void open_model(void)
{
    int root = open(MODEL_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(root, 0);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &model));
    close(root);
}

/* A request with these members in addition to model and, unless they have it, method. */
static struct job_spec spec_of(const char *members)
{
    struct job_spec spec;
    struct validation_errors errors = {0};
    char text[1024];
    json_t *body;
    snprintf(text, sizeof(text), "{\"model\":\"mdl_01J00000000000000000000000\",%s%s}",
             strstr(members, "\"method\":") == members ? "" : "\"method\":\"rtn\",", members);
    ck_assert_rc_ok(json_parse(text, strlen(text), 32, &body));
    int rc = spec_parse(body, &errors, &spec);
    ck_assert_msg(rc == 0, "%s: %s %s", text, errors.items[0].param, errors.items[0].detail);
    json_decref(body);
    return spec;
}

static void expect(const char *members, int code, const char *pointer)
{
    struct validation_errors errors = {0};
    struct job_spec spec = spec_of(members);
    int rc = spec_check(&spec, model, NULL, &errors);
    if (code == 0) {
        ck_assert_msg(rc == 0, "%s: %s %s", members, errors.items[0].param, errors.items[0].detail);
    } else {
        ck_assert_msg(rc == code, "%s: %s", members, err_api_code(rc));
        ck_assert_str_eq(errors.items[0].param, pointer);
    }
    spec_deinit(&spec);
}

static void expect_skip(const char *pattern, const char *module, bool skipped)
{
    char members[256];
    snprintf(members, sizeof(members), "\"quantization\":{\"modules_to_not_convert\":[\"%s\"]}", pattern);
    struct job_spec spec = spec_of(members);
    ck_assert_msg((recipe_solver(&spec.recipe, module) == NULL) == skipped, "%s on %s", pattern, module);
    spec_deinit(&spec);
}

START_TEST(test_patterns)
{
    static const char down[] = "model.layers.0.mlp.down_proj";
    expect_skip(down, down, true);
    expect_skip("down_proj", down, true);
    expect_skip("mlp.down_proj", down, true);
    expect_skip("own_proj", down, false);
    expect_skip("model.layers.0.*", down, true);
    expect_skip("model.layers.1.*", down, false);
    expect_skip("re:.*down_proj$", down, true);
    expect_skip("re:down_proj", down, false); /* anchored at the start */
    expect_skip("re:model\\\\.layers\\\\.[0-3]\\\\.", down, true);
    expect_skip("lm_head", down, false);
}
END_TEST

START_TEST(test_a_pattern_must_hit)
{
    open_model();
    expect("\"quantization\":{\"group_size\":64,\"modules_to_not_convert\":[\"lm_head\",\"down_porj\"]}",
           ERR_INVALID_PARAMETER, "/quantization/modules_to_not_convert/1");
    expect("\"quantization\":{\"group_size\":64,\"modules_to_not_convert\":[\"re:.*_proj\"]}", ERR_INCOMPATIBLE_OPTIONS,
           "/quantization/modules_to_not_convert");
    expect("\"quantization\":{\"group_size\":64,\"modules_to_not_convert\":[\"lm_head\",\"down_proj\"]}", 0, "");
    model_close(model);
}
END_TEST

/* What has no effect is refused by name; what leaves a module in float is accepted. */
START_TEST(test_what_does_nothing)
{
#define OVERRIDES(list) "\"quantization\":{\"group_size\":64,\"overrides\":[" list "]}"
#define FP8(members) "\"method\":\"fp8\",\"quantization\":{" members "}"
#define SMOOTH(members) "\"method\":\"smoothquant\",\"calibration\":{\"stream\":true},\"quantization\":{" members "}"
    static const char match0[] = "/quantization/overrides/0/match";
    open_model();
    expect(OVERRIDES("{\"match\":\"lm_head\",\"bits\":8}"), ERR_INCOMPATIBLE_OPTIONS, match0);
    expect(OVERRIDES("{\"match\":\"re:lm_head$\",\"bits\":8}"), ERR_INCOMPATIBLE_OPTIONS, match0);
    expect(OVERRIDES("{\"match\":\"model.embed_tokens\",\"bits\":8}"), ERR_INCOMPATIBLE_OPTIONS, match0);
    expect(OVERRIDES("{\"match\":\"lm_head\",\"skip\":true}"), 0, "");
    expect(OVERRIDES("{\"match\":\"lm_haed\",\"skip\":true}"), ERR_INVALID_PARAMETER, match0);
    expect(OVERRIDES("{\"match\":\"down_proj\",\"bits\":8},{\"match\":\"model.*\",\"bits\":3}"),
           ERR_INCOMPATIBLE_OPTIONS, match0);
    expect(OVERRIDES("{\"match\":\"down_proj\",\"skip\":true},{\"match\":\"model.*\",\"bits\":3}"),
           ERR_INCOMPATIBLE_OPTIONS, match0);
    expect(OVERRIDES("{\"match\":\"model.*\",\"bits\":3},{\"match\":\"down_proj\",\"bits\":8}"), 0, "");
    expect("\"quantization\":{\"modules_to_not_convert\":[\"down_proj\"],\"overrides\":["
           "{\"match\":\"down_proj\",\"bits\":8}]}",
           ERR_INCOMPATIBLE_OPTIONS, match0);
    expect("\"quantization\":{\"modules_to_not_convert\":[\"down_proj\",\"lm_head\"],\"overrides\":["
           "{\"match\":\"down_proj\",\"skip\":true}]}",
           0, "");
    expect(FP8("\"float_inputs\":[\"o_proj\",\"lm_head\"]"), ERR_INCOMPATIBLE_OPTIONS, "/quantization/float_inputs/1");
    expect(FP8("\"float_inputs\":[\"oo_proj\"]"), ERR_INVALID_PARAMETER, "/quantization/float_inputs/0");
    expect(FP8("\"float_inputs\":[\"o_proj\"],\"modules_to_not_convert\":[\"o_proj\"]"), ERR_INCOMPATIBLE_OPTIONS,
           "/quantization/float_inputs/0");
    expect(FP8("\"float_inputs\":[\"o_proj\"],\"activation_scheme\":\"none\""), ERR_INCOMPATIBLE_OPTIONS,
           "/quantization/float_inputs/0");
    expect(FP8("\"overrides\":[{\"match\":\"model.layers.0.*\",\"float_inputs\":[\"model.layers.1.*\"]}]"),
           ERR_INCOMPATIBLE_OPTIONS, "/quantization/overrides/0/float_inputs/0");
    expect(FP8("\"float_inputs\":[\"o_proj\"]"), 0, "");
    expect(SMOOTH("\"smooth_output\":true"), ERR_INCOMPATIBLE_OPTIONS, "/quantization/smooth_output");
    expect(SMOOTH("\"smooth_down\":true,\"float_inputs\":[\"down_proj\"]"), ERR_INCOMPATIBLE_OPTIONS,
           "/quantization/smooth_down");
    expect(SMOOTH("\"smooth_down\":true"), 0, "");
    expect(SMOOTH(""), 0, ""); /* neither was asked for */
    expect(SMOOTH("\"smooth_output\":null,\"float_inputs\":[\"down_proj\"]"), 0, "");
    model_close(model);
}
END_TEST

/* model and method alone, with calibration where it is needed, make a job, in the first format that suits the method.
 */
START_TEST(test_defaults_start)
{
    static const char *const methods[][2] = {
        {"\"rtn\"", "compressed-tensors"},
        {"\"gptq\"", "compressed-tensors"},
        {"\"awq\"", "compressed-tensors"},
        {"\"smoothquant\"", "compressed-tensors"},
        {"\"llm_int8\"", "bitsandbytes"},
        {"\"nf4\"", "bitsandbytes"},
        {"\"fp8\"", "compressed-tensors"},
        {"\"kmeans\"", "dense"},
        {"\"aqlm\"", "aqlm"},
        {"\"ggml\"", "gguf"},
        {"\"kv_cache\"", "compressed-tensors"},
        {"\"kv_analysis\"", "compressed-tensors"},
        {"\"sensitivity\"", "compressed-tensors"},
        {"[\"smoothquant\",\"gptq\"]", "compressed-tensors"},
        {"[\"smoothquant\",\"awq\"]", "compressed-tensors"},
        {"[\"awq\",\"gptq\"]", "compressed-tensors"},
        {"\"autoround\"", "compressed-tensors"},
        {"\"qat\"", "compressed-tensors"},
        {"[\"gptq\",\"tune\"]", "compressed-tensors"},
    };
    size_t singles = 0;
    while (quantizer_list()[singles] != NULL) {
        singles++;
    }
    /* `tune` comes in a list alone, one of four */
    ck_assert_uint_eq(singles - 1 + 4, sizeof(methods) / sizeof(methods[0]));
    open_model();
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        struct validation_errors errors = {0};
        char members[256];
        snprintf(members, sizeof(members), "\"method\":%s,\"calibration\":{\"stream\":true}", methods[i][0]);
        struct job_spec spec = spec_of(members);
        int rc = spec_check(&spec, model, NULL, &errors);
        ck_assert_msg(rc == 0, "%s: %s %s", members, errors.items[0].param, errors.items[0].detail);
        ck_assert_str_eq(spec.format->name, methods[i][1]);
        ck_assert_str_eq(spec.output.format, methods[i][1]);
        ck_assert_int_eq(spec.calibration.sequence_length, 256);
        spec_deinit(&spec);
    }
    /* what only float weights would carry, without its inputs, is not a default */
    expect("\"method\":[\"smoothquant\",\"gptq\"],\"calibration\":{\"stream\":true},\"quantization\":{\"bits\":4}",
           ERR_INCOMPATIBLE_OPTIONS, "/quantization");
    model_close(model);
}
END_TEST

/* Names that other programs use. */
START_TEST(test_peer_names)
{
    open_model();
    struct job_spec spec =
        spec_of("\"method\":\"GPTQ\",\"calibration\":{\"stream\":true,\"seqlen\":128,\"nsamples\":7},"
                "\"quantization_config\":{\"w_bit\":3,\"q_group_size\":64,\"zero_point\":true,"
                "\"dampening_frac\":0.1,\"actorder\":false,\"ignore\":[\"lm_head\"],"
                "\"overrides\":[{\"match\":\"down_proj\",\"num_bits\":8}]},"
                "\"output\":{\"format\":\"GPTQ_v2\"}");
    json_t *echo = recipe_parameters_json(&spec.recipe);
    ck_assert_str_eq(spec.recipe.name, "gptq");
    ck_assert_str_eq(spec.output.format, "gptq_v2");
    ck_assert_int_eq(spec.calibration.sequence_length, 128);
    ck_assert_int_eq(spec.calibration.num_samples, 7);
    ck_assert_int_eq(json_integer_value(json_object_get(echo, "bits")), 3);
    ck_assert_int_eq(json_integer_value(json_object_get(echo, "group_size")), 64);
    ck_assert(json_is_false(json_object_get(echo, "sym")));
    ck_assert(json_is_false(json_object_get(echo, "act_order")));
    ck_assert_double_eq(json_real_value(json_object_get(echo, "damp_percent")), 0.1);
    ck_assert_uint_eq(json_array_size(json_object_get(echo, "modules_to_not_convert")), 1);
    const struct quant_common *own = spec.recipe.overrides[0].solver.params;
    ck_assert_int_eq(own->bits, 8); /* not "both names at once" with the request's */
    ck_assert_int_eq(own->group_size, 64);
    json_decref(echo);
    spec_deinit(&spec);
    model_close(model);
}
END_TEST

START_TEST(test_lengths_and_devices)
{
    open_model();
    expect("\"calibration\":{\"stream\":true,\"sequence_length\":256}", 0, "");
    expect("\"calibration\":{\"stream\":true,\"sequence_length\":257}", ERR_INCOMPATIBLE_OPTIONS,
           "/calibration/sequence_length");
    expect("\"evaluation\":{\"file_id\":\"file_01J00000000000000000000000\",\"sequence_length\":1024}",
           ERR_INCOMPATIBLE_OPTIONS, "/evaluation/sequence_length");
    model_close(model);
}
END_TEST

static int check_on(const struct gpu_info *device)
{
    struct validation_errors errors = {0};
    struct job_spec spec = spec_of("\"quantization\":{\"group_size\":64}");
    int rc = spec_check(&spec, model, device, &errors);
    ck_assert(rc == 0 || strcmp(errors.items[0].param, "/resources/device") == 0);
    spec_deinit(&spec);
    return rc;
}

/* A job is judged by the device that it is told of, and by no other that this host has. */
START_TEST(test_the_device_that_runs_is_judged)
{
    struct gpu_info large, small;
    open_model();
    ck_assert_rc_ok(gpu_describe("cpu:0", 1, &large));
    ck_assert_str_eq(large.id, "cpu");
    small = large;
    small.memory_total = 1 << 20;
    ck_assert_rc_ok(check_on(&large));
    ck_assert_int_eq(check_on(&small), ERR_INSUFFICIENT_MEMORY);
    ck_assert_rc_ok(check_on(NULL));
    struct gpu_names names;
    ck_assert_rc_ok(gpu_find_all("cpu", &names));
    ck_assert_int_eq(names.count, 1);
    ck_assert_str_eq(names.ids[0], "cpu");
    ck_assert_rc_ok(gpu_find_all("all", &names));
    ck_assert_int_eq(names.count, 1);
    static const char *const refused[] = {"gpu", "cpu:1", "cpu,gpu", "cpu,cpu", "auto,cpu", "cpu,", "", "all,cpu"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        ck_assert_int_eq(gpu_find_all(refused[i], &names), ERR_CONFIG);
    }
    ck_assert_int_eq(gpu_describe("cpu:1", 1, &large), ERR_CONFIG);
    model_close(model);
}
END_TEST

START_TEST(test_modules_in_order)
{
    open_model();
    struct format_module *modules;
    int count;
    struct job_spec spec = spec_of("\"quantization\":{\"bits\":3,\"modules_to_not_convert\":[\"o_proj\"]}");

    ck_assert_rc_ok(recipe_modules(&spec.recipe, spec.format, model, &modules, &count));
    ck_assert_int_eq(count, 4 * (7 - 1));
    ck_assert_str_eq(modules[0].name, "model.layers.0.self_attn.q_proj");
    ck_assert_int_eq(modules[0].scheme.bits, 3);
    ck_assert_int_eq(modules[0].rows, 256);
    ck_assert_str_eq(modules[count - 1].name, "model.layers.3.mlp.down_proj");
    ck_assert_int_eq(modules[count - 1].cols, 768);
    free(modules);
    spec_deinit(&spec);
    model_close(model);
}
END_TEST

/* What a runtime of the format will not do with an accepted job is said; what all of them do, is not. */
START_TEST(test_warnings)
{
    static const struct {
        const char *members, *code, *part;
    } rows[] = {
        {"\"quantization\":{\"group_size\":64}", NULL, NULL},
        {"\"method\":\"fp8\",\"quantization\":{}", NULL, NULL},
        {"\"method\":\"fp8\",\"quantization\":{\"granularity\":\"block\",\"activation_scheme\":\"none\"}",
         "not_in_vllm", "activation_scheme dynamic"},
        {"\"method\":\"fp8\",\"quantization\":{\"granularity\":\"block\",\"weight_block_size\":64}", "not_in_vllm",
         "weight_block_size 128"},
        {"\"method\":\"fp8\",\"quantization\":{\"granularity\":\"block\"}", NULL, NULL},
        {"\"calibration\":{\"stream\":true},\"quantization\":{\"group_size\":64,\"kv_cache\":{\"dtype\":\"int8\"}}",
         "cache_scales", "vLLM refuses INT8"},
        {"\"calibration\":{\"stream\":true},\"quantization\":{\"group_size\":64,\"kv_cache\":{\"dtype\":\"fp8_e4m3\"}}",
         "cache_scales", "vLLM, and"},
        {"\"method\":\"aqlm\",\"quantization\":{\"num_codebooks\":2,\"nbits_per_codebook\":8},"
         "\"output\":{\"format\":\"aqlm\"},\"calibration\":{\"stream\":true}",
         "cpu_kernel", "NUMBA_NUM_THREADS=1"},
    };
    open_model();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct job_spec spec = spec_of(rows[i].members);
        json_t *warnings = json_array();
        size_t k;
        json_t *warning;
        bool said = false;
        struct validation_errors errors = {0};
        ck_assert_rc_ok(spec_check(&spec, model, NULL, &errors)); /* which chooses the format */
        ck_assert_rc_ok(recipe_warnings(&spec.recipe, spec.format, model, warnings));
        json_array_foreach(warnings, k, warning)
        {
            const char *text = json_string_value(json_object_get(warning, "message"));
            ck_assert_msg(rows[i].code != NULL, "%s: %s", rows[i].members, text);
            said = said || (strcmp(json_string_value(json_object_get(warning, "code")), rows[i].code) == 0 &&
                            strstr(text, rows[i].part) != NULL);
        }
        ck_assert_msg(said == (rows[i].code != NULL), "%s", rows[i].members);
        json_decref(warnings);
        spec_deinit(&spec);
    }
    model_close(model);
}
END_TEST

UNIT_MAIN("check", test_patterns, test_a_pattern_must_hit, test_what_does_nothing, test_defaults_start, test_peer_names,
          test_lengths_and_devices, test_the_device_that_runs_is_judged, test_modules_in_order, test_warnings)
