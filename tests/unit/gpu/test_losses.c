/* output_error and nll against the definitions in double. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

static double form(const struct tensor *h, const double *d)
{
    int64_t n = h->shape[0];
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            sum += d[i] * (double)floats(h)[i * n + j] * d[j];
        }
    }
    return sum;
}

START_TEST(output_error_is_a_quadratic_form)
{
    enum { N = 140, K = 530 };
    double first[2] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        double error, signal, d[K];
        rig_open(&rig, threads);
        struct tensor x = rig_correlated(&rig, 40, K, 1), h = rig_hessian(&rig, &x);
        struct tensor w = rig_random(&rig, N, K, 2), wq = rig_random(&rig, N, K, 3);
        ck_assert_rc_ok(rig.ops->output_error(rig.stream, &error, &signal, &w, &wq, &h));
        if (threads == 1) {
            double want_error = 0, want_signal = 0;
            for (int r = 0; r < N; r++) {
                for (int i = 0; i < K; i++) {
                    d[i] = (double)floats(&w)[r * K + i];
                }
                want_signal += form(&h, d);
                for (int i = 0; i < K; i++) {
                    d[i] -= (double)floats(&wq)[r * K + i];
                }
                want_error += form(&h, d);
            }
            ck_assert_near(error, want_error, 1e-5 * want_error);
            ck_assert_near(signal, want_signal, 1e-5 * want_signal);
            first[0] = error;
            first[1] = signal;
        }
        ck_assert_double_eq(error, first[0]);
        ck_assert_double_eq(signal, first[1]);
        ck_assert_rc_ok(rig.ops->output_error(rig.stream, &error, NULL, &w, &wq, &h));
        ck_assert_double_eq(error, first[0]);
        ck_assert_int_eq(rig.ops->output_error(rig.stream, &error, &signal, &w, &x, &h), ERR_INTERNAL);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &h);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &wq);
        rig_close(&rig);
    }
}
END_TEST

static double log_sum(const float *x, int64_t n)
{
    double sum = 0, most = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, (double)x[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - most);
    }
    return most + log(sum);
}

static int64_t largest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

static void check_nll(int64_t tokens, int64_t vocabulary, int threads)
{
    struct rig rig;
    struct gpu_nll got = {.nll_sum = 1, .kl_sum = 2, .count = 3, .agree = 4}, alone = {0};
    double want_nll = 1, want_kl = 2;
    int64_t want_count = 3, want_agree = 4;
    int32_t *targets = calloc((size_t)tokens, sizeof(*targets));
    rig_open(&rig, threads);
    struct tensor x = rig_random(&rig, tokens, vocabulary, 1), r = rig_random(&rig, tokens, vocabulary, 2);

    for (int64_t i = 0; i < tokens * vocabulary; i++) {
        floats(&x)[i] = 4 * floats(&x)[i] + 30;
        floats(&r)[i] = 0.7f * floats(&x)[i] + floats(&r)[i];
    }
    for (int64_t t = 0; t < tokens; t++) {
        targets[t] = t % 5 == 4 ? -1 : (int32_t)(t * 31 % vocabulary);
        const float *a = floats(&x) + t * vocabulary, *b = floats(&r) + t * vocabulary;
        double log_a = log_sum(a, vocabulary), log_b = log_sum(b, vocabulary);
        if (targets[t] < 0) {
            continue;
        }
        want_count++;
        want_agree += largest(a, vocabulary) == largest(b, vocabulary);
        want_nll += log_a - (double)a[targets[t]];
        for (int64_t i = 0; i < vocabulary; i++) {
            double p = exp((double)b[i] - log_b);
            want_kl += p * (((double)b[i] - log_b) - ((double)a[i] - log_a));
        }
    }
    ck_assert_rc_ok(rig.ops->nll(rig.stream, &got, &x, &r, targets));
    ck_assert_near(got.nll_sum, want_nll, 1e-6 * want_nll);
    ck_assert_near(got.kl_sum, want_kl, 2e-6 * want_kl);
    ck_assert_int_eq(got.count, want_count);
    ck_assert_int_eq(got.agree, want_agree);
    ck_assert_rc_ok(rig.ops->nll(rig.stream, &alone, &x, NULL, targets));
    ck_assert_double_eq(alone.kl_sum, 0);
    ck_assert_int_eq(alone.agree, 0);
    ck_assert_near(alone.nll_sum, want_nll - 1, 1e-6 * want_nll);
    alone = (struct gpu_nll){0};
    ck_assert_rc_ok(rig.ops->nll(rig.stream, &alone, &x, &x, targets));
    ck_assert_near(alone.kl_sum, 0, 1e-9 * (double)tokens);
    ck_assert_int_eq(alone.agree, alone.count);
    targets[tokens - 1] = (int32_t)vocabulary;
    ck_assert_int_eq(rig.ops->nll(rig.stream, &alone, &x, NULL, targets), ERR_INVALID_MODEL);
    free(targets);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &r);
    rig_close(&rig);
}

START_TEST(nll_is_right)
{
    check_nll(1, 3, 1);
    check_nll(11, 300, 2);
    check_nll(6, 5003, 3);
}
END_TEST

START_TEST(nonfinite_logits_show)
{
    struct rig rig;
    int32_t targets[2] = {0, 1};
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 2, 50, 1);
    for (int i = 0; i < 2; i++) {
        struct gpu_nll out = {0};
        floats(&x)[17] = i == 0 ? NAN : INFINITY;
        ck_assert_rc_ok(rig.ops->nll(rig.stream, &out, &x, NULL, targets));
        ck_assert(!isfinite(out.nll_sum));
    }
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/losses", output_error_is_a_quadratic_form, nll_is_right, nonfinite_logits_show)
