/* grid, round, dequantize and residual against the formulas in double. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

struct bench {
    struct rig rig;
    int64_t n, k;
    struct gpu_grid grid;
    struct tensor w, scale, zero, codes, wq;
};

static void bench_open(struct bench *b, int64_t n, int64_t k, const struct gpu_grid *grid)
{
    memset(b, 0, sizeof(*b));
    rig_open(&b->rig, 2);
    b->n = n;
    b->k = k;
    b->grid = *grid;
    b->w = rig_random(&b->rig, n, k, 31);
    b->scale = rig_tensor(&b->rig, DTYPE_F32, n, k / grid->group_size);
    b->zero = rig_tensor(&b->rig, DTYPE_F32, n, k / grid->group_size);
    b->codes = rig_tensor(&b->rig, DTYPE_U8, n, k);
    b->wq = rig_tensor(&b->rig, DTYPE_F32, n, k);
}

static void bench_close(struct bench *b)
{
    struct tensor *const all[] = {&b->w, &b->scale, &b->zero, &b->codes, &b->wq};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&b->rig.gpu, all[i]);
    }
    rig_close(&b->rig);
}

static void quantize(struct bench *b, const struct tensor *importance)
{
    ck_assert_rc_ok(b->rig.ops->grid(b->rig.stream, &b->scale, &b->zero, &b->w, importance, &b->grid));
    ck_assert_rc_ok(b->rig.ops->round(b->rig.stream, &b->codes, &b->w, &b->scale, &b->zero, &b->grid));
    ck_assert_rc_ok(b->rig.ops->dequantize(b->rig.stream, &b->wq, &b->codes, &b->scale, &b->zero, &b->grid));
}

static double code_of(const struct bench *b, float w, float scale, float zero)
{
    double code = rint((double)(w / scale)) + (double)zero, top = (1 << b->grid.bits) - 1;
    return code < 0 ? 0 : code > top ? top : code;
}

/* sum importance * |w - wq|^norm over one group. */
static double group_error(const struct bench *b, const float *w, const float *importance, float scale, float zero)
{
    double sum = 0;
    for (int64_t i = 0; i < b->grid.group_size; i++) {
        double wq = (double)scale * (code_of(b, w[i], scale, zero) - (double)zero);
        sum += (importance != NULL ? (double)importance[i] : 1) * pow(fabs((double)w[i] - wq), b->grid.norm);
    }
    return sum;
}

static void min_max(const struct bench *b, const float *w, double p, float *scale, float *zero)
{
    float low = 0, high = 0, top = (float)((1 << b->grid.bits) - 1), shrink = (float)p;
    for (int64_t i = 0; i < b->grid.group_size; i++) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    low *= shrink;
    high *= shrink;
    if (b->grid.sym) {
        *scale = dtype_round_down(2 * (-low > high ? -low : high) / top, b->grid.scale_dtype);
        *zero = (float)(1 << (b->grid.bits - 1));
    } else {
        *scale = dtype_round_down((high - low) / top, b->grid.scale_dtype);
        *zero = rintf(-low / *scale) < top ? rintf(-low / *scale) : top;
    }
}

static void check_grid_of(const struct gpu_grid *grid, int64_t k, bool weighted)
{
    struct bench b;
    bench_open(&b, 20, k, grid);
    struct tensor importance = rig_random(&b.rig, 1, k, 8);
    for (int64_t i = 0; i < k; i++) {
        floats(&importance)[i] *= floats(&importance)[i];
    }
    quantize(&b, weighted ? &importance : NULL);
    for (int64_t g = 0; g < b.n * (k / grid->group_size); g++) {
        const float *w = floats(&b.w) + g * grid->group_size;
        const float *weight = weighted ? floats(&importance) + g * grid->group_size % k : NULL;
        float got_scale = floats(&b.scale)[g], got_zero = floats(&b.zero)[g], scale, zero;
        ck_assert_float_eq(dtype_round(got_scale, grid->scale_dtype), got_scale);
        min_max(&b, w, 1, &scale, &zero);
        if (!grid->mse) {
            ck_assert_float_eq(got_scale, scale);
            ck_assert_float_eq(got_zero, zero);
        } else {
            double least = group_error(&b, w, weight, scale, zero);
            for (int i = 1; i < (int)(grid->max_shrink * grid->steps); i++) {
                min_max(&b, w, 1 - (double)i / grid->steps, &scale, &zero);
                double error = group_error(&b, w, weight, scale, zero);
                least = error < least ? error : least;
            }
            ck_assert_near(group_error(&b, w, weight, got_scale, got_zero), least, 1e-4 * least);
        }
        for (int64_t i = 0; i < grid->group_size; i++) {
            int64_t at = g * grid->group_size + i;
            ck_assert_double_eq((double)bytes(&b.codes)[at], code_of(&b, w[i], got_scale, got_zero));
            ck_assert_float_eq(floats(&b.wq)[at], got_scale * ((float)bytes(&b.codes)[at] - got_zero));
        }
    }
    gpu_tensor_free(&b.rig.gpu, &importance);
    bench_close(&b);
}

START_TEST(grids_are_right)
{
    for (int bits = 2; bits <= 8; bits++) {
        for (int sym = 0; sym < 2; sym++) {
            check_grid_of(&(struct gpu_grid){.bits = bits, .group_size = 24, .sym = sym, .scale_dtype = DTYPE_F16}, 48,
                          false);
            check_grid_of(&(struct gpu_grid){.bits = bits, .group_size = 64, .sym = sym, .scale_dtype = DTYPE_BF16}, 64,
                          false);
        }
    }
}
END_TEST

START_TEST(searches_find_the_least)
{
    struct gpu_grid grid = {.bits = 3,
                            .group_size = 64,
                            .mse = true,
                            .norm = 2.4,
                            .max_shrink = 0.8,
                            .steps = 100,
                            .scale_dtype = DTYPE_F16};
    check_grid_of(&grid, 128, false);
    grid.sym = true;
    check_grid_of(&grid, 64, true);
    grid.group_size = 50;
    grid.norm = 2;
    check_grid_of(&grid, 100, true);
    grid.norm = 3;
    check_grid_of(&grid, 100, true);
    grid.bits = 2;
    grid.norm = 0.7;
    check_grid_of(&grid, 100, false);
}
END_TEST

/* The least is found before, between and after the looks at whether any better is left. */
START_TEST(searches_end_no_sooner)
{
    for (int i = 0; i < 16; i++) {
        const struct gpu_grid grid = {.bits = 2 + i % 4,
                                      .group_size = i / 8 % 2 != 0 ? 32 : 200,
                                      .sym = i / 4 % 2 != 0,
                                      .mse = true,
                                      .norm = i % 3 != 0 ? 3 : 1.5,
                                      .max_shrink = 1,
                                      .steps = 50,
                                      .scale_dtype = DTYPE_BF16};
        check_grid_of(&grid, 800, i % 2 != 0);
    }
}
END_TEST

START_TEST(rounding_is_idempotent)
{
    struct bench b;
    bench_open(&b, 16, 96, &(struct gpu_grid){.bits = 4, .group_size = 32, .scale_dtype = DTYPE_F16});
    quantize(&b, NULL);
    struct tensor again = rig_tensor(&b.rig, DTYPE_U8, 16, 96);
    ck_assert_rc_ok(b.rig.ops->round(b.rig.stream, &again, &b.wq, &b.scale, &b.zero, &b.grid));
    ck_assert_int_eq(memcmp(again.data, b.codes.data, tensor_bytes(&again)), 0);
    gpu_tensor_free(&b.rig.gpu, &again);
    bench_close(&b);
}
END_TEST

START_TEST(extreme_groups)
{
    struct bench b;
    for (int sym = 0; sym < 2; sym++) {
        bench_open(&b, 4, 32, &(struct gpu_grid){.bits = 4, .group_size = 32, .sym = sym, .scale_dtype = DTYPE_F16});
        for (int i = 0; i < 32; i++) {
            floats(&b.w)[i] = 0;                             /* all zero */
            floats(&b.w)[32 + i] = 1e-12f * (float)(i - 16); /* its scale is 0 in F16 */
            floats(&b.w)[64 + i] = 1e7f * (float)(i - 16);   /* its scale is infinite in F16 */
            floats(&b.w)[96 + i] = 1.0f + (float)i;          /* one sign only */
        }
        quantize(&b, NULL);
        ck_assert_float_eq(floats(&b.scale)[0], 1.0f);
        for (int i = 0; i < 32; i++) {
            ck_assert_float_eq(floats(&b.wq)[i], 0.0f);
        }
        ck_assert_float_eq(floats(&b.scale)[1], 0x1p-24f);
        ck_assert_float_eq(floats(&b.scale)[2], 65504.0f);
        for (int i = 0; i < 128; i++) {
            ck_assert(isfinite(floats(&b.wq)[i]));
        }
        ck_assert_near(floats(&b.wq)[127], 32.0, 2.2);
        bench_close(&b);
    }
}
END_TEST

START_TEST(residual_adds_up)
{
    struct bench b;
    struct gpu_residual got, want = {0}, plain;
    bench_open(&b, 33, 60, &(struct gpu_grid){.bits = 3, .group_size = 20, .sym = true, .scale_dtype = DTYPE_F16});
    quantize(&b, NULL);
    for (int64_t g = 0; g < 33 * 3; g++) {
        floats(&b.scale)[g] *= 0.5f; /* now much is outside */
    }
    ck_assert_rc_ok(b.rig.ops->round(b.rig.stream, &b.codes, &b.w, &b.scale, &b.zero, &b.grid));
    ck_assert_rc_ok(b.rig.ops->dequantize(b.rig.stream, &b.wq, &b.codes, &b.scale, &b.zero, &b.grid));
    floats(&b.w)[77] = NAN;
    floats(&b.wq)[78] = INFINITY;
    for (int64_t i = 0; i < 33 * 60; i++) {
        double w = (double)floats(&b.w)[i], q = (double)floats(&b.wq)[i], scale = (double)floats(&b.scale)[i / 20];
        if (!isfinite(w) || !isfinite(q)) {
            want.nonfinite++;
            continue;
        }
        want.error_sq += (w - q) * (w - q);
        want.weight_sq += w * w;
        want.dot += w * q;
        want.quant_sq += q * q;
        want.max_abs = fmax(want.max_abs, fabs(w - q));
        want.weight_max = fmax(want.weight_max, fabs(w));
        if (w < -4 * scale || w > 3 * scale) {
            want.clipped++;
            want.clipped_sq += (w - q) * (w - q);
        }
    }
    ck_assert_rc_ok(b.rig.ops->residual(b.rig.stream, &got, &b.w, &b.wq, &b.scale, &b.zero, &b.grid));
    ck_assert_rc_ok(b.rig.ops->residual(b.rig.stream, &plain, &b.w, &b.wq, NULL, NULL, NULL));
    ck_assert_near(got.error_sq, want.error_sq, 1e-9 * want.error_sq);
    ck_assert_near(got.weight_sq, want.weight_sq, 1e-9 * want.weight_sq);
    ck_assert_near(got.dot, want.dot, 1e-9 * want.dot);
    ck_assert_near(got.quant_sq, want.quant_sq, 1e-9 * want.quant_sq);
    ck_assert_near(got.clipped_sq, want.clipped_sq, 1e-9 * want.clipped_sq);
    ck_assert_double_eq(got.max_abs, want.max_abs);
    ck_assert_double_eq(got.weight_max, want.weight_max);
    ck_assert_int_eq(got.clipped, want.clipped);
    ck_assert_int_gt(got.clipped, 0);
    ck_assert_int_eq(got.nonfinite, 2);
    ck_assert_near(plain.error_sq, got.error_sq, 1e-9 * want.error_sq);
    ck_assert_int_eq(plain.clipped, 0);
    bench_close(&b);
}
END_TEST

static void check_levels(const struct gpu_grid *grid)
{
    static const char *const levels[] = {"avx512", "avx2", "generic"};
    float first_scale[80];
    uint8_t first_codes[4000];
    struct gpu_residual first_lost;
    for (int i = 0; i < 3; i++) {
        struct gpu_residual lost;
        struct bench b;
        setenv("QUANTD_CPU_LEVEL", levels[i], 1);
        bench_open(&b, 40, 100, grid);
        quantize(&b, NULL);
        ck_assert_rc_ok(b.rig.ops->residual(b.rig.stream, &lost, &b.w, &b.wq, &b.scale, &b.zero, grid));
        if (i == 0) {
            first_lost = lost;
            memcpy(first_scale, b.scale.data, sizeof(first_scale));
            memcpy(first_codes, b.codes.data, sizeof(first_codes));
        }
        ck_assert_int_eq(memcmp(first_scale, b.scale.data, sizeof(first_scale)), 0);
        ck_assert_int_eq(memcmp(first_codes, b.codes.data, sizeof(first_codes)), 0);
        ck_assert_int_eq(memcmp(&first_lost, &lost, sizeof(lost)), 0);
        bench_close(&b);
    }
    unsetenv("QUANTD_CPU_LEVEL");
}

START_TEST(levels_give_the_same_bits)
{
    static const double norms[] = {2, 2.4, 3};
    for (int i = 0; i < 3; i++) {
        check_levels(&(struct gpu_grid){.bits = 4,
                                        .group_size = 50,
                                        .mse = true,
                                        .norm = norms[i],
                                        .max_shrink = 0.8,
                                        .steps = 100,
                                        .scale_dtype = DTYPE_F16});
    }
}
END_TEST

START_TEST(grid_refuses)
{
    struct bench b;
    struct gpu_residual residual;
    bench_open(&b, 2, 32, &(struct gpu_grid){.bits = 4, .group_size = 16, .scale_dtype = DTYPE_F16});
    struct gpu_grid bad[] = {b.grid, b.grid, b.grid, b.grid, b.grid};
    bad[0].bits = 1;
    bad[1].group_size = 0;
    bad[2].group_size = 5;
    bad[3].scale_dtype = DTYPE_U8;
    bad[4].mse = true; /* without steps */
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(b.rig.ops->grid(b.rig.stream, &b.scale, &b.zero, &b.w, NULL, &bad[i]), ERR_INTERNAL);
    }
    ck_assert_int_eq(b.rig.ops->grid(b.rig.stream, &b.scale, &b.zero, &b.w, &b.scale, &b.grid), ERR_INTERNAL);
    ck_assert_int_eq(b.rig.ops->round(b.rig.stream, &b.wq, &b.w, &b.scale, &b.zero, &b.grid), ERR_INTERNAL);
    ck_assert_int_eq(b.rig.ops->dequantize(b.rig.stream, &b.wq, &b.codes, &b.w, &b.zero, &b.grid), ERR_INTERNAL);
    ck_assert_int_eq(b.rig.ops->residual(b.rig.stream, &residual, &b.w, &b.wq, &b.scale, NULL, &b.grid), ERR_INTERNAL);
    ck_assert_int_eq(b.rig.ops->residual(b.rig.stream, &residual, &b.w, &b.wq, &b.scale, &b.zero, NULL), ERR_INTERNAL);
    bench_close(&b);
}
END_TEST

UNIT_MAIN("gpu/grid", grids_are_right, searches_find_the_least, searches_end_no_sooner, rounding_is_idempotent,
          extreme_groups, residual_adds_up, levels_give_the_same_bits, grid_refuses)
