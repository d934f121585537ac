/* Norms, activations, add and column statistics against the definitions in double. */

#include "tests/unit/gpu/support.h"

/* Against the definition; in place the same bits. weight, bias: whether there is one. */
static void check_norm(int64_t rows, int64_t cols, const struct gpu_norm *spec, bool has_weight, bool has_bias)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, rows, cols, 1), y = rig_tensor(&rig, DTYPE_F32, rows, cols);
    struct tensor weight = rig_random(&rig, 1, spec->size, 2), bias = rig_random(&rig, 1, spec->size, 3);
    const struct tensor *w = has_weight ? &weight : NULL, *b = has_bias ? &bias : NULL;
    int64_t size = spec->size;

    ck_assert_rc_ok(rig.ops->norm(rig.stream, &y, &x, w, b, spec));
    for (int64_t at = 0; at < rows * cols; at += size) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < size && spec->layer; i++) {
            mean += (double)floats(&x)[at + i] / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            square += pow((double)floats(&x)[at + i] - mean, 2) / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            double factor = has_weight ? (double)floats(&weight)[i] + (spec->unit_offset ? 1 : 0) : 1;
            double want = ((double)floats(&x)[at + i] - mean) / sqrt(square + (double)spec->eps) * factor;
            want += has_bias ? (double)floats(&bias)[i] : 0;
            ck_assert_near(floats(&y)[at + i], want, 1e-6 * (1 + fabs(want)));
        }
    }
    ck_assert_rc_ok(rig.ops->norm(rig.stream, &x, &x, w, b, spec)); /* in place */
    ck_assert_int_eq(memcmp(x.data, y.data, tensor_bytes(&x)), 0);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &weight);
    gpu_tensor_free(&rig.gpu, &bias);
    rig_close(&rig);
}

START_TEST(norm_is_right)
{
    for (int kind = 0; kind < 16; kind++) { /* layer, 1 + w, weight, bias: each or not */
        struct gpu_norm spec = {.layer = (kind & 1) != 0, .unit_offset = (kind & 2) != 0, .eps = 1e-5f};
        static const int64_t shapes[][3] = {{1, 1, 1}, {37, 100, 100}, {20, 96, 16}, {5, 4099, 4099}};
        for (int i = 0; i < 4; i++) {
            spec.size = shapes[i][2];
            check_norm(shapes[i][0], shapes[i][1], &spec, (kind & 4) != 0, (kind & 8) != 0);
        }
    }
}
END_TEST

static double activated(double g, double u, enum gpu_activation activation)
{
    double low = fmin(g, 7);

    switch (activation) {
    case GPU_SILU:
        return g / (1 + exp(-g)) * u;
    case GPU_GELU:
        return g * 0.5 * erfc(-g * M_SQRT1_2) * u;
    case GPU_GELU_TANH:
        return 0.5 * g * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * u;
    case GPU_RELU:
        return fmax(g, 0) * u;
    case GPU_RELU2:
        return fmax(g, 0) * fmax(g, 0) * u;
    case GPU_SIGMOID:
        return u / (1 + exp(-g));
    case GPU_SWIGLU_CLAMPED:
        return low / (1 + exp(-1.702 * low)) * (fmin(fmax(u, -7), 7) + 1);
    }
    return NAN;
}

/* mode 0: of gate and up; 1: of gate alone; 2: of a gate of one column. */
static void check_activate(enum gpu_activation activation, int mode)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor gate = rig_random(&rig, 40, mode == 2 ? 1 : 501, 1), up = rig_random(&rig, 40, 501, 2);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, 40, 501);

    for (int64_t i = 0; i < tensor_count(&gate); i++) {
        floats(&gate)[i] *= 6;
    }
    for (int i = 0; i < 40 * 501; i++) {
        floats(&up)[i] *= 6;
    }
    floats(&gate)[3] = -200;
    floats(&gate)[4] = 200;
    floats(&gate)[5] = 0;
    ck_assert_rc_ok(rig.ops->activate(rig.stream, &y, &gate, mode != 1 ? &up : NULL, activation));
    for (int i = 0; i < 40 * 501; i++) {
        double g = (double)floats(&gate)[mode == 2 ? i / 501 : i], u = mode != 1 ? (double)floats(&up)[i] : 1;
        double want = activated(g, u, activation), large = activation == GPU_GELU ? fabs(g * u) : 0;
        ck_assert_near(floats(&y)[i], want, 3e-6 * (1e-3 + fabs(want)) + 2e-7 * large);
    }
    if (mode != 2) { /* in place */
        ck_assert_rc_ok(rig.ops->activate(rig.stream, &gate, &gate, mode == 0 ? &up : NULL, activation));
        ck_assert_int_eq(memcmp(gate.data, y.data, tensor_bytes(&y)), 0);
    }
    floats(&gate)[9] = NAN;
    ck_assert_rc_ok(rig.ops->activate(rig.stream, &y, &gate, mode != 1 ? &up : NULL, activation));
    ck_assert(isnan(floats(&y)[mode == 2 ? 9 * 501 + 400 : 9]));
    gpu_tensor_free(&rig.gpu, &gate);
    gpu_tensor_free(&rig.gpu, &up);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}

START_TEST(activations_are_right)
{
    for (int i = 0; i < 3 * GPU_ACTIVATIONS; i++) {
        if (i / 3 != GPU_SWIGLU_CLAMPED || i % 3 != 1) {
            check_activate((enum gpu_activation)(i / 3), i % 3);
        }
    }
}
END_TEST

START_TEST(sums_are_right)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, 40, 501, 1), y = rig_random(&rig, 40, 501, 2),
                  was = rig_random(&rig, 40, 501, 2);

    ck_assert_rc_ok(rig.ops->add(rig.stream, &y, &x));
    for (int i = 0; i < 40 * 501; i++) {
        ck_assert_float_eq(floats(&y)[i], floats(&was)[i] + floats(&x)[i]);
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &was);
    rig_close(&rig);
}
END_TEST

/* Columns 2 to 4 of 3 heads of 6 to columns 1 to 3 of heads of 5, and one head to all. */
START_TEST(columns_are_copied)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, 37, 18, 1), y = rig_tensor(&rig, DTYPE_F32, 37, 15);

    for (int shared = 0; shared < 2; shared++) {
        const struct gpu_columns spec = {
            .heads = 3, .count = 3, .to = 1, .to_stride = 5, .from = 2, .from_stride = shared ? 0 : 6};
        memset(y.data, 0, tensor_bytes(&y));
        ck_assert_rc_ok(rig.ops->copy_columns(rig.stream, &y, &x, &spec));
        for (int i = 0; i < 37 * 15; i++) {
            int row = i / 15, head = i % 15 / 5, col = i % 5 - 1;
            bool copied = col >= 0 && col < 3;
            float want = copied ? floats(&x)[row * 18 + (shared ? 0 : head * 6) + 2 + col] : 0.0f;
            ck_assert_float_eq(floats(&y)[i], want);
        }
    }
    static const struct gpu_columns bad[] = {{.heads = 0, .count = 3, .to_stride = 5, .from_stride = 6},
                                             {.heads = 3, .count = 3, .to_stride = 7, .from_stride = 6},
                                             {.heads = 3, .count = 3, .to = 3, .to_stride = 5, .from_stride = 6},
                                             {.heads = 3, .count = 3, .to_stride = 2, .from_stride = 6},
                                             {.heads = 3, .count = 3, .to_stride = 5, .from = -1, .from_stride = 6},
                                             {.heads = 3, .count = 3, .to_stride = 5, .from = 4, .from_stride = 6},
                                             {.heads = 3, .count = 3, .to_stride = 5, .from_stride = 2}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(rig.ops->copy_columns(rig.stream, &y, &x, &bad[i]), ERR_INTERNAL);
    }
    gpu_tensor_free(&rig.gpu, &x);
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
    const struct gpu_norm norm = {.size = 6, .eps = 1e-5f}, uneven = {.size = 4, .eps = 1e-5f};
    ck_assert_int_eq(rig.ops->activate(rig.stream, &a, &a, &b, GPU_SILU), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->activate(rig.stream, &a, &b, NULL, GPU_SILU), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->activate(rig.stream, &a, &a, NULL, GPU_SWIGLU_CLAMPED), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->activate(rig.stream, &a, &a, &a, GPU_ACTIVATIONS), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->norm(rig.stream, &a, &a, &b, NULL, &norm), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->norm(rig.stream, &a, &a, NULL, &b, &norm), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->norm(rig.stream, &a, &a, NULL, NULL, &uneven), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->column_stats(rig.stream, &a, NULL, &a), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &a);
    gpu_tensor_free(&rig.gpu, &b);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/elementwise", norm_is_right, activations_are_right, sums_are_right, columns_are_copied,
          column_statistics_accumulate, shapes_are_checked)
