/* The GPTQ sweep: the paper's loop in double beside it, and the identities that it must keep. */

#include "gpu/shared/grid.h"
#include "tests/unit/gpu/support.h"

#include <stdlib.h>

struct problem {
    struct rig rig;
    int64_t n, k;
    struct gpu_grid grid;
    struct tensor w, h, u, scale, zero, codes, work, wq;
    double damp;
};

static void problem_open(struct problem *p, int threads, int64_t n, int64_t k, int64_t group)
{
    memset(p, 0, sizeof(*p));
    rig_open(&p->rig, threads);
    p->n = n;
    p->k = k;
    p->damp = 0.01;
    p->grid = (struct gpu_grid){.bits = 3, .group_size = group, .sym = false, .scale_dtype = DTYPE_F16};
    p->w = rig_random(&p->rig, n, k, 21);
    struct tensor x = rig_correlated(&p->rig, 2 * k, k, 22);
    p->h = rig_hessian(&p->rig, &x);
    gpu_tensor_free(&p->rig.gpu, &x);
    p->u = rig_tensor(&p->rig, DTYPE_F32, k, k);
    p->scale = rig_tensor(&p->rig, DTYPE_F32, n, k / group);
    p->zero = rig_tensor(&p->rig, DTYPE_F32, n, k / group);
    p->codes = rig_tensor(&p->rig, DTYPE_U8, n, k);
    p->work = rig_tensor(&p->rig, DTYPE_F32, n, k);
    p->wq = rig_tensor(&p->rig, DTYPE_F32, n, k);
    ck_assert_rc_ok(p->rig.ops->grid(p->rig.stream, &p->scale, &p->zero, &p->w, NULL, &p->grid));
}

static void problem_close(struct problem *p)
{
    struct tensor *const all[] = {&p->w, &p->h, &p->u, &p->scale, &p->zero, &p->codes, &p->work, &p->wq};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&p->rig.gpu, all[i]);
    }
    rig_close(&p->rig);
}

static double solve(struct problem *p, const int32_t *order, int64_t block)
{
    double loss = -1;
    memcpy(p->work.data, p->w.data, tensor_bytes(&p->w));
    ck_assert_rc_ok(
        p->rig.ops->factor(p->rig.stream, &p->u, &p->h, &(struct gpu_factor){.damp_percent = p->damp, .order = order}));
    ck_assert_rc_ok(p->rig.ops->sweep(p->rig.stream, &p->codes, &p->work, &p->u, &p->scale, &p->zero, order, block,
                                      &p->grid, &loss));
    return loss;
}

static double output_error(struct problem *p, const struct tensor *codes)
{
    double error, signal;
    ck_assert_rc_ok(p->rig.ops->dequantize(p->rig.stream, &p->wq, codes, &p->scale, &p->zero, &p->grid));
    ck_assert_rc_ok(p->rig.ops->output_error(p->rig.stream, &error, &signal, &p->w, &p->wq, &p->h));
    return error;
}

/* One row by the paper, column by column in double; returns how many codes differ. */
static int64_t reference_row(const struct problem *p, int64_t row, const int32_t *order, double *loss)
{
    double *w = calloc((size_t)p->k, sizeof(double));
    int64_t groups = p->k / p->grid.group_size, differ = 0;
    double top = (1 << p->grid.bits) - 1;

    ck_assert_ptr_nonnull(w);
    for (int64_t i = 0; i < p->k; i++) {
        w[i] = (double)floats(&p->w)[row * p->k + (order != NULL ? order[i] : i)];
    }
    for (int64_t i = 0; i < p->k; i++) {
        int64_t column = order != NULL ? order[i] : i, point = row * groups + column / p->grid.group_size;
        double scale = (double)floats(&p->scale)[point], zero = (double)floats(&p->zero)[point];
        double code = rint(w[i] / scale) + zero;
        code = code < 0 ? 0 : code > top ? top : code;
        double error = (w[i] - scale * (code - zero)) / (double)floats(&p->u)[i * p->k + i];
        *loss += error * error;
        for (int64_t j = i + 1; j < p->k; j++) {
            w[j] -= error * (double)floats(&p->u)[i * p->k + j];
        }
        differ += bytes(&p->codes)[row * p->k + column] != (uint8_t)code;
    }
    free(w);
    return differ;
}

/* Columns by falling diagonal: the order that act-order uses. */
static void descending(const struct tensor *h, int32_t *order)
{
    int64_t n = h->shape[0];
    for (int32_t i = 0; i < n; i++) {
        int64_t at = i;
        for (; at > 0 && floats(h)[order[at - 1] * (n + 1)] < floats(h)[i * (n + 1)]; at--) {
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
}

static void check_reference(int64_t n, int64_t k, int64_t group, int64_t block, bool permuted)
{
    struct problem p;
    double want = 0;
    int64_t differ = 0;
    int32_t *order = calloc((size_t)k, sizeof(*order));
    problem_open(&p, 2, n, k, group);
    descending(&p.h, order);
    double loss = solve(&p, permuted ? order : NULL, block);
    for (int64_t row = 0; row < n; row++) {
        differ += reference_row(&p, row, permuted ? order : NULL, &want);
    }
    /* a code on the edge between two values may fall to either side in single precision, and its row goes on from there
     */
    ck_assert_int_le(differ, n * k / 100);
    ck_assert_near(loss, want, 0.003 * want);
    free(order);
    problem_close(&p);
}

START_TEST(sweep_follows_the_paper)
{
    check_reference(1, 16, 16, 128, false);
    check_reference(17, 96, 32, 128, false);
    check_reference(40, 300, 100, 128, true);
    check_reference(270, 260, 26, 64, true);
    check_reference(16, 130, 130, 1, false);
    check_reference(4100, 24, 8, 16, true); /* tall tiles */
}
END_TEST

START_TEST(toy_by_hand)
{
    struct problem p;
    problem_open(&p, 1, 1, 2, 2);
    p.grid.bits = 4;
    p.damp = 0;
    memcpy(p.h.data, (const float[]){2, 1, 1, 2}, 16);
    memcpy(p.w.data, (const float[]){0.4f, 0.4f}, 8);
    floats(&p.scale)[0] = 1;
    floats(&p.zero)[0] = 8;
    ck_assert_near(solve(&p, NULL, 128), 0.56, 1e-6);
    ck_assert_uint_eq(bytes(&p.codes)[0], 8);
    ck_assert_uint_eq(bytes(&p.codes)[1], 9);
    problem_close(&p);
}
END_TEST

START_TEST(diagonal_hessian_is_plain_rounding)
{
    struct problem p;
    uint64_t seed = 5;
    problem_open(&p, 2, 50, 300, 50);
    memset(p.h.data, 0, tensor_bytes(&p.h));
    for (int64_t i = 0; i < 300; i++) {
        floats(&p.h)[i * 301] = 0.1f + fabsf(random_unit(&seed));
    }
    floats(&p.h)[7 * 301] = 0; /* dead */
    solve(&p, NULL, 128);
    struct tensor rtn = rig_tensor(&p.rig, DTYPE_U8, 50, 300);
    ck_assert_rc_ok(p.rig.ops->round(p.rig.stream, &rtn, &p.w, &p.scale, &p.zero, &p.grid));
    ck_assert_int_eq(memcmp(rtn.data, p.codes.data, tensor_bytes(&rtn)), 0);
    gpu_tensor_free(&p.rig.gpu, &rtn);
    problem_close(&p);
}
END_TEST

START_TEST(loss_is_the_damped_output_error_and_beats_rounding)
{
    struct problem p;
    double mean = 0;
    problem_open(&p, 2, 64, 320, 64);
    double loss = solve(&p, NULL, 128), gptq = output_error(&p, &p.codes);
    int32_t order[320];
    struct tensor rtn = rig_tensor(&p.rig, DTYPE_U8, 64, 320);
    ck_assert_rc_ok(p.rig.ops->round(p.rig.stream, &rtn, &p.w, &p.scale, &p.zero, &p.grid));
    double plain = output_error(&p, &rtn);
    ck_assert_msg(gptq < 0.7 * plain, "GPTQ %g, rounding %g", gptq, plain);
    descending(&p.h, order);
    solve(&p, order, 128);
    ck_assert_double_lt(output_error(&p, &p.codes), 0.7 * plain);

    loss = solve(&p, NULL, 128);
    for (int64_t i = 0; i < 320; i++) {
        mean += (double)floats(&p.h)[i * 321] / 320;
    }
    for (int64_t i = 0; i < 320; i++) {
        floats(&p.h)[i * 321] += (float)(p.damp * mean);
    }
    double damped = output_error(&p, &p.codes);
    ck_assert_near(loss, damped, 1e-3 * damped);
    gpu_tensor_free(&p.rig.gpu, &rtn);
    problem_close(&p);
}
END_TEST

START_TEST(block_size_hardly_matters)
{
    struct problem p;
    problem_open(&p, 2, 40, 256, 64);
    double loss = solve(&p, NULL, 128);
    for (int64_t block = 1; block <= 256; block *= 16) {
        ck_assert_near(solve(&p, NULL, block), loss, 0.01 * loss);
    }
    problem_close(&p);
}
END_TEST

/* order = permuting the problem by hand, running it plainly, and permuting back. */
START_TEST(order_is_a_permutation_of_the_problem)
{
    struct problem p, q;
    int32_t order[192];
    problem_open(&p, 2, 20, 192, 192);
    problem_open(&q, 2, 20, 192, 192);
    descending(&p.h, order);
    for (int64_t i = 0; i < 192; i++) {
        for (int64_t j = 0; j < 192; j++) {
            floats(&q.h)[i * 192 + j] = floats(&p.h)[order[i] * 192 + order[j]];
        }
        for (int64_t r = 0; r < 20; r++) {
            floats(&q.w)[r * 192 + i] = floats(&p.w)[r * 192 + order[i]];
        }
    }
    /* the mean of the diagonal is summed in another order: leave rounding of the damping out of it */
    p.damp = q.damp = 0;
    double a = solve(&p, order, 128), b = solve(&q, NULL, 128);
    ck_assert_double_eq(a, b);
    for (int64_t i = 0; i < 20 * 192; i++) {
        ck_assert_uint_eq(bytes(&q.codes)[i], bytes(&p.codes)[i / 192 * 192 + order[i % 192]]);
    }
    problem_close(&p);
    problem_close(&q);
}
END_TEST

START_TEST(threads_and_levels_give_the_same_bits)
{
    static const char *const levels[] = {"avx512", "avx2", "generic"};
    uint8_t *first = NULL;
    double first_loss = 0;
    for (int i = 0; i < 9; i++) {
        struct problem p;
        setenv("QUANTD_CPU_LEVEL", levels[i / 3], 1);
        problem_open(&p, i % 3 + 1, 600, 256, 32);
        p.grid.mse = true;
        p.grid.norm = 2.4;
        p.grid.max_shrink = 0.8;
        p.grid.steps = 20;
        ck_assert_rc_ok(p.rig.ops->grid(p.rig.stream, &p.scale, &p.zero, &p.w, NULL, &p.grid));
        double loss = solve(&p, NULL, 128);
        if (first == NULL) {
            first = malloc(tensor_bytes(&p.codes));
            memcpy(first, p.codes.data, tensor_bytes(&p.codes));
            first_loss = loss;
        }
        ck_assert_double_eq(loss, first_loss);
        ck_assert_int_eq(memcmp(first, p.codes.data, tensor_bytes(&p.codes)), 0);
        problem_close(&p);
    }
    unsetenv("QUANTD_CPU_LEVEL");
    free(first);
}
END_TEST

START_TEST(sweep_refuses)
{
    struct problem p;
    double loss = 5;
    int32_t twice[16] = {0};
    problem_open(&p, 1, 4, 16, 8);
    const struct gpu_ops *ops = p.rig.ops;
    struct gpu_stream *s = p.rig.stream;

    ck_assert_int_eq(ops->sweep(s, &p.codes, &p.w, &p.u, &p.scale, &p.zero, twice, 128, &p.grid, &loss), ERR_INTERNAL);
    ck_assert_int_eq(ops->sweep(s, &p.codes, &p.w, &p.u, &p.scale, &p.zero, NULL, 0, &p.grid, &loss), ERR_INTERNAL);
    ck_assert_int_eq(ops->sweep(s, &p.codes, &p.w, &p.w, &p.scale, &p.zero, NULL, 128, &p.grid, &loss), ERR_INTERNAL);
    p.grid.group_size = 7;
    ck_assert_int_eq(ops->sweep(s, &p.codes, &p.w, &p.u, &p.scale, &p.zero, NULL, 128, &p.grid, &loss), ERR_INTERNAL);
    p.grid.group_size = 8;
    p.grid.bits = 9;
    ck_assert_int_eq(ops->sweep(s, &p.codes, &p.w, &p.u, &p.scale, &p.zero, NULL, 128, &p.grid, &loss), ERR_INTERNAL);
    ck_assert_double_eq(loss, 5);
    problem_close(&p);
}
END_TEST

/* Over the levels of a symmetric integer grid it is the sweep of that grid; over NF4's it loses less than rounding. */
START_TEST(levels_are_swept)
{
    struct problem p;
    float values[16];
    double loss = -1, signal, swept, rounded;
    problem_open(&p, 2, 19, 256, 64);
    p.grid = (struct gpu_grid){.bits = 4, .group_size = 64, .sym = true, .scale_dtype = DTYPE_F32};
    ck_assert_rc_ok(p.rig.ops->grid(p.rig.stream, &p.scale, &p.zero, &p.w, NULL, &p.grid));
    double wanted = solve(&p, NULL, 128);
    struct tensor codes = rig_tensor(&p.rig, DTYPE_U8, p.n, p.k);
    const struct gpu_levels levels = {values, 16, 64};
    for (int i = 0; i < 16; i++) {
        values[i] = (float)(i - 8);
    }
    memcpy(p.work.data, p.w.data, tensor_bytes(&p.w));
    ck_assert_rc_ok(p.rig.ops->sweep_levels(p.rig.stream, &codes, &p.work, &p.u, &p.scale, NULL, 128, &levels, &loss));
    ck_assert_int_eq(memcmp(codes.data, p.codes.data, tensor_bytes(&codes)), 0);
    ck_assert_near(loss / wanted, 1, 1e-9);

    const struct gpu_tiles tiles = {DTYPE_NF4, 1, 64};
    memcpy(values, dtype_nf4_levels, sizeof(values));
    ck_assert_rc_ok(p.rig.ops->tile_range(p.rig.stream, &p.scale, &p.w, &tiles));
    ck_assert_rc_ok(p.rig.ops->tile_encode(p.rig.stream, &codes, &p.w, &p.scale, &tiles));
    ck_assert_rc_ok(p.rig.ops->tile_decode(p.rig.stream, &p.wq, &codes, &p.scale, &tiles));
    ck_assert_rc_ok(p.rig.ops->output_error(p.rig.stream, &rounded, &signal, &p.w, &p.wq, &p.h));
    memcpy(p.work.data, p.w.data, tensor_bytes(&p.w));
    ck_assert_rc_ok(p.rig.ops->sweep_levels(p.rig.stream, &codes, &p.work, &p.u, &p.scale, NULL, 128, &levels, &loss));
    ck_assert_rc_ok(p.rig.ops->tile_decode(p.rig.stream, &p.wq, &codes, &p.scale, &tiles));
    ck_assert_rc_ok(p.rig.ops->output_error(p.rig.stream, &swept, &signal, &p.w, &p.wq, &p.h));
    ck_assert_double_lt(swept, 0.7 * rounded);

    const struct gpu_levels none = {values, 0, 64}, odd = {values, 16, 48};
    ck_assert_int_eq(p.rig.ops->sweep_levels(p.rig.stream, &codes, &p.work, &p.u, &p.scale, NULL, 128, &none, &loss),
                     ERR_INTERNAL);
    ck_assert_int_eq(p.rig.ops->sweep_levels(p.rig.stream, &codes, &p.work, &p.u, &p.scale, NULL, 128, &odd, &loss),
                     ERR_INTERNAL);
    ck_assert_int_eq(p.rig.ops->sweep_levels(p.rig.stream, &codes, &p.work, &p.u, &p.scale, NULL, 0, &levels, &loss),
                     ERR_INTERNAL);
    ck_assert_int_eq(grid_nearest(0.5f, (const float[]){1, 0}, 2), 1); /* the lower of two at one distance */
    ck_assert_int_eq(grid_nearest(9, (const float[]){NAN, -3, 2}, 3), 2);
    gpu_tensor_free(&p.rig.gpu, &codes);
    problem_close(&p);
}
END_TEST

UNIT_MAIN("gpu/sweep", levels_are_swept, sweep_follows_the_paper, toy_by_hand, diagonal_hessian_is_plain_rounding,
          loss_is_the_damped_output_error_and_beats_rounding, block_size_hardly_matters,
          order_is_a_permutation_of_the_problem, threads_and_levels_give_the_same_bits, sweep_refuses)
