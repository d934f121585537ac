/* Suggestions for modules that are made up: which, in what order, and that each is held to the checks of a job. */

#include "base/json.h"
#include "jobs/spec.h"
#include "jobs/suggest.h"
#include "tests/unit/jobs/anatomy_rows.h"

struct trial {
    bool one_geometry; /* as formats do that refuse mixtures */
    int asked;
};

/* What can be judged without a model; a format of one geometry refuses overrides. */
static bool accepts(void *data, const json_t *request)
{
    struct trial *trial = data;
    static struct validation_errors errors;
    struct job_spec spec = {.metadata = NULL};

    trial->asked++;
    errors.count = 0;
    if (spec_parse(request, &errors, &spec) != 0) {
        return false;
    }
    bool mixed = spec.recipe.override_count > 0;
    spec_deinit(&spec);
    return !(trial->one_geometry && mixed);
}

static json_t *fused(void *data, int64_t layer, const char *module)
{
    const char *end = strrchr(module, '_');

    (void)data;
    if (end == NULL || (end[-1] != 'q' && end[-1] != 'k' && end[-1] != 'v')) {
        return NULL;
    }
    json_t *names = json_array();
    for (const char *kind = "qkv"; *kind != '\0'; kind++) {
        json_array_append_new(names, json_sprintf("model.layers.%d.self_attn.%c_proj", (int)layer, *kind));
    }
    return names;
}

/* A job's request with every default, as it is stored. */
static json_t *request_of(const char *text)
{
    static struct validation_errors errors;
    struct job_spec spec = {.metadata = NULL};
    json_t *body = json_loads(text, 0, NULL);

    ck_assert_ptr_nonnull(body);
    json_object_set_new(body, "model", json_string("mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV"));
    errors.count = 0;
    ck_assert_msg(spec_parse(body, &errors, &spec) == 0, "%s", errors.items[0].detail);
    json_t *request = spec_json(&spec);
    spec_deinit(&spec);
    json_decref(body);
    return request;
}

#define GPTQ "{\"method\":\"gptq\",\"calibration\":{\"stream\":true},\"quantization\":{\"bits\":4,\"group_size\":128}}"

/* Every suggestion of these rows is accepted, changes the request and says why; they come in their order. */
static json_t *suggested(const struct report_row *rows, int count, const char *text, struct trial *trial)
{
    json_t *list = rows_json(rows, count), *request = request_of(text), *item;
    const struct suggest from = {.rows = list,
                                 .request = request,
                                 .calibration_tokens = 100000,
                                 .calibrated = strstr(text, "calibration") != NULL,
                                 .accepts = accepts,
                                 .fused = fused,
                                 .data = trial};
    json_t *found = suggest_changes(&from);
    size_t i;

    ck_assert(json_is_array(found));
    ck_assert_uint_le(json_array_size(found), SUGGEST_MAX);
    json_array_foreach(found, i, item)
    {
        json_t *body = json_merge_patch(request, json_object_get(item, "patch"));
        ck_assert(accepts(trial, body));
        ck_assert(!json_equal(body, request));
        ck_assert_uint_gt(json_string_length(json_object_get(item, "reason")), 20);
        ck_assert_uint_gt(json_string_length(json_object_get(item, "basis")), 10);
        ck_assert_int_ge(json_integer_value(json_object_get(item, "module_count")), 1);
        json_decref(body);
    }
    json_decref(list);
    json_decref(request);
    return found;
}

/* The suggestion whose patch, as text, has `part`; NULL: there is none. */
static const json_t *with(const json_t *found, const char *part)
{
    const json_t *item, *match = NULL;
    size_t i;

    json_array_foreach((json_t *)found, i, item)
    {
        char *text = json_dumps(json_object_get(item, "patch"), JSON_COMPACT);
        match = match == NULL && strstr(text, part) != NULL ? item : match;
        free(text);
    }
    return match;
}

static double number_of(const json_t *suggestion, const char *name)
{
    ck_assert_ptr_nonnull(suggestion);
    return json_number_value(json_object_get(suggestion, name));
}

START_TEST(a_bad_module_gets_bits_and_its_siblings_too)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    rows[1].output_relative_mse = 0.2; /* block 0's k_proj */
    json_t *found = suggested(rows, count, GPTQ, &trial);
    const json_t *bits = with(found, "\"match\":\"model.layers.0.self_attn.k_proj\",\"bits\":8");
    ck_assert_int_eq(json_integer_value(json_object_get(bits, "module_count")), 3); /* q, k, v */
    ck_assert_int_eq(json_integer_value(json_object_get(bits, "bytes_added")), 3 * 65536 / 2);
    double all = 65536 * (0.01 * 15 + 0.2) + 262144 * 0.01 * 12;
    ck_assert_double_eq_tol(number_of(bits, "error_removed"), 65536 * 0.22 / all * (1 - 1 / 289.0), 1e-9);
    ck_assert_double_eq_tol(number_of(bits, "error_ratio"), 1 / 289.0, 1e-9);
    json_decref(found);
}
END_TEST

START_TEST(tables_of_more_bits_take_bytes)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        (void)snprintf(rows[i].method, sizeof(rows[i].method), "kmeans");
    }
    rows[1].output_relative_mse = 0.2;
    json_t *found = suggested(rows, count, "{\"method\":\"kmeans\",\"quantization\":{\"bits\":4}}", &trial);
    const json_t *bits = with(found, "\"match\":\"model.layers.0.self_attn.k_proj\",\"bits\":8");
    /* codes of 4 bits more, and 256 values of 2 bytes in place of 16 for each of the 256 rows */
    ck_assert_int_eq(json_integer_value(json_object_get(bits, "bytes_added")), 3 * (65536 / 2 + 256 * 240 * 2));
    json_decref(found);
}
END_TEST

START_TEST(a_mixture_needs_a_larger_budget)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    rows[1].output_relative_mse = 0.2;
    json_t *found = suggested(rows, count,
                              "{\"method\":\"gptq\",\"calibration\":{\"stream\":true},\"quantization\":{\"bits\":4,"
                              "\"group_size\":128,\"mixed_precision\":{\"bits_per_weight\":3.5,\"kl_tokens\":512}}}",
                              &trial);
    const json_t *budget = with(found, "\"mixed_precision\":{\"bits_per_weight\":4.0}");
    ck_assert_double_eq_tol(number_of(budget, "error_ratio"), 0.5, 1e-9);
    ck_assert_int_eq(json_integer_value(json_object_get(budget, "bytes_added")), 4 * (4 * 65536 + 3 * 262144) / 16);
    ck_assert_ptr_null(with(found, "overrides")); /* other modules would pay for it */
    ck_assert_ptr_null(with(found, "group_size"));
    json_decref(found);
}
END_TEST

START_TEST(the_best_for_its_bytes_is_first)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);
    double before = INFINITY;
    size_t i;
    json_t *item;

    rows[1].output_relative_mse = 0.2;
    json_t *found = suggested(rows, count, GPTQ, &trial);
    ck_assert_uint_ge(json_array_size(found), 2);
    json_array_foreach(found, i, item)
    {
        double bytes = number_of(item, "bytes_added");
        double key = bytes > 0 ? number_of(item, "error_removed") / bytes : INFINITY;
        ck_assert_double_le(key, before);
        before = key;
    }
    json_decref(found);
}
END_TEST

START_TEST(smaller_groups_for_far_weights)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    rows[6].weight_outlier_fraction = 0.008;
    rows[6].part_range_ratio = 0.3;
    rows[6].output_relative_mse = 0.05;
    json_t *found = suggested(rows, count, GPTQ, &trial);
    const json_t *one = with(found, "\"match\":\"model.layers.0.mlp.down_proj\",\"group_size\":32");
    ck_assert_double_eq_tol(number_of(one, "error_ratio"), 0.3, 1e-9);
    ck_assert_ptr_nonnull(strstr(json_string_value(json_object_get(one, "reason")), "0.8 % of the weights lie beyond"));
    const json_t *all = with(found, "{\"quantization\":{\"group_size\":32}}");
    ck_assert_double_lt(number_of(all, "error_ratio"), 0.7);
    ck_assert_double_gt(number_of(all, "bytes_added"), number_of(one, "bytes_added"));
    json_decref(found);
    trial.one_geometry = true; /* then only what is alike for all */
    found = suggested(rows, count, GPTQ, &trial);
    ck_assert_ptr_null(with(found, "overrides"));
    ck_assert_ptr_nonnull(with(found, "{\"quantization\":{\"group_size\":32}}"));
    json_decref(found);
}
END_TEST

START_TEST(channels_call_for_awq)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        (void)snprintf(rows[i].top_channels, sizeof(rows[i].top_channels), "17:0.6 3:0.01");
        rows[i].input_channel_max_to_median = 38;
        rows[i].input_evenness = 0.09;
    }
    json_t *found = suggested(rows, count, GPTQ, &trial);
    const json_t *first = json_array_get(found, 0);
    ck_assert_ptr_eq(first, with(found, "[\"awq\",\"gptq\"]"));
    ck_assert(json_is_null(json_object_get(first, "error_ratio")));
    ck_assert_ptr_nonnull(strstr(json_string_value(json_object_get(first, "basis")), "leave 9.0 % of"));
    ck_assert_int_eq(json_integer_value(json_object_get(first, "bytes_added")), 0);
    json_decref(found);
}
END_TEST

START_TEST(too_few_tokens_come_first)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        rows[i].tokens = 128;
    }
    json_t *found = suggested(rows, count,
                              "{\"method\":\"gptq\",\"calibration\":{\"stream\":true,\"num_samples\":2,"
                              "\"sequence_length\":64},\"quantization\":{\"bits\":4,\"group_size\":128}}",
                              &trial);
    const json_t *first = json_array_get(found, 0);
    ck_assert_ptr_eq(first, with(found, "{\"calibration\":{\"num_samples\":8}}"));
    ck_assert(json_is_null(json_object_get(first, "error_removed")));
    json_decref(found);
}
END_TEST

START_TEST(rounding_with_data_at_hand_calls_for_gptq)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        (void)snprintf(rows[i].method, sizeof(rows[i].method), "rtn");
    }
    json_t *found = suggested(rows, count,
                              "{\"method\":\"rtn\",\"calibration\":{\"stream\":true},\"quantization\":{\"bits\":4,"
                              "\"group_size\":128}}",
                              &trial);
    ck_assert_ptr_nonnull(with(found, "{\"method\":\"gptq\"}"));
    json_decref(found);
    found = suggested(rows, count, "{\"method\":\"rtn\",\"quantization\":{\"bits\":4,\"group_size\":128}}", &trial);
    ck_assert_ptr_null(with(found, "gptq"));
    json_decref(found);
}
END_TEST

START_TEST(full_ranges_call_for_a_search)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);
    const char *text =
        "{\"method\":\"rtn\",\"quantization\":{\"bits\":3,\"group_size\":128,\"scale_search\":\"minmax\"}}";

    for (int i = 0; i < count; i++) {
        (void)snprintf(rows[i].method, sizeof(rows[i].method), "rtn");
        rows[i].bits = 3;
        rows[i].mse = 0.05; /* of weights of mean square 1 */
        rows[i].relative_mse = rows[i].output_relative_mse = 0.05;
        rows[i].full_range_mse = 0.04992;
    }
    json_t *found = suggested(rows, count, text, &trial);
    ck_assert_double_eq_tol(number_of(with(found, "{\"quantization\":{\"scale_search\":\"mse\"}}"), "error_ratio"),
                            0.75, 1e-9);
    json_decref(found);
    for (int i = 0; i < count; i++) {
        rows[i].full_range_mse = 0.038; /* even weights: their ranges are what is best */
    }
    found = suggested(rows, count, text, &trial);
    ck_assert_ptr_null(with(found, "scale_search"));
    json_decref(found);
}
END_TEST

START_TEST(a_kind_that_is_worse_in_every_block_gets_a_pattern)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 6; i < count; i += 7) {
        rows[i].output_relative_mse = 0.06;
    }
    json_t *found = suggested(rows, count, GPTQ, &trial);
    ck_assert_ptr_nonnull(with(found, "\"match\":\"*.mlp.down_proj\""));
    json_decref(found);
}
END_TEST

START_TEST(static_scales_become_dynamic)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        (void)snprintf(rows[i].method, sizeof(rows[i].method), "fp8");
        rows[i].bits = 8;
        rows[i].group_size = -1;
        rows[i].input_outlier = i == 2;
        rows[i].input_error = 0.04;
    }
    json_t *found = suggested(rows, count,
                              "{\"method\":\"fp8\",\"calibration\":{\"stream\":true},\"quantization\":{"
                              "\"activation_scheme\":\"static\"}}",
                              &trial);
    ck_assert_ptr_nonnull(with(found, "{\"quantization\":{\"activation_scheme\":\"dynamic\"}}"));
    json_decref(found);
}
END_TEST

START_TEST(few_parameters_stay_in_float)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        (void)snprintf(rows[i].method, sizeof(rows[i].method), "nf4");
        rows[i].group_size = 64;
    }
    rows[3].output_relative_mse = 0.3; /* block 0's o_proj, 1.6 % of the weights */
    json_t *found = suggested(rows, count, "{\"method\":\"nf4\",\"quantization\":{}}", &trial);
    const json_t *skip = with(found, "\"match\":\"model.layers.0.self_attn.o_proj\",\"skip\":true");
    ck_assert_double_eq_tol(number_of(skip, "error_ratio"), 0, 1e-12);
    json_decref(found);
}
END_TEST

START_TEST(overrides_of_the_request_are_kept)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    rows[6].output_relative_mse = 0.2;
    rows[6].group_size = 64;
    json_t *found = suggested(rows, count,
                              "{\"method\":\"gptq\",\"calibration\":{\"stream\":true},\"quantization\":{\"bits\":4,"
                              "\"group_size\":128,\"overrides\":[{\"match\":\"model.layers.0.mlp.down_proj\","
                              "\"group_size\":64},{\"match\":\"model.layers.3.mlp.up_proj\",\"skip\":true}]}}",
                              &trial);
    const json_t *bits = with(found, "\"bits\":8");
    const json_t *list = json_object_get(json_object_get(json_object_get(bits, "patch"), "quantization"), "overrides");
    ck_assert_uint_eq(json_array_size(list), 2);
    const json_t *own = json_array_get(list, 0);
    ck_assert_int_eq(json_integer_value(json_object_get(own, "group_size")), 64);
    ck_assert_int_eq(json_integer_value(json_object_get(own, "bits")), 8);
    json_decref(found);
}
END_TEST

START_TEST(nothing_is_suggested_where_nothing_is_lost)
{
    struct report_row rows[PLAIN_ROWS];
    struct trial trial = {.asked = 0};
    int count = plain_rows(rows);

    for (int i = 0; i < count; i++) {
        rows[i].output_relative_mse = rows[i].relative_mse = 1e-6;
        rows[i].bits = 8;
    }
    json_t *found = suggested(rows, count, GPTQ, &trial);
    ck_assert_uint_eq(json_array_size(found), 0);
    ck_assert_int_eq(trial.asked, 0);
    json_decref(found);
}
END_TEST

UNIT_MAIN("jobs/suggest", a_bad_module_gets_bits_and_its_siblings_too, tables_of_more_bits_take_bytes,
          a_mixture_needs_a_larger_budget, the_best_for_its_bytes_is_first, smaller_groups_for_far_weights,
          channels_call_for_awq, too_few_tokens_come_first, rounding_with_data_at_hand_calls_for_gptq,
          full_ranges_call_for_a_search, a_kind_that_is_worse_in_every_block_gets_a_pattern,
          static_scales_become_dynamic, few_parameters_stay_in_float, overrides_of_the_request_are_kept,
          nothing_is_suggested_where_nothing_is_lost)
