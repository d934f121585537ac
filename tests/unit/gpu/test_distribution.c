/* distribution and column_energy against their definitions in double. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double largest(const double *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, x[i]);
    }
    return most;
}

/* Adds one group of magnitudes, which it sorts. */
static void add_group(struct gpu_distribution *want, double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += DISTRIBUTION_PART) {
        int64_t count = n - i < DISTRIBUTION_PART ? n - i : DISTRIBUTION_PART;
        want->part_range_sq += (double)count * pow(largest(x + i, count), 2);
    }
    qsort(x, (size_t)n, sizeof(*x), ascending);
    float exact = (float)x[(n - 1) / 2];
    uint32_t bits;
    memcpy(&bits, &exact, sizeof(bits));
    bits &= 0xffff0000u; /* cut to BF16 */
    memcpy(&exact, &bits, sizeof(bits));
    double median = (double)exact;
    want->range_sq += (double)n * x[n - 1] * x[n - 1];
    for (int64_t i = 0; i < n; i++) {
        want->square += x[i] * x[i];
        want->fourth += pow(x[i], 4);
        want->far += median > 0 && x[i] > (double)DISTRIBUTION_FAR * median;
    }
    want->max_to_median = median > 0 ? fmax(want->max_to_median, x[n - 1] / median) : want->max_to_median;
}

static struct gpu_distribution distribution_of(const struct tensor *w, int64_t group)
{
    struct gpu_distribution want = {0};
    double *x = calloc((size_t)group, sizeof(*x));

    for (int64_t first = 0; first < tensor_count(w); first += group) {
        for (int64_t i = 0; i < group; i++) {
            x[i] = fabs((double)floats(w)[first + i]);
        }
        add_group(&want, x, group);
    }
    free(x);
    return want;
}

/* Rows longer than what is searched at once, and a median far below the largest magnitude. */
START_TEST(long_rows_have_their_median)
{
    struct rig rig;
    struct gpu_distribution got;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 2, 5000, 9);
    for (int i = 0; i < 5000; i++) {
        floats(&w)[5000 + i] *= i % 2 == 0 ? 1e-6f : 1.0f;
    }
    floats(&w)[5000] = 1.0f;
    const struct gpu_distribution want = distribution_of(&w, 5000);
    ck_assert_rc_ok(rig.ops->distribution(rig.stream, &got, &w, 5000));
    ck_assert_near(got.max_to_median, want.max_to_median, 1e-12 * want.max_to_median);
    ck_assert_int_eq(got.far, want.far);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

static void check_distribution(const struct gpu_distribution *got, const struct gpu_distribution *want)
{
    ck_assert_near(got->square, want->square, 1e-12 * want->square);
    ck_assert_near(got->fourth, want->fourth, 1e-12 * want->fourth);
    ck_assert_near(got->range_sq, want->range_sq, 1e-12 * want->range_sq);
    ck_assert_near(got->part_range_sq, want->part_range_sq, 1e-12 * want->part_range_sq);
    ck_assert_near(got->max_to_median, want->max_to_median, 1e-12 * want->max_to_median);
    ck_assert_int_eq(got->far, want->far);
}

START_TEST(a_distribution_is_by_definition)
{
    static const int64_t groups[] = {1, 6, 20, 32, 40, 120};
    struct gpu_distribution first[6];

    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor w = rig_random(&rig, 13, 120, 5);
        for (int i = 0; i < 120; i++) {
            floats(&w)[3 * 120 + i] = 0; /* a row of zeros, and one of many: no median */
            floats(&w)[4 * 120 + i] *= i % 3 == 0 ? 1.0f : 0.0f;
        }
        floats(&w)[7 * 120 + 41] = -30.0f;
        for (int i = 0; i < 6; i++) {
            struct gpu_distribution got;
            if (120 % groups[i] != 0) {
                ck_assert_int_eq(rig.ops->distribution(rig.stream, &got, &w, groups[i]), ERR_INTERNAL);
                continue;
            }
            const struct gpu_distribution want = distribution_of(&w, groups[i]);
            ck_assert_rc_ok(rig.ops->distribution(rig.stream, &got, &w, groups[i]));
            check_distribution(&got, &want);
            first[i] = threads == 1 ? got : first[i];
            ck_assert_double_eq(got.fourth, first[i].fourth); /* to the bit for any number of threads */
            ck_assert_double_eq(got.part_range_sq, first[i].part_range_sq);
        }
        gpu_tensor_free(&rig.gpu, &w);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(columns_have_their_energy)
{
    enum { N = 70, K = 150 };
    double first[K] = {0};

    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        double signal[K], error[K];
        rig_open(&rig, threads);
        struct tensor w = rig_random(&rig, N, K, 6), wq = rig_random(&rig, N, K, 7), other = rig_random(&rig, N, 3, 8);
        ck_assert_rc_ok(rig.ops->column_energy(rig.stream, signal, error, &w, &wq));
        for (int k = 0; k < K; k++) {
            double want_signal = 0, want_error = 0;
            for (int r = 0; r < N; r++) {
                double x = (double)floats(&w)[r * K + k], e = x - (double)floats(&wq)[r * K + k];
                want_signal += x * x;
                want_error += e * e;
            }
            ck_assert_near(signal[k], want_signal, 1e-12 * want_signal);
            ck_assert_near(error[k], want_error, 1e-12 * want_error);
            first[k] = threads == 1 ? error[k] : first[k];
            ck_assert_double_eq(error[k], first[k]);
        }
        ck_assert_int_eq(rig.ops->column_energy(rig.stream, signal, error, &w, &other), ERR_INTERNAL);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &wq);
        gpu_tensor_free(&rig.gpu, &other);
        rig_close(&rig);
    }
}
END_TEST

UNIT_MAIN("gpu/distribution", long_rows_have_their_median, a_distribution_is_by_definition, columns_have_their_energy)
