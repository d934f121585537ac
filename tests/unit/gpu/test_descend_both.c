/* Two-sided coordinate descent: its error against double, that no step raises it, and that it is `descend` where the
 * outputs' moments are the identity. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

struct bench {
    struct rig rig;
    struct gpu_grid grid;
    int64_t n, k, groups;
    struct tensor w, h, o, scale, zero, codes;
};

/* Moments of 2 * size rows whose neighbours go together, with one column that is 0; dead -1: none. */
static struct tensor moments(struct rig *rig, int64_t size, int64_t dead, int seed)
{
    struct tensor x = rig_random(rig, 2 * size, size, seed), h = rig_tensor(rig, DTYPE_F32, size, size);

    for (int64_t i = 0; i < 2 * size * size; i++) {
        floats(&x)[i] = i % size == dead ? 0.0f : floats(&x)[i] + (i % size > 0 ? 0.8f * floats(&x)[i - 1] : 0.0f);
    }
    ck_assert_rc_ok(rig->ops->gram(rig->stream, &h, &x));
    ck_assert_rc_ok(rig->ops->symmetrize(rig->stream, &h, 0.5 / (double)size));
    gpu_tensor_free(&rig->gpu, &x);
    return h;
}

static void bench_open(struct bench *b, int64_t n, int64_t k, const struct gpu_grid *grid, int64_t dead, int threads)
{
    memset(b, 0, sizeof(*b));
    rig_open(&b->rig, threads);
    b->grid = *grid;
    b->n = n;
    b->k = k;
    b->groups = k / grid->group_size;
    b->w = rig_random(&b->rig, n, k, 81);
    b->h = moments(&b->rig, k, dead, 82);
    b->o = moments(&b->rig, n, dead, 83);
    b->scale = rig_tensor(&b->rig, DTYPE_F32, n, b->groups);
    b->zero = rig_tensor(&b->rig, DTYPE_F32, n, b->groups);
    b->codes = rig_tensor(&b->rig, DTYPE_U8, n, k);
    ck_assert_rc_ok(b->rig.ops->grid(b->rig.stream, &b->scale, &b->zero, &b->w, NULL, &b->grid));
    ck_assert_rc_ok(b->rig.ops->round(b->rig.stream, &b->codes, &b->w, &b->scale, &b->zero, &b->grid));
}

static void bench_close(struct bench *b)
{
    struct tensor *const all[] = {&b->w, &b->h, &b->o, &b->scale, &b->zero, &b->codes};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&b->rig.gpu, all[i]);
    }
    rig_close(&b->rig);
}

/* tr(O D H D^T) in double. */
static double error_of(const struct bench *b)
{
    double *d = calloc((size_t)(b->n * b->k), sizeof(*d)), sum = 0;

    for (int64_t i = 0; i < b->n * b->k; i++) {
        int64_t point = i / b->k * b->groups + i % b->k / b->grid.group_size;
        double code = ((const uint8_t *)b->codes.data)[i];
        d[i] = (double)floats(&b->w)[i] - (double)floats(&b->scale)[point] * (code - (double)floats(&b->zero)[point]);
    }
    for (int64_t row = 0; row < b->n; row++) {
        for (int64_t j = 0; j < b->k; j++) {
            double m = 0, hd = 0; /* (O D)[row, j] and (D H)[row, j] */
            for (int64_t i = 0; i < b->n; i++) {
                m += (double)floats(&b->o)[row * b->n + i] * d[i * b->k + j];
            }
            for (int64_t i = 0; i < b->k; i++) {
                hd += d[row * b->k + i] * (double)floats(&b->h)[i * b->k + j];
            }
            sum += m * hd;
        }
    }
    free(d);
    return sum;
}

static void both(struct bench *b, int passes, bool scales, double *before, double *after)
{
    const struct gpu_descend spec = {.passes = passes, .scales = scales};
    ck_assert_rc_ok(b->rig.ops->descend_both(b->rig.stream, &b->codes, &b->scale, &b->zero, &b->w, &b->h, &b->o,
                                             &b->grid, &spec, before, after));
}

static const struct gpu_grid grids[] = {
    {.bits = 2, .group_size = 32, .sym = true, .scale_dtype = DTYPE_BF16},
    {.bits = 3, .group_size = 48, .scale_dtype = DTYPE_F16},
    {.bits = 4, .group_size = 96, .sym = true, .scale_dtype = DTYPE_F32}, /* more than one block of columns */
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
        bench_open(&b, 75, 96, &grids[_i], -1, 2);
        double from = error_of(&b), last = from;
        for (int pass = 0; pass < 3; pass++) {
            double before, after;
            both(&b, 1, scales != 0, &before, &after);
            ck_assert_double_eq_tol(before, last, 1e-4 * from);
            ck_assert_double_le(after, before);
            last = error_of(&b);
            ck_assert_double_eq_tol(last, after, 1e-4 * from);
        }
        ck_assert_double_lt(last, 0.8 * from);
        for (int64_t i = 0; i < b.n * b.groups; i++) {
            float scale = floats(&b.scale)[i];
            ck_assert_float_eq(dtype_round(scale, b.grid.scale_dtype), scale);
        }
        bench_close(&b);
    }
}
END_TEST

/* After many passes no code can move by one step and win, nor a scale a little. */
START_TEST(ends_where_no_step_gains)
{
    struct bench b;
    double before, after;

    bench_open(&b, 9, 24, &(struct gpu_grid){.bits = 3, .group_size = 8, .scale_dtype = DTYPE_F32}, -1, 1);
    both(&b, 80, true, &before, &after);
    double least = error_of(&b) * (1 - 1e-5);
    for (int64_t i = 0; i < b.n * b.k; i++) {
        uint8_t *code = (uint8_t *)b.codes.data + i, kept = *code;
        for (int step = -1; step <= 1; step += 2) {
            if (kept + step >= 0 && kept + step <= 7) {
                *code = (uint8_t)(kept + step);
                ck_assert_double_ge(error_of(&b), least);
                *code = kept;
            }
        }
    }
    for (int64_t i = 0; i < b.n * b.groups; i++) {
        float *scale = floats(&b.scale) + i, kept = *scale;
        for (int step = -1; step <= 1; step += 2) {
            *scale = kept * (1 + 0.01f * (float)step);
            ck_assert_double_ge(error_of(&b), least);
            *scale = kept;
        }
    }
    bench_close(&b);
}
END_TEST

/* Rows are independent then. */
START_TEST(identity_is_descend)
{
    struct bench a, b;
    double before[2], after[2];

    bench_open(&a, 70, 96, &grids[_i], -1, 1);
    bench_open(&b, 70, 96, &grids[_i], -1, 1);
    memset(b.o.data, 0, tensor_bytes(&b.o));
    for (int64_t i = 0; i < b.n; i++) {
        floats(&b.o)[i * (b.n + 1)] = 1;
    }
    const struct gpu_descend codes = {.passes = 2};
    ck_assert_rc_ok(a.rig.ops->descend(a.rig.stream, &a.codes, &a.scale, &a.zero, &a.w, &a.h, &a.grid, &codes,
                                       &before[0], &after[0]));
    both(&b, 2, false, &before[1], &after[1]);
    ck_assert_double_eq_tol(before[1], before[0], 1e-5 * before[0]);
    ck_assert_double_eq_tol(after[1], after[0], 1e-3 * before[0]);
    int64_t others = 0;
    for (int64_t i = 0; i < a.n * a.k; i++) {
        others += ((const uint8_t *)a.codes.data)[i] != ((const uint8_t *)b.codes.data)[i];
    }
    ck_assert_int_le(others, a.n * a.k / 200); /* sums in another order: ties */
    bench_close(&a);
    bench_close(&b);
}
END_TEST

/* Columns without inputs and rows without gradients keep their codes; NaN changes nothing. */
START_TEST(leaves_alone_what_cannot_gain)
{
    struct bench b;
    double before, after;
    uint8_t kept[40 * 32];

    bench_open(&b, 40, 32, &(struct gpu_grid){.bits = 2, .group_size = 16, .scale_dtype = DTYPE_F32}, 5, 1);
    memcpy(kept, b.codes.data, sizeof(kept));
    both(&b, 3, true, &before, &after);
    ck_assert_double_lt(after, before);
    for (int64_t i = 0; i < b.n * b.k; i++) {
        if (i / b.k == 5 || i % b.k == 5) {
            ck_assert_uint_eq(((const uint8_t *)b.codes.data)[i], kept[i]);
        }
    }
    memcpy(kept, b.codes.data, sizeof(kept));
    for (int64_t i = 0; i < b.n * b.n; i++) {
        floats(&b.o)[i] = NAN;
    }
    both(&b, 1, true, &before, &after);
    ck_assert_mem_eq(kept, b.codes.data, sizeof(kept));
    const struct gpu_descend none = {.passes = 0};
    ck_assert_int_eq(b.rig.ops->descend_both(b.rig.stream, &b.codes, &b.scale, &b.zero, &b.w, &b.h, &b.o, &b.grid,
                                             &none, &before, &after),
                     ERR_INTERNAL);
    bench_close(&b);
}
END_TEST

START_TEST(threads_change_no_bit)
{
    struct bench a, b;
    double before[2], after[2];

    bench_open(&a, 200, 288, &grids[_i], 7, 1);
    bench_open(&b, 200, 288, &grids[_i], 7, 4);
    both(&a, 2, true, &before[0], &after[0]);
    both(&b, 2, true, &before[1], &after[1]);
    ck_assert_mem_eq(a.codes.data, b.codes.data, tensor_bytes(&a.codes));
    ck_assert_mem_eq(a.scale.data, b.scale.data, tensor_bytes(&a.scale));
    ck_assert(before[0] == before[1] && after[0] == after[1]);
    bench_close(&a);
    bench_close(&b);
}
END_TEST

int main(void)
{
    int count = (int)(sizeof(grids) / sizeof(grids[0]));
    Suite *suite = suite_create("gpu/descend_both");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, error_falls_and_is_what_it_says, 0, count);
    tcase_add_loop_test(tcase, identity_is_descend, 0, count);
    tcase_add_loop_test(tcase, threads_change_no_bit, 0, count);
    tcase_add_test(tcase, ends_where_no_step_gains);
    tcase_add_test(tcase, leaves_alone_what_cannot_gain);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
