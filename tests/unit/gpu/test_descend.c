/* Coordinate descent: what it says of its error against double, that no step raises it, and small cases by trying all
 * neighbours. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

struct bench {
    struct rig rig;
    struct gpu_grid grid;
    int64_t n, k, groups;
    struct tensor w, h, scale, zero, codes, wq;
};

/* Weights on a grid of their own, inputs whose neighbours go together. dead: a column that is never active, or -1. */
static void bench_open(struct bench *b, int64_t n, int64_t k, const struct gpu_grid *grid, int64_t dead, int threads)
{
    memset(b, 0, sizeof(*b));
    rig_open(&b->rig, threads);
    b->grid = *grid;
    b->n = n;
    b->k = k;
    b->groups = k / grid->group_size;
    b->w = rig_random(&b->rig, n, k, 71);
    struct tensor x = rig_random(&b->rig, 4 * k, k, 72);
    for (int64_t i = 0; i < 4 * k * k; i++) {
        floats(&x)[i] = i % k == dead ? 0.0f : floats(&x)[i] + (i % k > 0 ? 0.8f * floats(&x)[i - 1] : 0.0f);
    }
    b->h = rig_tensor(&b->rig, DTYPE_F32, k, k);
    ck_assert_rc_ok(b->rig.ops->gram(b->rig.stream, &b->h, &x));
    ck_assert_rc_ok(b->rig.ops->symmetrize(b->rig.stream, &b->h, 0.5 / (double)k));
    gpu_tensor_free(&b->rig.gpu, &x);
    b->scale = rig_tensor(&b->rig, DTYPE_F32, n, b->groups);
    b->zero = rig_tensor(&b->rig, DTYPE_F32, n, b->groups);
    b->codes = rig_tensor(&b->rig, DTYPE_U8, n, k);
    b->wq = rig_tensor(&b->rig, DTYPE_F32, n, k);
    ck_assert_rc_ok(b->rig.ops->grid(b->rig.stream, &b->scale, &b->zero, &b->w, NULL, &b->grid));
    ck_assert_rc_ok(b->rig.ops->round(b->rig.stream, &b->codes, &b->w, &b->scale, &b->zero, &b->grid));
}

static void bench_close(struct bench *b)
{
    struct tensor *const all[] = {&b->w, &b->h, &b->scale, &b->zero, &b->codes, &b->wq};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&b->rig.gpu, all[i]);
    }
    rig_close(&b->rig);
}

static double weight_of(const struct bench *b, int64_t row, int64_t j)
{
    int64_t point = row * b->groups + j / b->grid.group_size;
    double code = ((const uint8_t *)b->codes.data)[row * b->k + j];
    return (double)floats(&b->scale)[point] * (code - (double)floats(&b->zero)[point]);
}

/* tr(D H D^T) of one row by the letter. */
static double row_error(const struct bench *b, int64_t row)
{
    double sum = 0;

    for (int64_t i = 0; i < b->k; i++) {
        double d = (double)floats(&b->w)[row * b->k + i] - weight_of(b, row, i), dot = 0;
        for (int64_t j = 0; j < b->k; j++) {
            dot += (double)floats(&b->h)[i * b->k + j] * ((double)floats(&b->w)[row * b->k + j] - weight_of(b, row, j));
        }
        sum += d * dot;
    }
    return sum;
}

static double error_of(const struct bench *b)
{
    double sum = 0;

    for (int64_t row = 0; row < b->n; row++) {
        sum += row_error(b, row);
    }
    return sum;
}

static void descend(struct bench *b, int passes, bool scales, double *before, double *after)
{
    const struct gpu_descend spec = {.passes = passes, .scales = scales};
    ck_assert_rc_ok(b->rig.ops->descend(b->rig.stream, &b->codes, &b->scale, &b->zero, &b->w, &b->h, &b->grid, &spec,
                                        before, after));
}

static const struct gpu_grid grids[] = {
    {.bits = 2, .group_size = 32, .sym = true, .scale_dtype = DTYPE_BF16},
    {.bits = 3, .group_size = 48, .scale_dtype = DTYPE_F16},
    {.bits = 4, .group_size = 288, .sym = true, .scale_dtype = DTYPE_F32}, /* more than one block of columns */
    {.bits = 4, .group_size = 288, .scale_dtype = DTYPE_F32},
    {.bits = 3,
     .group_size = 96,
     .sym = true,
     .signs = true,
     .mse = true,
     .norm = 2,
     .max_shrink = 0.8,
     .steps = 40,
     .scale_dtype = DTYPE_F16},
};

START_TEST(error_falls_and_is_what_it_says)
{
    for (int scales = 0; scales < 2; scales++) {
        struct bench b;
        bench_open(&b, 70, 288, &grids[_i], -1, 2);
        double from = error_of(&b), last = from;
        for (int pass = 0; pass < 2; pass++) {
            double before, after, rows[70];
            for (int64_t row = 0; row < b.n; row += 5) {
                rows[row] = row_error(&b, row);
            }
            descend(&b, 1, scales != 0, &before, &after);
            ck_assert_double_eq_tol(before, last, 1e-4 * from);
            ck_assert_double_le(after, before);
            ck_assert_double_eq_tol(error_of(&b), after, 1e-4 * from);
            for (int64_t row = 0; row < b.n; row += 5) {
                ck_assert_double_le(row_error(&b, row), rows[row] * (1 + 1e-5));
            }
            last = after;
        }
        ck_assert_double_lt(last, 0.9 * from);
        for (int64_t i = 0; i < b.n * b.groups; i++) {
            float scale = floats(&b.scale)[i], zero = floats(&b.zero)[i];
            ck_assert_float_eq(dtype_round(scale, b.grid.scale_dtype), scale);
            ck_assert(zero >= 0 && zero <= (float)((1 << b.grid.bits) - 1) && zero == rintf(zero));
        }
        bench_close(&b);
    }
}
END_TEST

/* After many passes no code of any row can move by one step and win. */
START_TEST(ends_where_no_step_gains)
{
    struct bench b;
    double before, after;

    bench_open(&b, 9, 24, &(struct gpu_grid){.bits = 3, .group_size = 8, .scale_dtype = DTYPE_F32}, -1, 1);
    descend(&b, 60, true, &before, &after);
    for (int64_t i = 0; i < b.n * b.k; i++) {
        uint8_t *code = (uint8_t *)b.codes.data + i, kept = *code;
        double least = row_error(&b, i / b.k) * (1 - 1e-5);
        for (int step = -1; step <= 1; step += 2) {
            if (kept + step >= 0 && kept + step <= 7) {
                *code = (uint8_t)(kept + step);
                ck_assert_double_ge(row_error(&b, i / b.k), least);
                *code = kept;
            }
        }
    }
    for (int64_t i = 0; i < b.n * b.groups; i++) { /* nor a scale a little larger or smaller */
        float *scale = floats(&b.scale) + i, kept = *scale;
        double least = row_error(&b, i / b.groups) * (1 - 1e-5);
        for (int step = -1; step <= 1; step += 2) {
            *scale = kept * (1 + 0.01f * (float)step);
            ck_assert_double_ge(row_error(&b, i / b.groups), least);
            *scale = kept;
        }
    }
    bench_close(&b);
}
END_TEST

/* Two columns of one row at 2 bits, scales fixed: descent ends in a code whose neighbours along each axis are no
 * better, and from the best of all 16 it does not move. */
START_TEST(stays_at_the_best_of_all)
{
    struct bench b;
    double before, after, least = INFINITY;
    uint8_t best[2] = {0, 0};

    bench_open(&b, 1, 2, &(struct gpu_grid){.bits = 2, .group_size = 2, .sym = true, .scale_dtype = DTYPE_F32}, -1, 1);
    uint8_t *codes = b.codes.data;
    for (int i = 0; i < 16; i++) {
        codes[0] = (uint8_t)(i / 4);
        codes[1] = (uint8_t)(i % 4);
        double error = row_error(&b, 0);
        if (error < least) {
            least = error;
            memcpy(best, codes, 2);
        }
    }
    memcpy(codes, best, 2);
    descend(&b, 3, false, &before, &after);
    ck_assert_mem_eq(codes, best, 2);
    ck_assert_double_eq(before, after);
    codes[0] = (uint8_t)(3 - best[0]);
    descend(&b, 3, false, &before, &after);
    ck_assert_double_le(after, before);
    bench_close(&b);
}
END_TEST

/* A column without inputs keeps its weight, also when the zero point of its group moves; groups of zeros and weights
 * that are on their grid already stay. */
START_TEST(leaves_alone_what_cannot_gain)
{
    struct bench b;
    double before, after, kept[40];

    bench_open(&b, 40, 32, &(struct gpu_grid){.bits = 2, .group_size = 16, .scale_dtype = DTYPE_F32}, 5, 1);
    for (int64_t row = 0; row < b.n; row++) {
        kept[row] = (double)((const uint8_t *)b.codes.data)[row * b.k + 5] - (double)floats(&b.zero)[row * b.groups];
    }
    descend(&b, 3, true, &before, &after);
    ck_assert_double_lt(after, before);
    for (int64_t row = 0; row < b.n; row++) {
        double level = (double)((const uint8_t *)b.codes.data)[row * b.k + 5] - (double)floats(&b.zero)[row * b.groups];
        ck_assert_double_eq(level, kept[row]);
    }
    ck_assert_rc_ok(b.rig.ops->dequantize(b.rig.stream, &b.w, &b.codes, &b.scale, &b.zero, &b.grid));
    descend(&b, 2, true, &before, &after);
    ck_assert_double_eq_tol(before, 0, 1e-6);
    memset(b.w.data, 0, tensor_bytes(&b.w));
    ck_assert_rc_ok(b.rig.ops->grid(b.rig.stream, &b.scale, &b.zero, &b.w, NULL, &b.grid));
    ck_assert_rc_ok(b.rig.ops->round(b.rig.stream, &b.codes, &b.w, &b.scale, &b.zero, &b.grid));
    descend(&b, 2, true, &before, &after);
    ck_assert_double_eq(before, 0);
    ck_assert_double_eq(after, 0);
    bench_close(&b);
}
END_TEST

START_TEST(threads_change_no_bit)
{
    struct bench a, b;
    double before[2], after[2];

    bench_open(&a, 200, 288, &grids[_i], 7, 1);
    bench_open(&b, 200, 288, &grids[_i], 7, 4);
    descend(&a, 2, true, &before[0], &after[0]);
    descend(&b, 2, true, &before[1], &after[1]);
    ck_assert_mem_eq(a.codes.data, b.codes.data, tensor_bytes(&a.codes));
    ck_assert_mem_eq(a.scale.data, b.scale.data, tensor_bytes(&a.scale));
    ck_assert_mem_eq(a.zero.data, b.zero.data, tensor_bytes(&a.zero));
    ck_assert(before[0] == before[1] && after[0] == after[1]);
    bench_close(&a);
    bench_close(&b);
}
END_TEST

/* H of fewer inputs than columns, and NaN: nothing worse than what there was. */
START_TEST(survives_poor_statistics)
{
    struct bench b;
    double before, after;

    bench_open(&b, 8, 64, &grids[0], -1, 1);
    struct tensor x = rig_random(&b.rig, 3, 64, 73);
    memset(b.h.data, 0, tensor_bytes(&b.h));
    ck_assert_rc_ok(b.rig.ops->gram(b.rig.stream, &b.h, &x));
    ck_assert_rc_ok(b.rig.ops->symmetrize(b.rig.stream, &b.h, 1.0));
    double from = error_of(&b);
    descend(&b, 4, true, &before, &after);
    ck_assert_double_le(error_of(&b), from);
    uint8_t kept[8 * 64];
    memcpy(kept, b.codes.data, sizeof(kept));
    for (int64_t i = 0; i < 64 * 64; i++) {
        floats(&b.h)[i] = NAN;
    }
    descend(&b, 1, true, &before, &after);
    ck_assert_mem_eq(kept, b.codes.data, sizeof(kept));
    const struct gpu_descend none = {.passes = 0};
    ck_assert_int_eq(
        b.rig.ops->descend(b.rig.stream, &b.codes, &b.scale, &b.zero, &b.w, &b.h, &b.grid, &none, &before, &after),
        ERR_INTERNAL);
    gpu_tensor_free(&b.rig.gpu, &x);
    bench_close(&b);
}
END_TEST

int main(void)
{
    int count = (int)(sizeof(grids) / sizeof(grids[0]));
    Suite *suite = suite_create("gpu/descend");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, error_falls_and_is_what_it_says, 0, count);
    tcase_add_loop_test(tcase, threads_change_no_bit, 0, count);
    tcase_add_test(tcase, ends_where_no_step_gains);
    tcase_add_test(tcase, stays_at_the_best_of_all);
    tcase_add_test(tcase, leaves_alone_what_cannot_gain);
    tcase_add_test(tcase, survives_poor_statistics);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
