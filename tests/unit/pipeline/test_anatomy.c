/* Channels of a solved linear against their definitions in double. */

#include "pipeline/anatomy.h"
#include "tests/unit/gpu/support.h"

#include <stdlib.h>

enum { ROWS = 24, COLS = 96, GROUP = 32 };

struct reference {
    double error[COLS], signal[COLS], input[COLS], weight[COLS];
};

static struct reference reference_of(const struct tensor *w, const struct tensor *wq, const struct tensor *h)
{
    struct reference r = {.error = {0}};

    for (int k = 0; k < COLS; k++) {
        r.input[k] = (double)floats(h)[k * COLS + k];
        for (int n = 0; n < ROWS; n++) {
            double x = (double)floats(w)[n * COLS + k], e = x - (double)floats(wq)[n * COLS + k];
            r.weight[k] += x * x;
            r.signal[k] += r.input[k] * x * x;
            r.error[k] += r.input[k] * e * e;
        }
    }
    return r;
}

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static double sum_of(const double *x)
{
    double sum = 0;
    for (int k = 0; k < COLS; k++) {
        sum += x[k];
    }
    return sum;
}

/* Sorts x. */
static int64_t half_count(double *x)
{
    double sum = sum_of(x), part = 0;
    int64_t count = 0;

    qsort(x, COLS, sizeof(*x), descending);
    while (part < sum / 2) {
        part += x[count++];
    }
    return count;
}

static void check_channels(const struct anatomy *got, struct reference *want)
{
    double sum = sum_of(want->error), roots = 0;

    for (int i = 0; i < ANATOMY_TOP; i++) {
        ck_assert_near(got->top[i].share, want->error[got->top[i].index] / sum, 1e-9);
        ck_assert(i == 0 || got->top[i].share <= got->top[i - 1].share);
    }
    for (int k = 0; k < COLS; k++) {
        roots += sqrt(want->input[k]);
    }
    ck_assert_near(got->input_evenness, roots * roots / (COLS * sum_of(want->input)), 1e-9);
    ck_assert_int_eq(got->error_channels, half_count(want->error));
    ck_assert_int_eq(got->signal_channels, half_count(want->signal));
    qsort(want->input, COLS, sizeof(double), descending);
    qsort(want->weight, COLS, sizeof(double), descending);
    ck_assert_near(got->input_channels, sqrt(want->input[0] / want->input[(COLS - 1) / 2]), 1e-9); /* one is dead */
    ck_assert_near(got->weight_channels, sqrt(want->weight[0] / want->weight[COLS / 2]), 1e-9);
}

START_TEST(channels_are_by_definition)
{
    struct anatomy first;

    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        struct anatomy got, alone;
        rig_open(&rig, threads);
        struct tensor x = rig_random(&rig, 200, COLS, 1), w = rig_random(&rig, ROWS, COLS, 2);
        struct tensor wq = rig_random(&rig, ROWS, COLS, 3);
        for (int t = 0; t < 200; t++) {
            floats(&x)[t * COLS + 17] *= 20.0f; /* one large channel, one dead */
            floats(&x)[t * COLS + 40] = 0.0f;
        }
        floats(&w)[5 * COLS + 9] = 25.0f;
        struct tensor h = rig_hessian(&rig, &x);
        const struct layer_stats stats = {.flags = STATS_HESSIAN, .columns = COLS, .tokens = 200, .hessian = h};
        struct reference want = reference_of(&w, &wq, &h);
        ck_assert_rc_ok(anatomy_measure(&rig.gpu, rig.stream, &w, &wq, &stats, GROUP, &got));
        ck_assert(got.has_inputs);
        ck_assert_int_eq(got.top[0].index, 17);
        check_channels(&got, &want);
        ck_assert_double_gt(got.weights.max_to_median, 20);
        first = threads == 1 ? got : first;
        ck_assert_double_eq(got.top[1].share, first.top[1].share); /* to the bit for any number of threads */
        ck_assert_double_eq(got.input_evenness, first.input_evenness);
        ck_assert_rc_ok(anatomy_measure(&rig.gpu, rig.stream, &w, &wq, NULL, GROUP, &alone));
        ck_assert(!alone.has_inputs);
        ck_assert_double_eq(alone.weight_channels, got.weight_channels);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &wq);
        gpu_tensor_free(&rig.gpu, &h);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(groups_are_those_that_share_a_scale)
{
    struct qtensor q = {.scheme = {.kind = QTENSOR_INT, .group_size = 64}, .rows = 4, .cols = 192};

    ck_assert_int_eq(anatomy_group(&q), 64);
    q.scheme.per_channel = true;
    ck_assert_int_eq(anatomy_group(&q), 192);
    q.scheme.per_channel = false;
    q.scheme.group_size = 0;
    ck_assert_int_eq(anatomy_group(&q), 192);
    q.scheme.group_size = 128; /* of the flat weight */
    ck_assert_int_eq(anatomy_group(&q), 192);
}
END_TEST

UNIT_MAIN("pipeline/anatomy", channels_are_by_definition, groups_are_those_that_share_a_scale)
