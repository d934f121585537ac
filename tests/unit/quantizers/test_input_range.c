/* Ranges of static inputs: against sums in double over all candidates, and the sample that they are searched on. */

#include "quantizers/input_range.h"
#include "tests/unit/quantizers/support.h"

#define N 7
#define K 12
#define TOKENS 40
#define LONG (5 * INPUT_SAMPLE_ROWS + 77)

static float absmax_of(const struct tensor *x)
{
    float max = 0;
    for (int64_t i = 0; i < x->shape[0] * x->shape[1]; i++) {
        max = fmaxf(max, fabsf(floats(x)[i]));
    }
    return max;
}

static struct input_sample sample_of(struct rig *rig, const struct tensor *x, int64_t batch)
{
    struct input_sample sample;
    ck_assert_rc_ok(input_sample_init(&sample, x->shape[0], x->shape[1], &rig->gpu));
    for (int64_t first = 0; first < x->shape[0]; first += batch) {
        int64_t left = x->shape[0] - first;
        struct tensor rows = tensor_rows(x, first, left < batch ? left : batch);
        ck_assert_rc_ok(input_sample_add(&sample, &rig->gpu, rig->stream, &rows));
    }
    return sample;
}

/* sum |(Q(x) - x) W^T|^2 / sum |x W^T|^2, mean over the linears. */
static double error_of(struct rig *rig, const struct tensor *x, const struct tensor *const *weights, int count,
                       struct gpu_input input, float scale)
{
    struct tensor q = rig_tensor(rig, DTYPE_F32, x->shape[0], x->shape[1]);
    double mean = 0;

    input.scale = scale;
    ck_assert_rc_ok(rig->ops->quantize_input(rig->stream, &q, x, NULL, &input));
    for (int i = 0; i < count; i++) {
        double lost = 0, signal = 0;
        for (int64_t t = 0; t < x->shape[0]; t++) {
            for (int64_t n = 0; n < weights[i]->shape[0]; n++) {
                double d = 0, y = 0;
                for (int64_t k = 0; k < x->shape[1]; k++) {
                    double w = (double)floats(weights[i])[n * x->shape[1] + k];
                    double value = (double)floats(x)[t * x->shape[1] + k];
                    d += ((double)floats(&q)[t * x->shape[1] + k] - value) * w;
                    y += value * w;
                }
                lost += d * d;
                signal += y * y;
            }
        }
        mean += signal > 0 ? lost / signal / count : 0;
    }
    gpu_tensor_free(&rig->gpu, &q);
    return mean;
}

enum shape { EVEN, A_COLUMN, A_TOKEN, SHAPES };

/* Inputs and the weights that read them: the column or the token that reaches far meets small weights. */
static void fill(struct rig *rig, enum shape shape, struct tensor *x, struct tensor w[2])
{
    *x = rig_correlated(rig, TOKENS, K, 5);
    w[0] = rig_random(rig, N, K, 6);
    w[1] = rig_random(rig, 2 * N, K, 7);
    for (int64_t t = 0; t < TOKENS; t++) {
        floats(x)[t * K + 3] *= shape == A_COLUMN || (shape == A_TOKEN && t == 0) ? 300.0f : 1.0f;
    }
    for (int i = 0; i < 2; i++) {
        for (int64_t n = 0; n < w[i].shape[0]; n++) {
            floats(&w[i])[n * K + 3] *= shape == EVEN ? 1.0f : 1e-4f;
        }
    }
}

static struct input_range search(struct rig *rig, const struct tensor *x, const struct tensor *w, int count,
                                 enum dtype element, enum dtype dtype)
{
    const struct solve_context context = context_of(rig, dtype);
    const struct tensor *weights[2] = {&w[0], &w[count - 1]};
    const struct gpu_input input = {.element = element};
    struct input_sample sample = sample_of(rig, x, x->shape[0]);
    struct input_range range;

    ck_assert_rc_ok(input_range_search(&context, &sample, weights, count, &input, absmax_of(x), &range));
    input_sample_deinit(&sample, &rig->gpu);
    return range;
}

START_TEST(no_range_of_the_grid_is_better)
{
    static const enum dtype elements[] = {DTYPE_I8, DTYPE_F8_E4M3};
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    struct rig rig;
    rig_open(&rig, 2);

    for (int shape = 0; shape < SHAPES; shape++) {
        struct tensor x, w[2];
        fill(&rig, (enum shape)shape, &x, w);
        const struct tensor *const weights[2] = {&w[0], &w[1]};
        float absmax = absmax_of(&x);
        for (int i = 0; i < 6; i++) {
            const struct gpu_input input = {.element = elements[i % 2]};
            struct input_range range = search(&rig, &x, w, 2, input.element, dtypes[i / 2]);
            double min_error = INFINITY;
            for (int half = 0; half <= 20; half++) {
                float max = (float)((double)absmax * exp2(-0.5 * half));
                float scale = input_range_scale(max, input.element, dtypes[i / 2]);
                double error = error_of(&rig, &x, weights, 2, input, scale);
                min_error = error < min_error ? error : min_error;
                ck_assert(half > 0 || fabs(error - range.error_absmax) <= 1e-4 * error);
            }
            double error = error_of(&rig, &x, weights, 2, input, range.scale);
            ck_assert_msg(fabs(error - range.error) <= 1e-4 * error, "%d %d: %g, not %g", shape, i, range.error, error);
            ck_assert_msg(error <= 1.0201 * min_error, "%d %d: %g above %g", shape, i, error, min_error);
            ck_assert(range.error <= range.error_absmax);
            ck_assert_float_eq(range.scale,
                               input_range_scale((float)((double)absmax * range.share), input.element, dtypes[i / 2]));
            ck_assert_float_eq(range.scale, dtype_round(range.scale, dtypes[i / 2]));
            if (shape != EVEN && input.element == DTYPE_I8) {
                ck_assert_msg(range.share < 0.1 && range.error < 0.05 * range.error_absmax, "%d %d: %g of %g at %g",
                              shape, i, range.error, range.error_absmax, range.share);
            }
        }
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &w[0]);
        gpu_tensor_free(&rig.gpu, &w[1]);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(a_range_that_outputs_need_is_kept)
{
    struct rig rig;
    struct tensor x, w[2];
    rig_open(&rig, 2);
    fill(&rig, A_COLUMN, &x, w);
    for (int64_t n = 0; n < N; n++) {
        floats(&w[0])[n * K + 3] *= 1e4f; /* now the column is what its output is made of */
    }

    struct input_range range = search(&rig, &x, w, 1, DTYPE_I8, DTYPE_F32);
    ck_assert_msg(range.share > 0.5, "%g", range.share);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w[0]);
    gpu_tensor_free(&rig.gpu, &w[1]);
    rig_close(&rig);
}
END_TEST

START_TEST(nothing_to_compare_keeps_the_whole_range)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, TOKENS, K), w = rig_random(&rig, N, K, 8);

    struct input_range range = search(&rig, &x, &w, 1, DTYPE_I8, DTYPE_F16);
    ck_assert_float_eq(range.scale, 1.0f); /* no input there was */
    ck_assert_double_eq(range.share, 1);
    ck_assert_double_eq(range.error, 0);
    for (int64_t i = 0; i < TOKENS * K; i++) {
        floats(&x)[i] = 3e38f; /* products that are not finite */
    }
    range = search(&rig, &x, &w, 1, DTYPE_I8, DTYPE_F32);
    ck_assert_double_eq(range.share, 1);
    memset(w.data, 0, tensor_bytes(&w)); /* outputs that are nothing */
    range = search(&rig, &x, &w, 1, DTYPE_F8_E4M3, DTYPE_BF16);
    ck_assert_double_eq(range.share, 1);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

START_TEST(threads_make_no_difference)
{
    struct input_range ranges[2];

    for (int threads = 1; threads <= 2; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor x = rig_correlated(&rig, 4 * INPUT_SAMPLE_ROWS, 96, 9), w = rig_random(&rig, 200, 96, 10);
        memset(&ranges[threads - 1], 0, sizeof(ranges[0]));
        ranges[threads - 1] = search(&rig, &x, &w, 1, DTYPE_I8, DTYPE_BF16);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &w);
        rig_close(&rig);
    }
    ck_assert(ranges[0].scale == ranges[1].scale && ranges[0].error == ranges[1].error);
    ck_assert(ranges[0].share == ranges[1].share && ranges[0].error_absmax == ranges[1].error_absmax);
}
END_TEST

START_TEST(the_sample_does_not_depend_on_micro_batches)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, LONG, K, 11);
    struct input_sample at_once = sample_of(&rig, &x, LONG);

    for (int64_t batch = 100; batch <= 3000; batch += 900) {
        struct input_sample parts = sample_of(&rig, &x, batch);
        ck_assert_mem_eq(parts.rows.data, at_once.rows.data, tensor_bytes(&at_once.rows));
        ck_assert_mem_eq(parts.farthest, at_once.farthest, (size_t)at_once.strata * sizeof(*at_once.farthest));
        input_sample_deinit(&parts, &rig.gpu);
    }
    ck_assert_int_eq(input_sample_add(&at_once, &rig.gpu, rig.stream, &x), ERR_INTERNAL); /* more than there are */
    input_sample_deinit(&at_once, &rig.gpu);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

/* Of every run the farthest input, counted once, and inputs of the run that stand for the rest of it. */
START_TEST(the_sample_stands_for_all)
{
    static const int64_t sizes[] = {1, TOKENS, INPUT_SAMPLE_ROWS, INPUT_SAMPLE_ROWS + 1, 2 * INPUT_SAMPLE_ROWS, LONG};
    struct rig rig;
    rig_open(&rig, 2);

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct tensor x = rig_random(&rig, sizes[i], 2, 12);
        for (int64_t t = 0; t < sizes[i]; t++) {
            floats(&x)[2 * t] = (float)t; /* a row is known by its number */
            floats(&x)[2 * t + 1] = t % 31 == 7 ? -1e6f - (float)t : 0.5f;
        }
        struct input_sample sample = sample_of(&rig, &x, sizes[i]);
        float *weights = malloc((size_t)sample.rows.shape[0] * sizeof(*weights));
        double sum = 0;
        ck_assert_ptr_nonnull(weights);
        ck_assert_int_le(sample.rows.shape[0], INPUT_SAMPLE_ROWS);
        input_sample_weights(&sample, weights);
        for (int64_t r = 0; r < sample.rows.shape[0]; r++) {
            sum += (double)weights[r];
            int64_t t = (int64_t)floats(&sample.rows)[2 * r];
            ck_assert(weights[r] == 0 || floats(&sample.rows)[2 * r + 1] == floats(&x)[2 * t + 1]);
            ck_assert(weights[r] == 0 || sample.width == 0 || t / sample.width == r / 4);
            for (int64_t k = r / 4 * 4; sample.width > 0 && k < r; k++) { /* no input twice */
                ck_assert(weights[r] == 0 || weights[k] == 0 || floats(&sample.rows)[2 * k] != (float)t);
            }
        }
        ck_assert_double_eq_tol(sum, (double)sizes[i], 1e-3 * (double)sizes[i]);
        for (int64_t s = 0; s < sample.strata; s++) {
            int64_t end = (s + 1) * sample.width < sizes[i] ? (s + 1) * sample.width : sizes[i];
            float max = 0;
            for (int64_t t = s * sample.width; t < end; t++) {
                max = fmaxf(max, fmaxf(floats(&x)[2 * t], fabsf(floats(&x)[2 * t + 1])));
            }
            ck_assert_float_eq(sample.max[s], max);
            ck_assert_float_eq(weights[s * 4], 1.0f);
        }
        free(weights);
        input_sample_deinit(&sample, &rig.gpu);
        gpu_tensor_free(&rig.gpu, &x);
    }
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("input_range", no_range_of_the_grid_is_better, a_range_that_outputs_need_is_kept,
          nothing_to_compare_keeps_the_whole_range, threads_make_no_difference,
          the_sample_does_not_depend_on_micro_batches, the_sample_stands_for_all)
