/* Quantized caches through a request, the block loop and the service; analyses, whose only product is their report. */

#include "base/json.h"
#include "jobs/analysis.h"
#include "jobs/spec.h"
#include "pipeline/kv_cache.h"
#include "tests/unit/jobs/support.h"
#include "tests/unit/json.h"

#define CALIBRATION "\"calibration\":{\"stream\":true,\"num_samples\":8,\"sequence_length\":64}"
#define MODEL "{\"model\":\"mdl_01J00000000000000000000000\"," CALIBRATION ","

static int parse(const char *text, struct validation_errors *errors, struct job_spec *spec)
{
    json_t *body = json_of(text);
    memset(errors, 0, sizeof(*errors));
    int rc = spec_parse(body, errors, spec);
    json_decref(body);
    return rc;
}

START_TEST(members_are_read_and_written_back)
{
    static const struct {
        const char *text, *echo;
        struct cache_scheme scheme;
    } rows[] = {
        {"{}", "{\"dtype\":\"fp8_e4m3\",\"granularity\":\"per_tensor\"}", {DTYPE_F8_E4M3, false}},
        {"{\"granularity\":\"per_head\"}",
         "{\"dtype\":\"fp8_e4m3\",\"granularity\":\"per_head\"}",
         {DTYPE_F8_E4M3, true}},
        {"{\"dtype\":\"int8\"}", "{\"dtype\":\"int8\",\"granularity\":\"per_tensor\"}", {DTYPE_I8, false}},
    };
    struct validation_errors errors = {0};
    struct cache_scheme scheme = {.element = DTYPE_I8};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_t *object = json_of(rows[i].text);
        ck_assert_rc_ok(kv_cache_parse(object, "/q/kv_cache", &errors, &scheme));
        ck_assert(scheme.element == rows[i].scheme.element && scheme.per_head == rows[i].scheme.per_head);
        json_t *echo = kv_cache_json(&scheme), *expected = json_of(rows[i].echo);
        ck_assert(json_equal(echo, expected));
        json_decref(object);
        json_decref(echo);
        json_decref(expected);
    }
    ck_assert_rc_ok(kv_cache_parse(NULL, "/q/kv_cache", &errors, &scheme));
    ck_assert_int_eq(scheme.element, DTYPE_F32);
    json_t *none = kv_cache_json(&scheme);
    ck_assert(json_is_null(none));
    json_decref(none);
}
END_TEST

static const struct {
    const char *members, *pointer;
    int code;
} refused[] = {
    {"\"method\":\"rtn\",\"quantization\":{\"kv_cache\":{\"dtype\":\"int4\"}}", "/quantization/kv_cache/dtype",
     ERR_INVALID_PARAMETER},
    {"\"method\":\"rtn\",\"quantization\":{\"kv_cache\":{\"granularity\":8}}", "/quantization/kv_cache/granularity",
     ERR_INVALID_PARAMETER},
    {"\"method\":\"rtn\",\"quantization\":{\"kv_cache\":{\"scale\":1}}", "/quantization/kv_cache/scale",
     ERR_UNKNOWN_PARAMETER},
    {"\"method\":\"rtn\",\"quantization\":{\"kv_cache\":[]}", "/quantization/kv_cache", ERR_INVALID_PARAMETER},
    {"\"method\":[\"kv_cache\",\"gptq\"]", "/method/0", ERR_INCOMPATIBLE_OPTIONS},
    {"\"method\":[\"smoothquant\",\"kv_analysis\"]", "/method/1", ERR_INCOMPATIBLE_OPTIONS},
    {"\"method\":\"gptq\",\"quantization\":{\"overrides\":[{\"match\":\"*\",\"method\":\"kv_cache\"}]}",
     "/quantization/overrides/0/method", ERR_INCOMPATIBLE_OPTIONS},
    {"\"method\":\"kv_analysis\",\"quantization\":{\"kv_cache\":{}}", "/quantization/kv_cache",
     ERR_INCOMPATIBLE_OPTIONS},
    {"\"method\":\"kv_analysis\",\"quantization\":{\"residual_length\":100}", "/quantization/residual_length",
     ERR_INCOMPATIBLE_OPTIONS},
    {"\"method\":\"kv_analysis\",\"evaluation\":{\"file_id\":\"file_01J00000000000000000000000\"}",
     "/evaluation/file_id", ERR_INCOMPATIBLE_OPTIONS},
    {"\"method\":\"rtn\",\"calibration\":null,\"quantization\":{\"kv_cache\":{}}", "/calibration",
     ERR_MISSING_PARAMETER},
    {"\"method\":\"kv_cache\",\"calibration\":null", "/calibration", ERR_MISSING_PARAMETER},
};

START_TEST(unsound_requests_are_refused_at_their_place)
{
    struct validation_errors errors;
    struct job_spec spec;
    char text[512];

    bool bare = strstr(refused[_i].members, "\"calibration\"") != NULL;
    snprintf(text, sizeof(text), "%s%s}", bare ? "{\"model\":\"mdl_01J00000000000000000000000\"," : MODEL,
             refused[_i].members);
    ck_assert_int_lt(parse(text, &errors, &spec), 0);
    bool found = false;
    for (size_t i = 0; i < errors.count; i++) {
        found = found ||
                (strcmp(errors.items[i].param, refused[_i].pointer) == 0 && errors.items[i].code == refused[_i].code);
    }
    ck_assert_msg(found, "%s: first at %s", text, errors.items[0].param);
}
END_TEST

/* A method that leaves weights alone keeps the cache even when it is not told how, solves nothing itself, and lets
 * overrides name who does. */
START_TEST(the_cache_alone)
{
    struct validation_errors errors;
    struct job_spec spec;

    ck_assert_rc_ok(parse(MODEL "\"method\":\"kv_cache\",\"quantization\":{\"overrides\":[{\"match\":\"*.up_proj\","
                                "\"method\":\"rtn\"}]}}",
                          &errors, &spec));
    ck_assert(spec.recipe.cache.element == DTYPE_F8_E4M3 && !spec.recipe.cache.per_head);
    ck_assert_ptr_null(recipe_solver(&spec.recipe, "model.layers.0.mlp.gate_proj"));
    const struct recipe_stage *solver = recipe_solver(&spec.recipe, "model.layers.0.mlp.up_proj");
    ck_assert_ptr_nonnull(solver);
    ck_assert_str_eq(solver->quantizer->name, "rtn");
    json_t *echo = spec_json(&spec);
    ck_assert_str_eq(json_get_string(json_object_get(json_object_get(echo, "quantization"), "kv_cache"), "dtype"),
                     "fp8_e4m3");
    struct job_spec again;
    ck_assert_rc_ok(spec_parse(echo, &errors, &again));
    ck_assert_int_eq(again.recipe.cache.element, DTYPE_F8_E4M3);
    json_decref(echo);
    spec_deinit(&again);
    spec_deinit(&spec);
}
END_TEST

static struct rig rig;

static json_t *finish(const char *members, json_t **report, char id[ID_SIZE])
{
    rig_create(&rig, members, id);
    rig_upload(&rig, id, 0, 40, true);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    ck_assert_rc_ok(service_job_report(rig.service, &principal_local, id, report));
    return job;
}

static double result_of(const json_t *job, const char *name)
{
    return json_number_value(json_object_get(json_object_get(job, "result"), name));
}

static bool has_scales(const json_t *report, size_t heads)
{
    const json_t *list = json_object_get(report, "kv_cache");
    bool sound = json_array_size(list) == 4;

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *row = json_array_get(list, i), *keys = json_object_get(row, "key_scales");
        sound = sound && json_integer_value(json_object_get(row, "layer")) == (json_int_t)i;
        sound = sound && json_array_size(keys) == heads;
        for (size_t h = 0; h < json_array_size(keys); h++) {
            sound = sound && json_number_value(json_array_get(keys, h)) > 0;
        }
    }
    return sound;
}

/* The same job with and without a quantized cache: the weights' report rows are of the same modules, the cache costs
 * something small, and its scales are in the report. */
START_TEST(a_cache_beside_weights)
{
    char id[ID_SIZE];
    json_t *report, *plain;
    rig_open(&rig);
    json_t *with = finish("\"method\":\"rtn\",\"quantization\":{\"bits\":8,\"group_size\":-1,\"kv_cache\":"
                          "{\"granularity\":\"per_head\"}}," CALIBRATION,
                          &report, id);
    json_t *without =
        finish("\"method\":\"rtn\",\"quantization\":{\"bits\":8,\"group_size\":-1}," CALIBRATION, &plain, id);

    ck_assert(has_scales(report, 2));
    ck_assert(json_is_null(json_object_get(plain, "kv_cache")) && json_is_null(json_object_get(report, "analysis")));
    ck_assert_uint_eq(json_array_size(json_object_get(report, "layers")), 28);
    ck_assert(result_of(with, "perplexity_before") == result_of(without, "perplexity_before"));
    ck_assert(result_of(with, "kl_divergence_mean") > result_of(without, "kl_divergence_mean"));
    ck_assert(result_of(with, "kl_divergence_mean") < 0.05);
    json_decref(with);
    json_decref(without);
    json_decref(report);
    json_decref(plain);
    rig_close(&rig);
}
END_TEST

START_TEST(a_cache_without_weights)
{
    char id[ID_SIZE];
    json_t *report;
    rig_open(&rig);
    json_t *job = finish("\"method\":\"kv_cache\"," CALIBRATION, &report, id);
    ck_assert(has_scales(report, 1));
    ck_assert_double_eq(result_of(job, "bits_per_weight"), 16);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "layers")), 0);
    json_t *files = rig_files(&rig, job);
    ck_assert_uint_gt(json_array_size(files), 2);
    json_decref(files);
    json_decref(job);
    json_decref(report);
    rig_close(&rig);
}
END_TEST

START_TEST(an_analysis_ends_with_its_report)
{
    static const char *const columns[] = {"layer",
                                          "scheme",
                                          "bits_per_value",
                                          "key_relative_mse",
                                          "value_relative_mse",
                                          "score_relative_mse",
                                          "weight_relative_mse",
                                          "output_relative_mse",
                                          "tokens",
                                          "key_scales",
                                          "value_scales"};
    char id[ID_SIZE];
    json_t *report;
    rig_open(&rig);
    json_t *job =
        finish("\"method\":\"kv_analysis\",\"quantization\":{\"group_size\":16,\"residual_length\":16}," CALIBRATION,
               &report, id);
    const json_t *analysis = json_object_get(report, "analysis"), *rows = json_object_get(analysis, "rows");

    ck_assert(json_is_null(json_object_get(json_object_get(job, "result"), "artifact_id")));
    ck_assert(json_is_null(json_object_get(report, "evaluation")));
    ck_assert_uint_eq(json_array_size(rows), 4 * 7);
    ck_assert_uint_eq(json_array_size(json_object_get(analysis, "schemes")), 7);
    for (size_t i = 0; i < 28; i++) {
        const json_t *row = json_array_get(rows, i);
        ck_assert_int_eq(json_integer_value(json_object_get(row, "layer")), (json_int_t)i / 7);
        for (size_t c = 0; c < sizeof(columns) / sizeof(columns[0]); c++) {
            ck_assert_msg(json_object_get(row, columns[c]) != NULL, "no %s", columns[c]);
        }
        double error = json_number_value(json_object_get(row, "output_relative_mse"));
        ck_assert(error > 0 && error < 1);
    }
    ck_assert_rc_ok(service_job_delete(rig.service, &principal_local, id));
    json_decref(job);
    json_decref(report);
    rig_close(&rig);
}
END_TEST

/* Formats without a place for scales name one that has. */
START_TEST(what_no_artifact_can_say)
{
    static const struct {
        const char *members, *says;
    } rows[] = {
        {"\"method\":\"rtn\",\"quantization\":{\"kv_cache\":{\"dtype\":\"int8\"}},\"output\":{\"format\":\"awq\"}",
         "formats that carry it: compressed-tensors"},
        {"\"method\":\"rtn\",\"quantization\":{\"kv_cache\":{}},\"output\":{\"format\":\"gptq\"}",
         "formats that carry it: compressed-tensors"},
    };
    char members[512];
    rig_open(&rig);
    for (size_t i = 0; i < 2; i++) {
        struct validation_errors errors = {0};
        json_t *job;
        snprintf(members, sizeof(members), "%s,%s", rows[i].members, CALIBRATION);
        json_t *body = rig_body(&rig, members);
        ck_assert_int_eq(service_job_create(rig.service, &principal_local, body, NULL, NULL, &errors, &job),
                         ERR_INCOMPATIBLE_OPTIONS);
        ck_assert_msg(strstr(errors.items[0].hint, rows[i].says) != NULL, "%s", errors.items[0].hint);
        json_decref(body);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(a_summary_leaves_nothing_out)
{
    json_t *blocks = json_of("[{\"notes\":{\"analysis\":[{\"layer\":0,\"scheme\":\"a\",\"bits_per_value\":8,"
                             "\"output_relative_mse\":0.25},{\"layer\":0,\"scheme\":\"b\",\"bits_per_value\":4,"
                             "\"output_relative_mse\":0.5}]}},{\"notes\":{\"analysis\":[{\"layer\":1,\"scheme\":\"a\","
                             "\"bits_per_value\":8,\"output_relative_mse\":0.75},{\"layer\":1,\"scheme\":\"b\","
                             "\"bits_per_value\":4,\"output_relative_mse\":null}]}}]");
    json_t *expected = json_of("[{\"scheme\":\"a\",\"bits_per_value\":8,\"mean_output_relative_mse\":0.5,"
                               "\"worst_output_relative_mse\":0.75,\"worst_layer\":1},{\"scheme\":\"b\","
                               "\"bits_per_value\":4,\"mean_output_relative_mse\":null,"
                               "\"worst_output_relative_mse\":null,\"worst_layer\":1}]");
    json_t *report = analysis_report(blocks), *none = analysis_scales(blocks);

    ck_assert(json_equal(json_object_get(report, "schemes"), expected));
    ck_assert_uint_eq(json_array_size(json_object_get(report, "rows")), 4);
    ck_assert(json_is_null(none));
    json_decref(blocks);
    json_decref(expected);
    json_decref(report);
    json_decref(none);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("jobs/kv_cache");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 200);
    tcase_add_test(tcase, members_are_read_and_written_back);
    tcase_add_loop_test(tcase, unsound_requests_are_refused_at_their_place, 0, sizeof(refused) / sizeof(refused[0]));
    tcase_add_test(tcase, the_cache_alone);
    tcase_add_test(tcase, a_cache_beside_weights);
    tcase_add_test(tcase, a_cache_without_weights);
    tcase_add_test(tcase, an_analysis_ends_with_its_report);
    tcase_add_test(tcase, what_no_artifact_can_say);
    tcase_add_test(tcase, a_summary_leaves_nothing_out);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
