/* GPTQ as a method: its identities, each one promised by the algorithm. */

#include "tests/unit/quantizers/gptq.h"

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

/* The complete method in double on the same grid: codes may differ only where a weight lies on an edge, and their row
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

/* H' = [[2,1],[1,2]] on integers, w = (.4,.4): plain rounding gives (0,0) and loses .96, GPTQ (0,1) and .56. A
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

/* Linears of one call get what each would get alone, by its own damping and order. */
START_TEST(linears_of_one_input_have_their_own_parameters)
{
    static const char *const texts[] = {
        "{\"bits\":3,\"group_size\":64}", "{\"bits\":3,\"group_size\":64,\"damp_percent\":0.3}",
        "{\"bits\":3,\"group_size\":64,\"act_order\":false}", "{\"bits\":3,\"group_size\":64}"};
    enum { LINEARS = sizeof(texts) / sizeof(texts[0]) };
    const struct quantizer *quantizer = quantizer_find("gptq");
    struct linear_job jobs[LINEARS];
    void *params[LINEARS];
    struct problem p;
    problem_open(&p, N, K);
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    for (int i = 0; i < LINEARS; i++) {
        params[i] = params_new(quantizer, texts[i]);
        jobs[i] = job_of(&p.w, params[i]);
    }
    ck_assert_rc_ok(quantizer->solve(&context, &p.stats, jobs, LINEARS));
    for (int i = 0; i < LINEARS; i++) {
        struct linear_job alone = gptq(&p, texts[i]);
        ck_assert_same_codes(&jobs[i].result, &alone.result);
        ck_assert_near(jobs[i].damp_used, alone.damp_used, 0);
        ck_assert(i == 0 || i == 3 || memcmp(jobs[i].result.codes, jobs[0].result.codes, N * K) != 0);
        qtensor_deinit(&alone.result);
    }
    for (int i = 0; i < LINEARS; i++) {
        qtensor_deinit(&jobs[i].result);
        params_free(quantizer, params[i]);
    }
    problem_close(&p);
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
    tcase_add_test(tcase, linears_of_one_input_have_their_own_parameters);
    tcase_add_loop_test(tcase, beats_rounding_on_correlated_inputs, 0, 5);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
