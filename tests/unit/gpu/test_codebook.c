/* Additive codes: the search against the loss computed directly and against all codes tried, the map from codebooks to
 * weights against its adjoint. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

#define N 45
#define K 96

struct coded {
    struct gpu_codebook spec;
    struct tensor w, d, scale, table, entries, h;
};

static uint16_t *entries_of(const struct coded *c)
{
    return c->entries.data;
}

static struct coded coded_new(struct rig *rig, int codebooks, int bits, int64_t group, int beam)
{
    struct coded c = {.spec = {.codebooks = codebooks, .bits = bits, .group_size = group, .beam = beam}};
    uint64_t state = 7;
    struct tensor x = rig_correlated(rig, 2 * K, K, 21);

    c.w = rig_random(rig, N, K, 22);
    c.d = rig_tensor(rig, DTYPE_F32, N, K);
    c.scale = rig_tensor(rig, DTYPE_F32, 1, N);
    c.table = rig_random(rig, (int64_t)codebooks << bits, group, 23);
    c.entries = rig_tensor(rig, DTYPE_U16, N, K / group * codebooks);
    c.h = rig_hessian(rig, &x);
    for (int64_t n = 0; n < N; n++) {
        floats(&c.scale)[n] = n == 5 ? 0.0f : 0.5f + fabsf(random_unit(&state));
    }
    for (int64_t i = 0; i < N * K / group * codebooks; i++) {
        entries_of(&c)[i] = (uint16_t)(random_bits(&state) & ((1u << bits) - 1));
    }
    gpu_tensor_free(&rig->gpu, &x);
    return c;
}

static void coded_free(struct rig *rig, struct coded *c)
{
    struct tensor *all[] = {&c->w, &c->d, &c->scale, &c->table, &c->entries, &c->h};
    for (int i = 0; i < 6; i++) {
        gpu_tensor_free(&rig->gpu, all[i]);
    }
}

/* d = w - what the entries stand for, by definition. */
static void residual(const struct coded *c, float *d)
{
    int64_t g = c->spec.group_size, codes = (int64_t)1 << c->spec.bits;
    for (int64_t i = 0; i < N * K; i++) {
        double sum = 0;
        for (int m = 0; m < c->spec.codebooks; m++) {
            int64_t code = entries_of(c)[i / g * c->spec.codebooks + m];
            sum += (double)floats(&c->table)[(m * codes + code) * g + i % g];
        }
        d[i] = (float)((double)floats(&c->w)[i] - (double)floats(&c->scale)[i / K] * sum);
    }
}

static double loss_of(const float *d, const float *h, const float *importance)
{
    double sum = 0;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t j = 0; j < K; j++) {
            double dot = h == NULL ? (double)importance[j] * (double)d[n * K + j] : 0;
            for (int64_t k = 0; h != NULL && k < K; k++) {
                dot += (double)h[j * K + k] * (double)d[n * K + k];
            }
            sum += dot * (double)d[n * K + j];
        }
    }
    return sum;
}

static const struct {
    int codebooks, bits, group, beam;
} shapes[] = {{1, 4, 8, 1}, {2, 5, 8, 1}, {2, 5, 8, 4}, {4, 3, 4, 2}, {1, 11, 8, 3}, {3, 1, 2, 8}, {1, 6, 32, 1}};

START_TEST(each_sweep_gains_what_it_says)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct coded c = coded_new(&rig, shapes[_i].codebooks, shapes[_i].bits, shapes[_i].group, shapes[_i].beam);
    float *direct = malloc(sizeof(float) * N * K);

    residual(&c, c.d.data);
    double before = loss_of(floats(&c.d), floats(&c.h), NULL), start = before;
    for (int sweep = 0; sweep < 4; sweep++) {
        double gain = -1;
        ck_assert_rc_ok(
            rig.ops->code_search(rig.stream, &c.entries, &c.d, &c.scale, &c.table, &c.h, NULL, &c.spec, &gain));
        residual(&c, direct);
        double after = loss_of(direct, floats(&c.h), NULL);
        ck_assert_double_ge(gain, 0);
        ck_assert_near(before - after, gain, 1e-4 * start);
        ck_assert_double_le(after, before);
        for (int64_t i = 0; i < N * K; i++) {
            if (fabsf(direct[i] - floats(&c.d)[i]) > 1e-4f ||
                entries_of(&c)[i / shapes[_i].group] >= 1 << shapes[_i].bits) {
                ck_abort_msg("residual %lld is %g, not %g", (long long)i, (double)floats(&c.d)[i], (double)direct[i]);
            }
        }
        before = after;
    }
    ck_assert_double_lt(before, 0.9 * start);
    free(direct);
    coded_free(&rig, &c);
    rig_close(&rig);
}
END_TEST

/* One codebook without H: each group gets the code that is best for it, whatever was there. */
START_TEST(without_hessian_it_is_the_nearest_code)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct coded c = coded_new(&rig, 1, 5, 8, 1);
    struct tensor f = rig_random(&rig, 1, K, 31);
    double gain;
    for (int k = 0; k < K; k++) {
        floats(&f)[k] *= floats(&f)[k];
    }
    residual(&c, c.d.data);
    double before = loss_of(floats(&c.d), NULL, floats(&f));
    ck_assert_rc_ok(rig.ops->code_search(rig.stream, &c.entries, &c.d, &c.scale, &c.table, NULL, &f, &c.spec, &gain));
    residual(&c, c.d.data);
    ck_assert_near(before - loss_of(floats(&c.d), NULL, floats(&f)), gain, 1e-4 * before);
    for (int64_t at = 0; at < N * K / 8; at++) {
        double least = INFINITY, found = 0, s = (double)floats(&c.scale)[at / (K / 8)];
        for (int code = 0; code < 32; code++) {
            double loss = 0;
            for (int64_t a = 0; a < 8; a++) {
                double e = (double)floats(&c.w)[at * 8 + a] - s * (double)floats(&c.table)[code * 8 + a];
                loss += (double)floats(&f)[at % (K / 8) * 8 + a] * e * e;
            }
            least = loss < least ? loss : least;
            found = code == entries_of(&c)[at] ? loss : found;
        }
        ck_assert_near(found, least, 1e-5);
    }
    ck_assert_rc_ok(rig.ops->code_search(rig.stream, &c.entries, &c.d, &c.scale, &c.table, NULL, &f, &c.spec, &gain));
    ck_assert_double_le(gain, 1e-4);
    gpu_tensor_free(&rig.gpu, &f);
    coded_free(&rig, &c);
    rig_close(&rig);
}
END_TEST

START_TEST(a_wider_beam_gains_no_less)
{
    struct rig rig;
    rig_open(&rig, 2);
    double losses[2];
    for (int i = 0; i < 2; i++) {
        struct coded c = coded_new(&rig, 3, 5, 8, i == 0 ? 1 : 8);
        double gain;
        residual(&c, c.d.data);
        for (int sweep = 0; sweep < 6; sweep++) {
            ck_assert_rc_ok(
                rig.ops->code_search(rig.stream, &c.entries, &c.d, &c.scale, &c.table, &c.h, NULL, &c.spec, &gain));
        }
        losses[i] = loss_of(floats(&c.d), floats(&c.h), NULL);
        coded_free(&rig, &c);
    }
    ck_assert_double_lt(losses[1], losses[0]);
    rig_close(&rig);
}
END_TEST

START_TEST(codes_expand_and_reduce)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct coded c = coded_new(&rig, 2, 4, 8, 1);
    struct tensor out = rig_tensor(&rig, DTYPE_F32, 32, 8), dots = rig_tensor(&rig, DTYPE_F32, 1, N);
    float *direct = malloc(sizeof(float) * N * K);

    residual(&c, direct);
    ck_assert_rc_ok(rig.ops->convert(rig.stream, &c.d, &c.w));
    ck_assert_rc_ok(rig.ops->code_expand(rig.stream, &c.d, &c.entries, &c.scale, &c.table, &c.spec, -1.0f, true));
    for (int64_t i = 0; i < N * K; i++) {
        ck_assert_near(floats(&c.d)[i], direct[i], 1e-5);
    }
    ck_assert_rc_ok(rig.ops->code_expand(rig.stream, &c.d, &c.entries, &c.scale, &c.table, &c.spec, 1.0f, false));
    ck_assert_rc_ok(rig.ops->code_reduce(rig.stream, &out, &c.w, &c.entries, &c.scale, &c.spec));
    ck_assert_rc_ok(rig.ops->row_dot(rig.stream, &dots, &c.d, &c.w));
    double left = 0, right = 0; /* <expand(C), W> = <C, reduce(W)> */
    for (int64_t n = 0; n < N; n++) {
        left += (double)floats(&dots)[n];
    }
    for (int64_t i = 0; i < 32 * 8; i++) {
        right += (double)floats(&out)[i] * (double)floats(&c.table)[i];
    }
    ck_assert_near(left, right, 1e-3);
    ck_assert_int_eq(rig.ops->code_reduce(rig.stream, &dots, &c.w, &c.entries, NULL, &c.spec), ERR_INTERNAL);
    c.spec.group_size = 7;
    ck_assert_int_eq(rig.ops->code_expand(rig.stream, &c.d, &c.entries, NULL, &c.table, &c.spec, 1.0f, false),
                     ERR_INTERNAL);
    free(direct);
    gpu_tensor_free(&rig.gpu, &out);
    gpu_tensor_free(&rig.gpu, &dots);
    coded_free(&rig, &c);
    rig_close(&rig);
}
END_TEST

START_TEST(threads_give_the_same_bits)
{
    uint16_t *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct coded c = coded_new(&rig, 2, 6, 8, 2);
        double gain;
        residual(&c, c.d.data);
        for (int sweep = 0; sweep < 2; sweep++) {
            ck_assert_rc_ok(
                rig.ops->code_search(rig.stream, &c.entries, &c.d, &c.scale, &c.table, &c.h, NULL, &c.spec, &gain));
        }
        if (first == NULL) {
            first = malloc(tensor_bytes(&c.entries));
            memcpy(first, c.entries.data, tensor_bytes(&c.entries));
        }
        ck_assert_int_eq(memcmp(first, c.entries.data, tensor_bytes(&c.entries)), 0);
        coded_free(&rig, &c);
        rig_close(&rig);
    }
    free(first);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_codebook");
    TCase *tcase = tcase_create("all");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, each_sweep_gains_what_it_says, 0, sizeof(shapes) / sizeof(shapes[0]));
    tcase_add_test(tcase, without_hessian_it_is_the_nearest_code);
    tcase_add_test(tcase, a_wider_beam_gains_no_less);
    tcase_add_test(tcase, codes_expand_and_reduce);
    tcase_add_test(tcase, threads_give_the_same_bits);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
