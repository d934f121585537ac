/* What the face promises of every method, over every row of the registry. */

#include "tests/unit/quantizers/support.h"

#include <stdio.h>

#define N 20
#define K 256

static const int all_bits[] = {2, 3, 4, 8};
static const int all_groups[] = {-1, 32, 64, 128};
static const enum dtype all_dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

struct setting {
    int bits, group;
    bool sym, search;
};
#define SETTINGS 64

static struct setting setting_at(int i)
{
    return (struct setting){all_bits[i % 4], all_groups[i / 4 % 4], i / 16 % 2 == 0, i / 32 % 2 == 1};
}

static void *setting_params(const struct quantizer *method, struct setting s)
{
    char text[128];
    snprintf(text, sizeof(text), "{\"bits\":%d,\"group_size\":%d,\"sym\":%s,\"mse_search\":%s}", s.bits, s.group,
             s.sym ? "true" : "false", s.search ? "true" : "false");
    return params_new(method, text);
}

/* One linear solved, with its grid kept for comparison. */
static struct linear_job run(struct rig *rig, const struct quantizer *method, struct setting s, enum dtype dtype,
                             const struct layer_stats *stats, const struct tensor *w)
{
    struct solve_context context = context_of(rig, dtype);
    void *params = setting_params(method, s);
    struct linear_job job = job_of(w, params);
    ck_assert_rc_ok(method->solve(&context, stats, &job, 1));
    params_free(method, params);
    job.params = NULL;
    return job;
}

/* The result is of the scheme that was promised, inside its ranges, and its scales are what the artifact can store. */
static void check_result(const struct quantizer *method, struct setting s, enum dtype dtype,
                         const struct linear_job *job)
{
    const struct qtensor *q = &job->result;
    struct qscheme scheme;
    void *params = setting_params(method, s);

    ck_assert_rc_ok(method->scheme(params, q->rows, q->cols, &scheme));
    params_free(method, params);
    ck_assert_int_eq(q->scheme.kind, scheme.kind);
    ck_assert_int_eq(q->scheme.bits, s.bits);
    ck_assert_int_eq(q->scheme.bits, scheme.bits);
    ck_assert_int_eq(q->scheme.group_size, scheme.group_size);
    ck_assert_int_eq(q->scheme.per_channel, scheme.per_channel);
    ck_assert_int_eq(q->scheme.sym, scheme.sym);
    ck_assert_int_eq(q->scheme.scale_dtype, dtype);
    ck_assert_int_eq(q->groups, q->cols / scheme.group_size);
    ck_assert_str_eq(q->name, job->name);
    int64_t wrong = 0; /* counted, since an assertion for each element would take longer than the method */
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        wrong += q->codes[i] >= 1 << s.bits;
    }
    ck_assert_msg(wrong == 0, "%lld codes out of range", (long long)wrong);
    for (int64_t i = 0; i < q->rows * q->groups; i++) {
        wrong += !isfinite(q->scales[i]) || q->scales[i] <= 0 || q->scales[i] != dtype_round(q->scales[i], dtype);
        wrong += q->zeros[i] >= 1 << s.bits || (s.sym && q->zeros[i] != 1 << (s.bits - 1));
    }
    ck_assert_msg(wrong == 0, "%lld scales or zeros out of range", (long long)wrong);
    ck_assert_double_ge(job->seconds, 0);
}

START_TEST(row_is_complete)
{
    const struct quantizer *method = quantizer_list()[_i];
    json_t *schema = params_schema(method->params);
    struct faults faults = {0};

    ck_assert(method->name[0] != '\0' && method->title[0] != '\0' && strlen(method->help) > 40);
    ck_assert_uint_ge(method->params_size, sizeof(struct quant_base));
    ck_assert_ptr_eq(method->params[0], quant_base_rows);
    ck_assert(method->scheme != NULL && method->solve != NULL);
    ck_assert_str_eq(json_string_value(json_object_get(schema, "type")), "object");
    ck_assert(json_is_false(json_object_get(schema, "additionalProperties")));
    ck_assert_uint_eq(json_array_size(json_object_get(schema, "required")), 0);
    for (int t = 0; method->params[t] != NULL; t++) {
        for (const struct params_row *row = method->params[t]; row->name != NULL; row++) {
            json_t *entry = json_object_get(json_object_get(schema, "properties"), row->name);
            ck_assert_ptr_nonnull(json_object_get(entry, "default"));
            ck_assert_uint_gt(strlen(json_string_value(json_object_get(entry, "description"))), 10);
        }
    }
    json_decref(schema);

    /* the defaults pass the method's own check, and their echo is read back as the same */
    void *params = params_new(method, "{}");
    if (method->check != NULL) {
        method->check(params, "", &faults);
    }
    ck_assert_uint_eq(faults.count, 0);
    json_t *echo = params_json(method->params, params);
    char *text = json_dumps(echo, 0);
    void *again = params_new(method, text);
    json_t *second = params_json(method->params, again);
    ck_assert(json_equal(echo, second));
    json_decref(echo);
    json_decref(second);
    free(text);
    params_free(method, params);
    params_free(method, again);
}
END_TEST

START_TEST(every_setting)
{
    const struct quantizer *method = quantizer_list()[_i / SETTINGS];
    struct setting s = setting_at(_i % SETTINGS), min_max = s;
    struct rig rig;
    min_max.search = s.search && method->stats == STATS_NONE; /* nothing else to answer to than itself */
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, N, K, 41), x = rig_correlated(&rig, 3 * K, K, 42);
    struct layer_stats stats = stats_of(&rig, &x);

    for (int d = 0; d < 3; d++) {
        struct linear_job ours = run(&rig, method, s, all_dtypes[d], &stats, &w);
        struct linear_job plain = run(&rig, quantizer_find("rtn"), min_max, all_dtypes[d], NULL, &w);
        check_result(method, s, all_dtypes[d], &ours);
        double error = loss_of(&ours.result, &w, &stats.hessian, 0);
        double rounded = loss_of(&plain.result, &w, &stats.hessian, 0);
        ck_assert_msg(error <= rounded * 1.0001, "%s w%d g%d: %g, rounding %g", method->name, s.bits, s.group, error,
                      rounded);
        qtensor_deinit(&ours.result);
        qtensor_deinit(&plain.result);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* Group sizes that do not divide the inputs are refused before any work, by scheme and by solve. */
START_TEST(shapes_that_do_not_fit)
{
    const struct quantizer *method = quantizer_list()[_i];
    struct setting s = {4, 128, true, false};
    struct qscheme scheme;
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, 192, 1), x = rig_random(&rig, 400, 192, 2);
    struct layer_stats stats = stats_of(&rig, &x);
    struct solve_context context = context_of(&rig, DTYPE_F16);
    void *params = setting_params(method, s);
    struct linear_job job = job_of(&w, params);

    ck_assert_int_eq(method->scheme(params, 4, 192, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_int_eq(method->solve(&context, &stats, &job, 1), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_ptr_null(job.result.codes);
    params_free(method, params);
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

START_TEST(threads_give_the_same_bytes)
{
    const struct quantizer *method = quantizer_list()[_i];
    struct setting s = {3, 64, false, true};
    struct linear_job first = {0};

    for (int threads = 1; threads <= 2; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor w = rig_random(&rig, 300, K, 51), x = rig_correlated(&rig, 2 * K, K, 52);
        struct layer_stats stats = stats_of(&rig, &x);
        struct linear_job job = run(&rig, method, s, DTYPE_BF16, &stats, &w);
        if (threads == 1) {
            first = job;
        } else {
            ck_assert_same_codes(&first.result, &job.result);
            ck_assert(isnan(first.loss) ? isnan(job.loss) : first.loss == job.loss);
            qtensor_deinit(&job.result);
        }
        stats_free(&rig, &stats);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &x);
        rig_close(&rig);
    }
    qtensor_deinit(&first.result);
}
END_TEST

/* Weights as they should not be: constant, zero, one huge, all so small or large that a 16-bit scale leaves its range.
 */
enum oddity { ALL_ZERO, ZERO_ROWS, CONSTANT, NEGATIVE, HUGE_ONE, TINY, SUBNORMAL, LARGE, ODDITIES };

static void make_odd(const struct tensor *w, enum oddity oddity)
{
    for (int64_t i = 0; i < N * K; i++) {
        float *at = &floats(w)[i];
        switch (oddity) {
        case ALL_ZERO:
            *at = 0;
            break;
        case ZERO_ROWS:
            *at *= i / K % 3 == 0 ? 0.0f : 1.0f;
            break;
        case CONSTANT:
            *at = 0.37f;
            break;
        case NEGATIVE:
            *at = -fabsf(*at);
            break;
        case HUGE_ONE:
            *at = i == 77 ? 1e4f : *at;
            break;
        case TINY:
            *at *= 1e-9f;
            break;
        case SUBNORMAL:
            *at *= 1e-39f;
            break;
        case LARGE:
            *at *= 1e6f;
            break;
        case ODDITIES:
            break;
        }
    }
}

START_TEST(odd_weights)
{
    const struct quantizer *method = quantizer_list()[_i / ODDITIES];
    enum oddity oddity = (enum oddity)(_i % ODDITIES);
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, N, K, 61), x = rig_correlated(&rig, 2 * K, K, 62);
    struct layer_stats stats = stats_of(&rig, &x);

    make_odd(&w, oddity);
    for (int i = 0; i < SETTINGS; i += 3) {
        struct setting s = setting_at(i);
        enum dtype dtype = all_dtypes[i / 3 % 3];
        struct linear_job job = run(&rig, method, s, dtype, &stats, &w);
        check_result(method, s, dtype, &job);
        float *wq = dequantized(&job.result);
        int64_t wrong = 0;
        for (int64_t k = 0; k < N * K; k++) {
            bool zero_row = oddity == ALL_ZERO || (oddity == ZERO_ROWS && k / K % 3 == 0);
            wrong += !isfinite(wq[k]) || (zero_row && wq[k] != 0);
        }
        ck_assert_msg(wrong == 0, "%lld weights are not finite, or not zero as they were", (long long)wrong);
        free(wq);
        qtensor_deinit(&job.result);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* One row, one group, and as many columns as the smallest group has. */
START_TEST(small_shapes)
{
    const struct quantizer *method = quantizer_list()[_i];
    struct rig rig;
    rig_open(&rig, 2);
    for (int64_t cols = 1; cols <= 64; cols *= 2) {
        struct tensor w = rig_random(&rig, 1, cols, 71), x = rig_random(&rig, 100, cols, 72);
        struct layer_stats stats = stats_of(&rig, &x);
        struct setting s = {4, cols >= 32 ? 32 : -1, true, false};
        struct linear_job job = run(&rig, method, s, DTYPE_F16, &stats, &w);
        check_result(method, s, DTYPE_F16, &job);
        qtensor_deinit(&job.result);
        stats_free(&rig, &stats);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &x);
    }
    rig_close(&rig);
}
END_TEST

static int refuse(void *data)
{
    ++*(int *)data;
    return ERR_CANCELLED;
}

START_TEST(tick_is_asked_and_obeyed)
{
    const struct quantizer *method = quantizer_list()[_i];
    int asked = 0;
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, 64, 1), x = rig_random(&rig, 100, 64, 2);
    struct layer_stats stats = stats_of(&rig, &x);
    struct solve_context context = context_of(&rig, DTYPE_F16);
    context.tick = refuse;
    context.tick_data = &asked;
    void *params = setting_params(method, (struct setting){4, 64, true, false});
    struct linear_job job = job_of(&w, params);

    ck_assert_int_eq(method->solve(&context, &stats, &job, 1), ERR_CANCELLED);
    ck_assert_int_eq(asked, 1);
    ck_assert_ptr_null(job.result.codes);
    params_free(method, params);
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("conformance/methods");
    TCase *tcase = tcase_create("all");
    int methods = 0;

    while (quantizer_list()[methods] != NULL) {
        methods++;
    }
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, row_is_complete, 0, methods);
    tcase_add_loop_test(tcase, every_setting, 0, methods * SETTINGS);
    tcase_add_loop_test(tcase, shapes_that_do_not_fit, 0, methods);
    tcase_add_loop_test(tcase, threads_give_the_same_bytes, 0, methods);
    tcase_add_loop_test(tcase, odd_weights, 0, methods * ODDITIES);
    tcase_add_loop_test(tcase, small_shapes, 0, methods);
    tcase_add_loop_test(tcase, tick_is_asked_and_obeyed, 0, methods);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
