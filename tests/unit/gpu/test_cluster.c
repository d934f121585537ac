/* Exact one-dimensional k-means against brute force, Lloyd's iterations, and what must be true of any row. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

/* sum f (w - table[code])^2 of row n, over what is not apart. */
static double loss_of(const struct tensor *w, const float *importance, const struct tensor *table,
                      const struct tensor *codes, int64_t n)
{
    double sum = 0;
    for (int64_t k = 0; k < w->shape[1]; k++) {
        double value = floats(table)[n * table->shape[1] + bytes(codes)[n * w->shape[1] + k]];
        double error = (double)floats(w)[n * w->shape[1] + k] - value;
        sum += (importance != NULL ? (double)importance[k] : 1.0) * error * error;
    }
    return sum;
}

struct clustered {
    struct tensor table, codes;
};

static struct clustered cluster(struct rig *rig, const struct tensor *w, const struct tensor *importance,
                                const struct tensor *apart, int bits, enum dtype stored)
{
    struct clustered out = {rig_tensor(rig, DTYPE_F32, w->shape[0], 1 << bits),
                            rig_tensor(rig, DTYPE_U8, w->shape[0], w->shape[1])};
    ck_assert_rc_ok(rig->ops->cluster_rows(rig->stream, &out.table, &out.codes, w, importance, apart, bits, stored));
    return out;
}

static void clustered_free(struct rig *rig, struct clustered *c)
{
    gpu_tensor_free(&rig->gpu, &c->table);
    gpu_tensor_free(&rig->gpu, &c->codes);
}

/* The least loss of all ways to give n values to k clusters. */
static double brute_force(const float *w, const float *f, int n, int k)
{
    double least = INFINITY;
    int64_t ways = 1;
    for (int i = 0; i < n; i++) {
        ways *= k;
    }
    for (int64_t way = 0; way < ways; way++) {
        double weight[4] = {0}, sum[4] = {0}, square[4] = {0}, loss = 0;
        int64_t rest = way;
        for (int i = 0; i < n; i++, rest /= k) {
            weight[rest % k] += (double)f[i];
            sum[rest % k] += (double)f[i] * (double)w[i];
            square[rest % k] += (double)f[i] * (double)w[i] * (double)w[i];
        }
        for (int c = 0; c < k; c++) {
            loss += weight[c] > 0 ? square[c] - sum[c] * sum[c] / weight[c] : 0;
        }
        least = loss < least ? loss : least;
    }
    return least;
}

START_TEST(small_rows_are_solved_exactly)
{
    struct rig rig;
    rig_open(&rig, 2);
    for (int bits = 1; bits <= 2; bits++) {
        struct tensor w = rig_random(&rig, 12, 8, (uint64_t)bits), f = rig_random(&rig, 1, 8, 9);
        for (int k = 0; k < 8; k++) {
            floats(&f)[k] = fabsf(floats(&f)[k]);
        }
        struct clustered c = cluster(&rig, &w, &f, NULL, bits, DTYPE_F32);
        for (int64_t n = 0; n < 12; n++) {
            double found = loss_of(&w, floats(&f), &c.table, &c.codes, n);
            double best = brute_force(floats(&w) + n * 8, floats(&f), 8, 1 << bits);
            ck_assert_near(found, best, 1e-6);
        }
        clustered_free(&rig, &c);
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &f);
    }
    rig_close(&rig);
}
END_TEST

/* From quantiles of the sorted row to where nothing moves. */
static double lloyd(const float *w, const float *f, int64_t n, int k)
{
    double centre[16], loss = INFINITY;
    for (int c = 0; c < k; c++) {
        centre[c] = (double)w[(2 * c + 1) * n / (2 * k)];
    }
    for (int round = 0; round < 100; round++) {
        double weight[16] = {0}, sum[16] = {0};
        loss = 0;
        for (int64_t i = 0; i < n; i++) {
            int best = 0;
            for (int c = 1; c < k; c++) {
                best = fabs((double)w[i] - centre[c]) < fabs((double)w[i] - centre[best]) ? c : best;
            }
            weight[best] += (double)f[i];
            sum[best] += (double)f[i] * (double)w[i];
            loss += (double)f[i] * ((double)w[i] - centre[best]) * ((double)w[i] - centre[best]);
        }
        for (int c = 0; c < k; c++) {
            centre[c] = weight[c] > 0 ? sum[c] / weight[c] : centre[c];
        }
    }
    return loss;
}

START_TEST(never_worse_than_lloyd)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 20, 300, 3), f = rig_random(&rig, 1, 300, 4);
    for (int k = 0; k < 300; k++) {
        floats(&f)[k] *= floats(&f)[k];
    }
    for (int bits = 1; bits <= 4; bits++) {
        struct clustered c = cluster(&rig, &w, &f, NULL, bits, DTYPE_F32);
        double before = INFINITY;
        for (int64_t n = 0; n < 20; n++) {
            before = lloyd(floats(&w) + n * 300, floats(&f), 300, 1 << bits);
            ck_assert_double_le(loss_of(&w, floats(&f), &c.table, &c.codes, n), before * 1.000001);
        }
        clustered_free(&rig, &c);
    }
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &f);
    rig_close(&rig);
}
END_TEST

START_TEST(distinct_values_that_fit_are_kept)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 4, 64);
    for (int i = 0; i < 4 * 64; i++) { /* 1, 2, 4 and 8 values; row 0 all zero */
        floats(&w)[i] = (float)(i % (1 << i / 64)) * (i / 64 == 3 ? 1e4f : 0.001f);
    }
    struct clustered c = cluster(&rig, &w, NULL, NULL, 3, DTYPE_F32);
    for (int64_t n = 0; n < 4; n++) {
        ck_assert(loss_of(&w, NULL, &c.table, &c.codes, n) == 0);
    }
    clustered_free(&rig, &c);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

START_TEST(weights_matter_by_their_ratios_alone)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 10, 128, 5), f = rig_random(&rig, 1, 128, 6),
                  ones = rig_tensor(&rig, DTYPE_F32, 1, 128);
    struct tensor zeros = rig_tensor(&rig, DTYPE_F32, 1, 128);
    for (int k = 0; k < 128; k++) {
        floats(&f)[k] = k % 9 == 0 ? 0.0f : fabsf(floats(&f)[k]);
        floats(&ones)[k] = 3.0f;
    }
    struct clustered plain = cluster(&rig, &w, NULL, NULL, 3, DTYPE_F16),
                     uniform = cluster(&rig, &w, &ones, NULL, 3, DTYPE_F16);
    struct clustered none = cluster(&rig, &w, &zeros, NULL, 3, DTYPE_F16),
                     weighed = cluster(&rig, &w, &f, NULL, 3, DTYPE_F16);
    for (int k = 0; k < 128; k++) {
        floats(&f)[k] *= 1024.0f;
    }
    struct clustered scaled = cluster(&rig, &w, &f, NULL, 3, DTYPE_F16);
    ck_assert_int_eq(memcmp(plain.codes.data, uniform.codes.data, 1280), 0);
    ck_assert_int_eq(memcmp(plain.codes.data, none.codes.data, 1280), 0);
    ck_assert_int_eq(memcmp(weighed.codes.data, scaled.codes.data, 1280), 0);
    ck_assert_int_eq(memcmp(weighed.table.data, scaled.table.data, 320), 0);
    ck_assert_int_ne(memcmp(plain.codes.data, weighed.codes.data, 1280), 0);
    for (int i = 0; i < 80; i++) { /* ascending, and as they are stored */
        ck_assert(floats(&plain.table)[i] == dtype_round(floats(&plain.table)[i], DTYPE_F16));
        ck_assert(i % 8 == 0 || floats(&plain.table)[i - 1] <= floats(&plain.table)[i]);
    }
    struct clustered *all[] = {&plain, &uniform, &none, &weighed, &scaled};
    for (int i = 0; i < 5; i++) {
        clustered_free(&rig, all[i]);
    }
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &f);
    gpu_tensor_free(&rig.gpu, &ones);
    gpu_tensor_free(&rig.gpu, &zeros);
    rig_close(&rig);
}
END_TEST

/* The survey's two rows, taken as one: centres near -.9, -.1, .05 and .95. And what is apart moves no centre. */
START_TEST(an_example_and_outliers)
{
    static const float row[] = {-0.12f, -0.08f, 0.02f, 0.09f, 0.11f, 0.95f, -0.90f, 0.04f, 500.0f};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 1, 9), apart = rig_tensor(&rig, DTYPE_U8, 1, 9);
    memcpy(w.data, row, sizeof(row));
    bytes(&apart)[8] = 1;
    struct clustered c = cluster(&rig, &w, NULL, &apart, 2, DTYPE_F32);
    ck_assert_near(floats(&c.table)[0], -0.9, 1e-6);
    ck_assert_near(floats(&c.table)[1], -0.1, 1e-6);
    ck_assert_near(floats(&c.table)[2], 0.065, 1e-6);
    ck_assert_near(floats(&c.table)[3], 0.95, 1e-6);
    ck_assert_int_eq(rig.ops->cluster_rows(rig.stream, &c.table, &c.codes, &w, NULL, NULL, 3, DTYPE_F32), ERR_INTERNAL);
    clustered_free(&rig, &c);
    memset(apart.data, 1, 9);
    c = cluster(&rig, &w, NULL, &apart, 2, DTYPE_F16); /* nothing left */
    ck_assert(floats(&c.table)[3] == 0);
    clustered_free(&rig, &c);
    c = cluster(&rig, &w, NULL, NULL, 8, DTYPE_F16);
    ck_assert(floats(&c.table)[255] == 500.0f);
    clustered_free(&rig, &c);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &apart);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu_cluster", small_rows_are_solved_exactly, never_worse_than_lloyd, distinct_values_that_fit_are_kept,
          weights_matter_by_their_ratios_alone, an_example_and_outliers)
