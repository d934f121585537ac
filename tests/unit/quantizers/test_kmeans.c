/* k-means as a method: tables of values and of vectors, outliers, and what its parameters refuse. */

#include "tests/unit/quantizers/support.h"

#include <stdio.h>

#define N 24
#define K 192

/* sum f_j (w - wq)^2, f = diag H or ones. */
static double weighted_error(const struct problem *p, const struct qtensor *q, bool weighted)
{
    float *wq = dequantized(q);
    double sum = 0;
    for (int64_t i = 0; i < N * K; i++) {
        double e = (double)floats(&p->w)[i] - (double)wq[i];
        sum += (weighted ? (double)floats(&p->stats.hessian)[i % K * (K + 1)] : 1.0) * e * e;
    }
    free(wq);
    return sum;
}

START_TEST(loss_is_what_it_says_and_weights_pay)
{
    struct problem p;
    problem_open(&p, N, K);
    for (int bits = 2; bits <= 5; bits++) {
        char text[128], grid[64];
        snprintf(text, sizeof(text), "{\"bits\": %d}", bits);
        struct linear_job weighed = solve_one(&p.rig, "kmeans", text, DTYPE_F16, &p.stats, &p.w);
        snprintf(text, sizeof(text), "{\"bits\": %d, \"sensitivity_weighted\": false}", bits);
        struct linear_job plain = solve_one(&p.rig, "kmeans", text, DTYPE_F16, &p.stats, &p.w);
        ck_assert_near(weighed.loss, weighted_error(&p, &weighed.result, true), 1e-9 * weighed.loss);
        ck_assert_near(plain.loss, weighted_error(&p, &plain.result, false), 1e-9 * plain.loss);
        ck_assert_double_lt(weighed.loss, weighted_error(&p, &plain.result, true));
        ck_assert_double_lt(plain.loss, weighted_error(&p, &weighed.result, false));
        if (bits <= 4) { /* never worse than the best grid for the same objective */
            snprintf(grid, sizeof(grid), "{\"bits\": %d, \"group_size\": -1, \"mse_search\": true}", bits);
            struct linear_job rtn = solve_one(&p.rig, "rtn", grid, DTYPE_F16, NULL, &p.w);
            ck_assert_double_lt(plain.loss, weighted_error(&p, &rtn.result, false));
            qtensor_deinit(&rtn.result);
        }
        qtensor_deinit(&weighed.result);
        qtensor_deinit(&plain.result);
    }
    problem_close(&p);
}
END_TEST

START_TEST(without_calibration_and_with_few_values)
{
    struct problem p;
    problem_open(&p, N, K);
    for (int64_t i = 0; i < N * K; i++) {
        floats(&p.w)[i] = 0.25f * (float)(i * 7 % 8) - 0.5f;
    }
    struct linear_job job = solve_one(&p.rig, "kmeans", "{\"bits\": 3}", DTYPE_F16, NULL, &p.w);
    ck_assert(job.loss == 0 && weighted_error(&p, &job.result, false) == 0);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(outliers_are_kept_apart)
{
    struct problem p;
    problem_open(&p, N, K);
    for (int i = 0; i < 20; i++) {
        floats(&p.w)[i * 229 + 3] = i % 2 == 0 ? 40.0f : -37.0f;
    }
    struct linear_job with =
        solve_one(&p.rig, "kmeans", "{\"bits\": 3, \"outlier_fraction\": 0.0075}", DTYPE_F16, &p.stats, &p.w);
    struct linear_job without = solve_one(&p.rig, "kmeans", "{\"bits\": 3}", DTYPE_F16, &p.stats, &p.w);
    const struct qtensor *q = &with.result;
    int large = 0;
    ck_assert_int_eq(q->index_count, (int64_t)(0.0075 * N * K));
    for (int64_t i = 0; i < q->index_count; i++) {
        ck_assert(i == 0 || q->index[i - 1] < q->index[i]);
        ck_assert(q->values[i] == dtype_round(floats(&p.w)[q->index[i]], DTYPE_F16));
        large += fabsf(q->values[i]) > 30.0f;
    }
    ck_assert_int_eq(large, 20);
    ck_assert_double_lt(with.loss, 0.9 * without.loss);
    ck_assert_str_eq(with.note, "34 weights apart");
    qtensor_deinit(&with.result);
    qtensor_deinit(&without.result);
    problem_close(&p);
}
END_TEST

START_TEST(vectors_gain_by_codebooks_and_iterations)
{
    struct problem p;
    problem_open(&p, N, K);
    double last = INFINITY;
    static const char *const texts[] = {"{\"bits\": 2, \"in_group_size\": 4, \"max_iterations\": 1}",
                                        "{\"bits\": 2, \"in_group_size\": 4}",
                                        "{\"bits\": 4, \"in_group_size\": 4, \"num_codebooks\": 2}",
                                        "{\"bits\": 6, \"in_group_size\": 4, \"num_codebooks\": 3}"};
    for (int i = 0; i < 4; i++) {
        struct linear_job job = solve_one(&p.rig, "kmeans", texts[i], DTYPE_F16, &p.stats, &p.w);
        struct linear_job again = solve_one(&p.rig, "kmeans", texts[i], DTYPE_F16, &p.stats, &p.w);
        ck_assert_int_eq(job.result.scheme.kind, QTENSOR_CODEBOOKS);
        ck_assert_int_eq(memcmp(job.result.entries, again.result.entries,
                                (size_t)(N * K / 4 * job.result.scheme.codebooks) * sizeof(uint16_t)),
                         0);
        double error = weighted_error(&p, &job.result, true);
        ck_assert_double_lt(error, last);
        last = error;
        qtensor_deinit(&job.result);
        qtensor_deinit(&again.result);
    }
    problem_close(&p);
}
END_TEST

/* No more vectors than a table has: nothing is lost but what half precision loses. */
START_TEST(vectors_that_fit_are_kept)
{
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job job =
        solve_one(&p.rig, "kmeans", "{\"bits\": 4, \"in_group_size\": 4}", DTYPE_F16, NULL, &p.w); /* 2^16 >= 1152 */
    double signal = 0;
    for (int64_t i = 0; i < N * K; i++) {
        signal += (double)floats(&p.w)[i] * (double)floats(&p.w)[i];
    }
    ck_assert_double_lt(weighted_error(&p, &job.result, false), 1e-6 * signal);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(contradictions_are_refused_by_name)
{
    static const struct {
        const char *text, *at;
    } cases[] = {
        {"{\"num_codebooks\": 2}", "/q/num_codebooks"},
        {"{\"bits\": 2, \"in_group_size\": 8, \"outlier_fraction\": 0.001}", "/q/outlier_fraction"},
        {"{\"in_group_size\": 8, \"bits\": 4}", "/q/bits"},
        {"{\"in_group_size\": 8, \"bits\": 2, \"num_codebooks\": 3}", "/q/bits"},
    };
    const struct quantizer *kmeans = quantizer_find("kmeans");
    struct qscheme scheme;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct validation_errors errors = {0};
        void *params = params_new(kmeans, cases[i].text);
        kmeans->check(params, "/q", &errors);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, cases[i].at);
        params_free(kmeans, params);
    }
    void *params = params_new(kmeans, "{\"in_group_size\": 16, \"bits\": 2, \"num_codebooks\": 4}");
    ck_assert_int_eq(kmeans->scheme(params, 4, 40, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_rc_ok(kmeans->scheme(params, 4, 48, &scheme));
    ck_assert(scheme.bits == 8 && scheme.codebooks == 4 && scheme.group_size == 16);
    params_free(kmeans, params);
}
END_TEST

UNIT_MAIN("quantizers_kmeans", loss_is_what_it_says_and_weights_pay, without_calibration_and_with_few_values,
          outliers_are_kept_apart, vectors_gain_by_codebooks_and_iterations, vectors_that_fit_are_kept,
          contradictions_are_refused_by_name)
