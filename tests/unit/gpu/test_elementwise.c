/* rmsnorm, swiglu, add and column statistics against the definitions in double. */

#include "tests/unit/gpu/support.h"

static void check_rmsnorm(int64_t rows, int64_t cols, int64_t size)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, rows, cols, 1), y = rig_tensor(&rig, DTYPE_F32, rows, cols);
    struct tensor weight = rig_random(&rig, 1, size, 2);

    ck_assert_rc_ok(rig.ops->rmsnorm(rig.stream, &y, &x, &weight, 1e-5f));
    for (int64_t r = 0; r < rows * cols / size; r++) {
        double mean = 0;
        for (int64_t i = 0; i < size; i++) {
            mean += (double)floats(&x)[r * size + i] * (double)floats(&x)[r * size + i] / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            double want = (double)floats(&x)[r * size + i] / sqrt(mean + 1e-5) * (double)floats(&weight)[i];
            ck_assert_near(floats(&y)[r * size + i], want, 1e-6 * (1 + fabs(want)));
        }
    }
    ck_assert_rc_ok(rig.ops->rmsnorm(rig.stream, &x, &x, &weight, 1e-5f)); /* in place */
    ck_assert_int_eq(memcmp(x.data, y.data, tensor_bytes(&x)), 0);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &weight);
    rig_close(&rig);
}

START_TEST(rmsnorm_is_right)
{
    check_rmsnorm(1, 1, 1);
    check_rmsnorm(37, 100, 100);
    check_rmsnorm(20, 96, 16); /* by head */
    check_rmsnorm(5, 4099, 4099);
}
END_TEST

START_TEST(swiglu_and_add)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor gate = rig_random(&rig, 40, 501, 1), up = rig_random(&rig, 40, 501, 2);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, 40, 501);
    float kept[16];

    for (int i = 0; i < 40 * 501; i++) {
        floats(&gate)[i] *= 6;
    }
    floats(&gate)[3] = -200;
    floats(&gate)[4] = 200;
    ck_assert_rc_ok(rig.ops->swiglu(rig.stream, &y, &gate, &up));
    for (int i = 0; i < 40 * 501; i++) {
        double g = (double)floats(&gate)[i], want = g / (1 + exp(-g)) * (double)floats(&up)[i];
        ck_assert_near(floats(&y)[i], want, 1e-6 * (1e-3 + fabs(want)));
    }
    memcpy(kept, y.data, sizeof(kept));
    ck_assert_rc_ok(rig.ops->add(rig.stream, &y, &up));
    for (int i = 0; i < 16; i++) {
        ck_assert_float_eq(floats(&y)[i], kept[i] + floats(&up)[i]);
    }
    ck_assert_rc_ok(rig.ops->swiglu(rig.stream, &gate, &gate, &up)); /* in place */
    ck_assert_int_eq(memcmp(gate.data, kept, sizeof(kept)), 0);
    floats(&gate)[9] = NAN;
    ck_assert_rc_ok(rig.ops->swiglu(rig.stream, &y, &gate, &up));
    ck_assert(isnan(floats(&y)[9]));
    gpu_tensor_free(&rig.gpu, &gate);
    gpu_tensor_free(&rig.gpu, &up);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

START_TEST(column_statistics_accumulate)
{
    struct rig rig;
    rig_open(&rig, 3);
    struct tensor x = rig_random(&rig, 70, 300, 1), most = rig_tensor(&rig, DTYPE_F32, 1, 300);
    struct tensor sum = rig_tensor(&rig, DTYPE_F32, 1, 300);

    floats(&most)[5] = 100;
    ck_assert_rc_ok(rig.ops->column_stats(rig.stream, &most, &sum, &x));
    ck_assert_rc_ok(rig.ops->column_stats(rig.stream, NULL, &sum, &x));
    ck_assert_rc_ok(rig.ops->column_stats(rig.stream, &most, NULL, &x));
    for (int j = 0; j < 300; j++) {
        float want_most = j == 5 ? 100 : 0;
        double want_sum = 0;
        for (int t = 0; t < 70; t++) {
            float magnitude = fabsf(floats(&x)[t * 300 + j]);
            want_most = magnitude > want_most ? magnitude : want_most;
            want_sum += 2 * (double)magnitude;
        }
        ck_assert_float_eq(floats(&most)[j], want_most);
        ck_assert_near(floats(&sum)[j], want_sum, 1e-6 * want_sum);
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &most);
    gpu_tensor_free(&rig.gpu, &sum);
    rig_close(&rig);
}
END_TEST

START_TEST(shapes_are_checked)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor a = rig_random(&rig, 4, 6, 1), b = rig_random(&rig, 4, 5, 1);
    ck_assert_int_eq(rig.ops->add(rig.stream, &a, &b), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->swiglu(rig.stream, &a, &a, &b), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->rmsnorm(rig.stream, &a, &a, &b, 1e-5f), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->column_stats(rig.stream, &a, NULL, &a), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &a);
    gpu_tensor_free(&rig.gpu, &b);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/elementwise", rmsnorm_is_right, swiglu_and_add, column_statistics_accumulate, shapes_are_checked)
