/* Requests: every error with its code and pointer, several at once, and the canonical form that reads back to itself.
 */

#include "base/json.h"
#include "jobs/jobs.h"
#include "jobs/spec.h"
#include "tests/unit/unit.h"

#include <string.h>

#define MODEL "\"model\":\"mdl_01J00000000000000000000000\""

static int parse(const char *text, struct validation_errors *errors, struct job_spec *spec)
{
    json_t *body;
    memset(errors, 0, sizeof(*errors));
    ck_assert_rc_ok(json_parse(text, strlen(text), 32, &body));
    int rc = spec_parse(body, errors, spec);
    json_decref(body);
    return rc;
}

static const struct validation_error *find(const struct validation_errors *errors, const char *pointer)
{
    for (size_t i = 0; i < errors->count; i++) {
        if (strcmp(errors->items[i].param, pointer) == 0) {
            return &errors->items[i];
        }
    }
    return NULL;
}

static const struct {
    const char *body, *pointer;
    int code;
} refused[] = {
    {"[]", "", ERR_INVALID_PARAMETER},
    {"{}", "/model", ERR_MISSING_PARAMETER},
    {"{}", "/method", ERR_MISSING_PARAMETER},
    {"{" MODEL ",\"method\":\"gptq\"}", "/calibration", ERR_MISSING_PARAMETER},
    {"{" MODEL ",\"method\":\"alchemy\"}", "/method", ERR_INVALID_PARAMETER},
    {"{\"model\":7,\"method\":\"rtn\"}", "/model", ERR_INVALID_PARAMETER},
    {"{\"model\":\"job_01J00000000000000000000000\",\"method\":\"rtn\"}", "/model", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"colour\":1}", "/colour", ERR_UNKNOWN_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"seed\":-1}", "/seed", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"seed\":1.5}", "/seed", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"quantization\":{\"group_siez\":32}}", "/quantization/group_siez",
     ERR_UNKNOWN_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"quantization\":{\"bits\":7}}", "/quantization/bits", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"quantization\":{\"bits\":\"4\"}}", "/quantization/bits", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"quantization\":[]}", "/quantization", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"output\":{\"format\":\"punch cards\"}}", "/output/format", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"output\":{\"max_shard_bytes\":1}}", "/output/max_shard_bytes",
     ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"output\":{\"sign\":\"yes\"}}", "/output/sign", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"calibration\":{\"file_id\":\"file_01J00000000000000000000000\",\"stream\":true}}",
     "/calibration/stream", ERR_INCOMPATIBLE_OPTIONS},
    {"{" MODEL ",\"method\":\"rtn\",\"calibration\":{\"file_id\":\"../x\"}}", "/calibration/file_id",
     ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"calibration\":{\"sequence_length\":1}}", "/calibration/sequence_length",
     ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"calibration\":{\"report_tokens\":-1}}", "/calibration/report_tokens",
     ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"calibration\":{\"report_tokens\":0.5}}", "/calibration/report_tokens",
     ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"evaluation\":{\"file_id\":\"7\"}}", "/evaluation/file_id", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"evaluation\":{\"hold_back\":0.9}}", "/evaluation/hold_back",
     ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"evaluation\":{\"sequence_length\":64}}", "/evaluation/sequence_length",
     ERR_INCOMPATIBLE_OPTIONS},
    {"{" MODEL ",\"method\":\"rtn\",\"resources\":{\"device\":3}}", "/resources/device", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"metadata\":{\"a\":1}}", "/metadata", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"metadata\":\"a\"}", "/metadata", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"max_attempts\":0}", "/max_attempts", ERR_INVALID_PARAMETER},
    {"{" MODEL ",\"method\":\"rtn\",\"timeout_seconds\":0}", "/timeout_seconds", ERR_INVALID_PARAMETER},
};

START_TEST(test_every_error_is_reported)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct job_spec spec;
        struct validation_errors errors;
        ck_assert_int_lt(parse(refused[i].body, &errors, &spec), 0);
        const struct validation_error *error = find(&errors, refused[i].pointer);
        ck_assert_msg(error != NULL, "%s: no error at \"%s\", the first is %s %s", refused[i].body, refused[i].pointer,
                      errors.items[0].param, errors.items[0].detail);
        ck_assert_msg(error->code == refused[i].code, "%s: %s", refused[i].body, err_api_code(error->code));
    }
}
END_TEST

START_TEST(test_all_at_once)
{
    struct job_spec spec;
    struct validation_errors errors;

    ck_assert_int_lt(parse("{\"method\":\"gptq\",\"quantization\":{\"bits\":7,\"zip\":1},\"output\":{\"format\":\"x\"},"
                           "\"calibration\":{\"strem\":true},\"resources\":7}",
                           &errors, &spec),
                     0);
    ck_assert_ptr_nonnull(find(&errors, "/model"));
    ck_assert_ptr_nonnull(find(&errors, "/quantization/bits"));
    ck_assert_ptr_nonnull(find(&errors, "/quantization/zip"));
    ck_assert_ptr_nonnull(find(&errors, "/output/format"));
    ck_assert_ptr_nonnull(find(&errors, "/calibration/strem"));
    ck_assert_ptr_nonnull(find(&errors, "/resources"));
}
END_TEST

static const char *const accepted[] = {
    "{" MODEL ",\"method\":\"rtn\"}",
    "{" MODEL ",\"method\":\"rtn\",\"recommendation\":{\"goal\":\"low_risk\",\"choice\":\"rtn-int8\"}}",
    "{" MODEL ",\"method\":\"gptq\",\"calibration\":{\"stream\":true},\"name\":\"w4\",\"seed\":9007199254740991}",
    "{" MODEL ",\"method\":\"gptq\",\"quantization\":{\"bits\":3,\"group_size\":-1,\"sym\":false,\"damp_percent\":0.05,"
    "\"modules_to_not_convert\":[\"lm_head\",\"re:.*down_proj$\"]},\"output\":{\"format\":\"gptq\"},"
    "\"calibration\":{\"file_id\":\"file_01J00000000000000000000000\",\"num_samples\":0,\"sequence_length\":64},"
    "\"evaluation\":{\"hold_back\":0},\"resources\":{\"device\":\"cpu\",\"host_memory_bytes\":1048576},"
    "\"metadata\":{\"team\":\"search\"},\"priority\":-5,\"max_attempts\":1,\"timeout_seconds\":60}",
};

START_TEST(test_canonical_form_reads_back)
{
    for (size_t i = 0; i < sizeof(accepted) / sizeof(accepted[0]); i++) {
        struct job_spec spec;
        struct job_spec again;
        struct validation_errors errors;
        int rc = parse(accepted[i], &errors, &spec);
        ck_assert_msg(rc == 0, "%s: %s %s", accepted[i], errors.items[0].param, errors.items[0].detail);
        json_t *canonical = spec_json(&spec);
        ck_assert_ptr_nonnull(canonical);
        ck_assert_rc_ok(spec_parse(canonical, &errors, &again));
        json_t *twice = spec_json(&again);
        ck_assert(json_equal(canonical, twice));
        ck_assert_str_eq(again.recipe.name, spec.recipe.name);
        ck_assert((again.recommendation != NULL) == (strstr(accepted[i], "recommendation") != NULL));
        ck_assert_int_eq(again.seed, spec.seed);
        ck_assert_int_eq(again.calibration.stream, spec.calibration.stream);
        json_decref(canonical);
        json_decref(twice);
        spec_deinit(&spec);
        spec_deinit(&again);
    }
}
END_TEST

START_TEST(test_defaults)
{
    struct job_spec spec;
    struct validation_errors errors;

    ck_assert_rc_ok(parse(accepted[0], &errors, &spec));
    ck_assert_ptr_null(spec.format); /* chosen against the model */
    ck_assert_str_eq(spec.resources.device, "auto");
    ck_assert_int_eq(spec.calibration.num_samples, 128);
    ck_assert_int_eq(spec.max_attempts, 3);
    ck_assert(!spec_has_calibration(&spec));
    struct model_config config = {.max_position = 256};
    ck_assert_int_eq(spec_sequence_length(&spec, &config), 256);
    config.max_position = 131072;
    ck_assert_int_eq(spec_sequence_length(&spec, &config), 2048);
    spec.calibration.sequence_length = 64;
    ck_assert_int_eq(spec_sequence_length(&spec, &config), 64);
    ck_assert_int_eq(spec.calibration.report_tokens, 1024);
    ck_assert_int_eq(spec_passing_sequences(&spec, 100, 64), 16);
    ck_assert_int_eq(spec_passing_sequences(&spec, 100, 1000), 2); /* complete ones, so that there are enough tokens */
    ck_assert_int_eq(spec_passing_sequences(&spec, 100, 4096), 1);
    ck_assert_int_eq(spec_passing_sequences(&spec, 10, 64), 10);
    ck_assert_int_eq(spec_passing_sequences(&spec, 0, 0), 0);
    spec.calibration.report_tokens = 0;
    ck_assert_int_eq(spec_passing_sequences(&spec, 100, 64), 100);
    spec_deinit(&spec);
    ck_assert_rc_ok(parse(accepted[2], &errors, &spec)); /* gptq */
    ck_assert_int_eq(spec_passing_sequences(&spec, 100, 64), 100);
    spec_deinit(&spec);
}
END_TEST

START_TEST(test_schema_lists_parameters)
{
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        json_t *schema = spec_quantization_schema(*q);
        const json_t *properties = json_object_get(schema, "properties");
        for (const struct params_row *base = quant_base_rows; base->name != NULL; base++) {
            /* what every method takes but one that follows, whose list has them from the method before it */
            ck_assert_msg((json_object_get(properties, base->name) != NULL) != quantizer_follows(*q), "%s of %s",
                          base->name, (*q)->name);
        }
        ck_assert_ptr_nonnull(strcmp((*q)->name, "gptq") == 0 ? json_object_get(properties, "bits") : properties);
        ck_assert(json_is_false(json_object_get(schema, "additionalProperties")));
        json_decref(schema);
    }
}
END_TEST

/* Every reference of `schema` names a member of `components`. */
static void check_references(const json_t *schema, const json_t *components)
{
    const char *key;
    json_t *value;
    size_t i;
    const char *target = json_string_value(json_object_get(schema, "$ref"));

    if (target != NULL) {
        ck_assert_ptr_eq(strstr(target, "#/components/schemas/"), target);
        ck_assert_msg(json_object_get(components, strrchr(target, '/') + 1) != NULL, "%s", target);
    }
    json_object_foreach((json_t *)schema, key, value)
    {
        check_references(value, components);
    }
    json_array_foreach((json_t *)schema, i, value)
    {
        check_references(value, components);
    }
}

START_TEST(test_schema_of_requests)
{
    json_t *components = json_object();
    size_t methods = 0;

    service_schemas(components);
    check_references(components, components);
    const json_t *request = json_object_get(components, "JobRequest");
    const json_t *mapping = json_object_get(json_object_get(request, "discriminator"), "mapping");
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        ck_assert_msg(json_is_string(json_object_get(mapping, (*q)->name)) != quantizer_follows(*q), "%s", (*q)->name);
        methods += !quantizer_follows(*q); /* which lists alone have */
    }
    ck_assert_uint_eq(json_object_size(mapping), methods + 1);                          /* and auto */
    ck_assert_uint_eq(json_array_size(json_object_get(request, "oneOf")), methods + 2); /* and lists of methods */
    const json_t *chosen = json_object_get(json_object_get(components, "JobRequestAuto"), "properties");
    ck_assert_ptr_nonnull(json_object_get(chosen, "recommendation"));
    const json_t *asked = json_object_get(json_object_get(components, "JobRequestRecommendation"), "properties");
    ck_assert(json_object_get(asked, "goal") != NULL && json_object_get(asked, "model") == NULL);
    const json_t *gptq = json_object_get(json_object_get(components, "JobRequestGptq"), "properties");
    ck_assert_str_eq(json_string_value(json_object_get(json_object_get(gptq, "method"), "const")), "gptq");
    ck_assert(json_object_get(gptq, "recommendation") == NULL);
    ck_assert_str_eq(json_string_value(json_object_get(
                         json_array_get(json_object_get(json_object_get(gptq, "model"), "anyOf"), 0), "pattern")),
                     "^mdl_[0-9A-HJKMNP-TV-Z]{26}$");
    ck_assert_ptr_nonnull(json_object_get(json_object_get(components, "JobRequestCalibration"), "properties"));
    json_decref(components);
}
END_TEST

UNIT_MAIN("spec", test_every_error_is_reported, test_all_at_once, test_canonical_form_reads_back, test_defaults,
          test_schema_lists_parameters, test_schema_of_requests)
