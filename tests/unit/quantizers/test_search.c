/* The choice of scales that every integer method offers. */

#include "tests/unit/quantizers/support.h"

static struct linear_job solved(struct problem *p, const char *method, const char *text, bool calibrated)
{
    return solve_one(&p->rig, method, text, DTYPE_F16, calibrated ? &p->stats : NULL, &p->w);
}

/* Each search on its own, as the older name says it, and what it gains where it looks. */
START_TEST(searches_of_rtn)
{
    struct problem p;
    problem_open(&p, 40, 192);
    struct linear_job auto_ = solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false}", true);
    struct linear_job minmax =
        solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false,\"scale_search\":\"minmax\"}", false);
    struct linear_job older =
        solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false,\"mse_search\":true}", true);
    struct linear_job mse =
        solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false,\"scale_search\":\"mse\"}", false);
    struct linear_job imatrix =
        solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false,\"scale_search\":\"imatrix\"}", true);
    struct linear_job hqq =
        solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false,\"scale_search\":\"hqq\"}", false);
    struct linear_job hqq_measured =
        solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false,\"scale_search\":\"hqq\"}", true);

    ck_assert_same_codes(&auto_.result, &minmax.result);
    ck_assert_same_codes(&older.result, &mse.result);
    double plain = loss_of(&minmax.result, &p.w, &p.stats.hessian, 0);
    double weighed = loss_of(&imatrix.result, &p.w, &p.stats.hessian, 0);
    ck_assert_double_lt(weighed, 0.97 * plain);
    ck_assert_double_le(loss_of(&hqq_measured.result, &p.w, &p.stats.hessian, 0), plain * 1.0001);
    ck_assert_near(imatrix.loss, weighed, 1e-3 * weighed);
    ck_assert(isnan(minmax.loss) && isnan(mse.loss) && isnan(hqq.loss));
    float *a = dequantized(&minmax.result), *b = dequantized(&hqq.result);
    double size = 0, refined = 0;
    for (int64_t i = 0; i < 40 * 192; i++) {
        size += fabs((double)floats(&p.w)[i] - (double)a[i]);
        refined += fabs((double)floats(&p.w)[i] - (double)b[i]);
    }
    ck_assert_double_lt(refined, 0.99 * size);
    free(a);
    free(b);
    struct qtensor *all[] = {&auto_.result,   &minmax.result, &older.result,       &mse.result,
                             &imatrix.result, &hqq.result,    &hqq_measured.result};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        qtensor_deinit(all[i]);
    }
    problem_close(&p);
}
END_TEST

/* GPTQ's default is the weighed search; the others change its codes and keep it from losing to rounding. */
START_TEST(searches_of_gptq_and_awq)
{
    static const char *const texts[] = {"minmax", "mse", "imatrix", "hqq"};
    struct problem p;
    problem_open(&p, 40, 192);
    struct linear_job usual = solved(&p, "gptq", "{\"bits\":3,\"group_size\":64,\"sym\":false}", true);
    struct linear_job rtn = solved(&p, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false}", true);
    double rounding = loss_of(&rtn.result, &p.w, &p.stats.hessian, 0);

    for (int i = 0; i < 4; i++) {
        char text[128];
        snprintf(text, sizeof(text), "{\"bits\":3,\"group_size\":64,\"sym\":false,\"scale_search\":\"%s\"}", texts[i]);
        struct linear_job gptq = solved(&p, "gptq", text, true), awq = solved(&p, "awq", text, true);
        ck_assert((codes_differing(&gptq.result, &usual.result) == 0) == (i == 2));
        ck_assert_double_lt(loss_of(&gptq.result, &p.w, &p.stats.hessian, 0), 0.9 * rounding);
        ck_assert_double_le(loss_of(&awq.result, &p.w, &p.stats.hessian, 0), rounding * 1.0001);
        qtensor_deinit(&gptq.result);
        qtensor_deinit(&awq.result);
    }
    qtensor_deinit(&usual.result);
    qtensor_deinit(&rtn.result);
    problem_close(&p);
}
END_TEST

START_TEST(what_it_needs)
{
    const struct quantizer *rtn = quantizer_find("rtn"), *gptq = quantizer_find("gptq");
    struct problem p;
    problem_open(&p, 40, 192);
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    void *weighed = params_new(rtn, "{\"group_size\":64,\"scale_search\":\"imatrix\"}"), *plain = params_new(rtn, "{}");
    void *targets = params_new(gptq, "{\"float_targets\":true}"), *none = params_new(gptq, "{\"float_targets\":false}");
    struct linear_job job = job_of(&p.w, weighed);

    ck_assert_uint_eq(quantizer_stats(rtn, weighed), STATS_HESSIAN);
    ck_assert_uint_eq(quantizer_stats(rtn, plain), STATS_NONE);
    struct quant_targets how;
    ck_assert_uint_eq(quantizer_stats(gptq, none), STATS_HESSIAN);
    ck_assert(!gptq->targets(none, &how));
    ck_assert(gptq->targets(targets, &how));
    ck_assert_double_eq(how.tokens, 16);
    ck_assert_double_eq(how.residual_share, 0.5);
    ck_assert_int_eq(rtn->solve(&context, NULL, &job, 1), ERR_INSUFFICIENT_CALIBRATION);
    ck_assert_ptr_null(job.result.codes);
    params_free(rtn, weighed);
    params_free(rtn, plain);
    params_free(gptq, targets);
    params_free(gptq, none);
    problem_close(&p);
}
END_TEST

START_TEST(contradictions_are_named)
{
    static const struct {
        const char *method, *text, *pointer;
    } rows[] = {
        {"rtn", "{\"scale_search\":\"hqq\"}", "/q/scale_search"},
        {"gptq", "{\"scale_search\":\"hqq\"}", "/q/scale_search"},
        {"awq", "{\"scale_search\":\"hqq\",\"sym\":true}", "/q/scale_search"},
        {"rtn", "{\"scale_search\":\"minmax\",\"mse_search\":true}", "/q/mse_search"},
        {"gptq", "{\"scale_search\":\"mse\",\"mse_search\":false}", "/q/mse_search"},
        {"awq", "{\"scale_search\":\"hqq\"}", NULL},
        {"rtn", "{\"signed_scales\":true}", "/q/signed_scales"},
        {"gptq", "{\"signed_scales\":true,\"sym\":false}", "/q/signed_scales"},
        {"gptq", "{\"signed_scales\":true}", NULL},
        {"gptq", "{\"quality\":\"fast\",\"resweep\":1}", "/q/resweep"},
        {"gptq", "{\"quality\":\"fast\",\"resweep\":1,\"refine_rounds\":1}", NULL},
        {"gptq", "{\"quality\":\"default\",\"resweep\":1}", NULL},
        {"gptq", "{\"quality\":\"best\",\"refine_rounds\":0}", NULL},
        {"rtn", "{\"scale_search\":\"mse\",\"mse_search\":true}", NULL},
        {"gptq", "{\"scale_search\":\"minmax\"}", NULL},
        {"gptq", "{\"scale_search\":\"minmax\",\"mse_search\":false}", NULL},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct quantizer *method = quantizer_find(rows[i].method);
        void *params = params_new(method, rows[i].text);
        struct validation_errors errors = {0};
        method->check(params, "/q", &errors);
        ck_assert_msg(errors.count == (rows[i].pointer != NULL ? 1 : 0), "%s %s: %zu errors", rows[i].method,
                      rows[i].text, errors.count);
        if (rows[i].pointer != NULL) {
            ck_assert_str_eq(errors.items[0].param, rows[i].pointer);
            ck_assert_int_eq(errors.items[0].code, ERR_INCOMPATIBLE_OPTIONS);
        }
        params_free(method, params);
    }
}
END_TEST

/* Refinement lowers what each method lost, by what the job says; scales of either sign are used and gain on top. */
START_TEST(refinement_and_signs)
{
    static const char *const texts[][2] = {
        {"rtn", "{\"bits\":2,\"group_size\":64,\"scale_search\":\"mse\""},
        {"rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false"},
        {"gptq", "{\"bits\":2,\"group_size\":64"},
        {"gptq", "{\"bits\":3,\"group_size\":-1,\"sym\":false"},
        {"awq", "{\"bits\":4,\"group_size\":64,\"sym\":true,\"scale_search\":\"mse\",\"refine_tokens\":0"},
    };
    struct problem p;
    problem_open(&p, 40, 192);

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        char text[200];
        snprintf(text, sizeof(text), "%s,\"refine_rounds\":0}", texts[i][1]);
        struct linear_job plain = solved(&p, texts[i][0], text, true);
        snprintf(text, sizeof(text), "%s,\"refine_rounds\":2}", texts[i][1]);
        struct linear_job refined = solved(&p, texts[i][0], text, true);
        double before = loss_of(&plain.result, &p.w, &p.stats.hessian, 0);
        double after = loss_of(&refined.result, &p.w, &p.stats.hessian, 0);
        ck_assert(!plain.refined && refined.refined);
        ck_assert_near(refined.unrefined_loss, before, 1e-3 * before);
        ck_assert_near(refined.loss, after, 1e-3 * before);
        ck_assert_double_lt(after, 0.97 * before);
        if (strstr(text, "false") == NULL) {
            snprintf(text, sizeof(text), "%s,\"refine_rounds\":2,\"signed_scales\":true}", texts[i][1]);
            struct linear_job signs = solved(&p, texts[i][0], text, true);
            int negative = 0;
            for (int64_t k = 0; k < signs.result.rows * signs.result.groups; k++) {
                negative += signs.result.scales[k] < 0;
            }
            ck_assert_int_gt(negative, 10);
            ck_assert_double_lt(loss_of(&signs.result, &p.w, &p.stats.hessian, 0), after);
            qtensor_deinit(&signs.result);
        }
        qtensor_deinit(&plain.result);
        qtensor_deinit(&refined.result);
    }
    problem_close(&p);
}
END_TEST

/* Over fewer tokens than refine_tokens for each input rounded weights stay as they are, and the job says so. */
START_TEST(few_tokens_refine_nothing)
{
    struct problem p;
    problem_open(&p, 40, 192);

    for (int few = 0; few < 2; few++) {
        p.stats.tokens = 8 * 192 - few;
        struct linear_job job = solved(&p, "awq", "{\"bits\":4,\"group_size\":64}", true);
        struct linear_job plain = solved(&p, "awq", "{\"bits\":4,\"group_size\":64,\"refine_rounds\":0}", true);
        ck_assert_int_eq(job.refined, few == 0);
        ck_assert_str_eq(job.note, few ? "not refined: 1535 calibration tokens for 192 inputs" : "");
        ck_assert_str_eq(plain.note, "");
        bool same = memcmp(job.result.codes, plain.result.codes, (size_t)(40 * 192)) == 0;
        ck_assert_int_eq(same, few);
        qtensor_deinit(&job.result);
        qtensor_deinit(&plain.result);
    }
    problem_close(&p);
}
END_TEST

UNIT_MAIN("quantizers/search", searches_of_rtn, searches_of_gptq_and_awq, what_it_needs, contradictions_are_named,
          refinement_and_signs, few_tokens_refine_nothing)
