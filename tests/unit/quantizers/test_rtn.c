/* Rounding to nearest: what a grid promises. */

#include "tests/unit/quantizers/support.h"

static const char *const settings[] = {
    "{\"bits\":2,\"group_size\":32}",
    "{\"bits\":3,\"group_size\":64,\"sym\":false}",
    "{\"bits\":4,\"group_size\":-1}",
    "{\"bits\":4,\"group_size\":128,\"sym\":false}",
    "{\"bits\":8,\"group_size\":-1,\"sym\":false}",
    "{\"bits\":8,\"group_size\":128}",
};
#define SETTINGS (sizeof(settings) / sizeof(settings[0]))
static const enum dtype scale_dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

/* Inside [low, high] of the grid no weight is farther than half a scale from what it became. */
START_TEST(error_is_at_most_half_a_scale)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 20, 256, 1);
    struct linear_job job =
        solve_one(&rig, "rtn", settings[(size_t)_i % SETTINGS], scale_dtypes[(size_t)_i / SETTINGS], NULL, &w);
    const struct qtensor *q = &job.result;
    float *wq = dequantized(q);
    float top = (float)((1 << q->scheme.bits) - 1);

    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        int64_t point = i / q->scheme.group_size;
        float scale = q->scales[point], zero = q->zeros[point], value = floats(&w)[i];
        ck_assert(scale == dtype_round(scale, scale_dtypes[(size_t)_i / SETTINGS]));
        if (value >= -zero * scale && value <= (top - zero) * scale) {
            ck_assert_double_le(fabs((double)value - (double)wq[i]), 0.5 * (double)scale + 4e-7 * fabs((double)value));
        }
    }
    ck_assert(isnan(job.loss));
    ck_assert_str_eq(job.fallback, "");
    free(wq);
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* On the same grid, dequantized weights give their own codes back. */
START_TEST(rounding_is_idempotent)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 20, 256, 2);
    struct linear_job job = solve_one(&rig, "rtn", settings[_i], DTYPE_BF16, NULL, &w);
    const struct qtensor *q = &job.result;
    float *wq = dequantized(q);
    float top = (float)((1 << q->scheme.bits) - 1);

    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        int64_t point = i / q->scheme.group_size;
        float code = rintf(wq[i] / q->scales[point]) + (float)q->zeros[point];
        code = code < 0 ? 0 : code > top ? top : code;
        ck_assert_int_eq((int)code, q->codes[i]);
    }
    free(wq);
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

static double norm_error(const struct qtensor *q, const struct tensor *w, int64_t group)
{
    float *wq = dequantized(q);
    double sum = 0;
    for (int64_t i = group * q->scheme.group_size; i < (group + 1) * q->scheme.group_size; i++) {
        sum += pow(fabs((double)floats(w)[i] - (double)wq[i]), 2.4);
    }
    free(wq);
    return sum;
}

START_TEST(search_never_loses_to_the_extremes)
{
    static const char *const plain[] = {"{\"bits\":3,\"group_size\":64}",
                                        "{\"bits\":4,\"group_size\":32,\"sym\":false}"};
    static const char *const searched[] = {"{\"bits\":3,\"group_size\":64,\"mse_search\":true}",
                                           "{\"bits\":4,\"group_size\":32,\"sym\":false,\"mse_search\":true}"};
    struct rig rig;
    double gain = 0;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 12, 128, 3);
    struct linear_job a = solve_one(&rig, "rtn", plain[_i], DTYPE_F16, NULL, &w);
    struct linear_job b = solve_one(&rig, "rtn", searched[_i], DTYPE_F16, NULL, &w);

    for (int64_t g = 0; g < a.result.rows * a.result.groups; g++) {
        double before = norm_error(&a.result, &w, g), after = norm_error(&b.result, &w, g);
        ck_assert_double_le(after, before * 1.00001);
        gain += before - after;
    }
    ck_assert_double_gt(gain, 0);
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* Zero is a point of every grid: it becomes exact zero, in an all-zero row as in any other. */
START_TEST(zero_stays_zero)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, 256, 4);
    memset(floats(&w) + 256, 0, 256 * sizeof(float));
    for (int64_t j = 0; j < 256; j += 5) {
        floats(&w)[j] = 0;
        floats(&w)[512 + j] = -0.0f;
    }
    struct linear_job job = solve_one(&rig, "rtn", settings[_i], DTYPE_F16, NULL, &w);
    float *wq = dequantized(&job.result);
    for (int64_t i = 0; i < 4 * 256; i++) {
        ck_assert(floats(&w)[i] != 0 || wq[i] == 0);
    }
    free(wq);
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* One large weight in a group of 32 costs the small ones their detail. */
START_TEST(worked_examples)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 2, 32);
    memcpy(w.data, (const float[]){0.03f, 0.07f, 0.09f, 1.40f}, 16);
    memcpy(floats(&w) + 32, (const float[]){0.3f, 0.4f, 0.5f, 8.0f, -1.0f, 1.0f}, 24);
    struct linear_job job = solve_one(&rig, "rtn", "{\"bits\":4,\"group_size\":32}", DTYPE_F32, NULL, &w);
    const struct qtensor *q = &job.result;

    ck_assert_near(q->scales[0], 2 * 1.4 / 15, 1e-6);
    ck_assert_int_eq(q->codes[0] - q->zeros[0], 0);
    ck_assert_int_eq(q->codes[1] - q->zeros[0], 0);
    ck_assert_int_eq(q->codes[2] - q->zeros[0], 0);
    ck_assert_int_eq(q->codes[3] - q->zeros[0], 7);
    ck_assert_near(q->scales[1], 16.0 / 15, 1e-6);
    ck_assert(q->codes[32] == q->codes[33] || q->codes[33] == q->codes[34]);
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

START_TEST(weights_must_be_finite)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, 64, 4);
    const struct quantizer *rtn = quantizer_find("rtn");
    struct solve_context context = context_of(&rig, DTYPE_F16);
    void *params = params_new(rtn, "{\"group_size\":64}");
    struct linear_job job = job_of(&w, params);

    floats(&w)[2 * 64 + 7] = NAN;
    ck_assert_int_eq(rtn->solve(&context, NULL, &job, 1), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "[2, 7] of model.layers.0.mlp.up_proj"));
    ck_assert_ptr_null(job.result.codes);
    job.finite = true; /* who says that it was looked through is believed */
    ck_assert_int_ne(rtn->solve(&context, NULL, &job, 1), ERR_NON_FINITE_VALUE);
    qtensor_deinit(&job.result);
    params_free(rtn, params);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantizers/rtn");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, error_is_at_most_half_a_scale, 0, (int)SETTINGS * 3);
    tcase_add_loop_test(tcase, rounding_is_idempotent, 0, (int)SETTINGS);
    tcase_add_loop_test(tcase, search_never_loses_to_the_extremes, 0, 2);
    tcase_add_loop_test(tcase, zero_stays_zero, 0, (int)SETTINGS);
    tcase_add_test(tcase, worked_examples);
    tcase_add_test(tcase, weights_must_be_finite);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
