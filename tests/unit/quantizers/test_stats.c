/* Statistics against sums in double. */

#include "tests/unit/quantizers/support.h"

START_TEST(moments_and_ranges)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_correlated(&rig, 5000, 20, 3);
    struct layer_stats stats;

    ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN | STATS_RANGE, 20, &rig.gpu));
    struct tensor head = tensor_rows(&x, 0, 4900), tail = tensor_rows(&x, 4900, 100);
    ck_assert_rc_ok(stats_add(&stats, &rig.gpu, rig.stream, &head));
    ck_assert_rc_ok(stats_add(&stats, &rig.gpu, rig.stream, &tail));
    ck_assert_rc_ok(stats_finish(&stats, &rig.gpu, rig.stream));
    ck_assert_int_eq(stats.tokens, 5000);
    for (int64_t i = 0; i < 20; i++) {
        double max = 0, mean = 0;
        for (int64_t t = 0; t < 5000; t++) {
            double value = fabs((double)floats(&x)[t * 20 + i]);
            max = value > max ? value : max;
            mean += value / 5000;
        }
        ck_assert_double_eq((double)floats(&stats.absmax)[i], max);
        ck_assert_near(floats(&stats.absmean)[i], mean, 1e-5 * mean);
        for (int64_t j = 0; j < 20; j++) {
            double sum = 0;
            for (int64_t t = 0; t < 5000; t++) {
                sum += (double)floats(&x)[t * 20 + i] * (double)floats(&x)[t * 20 + j];
            }
            ck_assert_near(floats(&stats.hessian)[i * 20 + j], 2 * sum / 5000, 1e-4);
        }
    }
    stats_free(&rig, &stats);
    ck_assert_ptr_null(stats.hessian.data);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* Of what outputs lack, and of what the inputs themselves do; in several goes, and scaled like the Hessian. */
START_TEST(moments_of_targets)
{
    enum { TOKENS = 3000, COLS = 20, OUTPUTS = 7 };
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_correlated(&rig, TOKENS, COLS, 3);

    for (int64_t outputs = 0; outputs <= OUTPUTS; outputs += OUTPUTS) {
        int64_t wide = outputs > 0 ? outputs : COLS;
        struct tensor missing = rig_random(&rig, TOKENS, wide, 4);
        struct layer_stats stats;
        ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN, COLS, &rig.gpu));
        ck_assert_rc_ok(stats_init_target(&stats, outputs, &rig.gpu));
        ck_assert_uint_eq(stats.flags, STATS_HESSIAN | STATS_TARGET);
        ck_assert_int_eq(stats.outputs, outputs);
        for (int64_t first = 0; first < TOKENS; first += 1100) {
            int64_t count = TOKENS - first < 1100 ? TOKENS - first : 1100;
            struct tensor rows = tensor_rows(&x, first, count), lacks = tensor_rows(&missing, first, count);
            ck_assert_rc_ok(stats_add(&stats, &rig.gpu, rig.stream, &rows));
            ck_assert_rc_ok(stats_add_target(&stats, &rig.gpu, rig.stream, &rows, &lacks));
        }
        ck_assert_rc_ok(stats_finish(&stats, &rig.gpu, rig.stream));
        ck_assert_int_eq(stats.target.shape[0], wide);
        ck_assert_int_eq(stats.target.shape[1], COLS);
        for (int64_t i = 0; i < wide; i++) {
            for (int64_t j = 0; j < COLS; j++) {
                int64_t row = outputs > 0 ? i : j, col = outputs > 0 ? j : i; /* [K,K]: inputs down, lacks across */
                double sum = 0;
                for (int64_t t = 0; t < TOKENS; t++) {
                    sum += (double)floats(&missing)[t * wide + i] * (double)floats(&x)[t * COLS + j];
                }
                ck_assert_near(floats(&stats.target)[row * COLS + col], 2 * sum / TOKENS, 1e-4);
            }
        }
        stats_free(&rig, &stats);
        ck_assert_ptr_null(stats.target.data);
        gpu_tensor_free(&rig.gpu, &missing);
    }
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* X = [[3,0],[2,1],[3,0]]: X^T X = [[22,2],[2,1]]; (0.1, 0.1) costs 0.27, (0, 0.1) only 0.01. */
START_TEST(worked_example)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 3, 2), w = rig_tensor(&rig, DTYPE_F32, 2, 2);
    struct tensor nothing = rig_tensor(&rig, DTYPE_F32, 2, 2);
    memcpy(x.data, (const float[]){3, 0, 2, 1, 3, 0}, 24);
    memcpy(w.data, (const float[]){0.1f, 0.1f, 0, 0.1f}, 16);
    struct layer_stats stats = stats_of(&rig, &x);
    const float want[4] = {22, 2, 2, 1};
    double error, signal;

    for (int i = 0; i < 4; i++) {
        ck_assert_near(floats(&stats.hessian)[i], want[i] * 2 / 3, 1e-5);
    }
    for (int row = 0; row < 2; row++) {
        struct tensor one = tensor_rows(&w, row, 1), zero = tensor_rows(&nothing, row, 1);
        ck_assert_rc_ok(rig.ops->output_error(rig.stream, &error, &signal, &one, &zero, &stats.hessian));
        ck_assert_near(error, (row == 0 ? 0.27 : 0.01) * 2 / 3, 1e-6);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &nothing);
    rig_close(&rig);
}
END_TEST

START_TEST(threads_give_the_same_bits)
{
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor x = rig_correlated(&rig, 3000, 300, 5);
        struct layer_stats stats = stats_of(&rig, &x);
        size_t size = tensor_bytes(&stats.hessian);
        if (first == NULL) {
            first = malloc(size);
            ck_assert_ptr_nonnull(first);
            memcpy(first, stats.hessian.data, size);
        }
        ck_assert_int_eq(memcmp(first, stats.hessian.data, size), 0);
        stats_free(&rig, &stats);
        gpu_tensor_free(&rig.gpu, &x);
        rig_close(&rig);
    }
    free(first);
}
END_TEST

START_TEST(refusals)
{
    struct rig rig;
    struct layer_stats stats;
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 4, 8, 1);

    ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN, 16, &rig.gpu));
    ck_assert_int_eq(stats_add(&stats, &rig.gpu, rig.stream, &x), ERR_INTERNAL);
    ck_assert_int_eq(stats_finish(&stats, &rig.gpu, rig.stream), ERR_INSUFFICIENT_CALIBRATION);
    stats_free(&rig, &stats);

    ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN, 16, &rig.gpu));
    ck_assert_rc_ok(stats_init_target(&stats, 3, &rig.gpu));
    ck_assert_int_eq(stats_add_target(&stats, &rig.gpu, rig.stream, &x, &x), ERR_INTERNAL);
    stats_free(&rig, &stats);

    ck_assert_rc_ok(stats_init(&stats, STATS_NONE, 8, &rig.gpu));
    ck_assert_ptr_null(stats.hessian.data);
    ck_assert_ptr_null(stats.absmax.data);
    ck_assert_rc_ok(stats_add(&stats, &rig.gpu, rig.stream, &x));
    ck_assert_rc_ok(stats_finish(&stats, &rig.gpu, rig.stream));
    ck_assert_int_eq(stats.tokens, 4);
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("quantizers/stats", moments_and_ranges, moments_of_targets, worked_example, threads_give_the_same_bits,
          refusals)
