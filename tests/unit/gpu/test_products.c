/* Products of BF16 operands: each set of instructions against sums in double of the rounded operands, for every shape
 * of edges, any number of threads and any cut; the sets against each other; and how a device gets its products. Exit
 * 77 where the CPU has no such instructions, after what needs none. */

#include "gpu/cpu/products.h"
#include "tests/unit/gpu/support.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const levels[] = {"amx", "avx512_bf16"};
#define LEVELS 2

/* Whether this CPU has it; the next devices are opened with it. */
static bool use_level(int level)
{
    (void)setenv("QUANTD_CPU_LEVEL", levels[level], 1);
    const struct products *products = products_choose();

    return products != NULL && strcmp(products->name, levels[level]) == 0 && gpu_cpu_products("bfloat16") == 0;
}

static void use_float32(void)
{
    ck_assert_int_eq(unsetenv("QUANTD_CPU_LEVEL"), 0);
    ck_assert_rc_ok(gpu_cpu_products("float32"));
}

/* Each product is exact in F32; each of the `count` additions loses half a unit in the last place at most. */
static double sum_bound(int64_t count, double size)
{
    return (double)(count + 2) * 0x1p-24 * size + 1e-37;
}

static float rounded(const struct tensor *x, int64_t i)
{
    return dtype_round(floats(x)[i], DTYPE_BF16);
}

static void check_linear(struct rig *rig, int64_t tokens, int64_t in, int64_t out, enum dtype dtype, bool with_bias)
{
    struct tensor x = rig_random(rig, tokens, in, 1), wide = rig_random(rig, out, in, 2);
    struct tensor bias = rig_random(rig, 1, out, 3), y = rig_tensor(rig, DTYPE_F32, tokens, out);
    struct tensor w = rig_tensor(rig, dtype, out, in);

    ck_assert_rc_ok(rig->ops->convert(rig->stream, &w, &wide));
    memset(y.data, 0xff, tensor_bytes(&y)); /* NaN: nothing of it may be left */
    ck_assert_rc_ok(rig->ops->linear(rig->stream, &y, &x, &w, with_bias ? &bias : NULL));
    for (int64_t i = 0; i < out * in; i++) {
        floats(&wide)[i] = dtype_round(dtype_round(floats(&wide)[i], dtype), DTYPE_BF16);
    }
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t o = 0; o < out; o++) {
            double want = with_bias ? (double)floats(&bias)[o] : 0, size = fabs(want);
            for (int64_t i = 0; i < in; i++) {
                double product = (double)rounded(&x, t * in + i) * (double)floats(&wide)[o * in + i];
                want += product;
                size += fabs(product);
            }
            ck_assert_near(floats(&y)[t * out + o], want, sum_bound(in, size));
        }
    }
    gpu_tensor_free(&rig->gpu, &x);
    gpu_tensor_free(&rig->gpu, &w);
    gpu_tensor_free(&rig->gpu, &wide);
    gpu_tensor_free(&rig->gpu, &bias);
    gpu_tensor_free(&rig->gpu, &y);
}

START_TEST(linear_has_the_sums_of_rounded_operands)
{
    struct rig rig;

    if (!use_level(_i)) {
        return;
    }
    rig_open(&rig, 2);
    ck_assert_str_eq(rig.gpu.info.products, "bfloat16");
    for (int64_t n = 1; n <= 70; n++) {
        check_linear(&rig, n, 71 - n, (n * 29) % 70 + 1,
                     n % 3 == 0   ? DTYPE_F32
                     : n % 3 == 1 ? DTYPE_F16
                                  : DTYPE_BF16,
                     n % 2 == 0);
        check_linear(&rig, (n * 13) % 70 + 1, n, 71 - n, DTYPE_F32, n % 2 == 1);
    }
    check_linear(&rig, 33, 1601, 17, DTYPE_BF16, true);  /* more than one run of tiles of the sum */
    check_linear(&rig, 2081, 40, 150, DTYPE_F32, false); /* and of rows */
    rig_close(&rig);
}
END_TEST

static void check_cross(struct rig *rig, int64_t tokens, int64_t m, int64_t k, bool gram)
{
    struct tensor a = rig_random(rig, tokens, m, 4), b = gram ? a : rig_random(rig, tokens, k, 5);
    struct tensor c = rig_random(rig, m, k, 6), was = rig_random(rig, m, k, 6);

    ck_assert_rc_ok(gram ? rig->ops->gram(rig->stream, &c, &a) : rig->ops->cross(rig->stream, &c, &a, &b));
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = gram ? i : 0; j < k; j++) {
            double want = (double)floats(&was)[i * k + j], size = fabs(want);
            for (int64_t t = 0; t < tokens; t++) {
                double product = (double)rounded(&a, t * m + i) * (double)rounded(&b, t * k + j);
                want += product;
                size += fabs(product);
            }
            ck_assert_near(floats(&c)[i * k + j], want, sum_bound(tokens, size));
        }
    }
    gpu_tensor_free(&rig->gpu, &a);
    gpu_tensor_free(&rig->gpu, &c);
    gpu_tensor_free(&rig->gpu, &was);
    if (!gram) {
        gpu_tensor_free(&rig->gpu, &b);
    }
}

START_TEST(gram_and_cross_have_the_sums_of_rounded_operands)
{
    struct rig rig;

    if (!use_level(_i)) {
        return;
    }
    rig_open(&rig, 2);
    for (int64_t n = 1; n <= 70; n++) {
        check_cross(&rig, 71 - n, n, n, true);
        check_cross(&rig, n, (n * 29) % 70 + 1, 71 - n, false);
    }
    check_cross(&rig, 2081, 40, 40, true);
    check_cross(&rig, 70, 301, 301, true); /* several tiles */
    check_cross(&rig, 2081, 30, 130, false);
    rig_close(&rig);
}
END_TEST

/* y, h and c of one set of operands. */
static void products_of(int threads, float *out, size_t count)
{
    struct rig rig;
    rig_open(&rig, threads);
    struct tensor x = rig_random(&rig, 2100, 165, 1), w = rig_random(&rig, 333, 165, 2);
    struct tensor z = rig_random(&rig, 2100, 333, 3);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, 2100, 333), h = rig_tensor(&rig, DTYPE_F32, 165, 165);
    struct tensor c = rig_tensor(&rig, DTYPE_F32, 333, 165);

    ck_assert_rc_ok(rig.ops->linear(rig.stream, &y, &x, &w, NULL));
    ck_assert_rc_ok(rig.ops->gram(rig.stream, &h, &x));
    ck_assert_rc_ok(rig.ops->symmetrize(rig.stream, &h, 1));
    ck_assert_rc_ok(rig.ops->cross(rig.stream, &c, &z, &x));
    ck_assert_uint_eq(count, 2100 * 333 + 165 * 165 + 333 * 165);
    memcpy(out, y.data, tensor_bytes(&y));
    memcpy(out + 2100 * 333, h.data, tensor_bytes(&h));
    memcpy(out + 2100 * 333 + 165 * 165, c.data, tensor_bytes(&c));
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &z);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &h);
    gpu_tensor_free(&rig.gpu, &c);
    rig_close(&rig);
}

START_TEST(products_are_equal_for_any_threads)
{
    size_t count = 2100 * 333 + 165 * 165 + 333 * 165;

    if (!use_level(0) || !use_level(1)) {
        return; /* main says which the CPU has not */
    }
    float *all[3];

    if (!use_level(_i)) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        all[i] = malloc(count * sizeof(float));
        ck_assert_ptr_nonnull(all[i]);
        products_of(i < 2 ? i + 1 : 7, all[i], count); /* 7: rows of x are cut as well */
        ck_assert_int_eq(memcmp(all[0], all[i], count * sizeof(float)), 0);
    }
    for (int i = 0; i < 3; i++) {
        free(all[i]);
    }
}
END_TEST

/* Rows of x and w by themselves give the bits that they have among others. */
START_TEST(products_do_not_depend_on_the_cut)
{
    struct rig rig;

    if (!use_level(_i)) {
        return;
    }
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, 75, 1000, 1), w = rig_random(&rig, 150, 1000, 2);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, 75, 150), part = rig_tensor(&rig, DTYPE_F32, 75, 150);
    ck_assert_rc_ok(rig.ops->linear(rig.stream, &y, &x, &w, NULL));
    for (int64_t t = 0, step = 1; t < 75; t += step, step = step * 2 + 1) {
        int64_t rows = 75 - t < step ? 75 - t : step, first = t, outs = 150 - first < 37 ? 150 - first : 37;
        struct tensor own_x = tensor_2d(floats(&x) + t * 1000, DTYPE_F32, rows, 1000);
        struct tensor own_w = tensor_2d(floats(&w) + first * 1000, DTYPE_F32, outs, 1000);
        struct tensor own_y = tensor_2d(part.data, DTYPE_F32, rows, outs);
        ck_assert_rc_ok(rig.ops->linear(rig.stream, &own_y, &own_x, &own_w, NULL));
        for (int64_t r = 0; r < rows; r++) {
            ck_assert_int_eq(
                memcmp(floats(&part) + r * outs, floats(&y) + (t + r) * 150 + first, (size_t)outs * sizeof(float)), 0);
        }
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &part);
    rig_close(&rig);
}
END_TEST

START_TEST(both_sets_agree)
{
    size_t count = 2100 * 333 + 165 * 165 + 333 * 165;

    if (!use_level(0) || !use_level(1)) {
        return; /* main says which the CPU has not */
    }
    float *all[2] = {malloc(count * sizeof(float)), malloc(count * sizeof(float))};
    double difference = 0, signal = 0;

    for (int i = 0; i < 2; i++) {
        ck_assert(use_level(i));
        products_of(2, all[i], count);
        for (size_t j = 0; i == 1 && j < count; j++) {
            difference += pow((double)all[1][j] - (double)all[0][j], 2);
            signal += pow((double)all[0][j], 2);
        }
    }
    ck_assert_near(difference / signal, 0, 1e-10);
    free(all[0]);
    free(all[1]);
}
END_TEST

/* A Gram matrix of rounded activations is one: fewer tokens than columns, and the damping of 1 % is enough. */
START_TEST(gram_of_rounded_activations_can_be_factored)
{
    struct rig rig;

    if (!use_level(_i)) {
        return;
    }
    rig_open(&rig, 2);
    struct tensor x = rig_correlated(&rig, 100, 160, 9), h = rig_hessian(&rig, &x);
    struct tensor u = rig_tensor(&rig, DTYPE_F32, 160, 160);
    ck_assert_rc_ok(rig.ops->factor(rig.stream, &u, &h, &(struct gpu_factor){.damp_percent = 0.01}));
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &h);
    gpu_tensor_free(&rig.gpu, &u);
    rig_close(&rig);
}
END_TEST

/* What is not finite stays so, and touches its own sums alone. */
START_TEST(values_that_are_not_finite_stay)
{
    struct rig rig;

    if (!use_level(_i)) {
        return;
    }
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 20, 40, 1), w = rig_random(&rig, 20, 40, 2);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, 20, 20);
    floats(&x)[3 * 40 + 39] = NAN;
    floats(&x)[19 * 40] = INFINITY;
    ck_assert_rc_ok(rig.ops->linear(rig.stream, &y, &x, &w, NULL));
    for (int64_t i = 0; i < 400; i++) {
        ck_assert_int_eq(!isfinite(floats(&y)[i]), i / 20 == 3 || i / 20 == 19);
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

/* `multiply` is for solves: the bits of F32, whatever the device's products are. */
START_TEST(solves_stay_in_float32)
{
    float *first = NULL;

    for (int i = 0; i < 2; i++) {
        struct rig rig;
        use_float32();
        ck_assert_rc_ok(gpu_cpu_products(i == 0 ? "float32" : "auto"));
        rig_open(&rig, 2);
        struct tensor x = rig_random(&rig, 30, 50, 1), w = rig_random(&rig, 20, 50, 2);
        struct tensor y = rig_tensor(&rig, DTYPE_F32, 30, 20);
        ck_assert_rc_ok(rig.ops->multiply(rig.stream, &y, &x, &w));
        if (first == NULL) {
            first = malloc(tensor_bytes(&y));
            memcpy(first, y.data, tensor_bytes(&y));
        }
        ck_assert_int_eq(memcmp(first, y.data, tensor_bytes(&y)), 0);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &y);
        rig_close(&rig);
    }
    free(first);
    use_float32();
}
END_TEST

START_TEST(words_choose_products)
{
    struct gpu gpu;

    ck_assert_int_eq(gpu_cpu_products("bf16"), ERR_CONFIG);
    ck_assert_int_eq(setenv("QUANTD_CPU_LEVEL", "avx512", 1), 0); /* as on a CPU without the instructions */
    ck_assert_int_eq(gpu_cpu_products("bfloat16"), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "no instructions for products in bfloat16"));
    ck_assert_rc_ok(gpu_cpu_products("auto"));
    ck_assert_rc_ok(gpu_open("cpu", 1, &gpu));
    ck_assert_str_eq(gpu.info.products, "float32");
    ck_assert_ptr_nonnull(strstr(gpu.info.detail, "float32 products"));
    gpu_close(&gpu);
    for (int i = 0; i < LEVELS; i++) {
        if (use_level(i)) {
            char want[64];
            snprintf(want, sizeof(want), "bfloat16 products by %s", levels[i]);
            ck_assert_rc_ok(gpu_open("cpu", 1, &gpu));
            ck_assert_ptr_nonnull(strstr(gpu.info.detail, want));
            gpu_close(&gpu);
        }
    }
    use_float32();
}
END_TEST

/* The tests of instructions run for each set, and pass at once where this CPU lacks it. */
int main(void)
{
    static const TTest *const *const each[] = {
        &linear_has_the_sums_of_rounded_operands,     &gram_and_cross_have_the_sums_of_rounded_operands,
        &products_are_equal_for_any_threads,          &products_do_not_depend_on_the_cut,
        &gram_of_rounded_activations_can_be_factored, &values_that_are_not_finite_stay};
    Suite *suite = suite_create("gpu/products");
    TCase *tcase = tcase_create("all");
    bool none = true;

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, words_choose_products);
    tcase_add_test(tcase, solves_stay_in_float32);
    tcase_add_test(tcase, both_sets_agree);
    for (size_t i = 0; i < sizeof(each) / sizeof(each[0]); i++) {
        tcase_add_loop_test(tcase, *each[i], 0, LEVELS);
    }
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    for (int i = 0; i < LEVELS; i++) {
        bool has = use_level(i);
        printf("%s %s\n", has ? "ran " : "SKIP: this CPU has no", levels[i]);
        none = none && !has;
    }
    return failed > 0 ? EXIT_FAILURE : none ? 77 : EXIT_SUCCESS;
}
