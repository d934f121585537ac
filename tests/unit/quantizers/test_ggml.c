/* GGUF blocks as a method: what importance does to the output's error, mixed types, and what is refused. */

#include "tests/unit/quantizers/support.h"

#include "gpu/ggml_blocks.h"

#include <stdio.h>

static const char *const names[] = {"q8_0", "q6_k", "q4_k", "iq4_nl", "q4_0"};
static const int types[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q4_K, GGML_TYPE_IQ4_NL, GGML_TYPE_Q4_0};
#define TYPES (int)(sizeof(names) / sizeof(names[0]))

static struct linear_job solve_as(struct rig *rig, const char *type, const char *more, const struct layer_stats *stats,
                                  const struct tensor *w)
{
    char text[160];
    snprintf(text, sizeof(text), "{\"type\": \"%s\"%s}", type, more);
    return solve_one(rig, "ggml", text, DTYPE_F16, stats, w);
}

/* sum H_jj err^2 */
static double weighed(const struct linear_job *job, const struct tensor *w, const struct tensor *h)
{
    float *wq = dequantized(&job->result);
    int64_t n = w->shape[1];
    double sum = 0;

    for (int64_t i = 0; i < tensor_count(w); i++) {
        double error = (double)floats(w)[i] - (double)wq[i];
        sum += (double)floats(h)[i % n * (n + 1)] * error * error;
    }
    free(wq);
    return sum;
}

/* In what it weighs, the calibrated search loses no more than the plain one, and that no more than plain scales. */
START_TEST(importance_pays)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 48, 512, 31), x = rig_correlated(&rig, 900, 512, 32);
    struct layer_stats stats = stats_of(&rig, &x);

    struct linear_job plain = solve_as(&rig, names[_i], ", \"scale_search\": false", &stats, &w);
    struct linear_job alike = solve_as(&rig, names[_i], ", \"importance\": false", &stats, &w);
    struct linear_job blind = solve_as(&rig, names[_i], "", NULL, &w);
    struct linear_job found = solve_as(&rig, names[_i], "", &stats, &w);
    ck_assert_int_eq(found.result.scheme.kind, QTENSOR_BLOCKS);
    ck_assert_int_eq(found.result.scheme.block_type, types[_i]);
    size_t bytes = (size_t)(48 * ggml_row_bytes(types[_i], 512));
    ck_assert_int_eq(memcmp(alike.result.codes, blind.result.codes, bytes), 0); /* without statistics: all alike */
    double of_plain = weighed(&plain, &w, &stats.hessian), of_alike = weighed(&alike, &w, &stats.hessian);
    double of_found = weighed(&found, &w, &stats.hessian);
    ck_assert_msg(of_found < of_plain && of_found <= of_alike, "%s: %g, all alike %g, plain %g", names[_i], of_found,
                  of_alike, of_plain);
    double out_found = loss_of(&found.result, &w, &stats.hessian, 0),
           out_plain = loss_of(&plain.result, &w, &stats.hessian, 0);
    ck_assert_msg(out_found < out_plain, "%s: output error %g, plain %g", names[_i], out_found, out_plain);
    qtensor_deinit(&plain.result);
    qtensor_deinit(&alike.result);
    qtensor_deinit(&blind.result);
    qtensor_deinit(&found.result);
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* At the same width, better than rounding on a grid with the same groups. */
START_TEST(beats_rounding)
{
    static const struct {
        const char *type, *grid;
    } rows[] = {{"q4_0", "{\"bits\": 4, \"group_size\": 32}"},
                {"iq4_nl", "{\"bits\": 4, \"group_size\": 32}"},
                {"q4_k", "{\"bits\": 4, \"group_size\": 32}"},
                {"q8_0", "{\"bits\": 8, \"group_size\": 32}"}};
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 32, 512, 41), x = rig_correlated(&rig, 900, 512, 42);
    struct layer_stats stats = stats_of(&rig, &x);

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct linear_job ours = solve_as(&rig, rows[i].type, "", &stats, &w);
        struct linear_job rtn = solve_one(&rig, "rtn", rows[i].grid, DTYPE_F16, NULL, &w);
        double error = loss_of(&ours.result, &w, &stats.hessian, 0),
               rounded = loss_of(&rtn.result, &w, &stats.hessian, 0);
        ck_assert_msg(error < rounded, "%s: %g, rounding %g", rows[i].type, error, rounded);
        qtensor_deinit(&ours.result);
        qtensor_deinit(&rtn.result);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

START_TEST(widths_that_do_not_fit)
{
    const struct quantizer *ggml = quantizer_find("ggml");
    struct qscheme scheme;

    for (int i = 0; i < TYPES; i++) {
        char text[64];
        bool wide = types[i] == GGML_TYPE_Q4_K || types[i] == GGML_TYPE_Q6_K;
        snprintf(text, sizeof(text), "{\"type\": \"%s\"}", names[i]);
        void *params = params_new(ggml, text);
        ck_assert_rc_ok(ggml->scheme(params, 7, 512, &scheme));
        ck_assert_int_eq(ggml->scheme(params, 7, 96, &scheme), wide ? ERR_INCOMPATIBLE_OPTIONS : 0);
        ck_assert(!wide || strstr(err_last()->hint, "override") != NULL);
        ck_assert_int_eq(ggml->scheme(params, 7, 40, &scheme), ERR_INCOMPATIBLE_OPTIONS);
        ck_assert_ptr_nonnull(strstr(err_last()->hint, "modules_to_not_convert"));
        params_free(ggml, params);
    }
    /* the default suits each module's width, where some type does */
    void *params = params_new(ggml, "{}");
    ck_assert_rc_ok(ggml->scheme(params, 7, 512, &scheme));
    ck_assert_int_eq(scheme.block_type, GGML_TYPE_Q4_K);
    ck_assert_rc_ok(ggml->scheme(params, 7, 96, &scheme));
    ck_assert_int_eq(scheme.block_type, GGML_TYPE_IQ4_NL);
    ck_assert_int_eq(ggml->scheme(params, 7, 40, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_str_eq(err_last()->param, "type");
    params_free(ggml, params);
}
END_TEST

START_TEST(weights_that_are_no_numbers)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 2, 256, 3);
    floats(&w)[300] = NAN;
    const struct quantizer *ggml = quantizer_find("ggml");
    struct solve_context context = context_of(&rig, DTYPE_F16);
    void *params = params_new(ggml, "{}");
    struct linear_job job = job_of(&w, params);

    ck_assert_int_eq(ggml->solve(&context, NULL, &job, 1), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "[1, 44]"));
    ck_assert_ptr_null(job.result.codes);
    params_free(ggml, params);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantizers/ggml");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, importance_pays, 0, TYPES);
    tcase_add_test(tcase, beats_rounding);
    tcase_add_test(tcase, widths_that_do_not_fit);
    tcase_add_test(tcase, weights_that_are_no_numbers);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
