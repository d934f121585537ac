/* LLM.int8(): row grids, the outlier columns of the calibration set, and what they are worth. */

#include "tests/unit/quantizers/support.h"

#include <math.h>

#define N 24
#define K 64
#define T 200

/* The survey's example: column maxima 1.2, 1.1, 62; at threshold 6 the third column is an outlier. */
START_TEST(columns_by_threshold)
{
    static const float inputs[9] = {1.2f, 0.4f, 58, -0.7f, 1.1f, 62, 0.3f, -0.8f, 55};
    static const struct {
        const char *text;
        int outliers;
    } rows[] = {{"{}", 1},
                {"{\"llm_int8_threshold\":0}", 0},
                {"{\"llm_int8_threshold\":1.15}", 2},
                {"{\"llm_int8_threshold\":0.5}", 3},
                {"{\"llm_int8_threshold\":63}", 0}};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 3, 3), w = rig_random(&rig, 4, 3, 1);
    memcpy(x.data, inputs, sizeof(inputs));
    struct layer_stats stats = stats_of(&rig, &x);

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct linear_job job = solve_one(&rig, "llm_int8", rows[i].text, DTYPE_F32, &stats, &w);
        ck_assert_int_eq(job.result.index_count, rows[i].outliers);
        ck_assert(rows[i].outliers == 0 || job.result.index[rows[i].outliers - 1] == 2);
        qtensor_deinit(&job.result);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* q = rne(127 w / rowmax), which reaches 127 and never -128; a row of zeros stays one. */
START_TEST(codes_of_a_row)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, N, K, 2);
    memset(floats(&w) + 3 * K, 0, K * sizeof(float));

    struct linear_job job = solve_one(&rig, "llm_int8", "{\"llm_int8_threshold\":0}", DTYPE_F32, NULL, &w);
    for (int n = 0; n < N; n++) {
        double max = 0;
        int reached = 0;
        for (int k = 0; k < K; k++) {
            max = fmax(max, fabs((double)floats(&w)[n * K + k]));
        }
        for (int k = 0; k < K; k++) {
            int code = job.result.codes[n * K + k] - 128;
            double expected = max > 0 ? 127 * (double)floats(&w)[n * K + k] / max : 0;
            ck_assert(abs(code) <= 127 && fabs(code - expected) < 0.5001);
            reached = abs(code) > reached ? abs(code) : reached;
        }
        ck_assert_int_eq(reached, n == 3 ? 0 : 127);
    }
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* Squared error of the output in double, inputs rounded token by token. */
static double output_error(const struct tensor *x, const struct tensor *w, const struct qtensor *q, bool in_float)
{
    float *wq = dequantized(q);
    double error = 0, signal = 0;

    for (int t = 0; t < T; t++) {
        double rounded[K], scale = 0;
        for (int k = 0; k < K; k++) {
            bool outlier = in_float && q->index_count == 1 && q->index[0] == k;
            scale = outlier ? scale : fmax(scale, fabs((double)floats(x)[t * K + k]) / 127);
        }
        for (int k = 0; k < K; k++) {
            bool outlier = in_float && q->index_count == 1 && q->index[0] == k;
            double value = (double)floats(x)[t * K + k];
            rounded[k] = outlier ? value : rint(value / scale) * scale;
        }
        for (int n = 0; n < N; n++) {
            double expected = 0, actual = 0;
            for (int k = 0; k < K; k++) {
                expected += (double)floats(x)[t * K + k] * (double)floats(w)[n * K + k];
                actual += rounded[k] * (double)wq[n * K + k];
            }
            error += (expected - actual) * (expected - actual);
            signal += expected * expected;
        }
    }
    free(wq);
    return error / signal;
}

/* A planted column of 60: the note says what keeping it in float is worth, as computed here, and it is worth much. */
START_TEST(note_tells_the_gain)
{
    struct rig rig;
    double with = 0, without = 0;
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, T, K, 3), w = rig_random(&rig, N, K, 4);
    for (int t = 0; t < T; t++) {
        floats(&x)[t * K + 5] = 60.0f + floats(&x)[t * K + 5];
        floats(&w)[t % N * K + 5] = 0; /* whose own rounding would hide the rest */
    }
    struct layer_stats stats = stats_of(&rig, &x);

    struct linear_job job = solve_one(&rig, "llm_int8", "{}", DTYPE_F32, &stats, &w);
    ck_assert_int_eq(job.result.index_count, 1);
    ck_assert_int_eq(
        sscanf(job.note, "1 outlier columns of 64: output error %lf with them apart, %lf without", &with, &without), 2);
    ck_assert_near(with, output_error(&x, &w, &job.result, true), 0.02 * with);
    ck_assert_near(without, output_error(&x, &w, &job.result, false), 0.02 * without);
    ck_assert(with * 20 < without);
    qtensor_deinit(&job.result);
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("llm_int8", columns_by_threshold, codes_of_a_row, note_tells_the_gain)
