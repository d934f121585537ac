/* linear and embed against sums in double, for every weight type, ragged tiles and any number of threads. */

#include "tests/unit/gpu/support.h"

static struct tensor narrowed(struct rig *rig, const struct tensor *w, enum dtype dtype)
{
    struct tensor out = rig_tensor(rig, dtype, w->shape[0], w->shape[1]);
    ck_assert_rc_ok(rig->ops->convert(rig->stream, &out, w));
    return out;
}

static void check_linear(int64_t tokens, int64_t in, int64_t out, enum dtype dtype, bool with_bias)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, tokens, in, 1), wide = rig_random(&rig, out, in, 2);
    struct tensor bias = rig_random(&rig, 1, out, 3), y = rig_tensor(&rig, DTYPE_F32, tokens, out);
    struct tensor w = narrowed(&rig, &wide, dtype);

    memset(y.data, 0xff, tensor_bytes(&y)); /* NaN: nothing of it may be left */
    ck_assert_rc_ok(rig.ops->linear(rig.stream, &y, &x, &w, with_bias ? &bias : NULL));
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t o = 0; o < out; o++) {
            double want = with_bias ? (double)floats(&bias)[o] : 0, size = 1;
            for (int64_t i = 0; i < in; i++) {
                double product = (double)floats(&x)[t * in + i] * (double)dtype_round(floats(&wide)[o * in + i], dtype);
                want += product;
                size += fabs(product);
            }
            ck_assert_near(floats(&y)[t * out + o], want, 1e-6 * size);
        }
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &wide);
    gpu_tensor_free(&rig.gpu, &bias);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}

START_TEST(linear_is_right)
{
    check_linear(1, 1, 1, DTYPE_F32, true);
    check_linear(7, 33, 19, DTYPE_F32, false);
    check_linear(5, 64, 300, DTYPE_F16, true);
    check_linear(40, 128, 513, DTYPE_BF16, false);
    check_linear(1100, 24, 30, DTYPE_BF16, true);
}
END_TEST

START_TEST(linear_is_equal_for_any_threads)
{
    float *first = NULL;
    size_t size = 0;
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor x = rig_random(&rig, 1300, 96, 1), w = rig_random(&rig, 700, 96, 2);
        struct tensor y = rig_tensor(&rig, DTYPE_F32, 1300, 700), half = narrowed(&rig, &w, DTYPE_F16);
        ck_assert_rc_ok(rig.ops->linear(rig.stream, &y, &x, &half, NULL));
        size = tensor_bytes(&y);
        if (first == NULL) {
            first = malloc(size);
            memcpy(first, y.data, size);
        }
        ck_assert_int_eq(memcmp(first, y.data, size), 0);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &y);
        gpu_tensor_free(&rig.gpu, &half);
        rig_close(&rig);
    }
    free(first);
}
END_TEST

START_TEST(linear_refuses_shapes)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 4, 8, 1), w = rig_random(&rig, 3, 9, 2), y = rig_tensor(&rig, DTYPE_F32, 4, 3);
    struct tensor codes = rig_tensor(&rig, DTYPE_U8, 3, 8), bias = rig_random(&rig, 1, 4, 1);
    struct tensor good = rig_random(&rig, 3, 8, 1);

    ck_assert_int_eq(rig.ops->linear(rig.stream, &y, &x, &w, NULL), ERR_INTERNAL);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "linear: w"));
    ck_assert_int_eq(rig.ops->linear(rig.stream, &y, &x, &codes, NULL), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->linear(rig.stream, &y, &x, &good, &bias), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->linear(rig.stream, &x, &x, &good, NULL), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &codes);
    gpu_tensor_free(&rig.gpu, &bias);
    gpu_tensor_free(&rig.gpu, &good);
    rig_close(&rig);
}
END_TEST

START_TEST(embed_looks_up)
{
    struct rig rig;
    int32_t ids[100];
    rig_open(&rig, 2);
    struct tensor table = rig_random(&rig, 11, 20, 1), y = rig_tensor(&rig, DTYPE_F32, 100, 20);
    struct tensor half = narrowed(&rig, &table, DTYPE_BF16);

    for (int i = 0; i < 100; i++) {
        ids[i] = (i * 7) % 11;
    }
    ck_assert_rc_ok(rig.ops->embed(rig.stream, &y, &half, ids));
    for (int i = 0; i < 2000; i++) {
        float want = dtype_round(floats(&table)[ids[i / 20] * 20 + i % 20], DTYPE_BF16);
        ck_assert_float_eq(floats(&y)[i], want);
    }
    ids[99] = 11;
    ck_assert_int_eq(rig.ops->embed(rig.stream, &y, &half, ids), ERR_INVALID_MODEL);
    ids[99] = -1;
    ck_assert_int_eq(rig.ops->embed(rig.stream, &y, &half, ids), ERR_INVALID_MODEL);
    gpu_tensor_free(&rig.gpu, &table);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &half);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/linear", linear_is_right, linear_is_equal_for_any_threads, linear_refuses_shapes, embed_looks_up)
