/* GPTQ as a method: its identities (each one promised by the algorithm), its ladder and its refusals. */

#include "tests/unit/quantizers/reference.h"

#include <stdio.h>

#define N 24
#define K 192

static struct linear_job gptq(struct problem *p, const char *text)
{
    return solve_one(&p->rig, "gptq", text, DTYPE_F16, &p->stats, &p->w);
}

static struct linear_job rtn(struct problem *p, const char *text)
{
    return solve_one(&p->rig, "rtn", text, DTYPE_F16, NULL, &p->w);
}

static void zero_hessian(struct problem *p)
{
    memset(p->stats.hessian.data, 0, tensor_bytes(&p->stats.hessian));
}

static float *hessian_at(struct problem *p, int64_t i, int64_t j)
{
    return floats(&p->stats.hessian) + i * p->stats.columns + j;
}

static void visiting_order(const struct problem *p, int32_t *order)
{
    const float *h = floats(&p->stats.hessian);
    for (int32_t i = 0; i < K; i++) {
        int32_t at = i;
        for (; at > 0 && h[order[at - 1] * (K + 1)] < h[i * (K + 1)]; at--) {
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
}

/* The whole method in double on the same grid: codes may differ only where a weight lies on an edge, and their row
 * after it. */
START_TEST(follows_the_paper)
{
    static const char *const texts[] = {
        "{\"bits\":2,\"group_size\":32}",
        "{\"bits\":3,\"group_size\":64,\"sym\":false,\"damp_percent\":0.05}",
        "{\"bits\":4,\"group_size\":-1,\"act_order\":false}",
        "{\"bits\":8,\"group_size\":64,\"mse_search\":false}",
    };
    struct problem p;
    struct reference reference;
    int32_t order[K];
    uint8_t codes[K];
    double loss = 0;
    int64_t differ = 0;
    problem_open(&p, N, K);
    *hessian_at(&p, 5, 5) = 0; /* a dead column */
    for (int64_t j = 0; j < K; j++) {
        *hessian_at(&p, 5, j) = 0;
        *hessian_at(&p, j, 5) = 0;
    }
    struct linear_job job = gptq(&p, texts[_i]);
    ck_assert_int_eq(job.dead_columns, 1);
    ck_assert_str_eq(job.fallback, "");
    visiting_order(&p, order);
    for (int32_t i = 0; _i == 2 && i < K; i++) {
        order[i] = i;
    }
    reference_factor(&reference, &p.stats.hessian, order, job.damp_used);
    for (int64_t row = 0; row < N; row++) {
        float *w = floats(&p.w) + row * K;
        w[5] = 0;
        loss += reference_sweep(&reference, &job.result, row, w, order, codes);
        for (int64_t j = 0; j < K; j++) {
            differ += codes[j] != job.result.codes[row * K + j];
        }
    }
    ck_assert_int_le(differ, N * K / 50);
    ck_assert_near(job.loss, loss, 0.01 * loss);
    reference_free(&reference);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

/* H' = [[2,1],[1,2]] on whole numbers, w = (.4,.4): plain rounding gives (0,0) and loses .96, GPTQ (0,1) and .56. A
 * third, independent weight makes the scale 1. */
START_TEST(toy_by_hand)
{
    struct problem p;
    memset(&p, 0, sizeof(p));
    rig_open(&p.rig, 1);
    p.w = rig_tensor(&p.rig, DTYPE_F32, 1, 3);
    p.x = rig_tensor(&p.rig, DTYPE_F32, 1, 3);
    memcpy(p.w.data, (const float[]){0.4f, 0.4f, 7.5f}, 12);
    p.stats = stats_by_hand(&p.rig, 3, (const float[]){2, 1, 0, 1, 2, 0, 0, 0, 1});
    struct linear_job job = gptq(&p, "{\"group_size\":-1,\"damp_percent\":1e-9}");

    ck_assert_near(job.result.scales[0], 1, 0);
    ck_assert_int_eq(job.result.codes[0], 8);
    ck_assert_int_eq(job.result.codes[1], 9);
    ck_assert_int_eq(job.result.codes[2], 15);
    ck_assert_near(job.loss, 0.56 + 0.25, 1e-5);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(a_diagonal_hessian_is_rounding)
{
    static const char *const texts[] = {"{\"bits\":3,\"group_size\":64,\"mse_search\":false}",
                                        "{\"group_size\":-1,\"sym\":false,\"mse_search\":false}"};
    struct problem p;
    uint64_t seed = 9;
    problem_open(&p, N, K);
    zero_hessian(&p);
    for (int64_t j = 0; j < K; j++) {
        *hessian_at(&p, j, j) = _i / 2 == 0 ? 3.5f : 0.1f + fabsf(random_unit(&seed));
    }
    struct linear_job a = gptq(&p, texts[_i % 2]), b = rtn(&p, texts[_i % 2]);
    ck_assert_same_codes(&a.result, &b.result);
    ck_assert_str_eq(a.fallback, "");
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
}
END_TEST

/* A large weight widens its group's range only when its input says anything. */
START_TEST(search_listens_to_the_inputs)
{
    static const float energies[2] = {1e-6f, 1e6f};
    struct problem p;
    problem_open(&p, N, K);
    zero_hessian(&p);
    for (int64_t j = 0; j < K; j++) {
        *hessian_at(&p, j, j) = 1;
    }
    for (int64_t row = 0; row < N; row++) {
        floats(&p.w)[row * K + 10] = 20;
    }
    for (int i = 0; i < 2; i++) {
        *hessian_at(&p, 10, 10) = energies[i];
        struct linear_job job = gptq(&p, "{\"group_size\":64}");
        for (int64_t row = 0; row < N; row++) {
            double share = (double)job.result.scales[row * 3] / (20 * 2.0 / 15);
            ck_assert_msg(i == 0 ? share < 0.4 : share > 0.9, "input of energy %g: %g of the range",
                          (double)energies[i], share);
        }
        qtensor_deinit(&job.result);
    }
    problem_close(&p);
}
END_TEST

START_TEST(the_size_of_the_hessian_does_not_matter)
{
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job a = gptq(&p, "{\"bits\":3,\"group_size\":64}");
    for (int64_t i = 0; i < K * K; i++) {
        floats(&p.stats.hessian)[i] *= 1024;
    }
    struct linear_job b = gptq(&p, "{\"bits\":3,\"group_size\":64}");
    ck_assert_same_codes(&a.result, &b.result);
    ck_assert_near(b.loss, 1024 * a.loss, 1e-5 * b.loss);
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
}
END_TEST

START_TEST(loss_is_the_damped_output_error)
{
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job job = gptq(&p, "{\"bits\":3,\"group_size\":32,\"damp_percent\":0.03}");
    double want = loss_of(&job.result, &p.w, &p.stats.hessian, 0.03);
    ck_assert_near(job.damp_used, 0.03, 0);
    ck_assert_near(job.loss, want, 2e-3 * want);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(block_size_hardly_matters)
{
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job a = gptq(&p, "{\"bits\":3,\"group_size\":64,\"block_size\":1}");
    struct linear_job b = gptq(&p, "{\"bits\":3,\"group_size\":64,\"block_size\":128}");
    ck_assert_int_le(codes_differing(&a.result, &b.result), N * K / 50);
    ck_assert_near(a.loss, b.loss, 0.01 * a.loss);
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
}
END_TEST

/* act_order = sort the columns by hand, sweep them as they lie, sort back. */
START_TEST(act_order_is_a_permutation)
{
    struct problem p, q;
    int32_t order[K];
    problem_open(&p, N, K);
    problem_open(&q, N, K);
    visiting_order(&p, order);
    for (int64_t i = 0; i < K; i++) {
        for (int64_t j = 0; j < K; j++) {
            *hessian_at(&q, i, j) = *hessian_at(&p, order[i], order[j]);
        }
        for (int64_t row = 0; row < N; row++) {
            floats(&q.w)[row * K + i] = floats(&p.w)[row * K + order[i]];
        }
    }
    struct linear_job a = gptq(&p, "{\"bits\":3,\"group_size\":-1}");
    struct linear_job b = gptq(&q, "{\"bits\":3,\"group_size\":-1,\"act_order\":false}");
    for (int64_t i = 0; i < N * K; i++) {
        ck_assert_uint_eq(b.result.codes[i], a.result.codes[i / K * K + order[i % K]]);
    }
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
    problem_close(&q);
}
END_TEST

START_TEST(equal_columns_are_visited_by_index)
{
    struct problem p;
    problem_open(&p, N, K);
    float diagonal = 0;
    for (int64_t i = 0; i < K; i++) {
        diagonal = fmaxf(diagonal, *hessian_at(&p, i, i));
    }
    for (int64_t i = 0; i < K; i++) {
        *hessian_at(&p, i, i) = diagonal;
    }
    struct linear_job a = gptq(&p, "{\"bits\":3,\"group_size\":64}");
    struct linear_job b = gptq(&p, "{\"bits\":3,\"group_size\":64,\"act_order\":false}");
    ck_assert_same_codes(&a.result, &b.result);
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
}
END_TEST

START_TEST(beats_rounding_on_correlated_inputs)
{
    static const char *const texts[] = {"{\"bits\":2,\"group_size\":32}", "{\"bits\":3,\"group_size\":64}",
                                        "{\"bits\":4,\"group_size\":-1}", "{\"bits\":8,\"group_size\":64}",
                                        "{\"bits\":3,\"group_size\":64,\"sym\":false}"};
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job a = gptq(&p, texts[_i]), b = rtn(&p, texts[_i]);
    double swept = loss_of(&a.result, &p.w, &p.stats.hessian, 0);
    double rounded = loss_of(&b.result, &p.w, &p.stats.hessian, 0);
    ck_assert_msg(swept < 0.7 * rounded, "GPTQ %g, rounding %g", swept, rounded);
    qtensor_deinit(&a.result);
    qtensor_deinit(&b.result);
    problem_close(&p);
}
END_TEST

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
    ck_assert_near(*hessian_at(&p, 1, 1), 0.001, 1e-9); /* the statistics are kept */
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
    int kept = 0, swept = 0;
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
            kept++;
        } else {
            swept++;
        }
        qtensor_deinit(&a.result);
        qtensor_deinit(&b.result);
        stats_free(&rig, &stats);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &x);
    }
    ck_assert_int_gt(kept, 0);
    ck_assert_int_gt(swept, kept);
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
    Suite *suite = suite_create("quantizers/gptq");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, follows_the_paper, 0, 4);
    tcase_add_test(tcase, toy_by_hand);
    tcase_add_loop_test(tcase, a_diagonal_hessian_is_rounding, 0, 4);
    tcase_add_test(tcase, search_listens_to_the_inputs);
    tcase_add_test(tcase, the_size_of_the_hessian_does_not_matter);
    tcase_add_test(tcase, loss_is_the_damped_output_error);
    tcase_add_test(tcase, block_size_hardly_matters);
    tcase_add_test(tcase, act_order_is_a_permutation);
    tcase_add_test(tcase, equal_columns_are_visited_by_index);
    tcase_add_loop_test(tcase, beats_rounding_on_correlated_inputs, 0, 5);
    tcase_add_test(tcase, damping_climbs_on_a_singular_hessian);
    tcase_add_test(tcase, the_diagonal_is_raised_when_damping_fails);
    tcase_add_test(tcase, rounding_takes_over_and_is_named);
    tcase_add_test(tcase, never_worse_than_rounding);
    tcase_add_test(tcase, dead_columns_are_zeroed);
    tcase_add_test(tcase, an_input_that_is_always_zero);
    tcase_add_loop_test(tcase, what_is_not_finite_is_named, 0, 3);
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
