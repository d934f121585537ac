/* gram, symmetrize, diagonal and zero_dead. */

#include "tests/unit/gpu/support.h"

static void check_gram(int64_t tokens, int64_t n)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, tokens, n, 5), h = rig_tensor(&rig, DTYPE_F32, n, n);
    float *diagonal = calloc((size_t)n, sizeof(float));
    ck_assert_ptr_nonnull(diagonal);

    ck_assert_rc_ok(rig.ops->gram(rig.stream, &h, &x));
    ck_assert_rc_ok(rig.ops->gram(rig.stream, &h, &x)); /* it adds */
    ck_assert_rc_ok(rig.ops->symmetrize(rig.stream, &h, 0.5));
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i; j < n; j++) {
            double want = 0;
            for (int64_t t = 0; t < tokens; t++) {
                want += (double)floats(&x)[t * n + i] * (double)floats(&x)[t * n + j];
            }
            ck_assert_near(floats(&h)[i * n + j], want, 1e-5 * (double)tokens);
            ck_assert_float_eq(floats(&h)[i * n + j], floats(&h)[j * n + i]);
        }
    }
    ck_assert_rc_ok(rig.ops->diagonal(rig.stream, diagonal, &h));
    for (int64_t i = 0; i < n; i++) {
        ck_assert_float_eq(diagonal[i], floats(&h)[i * n + i]);
    }
    free(diagonal);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &h);
    rig_close(&rig);
}

START_TEST(gram_is_right)
{
    check_gram(3, 1);
    check_gram(50, 37);
    check_gram(20, 300);
    check_gram(9, 1100);
}
END_TEST

START_TEST(gram_is_equal_for_any_threads)
{
    void *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor x = rig_random(&rig, 200, 520, 5), h = rig_hessian(&rig, &x);
        if (first == NULL) {
            first = malloc(tensor_bytes(&h));
            memcpy(first, h.data, tensor_bytes(&h));
        }
        ck_assert_int_eq(memcmp(first, h.data, tensor_bytes(&h)), 0);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &h);
        rig_close(&rig);
    }
    free(first);
}
END_TEST

START_TEST(dead_columns_are_zeroed)
{
    struct rig rig;
    int64_t dead = -1;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, 30, 20, 5), w = rig_random(&rig, 7, 20, 6);
    for (int t = 0; t < 30; t++) {
        floats(&x)[t * 20 + 4] = 0;
        floats(&x)[t * 20 + 19] = 0;
    }
    struct tensor h = rig_hessian(&rig, &x);
    ck_assert_rc_ok(rig.ops->zero_dead(rig.stream, &w, &h, &dead));
    ck_assert_int_eq(dead, 2);
    for (int i = 0; i < 7 * 20; i++) {
        ck_assert((floats(&w)[i] == 0.0f) == (i % 20 == 4 || i % 20 == 19));
    }
    for (int i = 0; i < 7 * 20; i++) {
        floats(&w)[i] = 1;
    }
    ck_assert_rc_ok(rig.ops->zero_dead(rig.stream, &w, &h, NULL));
    for (int i = 0; i < 7 * 20; i++) {
        ck_assert((floats(&w)[i] == 0.0f) == (i % 20 == 4 || i % 20 == 19));
    }
    ck_assert_int_eq(rig.ops->zero_dead(rig.stream, &w, &w, &dead), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->gram(rig.stream, &w, &x), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->symmetrize(rig.stream, &w, 1.0), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &h);
    rig_close(&rig);
}
END_TEST

START_TEST(small_diagonal_elements_are_raised)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor h = rig_random(&rig, 6, 6, 3), w = rig_random(&rig, 2, 6, 4);
    float before[36];

    floats(&h)[0] = 0;
    floats(&h)[7] = 0.5f;
    floats(&h)[14] = 2;
    memcpy(before, h.data, sizeof(before));
    ck_assert_rc_ok(rig.ops->floor_diagonal(rig.stream, &h, 1.0f));
    ck_assert_float_eq(floats(&h)[0], 0.0f);
    ck_assert_float_eq(floats(&h)[7], 1.0f);
    ck_assert_float_eq(floats(&h)[14], 2.0f);
    for (int i = 0; i < 36; i++) {
        ck_assert(i % 7 == 0 || floats(&h)[i] == before[i]);
    }
    ck_assert_int_eq(rig.ops->floor_diagonal(rig.stream, &w, 1.0f), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &h);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/gram", small_diagonal_elements_are_raised, gram_is_right, gram_is_equal_for_any_threads,
          dead_columns_are_zeroed)
