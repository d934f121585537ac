/* GPTQ where its input is not fit for it: damping, rounding in its place, dead columns, values that are not finite, and
 * parameters that are refused. */

#include "quantizers/gptq_input.h"
#include "tests/unit/quantizers/gptq.h"

#include <stdio.h>

/* Fewer tokens than columns: singular, and a damping too small to be felt must climb. */
START_TEST(damping_climbs_on_a_singular_hessian)
{
    struct problem p;
    problem_open(&p, N, K);
    stats_free(&p.rig, &p.stats);
    struct tensor few = tensor_rows(&p.x, 0, 20);
    p.stats = stats_of(&p.rig, &few);
    struct linear_job job = gptq(&p, "{\"bits\":3,\"group_size\":64,\"damp_percent\":1e-12}");
    ck_assert_str_eq(job.fallback, "");
    ck_assert_double_ge(job.damp_used, 9.9e-12);
    ck_assert_double_le(job.damp_used, 1);
    struct linear_job plain = rtn(&p, "{\"bits\":3,\"group_size\":64}");
    ck_assert_double_lt(loss_of(&job.result, &p.w, &p.stats.hessian, 0),
                        loss_of(&plain.result, &p.w, &p.stats.hessian, 0));
    qtensor_deinit(&job.result);
    qtensor_deinit(&plain.result);
    problem_close(&p);
}
END_TEST

/* Two columns among independent ones, not positive definite at any damping up to 1: one pair is saved by raising its
 * small diagonal element, the other by nothing. */
static void indefinite(struct problem *p, float first, float second, float between)
{
    zero_hessian(p);
    for (int64_t j = 0; j < K; j++) {
        *hessian_at(p, j, j) = 50;
    }
    *hessian_at(p, 0, 0) = first;
    *hessian_at(p, 1, 1) = second;
    *hessian_at(p, 0, 1) = *hessian_at(p, 1, 0) = between;
}

START_TEST(the_diagonal_is_raised_when_damping_fails)
{
    struct problem p;
    problem_open(&p, N, K);
    indefinite(&p, 100, 0.001f, 90);
    struct linear_job job = gptq(&p, "{\"bits\":3,\"group_size\":64}");
    ck_assert_near(job.damp_used, 1, 0);
    ck_assert_ptr_nonnull(strstr(job.fallback, "diagonal of the hessian raised to 1e-01"));
    ck_assert_near(*hessian_at(&p, 1, 1), 0.001, 1e-9); /* the statistics did not change */
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(rounding_takes_over_and_is_named)
{
    struct problem p;
    problem_open(&p, N, K);
    indefinite(&p, 100, 100, 5000);
    struct linear_job a = gptq(&p, "{\"bits\":3,\"group_size\":64}");
    struct linear_job b = rtn(&p, "{\"bits\":3,\"group_size\":64,\"mse_search\":true}");
    ck_assert_str_eq(a.fallback, "rtn: hessian not positive definite");
    ck_assert_double_eq(a.damp_used, 0);
    ck_assert(isnan(a.loss));
    ck_assert_same_codes(&a.result, &b.result);
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
}
END_TEST

/* A greedy sweep of a single row sometimes loses to rounding, the more so the stronger the damping. Then rounding is
 * kept, and said so. */
START_TEST(never_worse_than_rounding)
{
    static const char text[] = "{\"bits\":2,\"group_size\":-1,\"damp_percent\":0.9}";
    struct rig rig;
    int rounded = 0, swept = 0;
    rig_open(&rig, 1);
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct tensor w = rig_random(&rig, 1, 12, seed), x = rig_correlated(&rig, 24, 12, seed + 1000);
        struct layer_stats stats = stats_of(&rig, &x);
        struct linear_job a = solve_one(&rig, "gptq", text, DTYPE_F32, &stats, &w);
        struct linear_job b = solve_one(&rig, "rtn", "{\"bits\":2,\"group_size\":-1}", DTYPE_F32, NULL, &w);
        double ours = loss_of(&a.result, &w, &stats.hessian, 0), plain = loss_of(&b.result, &w, &stats.hessian, 0);
        ck_assert_double_le(ours, plain * 1.0001);
        if (a.fallback[0] != '\0') {
            ck_assert_int_eq(strncmp(a.fallback, "rtn: output error", 17), 0);
            ck_assert_same_codes(&a.result, &b.result);
            ck_assert_near(a.loss, plain, 1e-3 * plain + 1e-12);
            rounded++;
        } else {
            swept++;
        }
        qtensor_deinit(&a.result);
        qtensor_deinit(&b.result);
        stats_free(&rig, &stats);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &x);
    }
    ck_assert_int_gt(rounded, 0);
    ck_assert_int_gt(swept, rounded);
    rig_close(&rig);
}
END_TEST

START_TEST(dead_columns_are_zeroed)
{
    struct problem p;
    problem_open(&p, N, K);
    stats_free(&p.rig, &p.stats);
    for (int64_t t = 0; t < 4 * K; t++) {
        floats(&p.x)[t * K + 3] = 0;
        floats(&p.x)[t * K + 100] = 0;
    }
    p.stats = stats_of(&p.rig, &p.x);
    floats(&p.w)[100] = 1000; /* must not widen its group's grid */
    struct linear_job job = gptq(&p, "{\"bits\":4,\"group_size\":64}");
    float *wq = dequantized(&job.result);
    ck_assert_int_eq(job.dead_columns, 2);
    for (int64_t row = 0; row < N; row++) {
        ck_assert(wq[row * K + 3] == 0 && wq[row * K + 100] == 0);
    }
    ck_assert(job.result.scales[1] < 1);
    free(wq);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

/* No input at all: every column is dead. */
START_TEST(an_input_that_is_always_zero)
{
    struct problem p;
    problem_open(&p, N, K);
    zero_hessian(&p);
    struct linear_job job = gptq(&p, "{\"group_size\":64}");
    ck_assert_int_eq(job.dead_columns, K);
    ck_assert_double_eq(job.loss, 0);
    for (int64_t i = 0; i < N * K; i++) {
        ck_assert_uint_eq(job.result.codes[i], 8);
    }
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(what_is_not_finite_is_named)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    struct problem p;
    problem_open(&p, N, K);
    const struct quantizer *method = quantizer_find("gptq");
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    void *params = params_new(method, "{\"group_size\":64}");
    struct linear_job job = job_of(&p.w, params);

    *hessian_at(&p, 7, 9) = *hessian_at(&p, 9, 7) = bad[_i];
    ck_assert_int_eq(method->solve(&context, &p.stats, &job, 1), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "the Hessian of model.layers.0.mlp.up_proj"));
    ck_assert_ptr_nonnull(strstr(err_last()->message, "[7, 9]"));
    *hessian_at(&p, 7, 9) = *hessian_at(&p, 9, 7) = 0;
    floats(&p.w)[3 * K + 4] = bad[_i];
    ck_assert_int_eq(method->solve(&context, &p.stats, &job, 1), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "[3, 4]"));
    ck_assert_ptr_null(job.result.codes);
    ck_assert_int_eq(method->solve(&context, NULL, &job, 1), ERR_INSUFFICIENT_CALIBRATION);
    params_free(method, params);
    problem_close(&p);
}
END_TEST

/* Off the diagonal, where only the factor sees it. */
START_TEST(what_is_not_finite_is_named_wherever_it_is)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const int64_t places[][2] = {{0, 1}, {0, K - 1}, {K / 2, K / 2 + 1}, {K - 2, K - 1}, {3, 3}, {K - 1, K - 1}};
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        char at[32];
        int64_t row = places[i][0], col = places[i][1];
        struct problem p;
        problem_open(&p, N, K);
        const struct quantizer *method = quantizer_find("gptq");
        struct solve_context context = context_of(&p.rig, DTYPE_F16);
        for (int act_order = 0; act_order < 2; act_order++) {
            void *params = params_new(method, act_order ? "{\"act_order\":true}" : "{\"act_order\":false}");
            struct linear_job job = job_of(&p.w, params);
            *hessian_at(&p, row, col) = *hessian_at(&p, col, row) = bad[_i];
            ck_assert_int_eq(method->solve(&context, &p.stats, &job, 1), ERR_NON_FINITE_VALUE);
            snprintf(at, sizeof(at), "[%lld, %lld]", (long long)row, (long long)col);
            ck_assert_ptr_nonnull(strstr(err_last()->message, at));
            params_free(method, params);
        }
        problem_close(&p);
    }
}
END_TEST

static const struct gpu_ops *real_ops;
static int diagonals, dead_counts, dead_calls, scans, downloads;

static int counted_diagonal(struct gpu_stream *stream, float *host, const struct tensor *h)
{
    diagonals++;
    return real_ops->diagonal(stream, host, h);
}

static int counted_zero_dead(struct gpu_stream *stream, const struct tensor *w, const struct tensor *h, int64_t *dead)
{
    dead_calls++;
    dead_counts += dead != NULL;
    return real_ops->zero_dead(stream, w, h, dead);
}

static int counted_find_nonfinite(struct gpu_stream *stream, int64_t *index, const struct tensor *x)
{
    scans++;
    return real_ops->find_nonfinite(stream, index, x);
}

static int counted_download(struct gpu_stream *stream, void *host, const void *device, size_t bytes)
{
    downloads++;
    return real_ops->download(stream, host, device, bytes);
}

/* Codes and scales, and zeros only where they are not all the same. */
START_TEST(zeros_of_a_symmetric_grid_stay)
{
    static const char *const settings[] = {
        "{\"bits\":3,\"group_size\":32,\"sym\":false}", "{\"bits\":3,\"group_size\":32}",
        "{\"bits\":4,\"group_size\":32,\"quality\":\"fast\"}", "{\"bits\":8,\"group_size\":64,\"quality\":\"best\"}",
        "{\"bits\":2,\"group_size\":-1,\"scale_search\":\"minmax\",\"signed_scales\":false}"};
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        struct problem p;
        problem_open(&p, N, K);
        const struct quantizer *method = quantizer_find("gptq");
        struct solve_context context = context_of(&p.rig, DTYPE_F16);
        struct gpu counted = *context.gpu;
        struct gpu_ops ops = *context.gpu->ops;
        void *params = params_new(method, settings[i]);
        struct linear_job job = job_of(&p.w, params);

        real_ops = context.gpu->ops;
        ops.download = counted_download;
        counted.ops = &ops;
        context.gpu = &counted;
        downloads = 0;
        ck_assert_rc_ok(method->solve(&context, &p.stats, &job, 1));
        ck_assert_int_eq(downloads, i == 0 ? 3 : 2);
        context.gpu = &p.rig.gpu;
        context.on_device = true;
        struct linear_job kept = job_of(&p.w, params);
        ck_assert_rc_ok(method->solve(&context, &p.stats, &kept, 1));
        for (int64_t at = 0; at < tensor_count(&kept.zero); at++) {
            ck_assert_double_eq((double)floats(&kept.zero)[at], kept.result.zeros[at]);
            ck_assert_uint_eq(job.result.zeros[at], kept.result.zeros[at]);
        }
        gpu_tensor_free(context.gpu, &kept.codes);
        gpu_tensor_free(context.gpu, &kept.scale);
        gpu_tensor_free(context.gpu, &kept.zero);
        gpu_tensor_free(context.gpu, &kept.dequantized);
        qtensor_deinit(&kept.result);
        qtensor_deinit(&job.result);
        params_free(method, params);
        problem_close(&p);
    }
}
END_TEST

/* What linears of one input wait for a device for: its diagonal once, a scan of each weight, and of H none. */
START_TEST(an_input_is_fetched_once)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct quantizer *method = quantizer_find("gptq");
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    struct gpu counted = *context.gpu;
    struct gpu_ops ops = *context.gpu->ops;
    void *params = params_new(method, "{\"bits\":3,\"group_size\":32,\"quality\":\"fast\"}");
    struct tensor views[3] = {tensor_rows(&p.w, 0, 8), tensor_rows(&p.w, 8, 15), tensor_rows(&p.w, 23, 1)};

    real_ops = context.gpu->ops;
    ops.diagonal = counted_diagonal;
    ops.zero_dead = counted_zero_dead;
    ops.find_nonfinite = counted_find_nonfinite;
    counted.ops = &ops;
    context.gpu = &counted;
    for (int dead = 0; dead < 2; dead++) {
        struct linear_job jobs[3] = {job_of(&views[0], params), job_of(&views[1], params), job_of(&views[2], params)};
        for (int64_t j = 0; dead > 0 && j < K; j++) {
            *hessian_at(&p, 5, j) = *hessian_at(&p, j, 5) = 0;
        }
        diagonals = dead_counts = dead_calls = scans = 0;
        ck_assert_rc_ok(method->solve(&context, &p.stats, jobs, 3));
        ck_assert_int_eq(diagonals, 1);
        ck_assert_int_eq(scans, 3);
        ck_assert_int_eq(dead_counts, 0);
        ck_assert_int_eq(dead_calls > 0, dead);
        for (int i = 0; i < 3; i++) {
            ck_assert_int_eq(jobs[i].dead_columns, dead);
            qtensor_deinit(&jobs[i].result);
        }
    }
    params_free(method, params);
    problem_close(&p);
}
END_TEST

struct expected {
    float value;
    int32_t index;
};

static int by_falling_value(const void *a, const void *b)
{
    const struct expected *x = a, *y = b;
    if (x->value != y->value) {
        return x->value < y->value ? 1 : -1;
    }
    return x->index < y->index ? -1 : x->index > y->index;
}

START_TEST(order_is_falling_and_stable)
{
    enum { MOST = 5000 };
    static const float special[] = {0, -0.0F, 1e-45F, -1e-45F, 3.4e38F, -3.4e38F, 1, -1, 65536, 1e-38F};
    static float values[MOST];
    static int32_t order[MOST];
    static struct expected expected[MOST];
    static const int64_t counts[] = {0, 1, 2, 10, 1000, MOST};
    uint64_t seed = 11;
    for (int64_t i = 0; i < MOST; i++) {
        values[i] = i % 3 == 0 ? special[i / 3 % 10] : (float)(random_bits(&seed) % 4000) * 0.37F - 200;
    }
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        for (int64_t i = 0; i < counts[c]; i++) {
            expected[i] = (struct expected){values[i], (int32_t)i};
        }
        qsort(expected, (size_t)counts[c], sizeof(expected[0]), by_falling_value);
        ck_assert_rc_ok(gptq_falling_order(values, counts[c], order));
        for (int64_t i = 0; i < counts[c]; i++) {
            ck_assert_int_eq(order[i], expected[i].index);
        }
    }
}
END_TEST

/* Linears of one input share the factor and come out as if solved alone. */
START_TEST(siblings_are_solved_as_if_alone)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct quantizer *method = quantizer_find("gptq");
    struct solve_context context = context_of(&p.rig, DTYPE_BF16);
    void *params = params_new(method, "{\"bits\":3,\"group_size\":32}");
    struct tensor views[3] = {tensor_rows(&p.w, 0, 8), tensor_rows(&p.w, 8, 15), tensor_rows(&p.w, 23, 1)};
    struct linear_job jobs[3] = {job_of(&views[0], params), job_of(&views[1], params), job_of(&views[2], params)};

    ck_assert_rc_ok(method->solve(&context, &p.stats, jobs, 3));
    for (int i = 0; i < 3; i++) {
        struct linear_job alone = job_of(&views[i], params);
        ck_assert_rc_ok(method->solve(&context, &p.stats, &alone, 1));
        ck_assert_same_codes(&jobs[i].result, &alone.result);
        ck_assert_double_eq(jobs[i].loss, alone.loss);
        ck_assert_double_gt(jobs[i].seconds, 0);
        qtensor_deinit(&jobs[i].result);
        qtensor_deinit(&alone.result);
    }
    params_free(method, params);
    problem_close(&p);
}
END_TEST

struct countdown {
    int left;
};

static int count_down(void *data)
{
    struct countdown *countdown = data;
    return countdown->left-- > 0 ? 0 : ERR_CANCELLED;
}

START_TEST(tick_stops_between_linears)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct quantizer *method = quantizer_find("gptq");
    struct countdown countdown = {.left = 2}; /* before the factor and before the first linear */
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    context.tick = count_down;
    context.tick_data = &countdown;
    void *params = params_new(method, "{\"group_size\":64}");
    struct linear_job jobs[2] = {job_of(&p.w, params), job_of(&p.w, params)};

    ck_assert_int_eq(method->solve(&context, &p.stats, jobs, 2), ERR_CANCELLED);
    ck_assert_ptr_nonnull(jobs[0].result.codes);
    ck_assert_ptr_null(jobs[1].result.codes);
    qtensor_deinit(&jobs[0].result);
    params_free(method, params);
    problem_close(&p);
}
END_TEST

START_TEST(what_is_not_offered_is_refused_with_its_reason)
{
    static const struct {
        const char *text, *pointer;
    } cases[] = {{"{\"desc_act\":true}", "/quantization/desc_act"},
                 {"{\"static_groups\":false}", "/quantization/static_groups"},
                 {"{\"true_sequential\":false}", "/quantization/true_sequential"}};
    const struct quantizer *method = quantizer_find("gptq");
    for (size_t i = 0; i < 3; i++) {
        struct validation_errors errors = {0};
        void *params = params_new(method, cases[i].text);
        method->check(params, "/quantization", &errors);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_int_eq(errors.items[0].code, ERR_INCOMPATIBLE_OPTIONS);
        ck_assert_str_eq(errors.items[0].param, cases[i].pointer);
        params_free(method, params);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantizers/gptq_guards");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, damping_climbs_on_a_singular_hessian);
    tcase_add_test(tcase, the_diagonal_is_raised_when_damping_fails);
    tcase_add_test(tcase, rounding_takes_over_and_is_named);
    tcase_add_test(tcase, never_worse_than_rounding);
    tcase_add_test(tcase, dead_columns_are_zeroed);
    tcase_add_test(tcase, an_input_that_is_always_zero);
    tcase_add_loop_test(tcase, what_is_not_finite_is_named, 0, 3);
    tcase_add_loop_test(tcase, what_is_not_finite_is_named_wherever_it_is, 0, 3);
    tcase_add_test(tcase, an_input_is_fetched_once);
    tcase_add_test(tcase, zeros_of_a_symmetric_grid_stay);
    tcase_add_test(tcase, order_is_falling_and_stable);
    tcase_add_test(tcase, siblings_are_solved_as_if_alone);
    tcase_add_test(tcase, tick_stops_between_linears);
    tcase_add_test(tcase, what_is_not_offered_is_refused_with_its_reason);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
