/* What quantizers/quantizer.h promises of every method, over every row of the registry. */

#include "tests/unit/quantizers/support.h"

#include <stdio.h>

#define N 20
#define K 256

static const int all_bits[] = {2, 3, 4, 5, 6, 8};
static const int all_groups[] = {-1, 32, 64, 128};
static const enum dtype all_dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

struct setting {
    int bits, group;
    bool sym, search;
};
#define SETTINGS 96

static struct setting setting_at(int i)
{
    return (struct setting){all_bits[i % 6], all_groups[i / 6 % 4], i / 24 % 2 == 0, i / 48 % 2 == 1};
}

static bool has_row(const struct quantizer *method, const char *name)
{
    for (int t = 0; method->params[t] != NULL; t++) {
        for (const struct params_row *row = method->params[t]; row->name != NULL; row++) {
            if (strcmp(row->name, name) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* Methods that leave weights alone have nothing to show here. */
static bool solves(const struct quantizer *method)
{
    return method->solve != NULL;
}

/* Has it bits and groups to choose? One with a grid of its own meets the first setting only. */
static bool has_settings(const struct quantizer *method)
{
    return has_row(method, "bits") && has_row(method, "group_size") && has_row(method, "sym");
}

/* The members of a setting that the method knows. */
static void *setting_params(const struct quantizer *method, struct setting s)
{
    json_t *object = json_object();

    if (has_settings(method)) {
        json_object_set_new(object, "bits", json_integer(s.bits));
        json_object_set_new(object, "group_size", json_integer(s.group));
        json_object_set_new(object, "sym", json_boolean(s.sym));
    }
    if (has_settings(method) && has_row(method, "mse_search")) {
        json_object_set_new(object, "mse_search", json_boolean(s.search));
    }
    char *text = json_dumps(object, 0);
    void *params = params_new(method, text);
    free(text);
    json_decref(object);
    return params;
}

static int scheme_of(const struct quantizer *method, struct setting s, int64_t rows, int64_t cols, struct qscheme *out)
{
    void *params = setting_params(method, s);
    int rc = method->scheme(params, rows, cols, out);
    params_free(method, params);
    return rc;
}

/* One linear solved, with its grid for comparison. */
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

/* Whether its scales can be of either sign under this setting. */
static bool has_signs(const struct quantizer *method, struct setting s)
{
    if (!has_row(method, "signed_scales")) {
        return false;
    }
    void *params = setting_params(method, s);
    bool signs = ((const struct quant_common *)params)->signed_scales;
    params_free(method, params);
    ck_assert(!signs || s.sym);
    return signs;
}

/* Scales and zeros of an integer grid or of FP8, and codes inside their range. */
static int64_t count_wrong(const struct qtensor *q, enum dtype dtype, bool signs)
{
    int codes = q->scheme.kind == QTENSOR_INT || q->scheme.kind == QTENSOR_TABLE ? 1 << q->scheme.bits : 256;
    int64_t wrong = 0;

    for (int64_t i = 0; q->scheme.kind != QTENSOR_BLOCKS && q->codes != NULL && i < q->rows * q->cols; i++) {
        wrong += q->codes[i] >= codes;
    }
    for (int64_t i = 0; i < q->row_groups * q->groups; i++) {
        bool grid = q->scheme.kind == QTENSOR_INT;
        wrong += q->scheme.kind != QTENSOR_CODEBOOKS &&
                 (!isfinite(q->scales[i]) || (!signs && q->scales[i] < 0) ||
                  (q->scheme.kind != QTENSOR_NF4 && q->scales[i] == 0) ||
                  (!q->scheme.nested && q->scales[i] != dtype_round(q->scales[i], dtype)));
        wrong += grid && (q->zeros[i] >= codes || (q->scheme.sym && q->zeros[i] != codes / 2));
    }
    return wrong;
}

/* The result is of the scheme that was promised, inside its ranges, and its scales are what the artifact can store. */
static void check_result(const struct quantizer *method, struct setting s, enum dtype dtype,
                         const struct linear_job *job)
{
    const struct qtensor *q = &job->result;
    struct qscheme scheme;

    ck_assert_rc_ok(scheme_of(method, s, q->rows, q->cols, &scheme));
    ck_assert_int_eq(q->scheme.kind, scheme.kind);
    ck_assert(!has_settings(method) || q->scheme.bits == s.bits);
    ck_assert_int_eq(q->scheme.bits, scheme.bits);
    ck_assert_int_eq(q->scheme.group_size, scheme.group_size);
    ck_assert_int_eq(q->scheme.group_rows, scheme.group_rows > 0 ? scheme.group_rows : 1);
    ck_assert_int_eq(q->scheme.per_channel, scheme.per_channel);
    ck_assert_int_eq(q->scheme.sym, scheme.sym);
    ck_assert_int_eq(q->scheme.nested, scheme.nested);
    ck_assert_int_eq(q->scheme.element, scheme.element);
    ck_assert_int_eq(q->scheme.scale_dtype, dtype);
    ck_assert_str_eq(q->name, job->name);
    int64_t wrong = count_wrong(
        q, dtype, has_signs(method, s)); /* an assertion for each element would take longer than the method */
    ck_assert_msg(wrong == 0, "%lld codes, scales or zeros out of range", (long long)wrong);
    ck_assert_double_ge(job->seconds, 0);
}

/* What a method with a grid of its own must not lose to: rounding to nearest at its bits. INT8 inputs want codes that
 * reach 127 on both sides, half a code less than rounding has. Three significant bits are what E4M3 has of its eight.
 */
static struct setting peer_of(const struct quantizer *method, struct setting s, double *allowed)
{
    static const struct setting peers[QTENSOR_KIND_COUNT] = {
        [QTENSOR_INT] = {8, -1, true, false},       [QTENSOR_FLOAT8] = {4, -1, true, false},
        [QTENSOR_NF4] = {4, 64, true, false},       [QTENSOR_TABLE] = {3, -1, true, false},
        [QTENSOR_CODEBOOKS] = {2, 64, true, false}, [QTENSOR_BLOCKS] = {4, 128, true, false}};
    struct qscheme scheme;

    *allowed = 1.0001;
    if (has_settings(method)) {
        s.search = s.search && method->stats == STATS_NONE; /* nothing else to answer to than itself */
        return s;
    }
    ck_assert_rc_ok(scheme_of(method, s, N, K, &scheme));
    *allowed = scheme.kind == QTENSOR_INT ? 1.15 : 1.0001;
    return peers[scheme.kind];
}

static void ck_assert_same_parts(const struct qtensor *a, const struct qtensor *b)
{
    struct qtensor_part ours[QTENSOR_PARTS_MAX], theirs[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(a, ours);

    ck_assert_int_eq(count, qtensor_parts(b, theirs));
    for (int i = 0; i < count; i++) {
        ck_assert_int_eq(ours[i].rows * ours[i].cols, theirs[i].rows * theirs[i].cols);
        ck_assert_int_eq(memcmp(ours[i].data, theirs[i].data,
                                (size_t)(ours[i].rows * ours[i].cols) * dtype_rows[ours[i].dtype].bytes),
                         0);
    }
}

/* One object has the parameters of all of a list's methods, so what follows another shares no name with any that it may
 * follow: not with those that learn by themselves. */
static void check_own_names(const struct quantizer *method)
{
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        for (int t = 0; *q != method && (*q)->tune == NULL && method->params[t] != NULL; t++) {
            for (const struct params_row *row = method->params[t]; row->name != NULL; row++) {
                ck_assert_msg(!has_row(*q, row->name), "%s of %s is %s's too", row->name, method->name, (*q)->name);
            }
        }
    }
}

START_TEST(row_is_complete)
{
    const struct quantizer *method = quantizer_list()[_i];
    json_t *schema = params_schema(method->params);
    struct validation_errors errors = {0};

    ck_assert(method->name[0] != '\0' && method->title[0] != '\0' && strlen(method->help) > 40);
    if (quantizer_follows(method)) {
        check_own_names(method);
    } else {
        ck_assert_uint_ge(method->params_size, sizeof(struct quant_base));
        ck_assert_ptr_eq(method->params[0], quant_base_rows);
    }
    ck_assert((method->scheme != NULL) == (method->solve != NULL));
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
        method->check(params, "", &errors);
    }
    ck_assert_uint_eq(errors.count, 0);
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
    struct setting s = setting_at(_i % SETTINGS);
    double allowed;
    struct rig rig;

    if (!solves(method) || (!has_settings(method) && _i % SETTINGS > 0)) {
        return;
    }
    struct setting peer = peer_of(method, s, &allowed);
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, N, K, 41), x = rig_correlated(&rig, 3 * K, K, 42);
    struct layer_stats stats = stats_of(&rig, &x);

    for (int d = 0; d < 3; d++) {
        struct linear_job ours = run(&rig, method, s, all_dtypes[d], &stats, &w);
        struct linear_job plain = run(&rig, quantizer_find("rtn"), peer, all_dtypes[d], NULL, &w);
        check_result(method, s, all_dtypes[d], &ours);
        double error = loss_of(&ours.result, &w, &stats.hessian, 0);
        double rounded = loss_of(&plain.result, &w, &stats.hessian, 0);
        ck_assert_msg(error <= rounded * allowed, "%s w%d g%d: %g, rounding %g", method->name, peer.bits, peer.group,
                      error, rounded);
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
    if (!solves(method) || scheme_of(method, s, 4, 192, &scheme) == 0) { /* its groups fit any inputs */
        ck_assert(!has_settings(method));
        return;
    }
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

    if (!solves(method)) {
        return;
    }
    for (int threads = 1; threads <= 2; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor w = rig_random(&rig, 300, K, 51), x = rig_correlated(&rig, 2 * K, K, 52);
        struct layer_stats stats = stats_of(&rig, &x);
        struct linear_job job = run(&rig, method, s, DTYPE_BF16, &stats, &w);
        if (threads == 1) {
            first = job;
        } else {
            ck_assert_same_parts(&first.result, &job.result);
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

/* Where a method says that its codes depend on weights alone, statistics change nothing. */
START_TEST(data_free_codes_ignore_inputs)
{
    const struct quantizer *method = quantizer_list()[_i];
    struct rig rig;
    if (!solves(method)) {
        return;
    }
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, N, K, 53), x = rig_correlated(&rig, 3 * K, K, 54);
    struct layer_stats stats = stats_of(&rig, &x);

    for (int i = 0; i < (has_settings(method) ? SETTINGS : 1); i += 7) {
        struct setting s = setting_at(i);
        void *params = setting_params(method, s);
        bool free_of_data = quantizer_data_free(method, params);
        params_free(method, params);
        if (!free_of_data) {
            continue;
        }
        struct linear_job with = run(&rig, method, s, DTYPE_F16, &stats, &w);
        struct linear_job without = run(&rig, method, s, DTYPE_F16, NULL, &w);
        ck_assert_same_parts(&with.result, &without.result);
        qtensor_deinit(&with.result);
        qtensor_deinit(&without.result);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* Arrays of slices of rows, one after the other, are those of the complete result. */
static void check_slices(struct rig *rig, const struct quantizer *method, struct setting s, const struct tensor *w)
{
    struct linear_job all = run(rig, method, s, DTYPE_BF16, NULL, w);
    struct qtensor_part whole[QTENSOR_PARTS_MAX], parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(&all.result, whole);

    for (int64_t first = 0, rows; first < N; first += rows) {
        rows = first == 0 ? 13 : N - first;
        const struct tensor slice = tensor_rows(w, first, rows);
        struct linear_job job = run(rig, method, s, DTYPE_BF16, NULL, &slice);
        ck_assert_int_eq(qtensor_parts(&job.result, parts), count);
        for (int i = 0; i < count; i++) {
            int64_t each = whole[i].rows * whole[i].cols / N, width = (int64_t)dtype_rows[whole[i].dtype].bytes;
            ck_assert_int_eq(parts[i].rows * parts[i].cols, each * rows);
            ck_assert_int_eq(memcmp(parts[i].data, (const char *)whole[i].data + first * each * width,
                                    (size_t)(each * rows * width)),
                             0);
        }
        qtensor_deinit(&job.result);
    }
    qtensor_deinit(&all.result);
}

START_TEST(rows_that_stand_alone)
{
    const struct quantizer *method = quantizer_list()[_i];
    struct rig rig;
    if (!solves(method) || method->rows_alone == NULL) {
        return;
    }
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, N, K, 57);
    int checked = 0;

    for (int i = 0; i < (has_settings(method) ? SETTINGS : 1); i += 7) {
        struct setting s = setting_at(i);
        void *params = setting_params(method, s);
        bool alone = method->rows_alone(params, K);
        ck_assert(!alone || quantizer_data_free(method, params)); /* slices are solved without statistics */
        params_free(method, params);
        if (alone) {
            check_slices(&rig, method, s, &w);
            checked++;
        }
    }
    ck_assert_int_gt(checked, 0);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
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
    if (!solves(method)) {
        return;
    }
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, N, K, 61), x = rig_correlated(&rig, 2 * K, K, 62);
    struct layer_stats stats = stats_of(&rig, &x);

    make_odd(&w, oddity);
    for (int i = 0; i < (has_settings(method) ? SETTINGS : 9); i += 5) {
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
    if (!solves(method)) {
        return;
    }
    rig_open(&rig, 2);
    for (int64_t cols = 1; cols <= 64; cols *= 2) {
        struct tensor w = rig_random(&rig, 1, cols, 71), x = rig_random(&rig, 100, cols, 72);
        struct layer_stats stats = stats_of(&rig, &x);
        struct setting s = {4, cols >= 32 ? 32 : -1, true, false};
        struct qscheme scheme;
        if (scheme_of(method, s, 1, cols, &scheme) != 0) { /* a grid of its own that is wider */
            ck_assert(!has_settings(method));
            stats_free(&rig, &stats);
            gpu_tensor_free(&rig.gpu, &w);
            gpu_tensor_free(&rig.gpu, &x);
            continue;
        }
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
    if (!solves(method)) {
        return;
    }
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, K, 1), x = rig_random(&rig, 100, K, 2);
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
    tcase_add_loop_test(tcase, data_free_codes_ignore_inputs, 0, methods);
    tcase_add_loop_test(tcase, rows_that_stand_alone, 0, methods);
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
