/* Report rows: fixed columns, ratios where they exist, null where they do not; totals and the worst five. */

#include "jobs/rows.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

static struct report_facts facts_of(const struct linear_job *job)
{
    return (struct report_facts){
        .index = 7,
        .layer = 1,
        .method = "gptq",
        .job = job,
        .residual = {.error_sq = 2,
                     .weight_sq = 200,
                     .dot = 195,
                     .quant_sq = 198,
                     .clipped_sq = 0.5,
                     .max_abs = 0.25,
                     .weight_max = 3,
                     .clipped = 4},
        .has_output = true,
        .output_error = 1,
        .output_signal = 50,
        .samples = 16,
        .tokens = 1024,
    };
}

static struct linear_job job_of(const char *name)
{
    struct linear_job job = {.name = name, .loss = 12.5, .damp_used = 0.01, .seconds = 0.5, .dead_columns = 2};
    const struct qscheme scheme = {
        .kind = QTENSOR_INT, .bits = 4, .group_size = 32, .sym = true, .scale_dtype = DTYPE_F16};
    ck_assert_rc_ok(qtensor_new(name, &scheme, 8, 64, &job.result));
    return job;
}

static json_t *row_json(const struct report_facts *facts)
{
    struct report_row row;
    report_row_of(facts, &row);
    json_t *list = rows_json(&row, 1);
    json_t *first = json_incref(json_array_get(list, 0));
    json_decref(list);
    return first;
}

static double number(const json_t *row, const char *name)
{
    ck_assert_msg(json_is_number(json_object_get(row, name)), "%s is no number", name);
    return json_number_value(json_object_get(row, name));
}

START_TEST(test_row_has_every_column)
{
    struct linear_job job = job_of("model.layers.1.mlp.up_proj");
    struct report_facts facts = facts_of(&job);
    json_t *row = row_json(&facts);
    size_t count = 0;

    const char *const *columns = rows_columns();
    for (; columns[count] != NULL; count++) {
        ck_assert_msg(json_object_get(row, columns[count]) != NULL, "%s is missing", columns[count]);
    }
    ck_assert_uint_eq(json_object_size(row), count);
    ck_assert_double_eq_tol(number(row, "relative_mse"), 0.01, 1e-12);
    ck_assert_double_eq_tol(number(row, "sqnr_db"), 20, 1e-9);
    ck_assert_double_eq_tol(number(row, "output_relative_mse"), 0.02, 1e-12);
    ck_assert_double_eq_tol(number(row, "rounding_mse") + number(row, "clipping_mse"), number(row, "mse"), 1e-15);
    ck_assert_double_eq_tol(number(row, "cosine_similarity"), 195 / sqrt(200.0 * 198.0), 1e-12);
    ck_assert_double_eq_tol(number(row, "bits_per_weight"), 4 + 16.0 / 32, 1e-12);
    ck_assert(json_is_null(json_object_get(row, "fallback")));
    ck_assert(json_is_false(json_object_get(row, "nonfinite")));
    json_decref(row);
    qtensor_deinit(&job.result);
}
END_TEST

START_TEST(test_static_inputs_are_told)
{
    static const char *const columns[] = {"input_scale",        "input_range",         "input_error",
                                          "input_error_absmax", "input_absmax_to_rms", "input_outlier"};
    struct linear_job job = job_of("model.layers.1.mlp.up_proj");
    struct report_facts facts = facts_of(&job);
    json_t *row = row_json(&facts);

    for (size_t i = 0; i < sizeof(columns) / sizeof(columns[0]); i++) { /* none there are */
        ck_assert_msg(json_is_null(json_object_get(row, columns[i])), "%s", columns[i]);
    }
    json_decref(row);
    job.result.input_scale = 0.5f;
    facts.input = (struct report_input){.known = true,
                                        .range = {.scale = 0.5f, .share = 0.25, .error = 0.01, .error_absmax = 0.04},
                                        .absmax = 254,
                                        .rms = 2,
                                        .outlier = true};
    row = row_json(&facts);
    ck_assert_double_eq(number(row, "input_scale"), 0.5);
    ck_assert_double_eq(number(row, "input_range"), 0.25);
    ck_assert_double_eq(number(row, "input_error"), 0.01);
    ck_assert_double_eq(number(row, "input_error_absmax"), 0.04);
    ck_assert_double_eq(number(row, "input_absmax_to_rms"), 127);
    ck_assert(json_is_true(json_object_get(row, "input_outlier")));
    json_decref(row);
    facts.input.range.error = facts.input.range.error_absmax = NAN; /* nothing measured it */
    facts.input.outlier = false;
    row = row_json(&facts);
    ck_assert(json_is_null(json_object_get(row, "input_error")));
    ck_assert(json_is_null(json_object_get(row, "input_error_absmax")));
    ck_assert(json_is_false(json_object_get(row, "input_outlier")));
    ck_assert(json_is_false(json_object_get(row, "nonfinite")));
    json_decref(row);
    qtensor_deinit(&job.result);
}
END_TEST

START_TEST(test_not_finite_is_null_and_said)
{
    struct linear_job job = job_of("model.layers.1.mlp.up_proj");
    struct report_facts facts = facts_of(&job);
    facts.residual.max_abs = INFINITY;
    json_t *row = row_json(&facts);

    ck_assert(json_is_null(json_object_get(row, "max_abs_error")));
    ck_assert(json_is_true(json_object_get(row, "nonfinite")));
    json_decref(row);
    qtensor_deinit(&job.result);
}
END_TEST

START_TEST(test_zero_layer_is_exact)
{
    struct linear_job job = job_of("model.layers.1.mlp.up_proj");
    struct report_facts facts = facts_of(&job);
    facts.residual = (struct gpu_residual){0};
    facts.output_error = 0;
    facts.output_signal = 0;
    job.loss = NAN;
    json_t *row = row_json(&facts);

    ck_assert_double_eq(number(row, "relative_mse"), 0);
    ck_assert_double_eq(number(row, "output_relative_mse"), 0);
    ck_assert(json_is_null(json_object_get(row, "sqnr_db")));
    ck_assert(json_is_null(json_object_get(row, "cosine_similarity")));
    ck_assert(json_is_null(json_object_get(row, "loss")));
    ck_assert(json_is_false(json_object_get(row, "nonfinite")));
    json_decref(row);
    qtensor_deinit(&job.result);
}
END_TEST

START_TEST(test_no_inputs_no_output_error)
{
    struct linear_job job = job_of("model.layers.1.mlp.up_proj");
    struct report_facts facts = facts_of(&job);
    facts.has_output = false;
    json_t *row = row_json(&facts);

    ck_assert(json_is_null(json_object_get(row, "output_relative_mse")));
    json_decref(row);
    qtensor_deinit(&job.result);
}
END_TEST

static json_t *made_row(const char *module, int parameters, double bits, double relative, json_t *output)
{
    return json_pack("{s:s, s:i, s:f, s:f, s:o, s:f, s:n}", "module", module, "parameters", parameters,
                     "bits_per_weight", bits, "relative_mse", relative, "output_relative_mse", output, "seconds", 1.0,
                     "fallback");
}

START_TEST(test_totals_weigh_by_parameters)
{
    json_t *rows = json_array();
    json_array_append_new(rows, made_row("a", 100, 4, 0.1, json_real(0.2)));
    json_array_append_new(rows, made_row("b", 300, 8, 0.3, json_real(0.6)));
    json_t *totals = rows_totals(rows);

    ck_assert_int_eq(json_integer_value(json_object_get(totals, "parameters_quantized")), 400);
    ck_assert_double_eq_tol(number(totals, "bits_per_weight"), 7, 1e-12);
    ck_assert_double_eq_tol(number(totals, "mean_relative_mse"), 0.25, 1e-12);
    ck_assert_double_eq_tol(number(totals, "mean_output_relative_mse"), 0.5, 1e-12);
    json_decref(totals);

    json_array_append_new(rows, made_row("c", 600, 8, 0.3, json_null())); /* without inputs to measure it on */
    totals = rows_totals(rows);
    ck_assert_double_eq_tol(number(totals, "mean_relative_mse"), 0.28, 1e-12);
    ck_assert_double_eq_tol(number(totals, "mean_output_relative_mse"), 0.5, 1e-12);
    json_decref(totals);

    json_array_clear(rows);
    json_array_append_new(rows, made_row("d", 1, 4, 0.1, json_null())); /* as in a job without calibration */
    totals = rows_totals(rows);
    ck_assert(json_is_null(json_object_get(totals, "mean_output_relative_mse")));
    ck_assert_double_eq_tol(number(totals, "mean_relative_mse"), 0.1, 1e-12);
    json_decref(totals);

    json_array_clear(rows);
    totals = rows_totals(rows); /* nothing done yet */
    ck_assert(json_is_null(json_object_get(totals, "bits_per_weight")));
    json_decref(totals);
    json_decref(rows);
}
END_TEST

START_TEST(test_worst_five_by_output)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g"};
    json_t *rows = json_array();
    for (int i = 0; i < 7; i++) {
        json_array_append_new(rows, made_row(names[i], 1, 4, 0.5, i == 6 ? json_null() : json_real(0.1 * i)));
    }
    json_t *worst = rows_worst(rows);

    ck_assert_uint_eq(json_array_size(worst), 5);
    const char *first = json_string_value(json_object_get(json_array_get(worst, 0), "module"));
    ck_assert(strcmp(first, "f") == 0 || strcmp(first, "g") == 0); /* 0.5 by output or, without one, by weight */
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(worst, 2), "module")), "e");
    json_decref(worst);
    json_decref(rows);
}
END_TEST

UNIT_MAIN("rows", test_static_inputs_are_told, test_row_has_every_column, test_not_finite_is_null_and_said,
          test_zero_layer_is_exact, test_no_inputs_no_output_error, test_totals_weigh_by_parameters,
          test_worst_five_by_output)
