/* Weights on a grid and on levels as functions of what is trained, and the steps that train it, against plain formulas
 * in double. */

#include "tests/unit/gpu/grad.h"

#define ROWS 9
#define GROUPS 3

struct fake_rig {
    struct rig rig;
    struct tensor u, scale, zero, dwq, wq, codes, du, dscale, dzero;
    int64_t group;
};

static void fake_open(struct fake_rig *f, int threads, int64_t group, float spread)
{
    rig_open(&f->rig, threads);
    f->group = group;
    f->u = rig_random(&f->rig, ROWS, GROUPS * group, 1);
    f->scale = rig_random(&f->rig, ROWS, GROUPS, 2); /* of either sign */
    f->zero = rig_random(&f->rig, ROWS, GROUPS, 3);
    f->dwq = rig_random(&f->rig, ROWS, GROUPS * group, 4);
    f->wq = rig_tensor(&f->rig, DTYPE_F32, ROWS, GROUPS * group);
    f->du = rig_tensor(&f->rig, DTYPE_F32, ROWS, GROUPS * group);
    f->codes = rig_tensor(&f->rig, DTYPE_U8, ROWS, GROUPS * group);
    f->dscale = rig_tensor(&f->rig, DTYPE_F32, ROWS, GROUPS);
    f->dzero = rig_tensor(&f->rig, DTYPE_F32, ROWS, GROUPS);
    for (int64_t i = 0; i < tensor_count(&f->u); i++) {
        floats(&f->u)[i] *= spread;
    }
}

static void fake_close(struct fake_rig *f)
{
    struct tensor *all[] = {&f->u, &f->scale, &f->zero, &f->dwq, &f->wq, &f->codes, &f->du, &f->dscale, &f->dzero};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&f->rig.gpu, all[i]);
    }
    rig_close(&f->rig);
}

/* Halves to even, and halves at the ends of the grid's range. */
static void fake_edges(struct fake_rig *f, float top)
{
    const float at[] = {0.5f, 1.5f, -0.5f, -1.5f, 2.5f, top + 0.5f, top - 0.5f, -top - 0.5f, 1e30f, -1e30f};

    for (int64_t i = 0; i < 10 && i < f->group; i++) {
        floats(&f->u)[i] = at[i];
    }
}

static void check_fake_round(int bits, int64_t group, float spread)
{
    const struct gpu_grid grid = {.bits = bits, .group_size = group};
    double top = (double)((1 << bits) - 1);
    struct fake_rig f;

    fake_open(&f, 2, group, spread);
    fake_edges(&f, (float)top);
    for (int i = 0; i < ROWS * GROUPS; i++) { /* not integers, and some outside the range */
        floats(&f.zero)[i] = (float)top * (0.5f + floats(&f.zero)[i]);
    }
    floats(&f.zero)[0] = (float)(1 << (bits - 1));
    ck_assert_rc_ok(f.rig.ops->fake_round(f.rig.stream, &f.wq, &f.codes, &f.u, &f.scale, &f.zero, &grid));
    ck_assert_rc_ok(
        f.rig.ops->fake_round_grad(f.rig.stream, &f.du, &f.dscale, &f.dzero, &f.dwq, &f.u, &f.scale, &f.zero, &grid));
    int cut = 0;
    for (int p = 0; p < ROWS * GROUPS; p++) {
        double scale = (double)floats(&f.scale)[p], zero = fmin(fmax(rint((double)floats(&f.zero)[p]), 0), top);
        double dscale = 0, dzero = 0, energy = 0;
        for (int64_t i = p * group; i < (p + 1) * group; i++) {
            double free_code = rint((double)floats(&f.u)[i]) + zero, code = fmin(fmax(free_code, 0), top);
            double d = (double)floats(&f.dwq)[i];
            ck_assert_int_eq(bytes(&f.codes)[i], (int)code);
            ck_assert_float_eq(floats(&f.wq)[i], (float)scale * (float)(code - zero));
            ck_assert_float_eq(floats(&f.du)[i], code == free_code ? (float)scale * (float)d : 0.0f);
            dscale += d * (code - zero);
            dzero += code == free_code ? 0 : -scale * d;
            energy += fabs(d * (code - zero));
            cut += code != free_code;
        }
        ck_assert_near(floats(&f.dscale)[p], dscale, 1e-6 * (energy + 1e-3));
        ck_assert_near(floats(&f.dzero)[p], dzero, 1e-6 * (fabs(scale) * (double)group));
    }
    ck_assert(cut > 0);
    ck_assert(cut < ROWS * GROUPS * group);
    fake_close(&f);
}

START_TEST(rounding_is_right)
{
    check_fake_round(2, 16, 1);
    check_fake_round(3, 24, 2);
    check_fake_round(4, 128, 5);
    check_fake_round(8, 37, 90);
    check_fake_round(4, 300, 5);
}
END_TEST

/* With u = w / scale and an integral zero: the codes and weights of `round` and `dequantize`. */
START_TEST(rounding_is_that_of_grids)
{
    const struct gpu_grid grid = {.bits = 4, .group_size = 32, .scale_dtype = DTYPE_F32};
    struct fake_rig f;

    fake_open(&f, 1, 32, 1);
    const struct gpu_ops *ops = f.rig.ops;
    struct tensor w = rig_random(&f.rig, ROWS, 96, 9), codes = rig_tensor(&f.rig, DTYPE_U8, ROWS, 96);
    ck_assert_rc_ok(ops->grid(f.rig.stream, &f.scale, &f.zero, &w, NULL, &grid));
    for (int i = 0; i < ROWS * 96; i++) {
        floats(&f.u)[i] = floats(&w)[i] / floats(&f.scale)[i / 32];
    }
    ck_assert_rc_ok(ops->round(f.rig.stream, &codes, &w, &f.scale, &f.zero, &grid));
    ck_assert_rc_ok(ops->dequantize(f.rig.stream, &w, &codes, &f.scale, &f.zero, &grid));
    ck_assert_rc_ok(ops->fake_round(f.rig.stream, &f.wq, NULL, &f.u, &f.scale, &f.zero, &grid));
    ck_assert_rc_ok(ops->fake_round(f.rig.stream, NULL, &f.codes, &f.u, &f.scale, &f.zero, &grid));
    ck_assert_mem_eq(f.codes.data, codes.data, tensor_bytes(&codes));
    ck_assert_mem_eq(f.wq.data, w.data, tensor_bytes(&w));
    gpu_tensor_free(&f.rig.gpu, &w);
    gpu_tensor_free(&f.rig.gpu, &codes);
    fake_close(&f);
}
END_TEST

/* Gradients are added to, and each output alone is the same. */
START_TEST(gradients_of_rounding_add)
{
    const struct gpu_grid grid = {.bits = 3, .group_size = 20};
    struct fake_rig f;

    fake_open(&f, 3, 20, 2);
    const struct gpu_ops *ops = f.rig.ops;
    struct tensor du = rig_tensor(&f.rig, DTYPE_F32, ROWS, 60), ds = rig_tensor(&f.rig, DTYPE_F32, ROWS, GROUPS);
    struct tensor dz = rig_tensor(&f.rig, DTYPE_F32, ROWS, GROUPS);
    ck_assert_rc_ok(ops->fake_round_grad(f.rig.stream, &du, &ds, &dz, &f.dwq, &f.u, &f.scale, &f.zero, &grid));
    for (int i = 0; i < 2; i++) {
        ck_assert_rc_ok(ops->fake_round_grad(f.rig.stream, &f.du, NULL, NULL, &f.dwq, &f.u, &f.scale, &f.zero, &grid));
        ck_assert_rc_ok(
            ops->fake_round_grad(f.rig.stream, NULL, &f.dscale, NULL, &f.dwq, &f.u, &f.scale, &f.zero, &grid));
        ck_assert_rc_ok(
            ops->fake_round_grad(f.rig.stream, NULL, NULL, &f.dzero, &f.dwq, &f.u, &f.scale, &f.zero, &grid));
    }
    for (int i = 0; i < ROWS * 60; i++) {
        ck_assert_float_eq(floats(&f.du)[i], 2 * floats(&du)[i]);
    }
    for (int i = 0; i < ROWS * GROUPS; i++) {
        ck_assert_near(floats(&f.dscale)[i], 2 * floats(&ds)[i], 1e-6 * fabs((double)floats(&ds)[i]));
        ck_assert_near(floats(&f.dzero)[i], 2 * floats(&dz)[i], 1e-6 * fabs((double)floats(&dz)[i]));
    }
    gpu_tensor_free(&f.rig.gpu, &du);
    gpu_tensor_free(&f.rig.gpu, &ds);
    gpu_tensor_free(&f.rig.gpu, &dz);
    fake_close(&f);
}
END_TEST

static int nearest_of(double u, const float *values, int count)
{
    double min = INFINITY;
    int found = 0;

    for (int i = 0; i < count; i++) {
        double distance = fabs(u - (double)values[i]);
        if (isfinite(values[i]) && (distance < min || (distance == min && values[i] < values[found]))) {
            min = distance;
            found = i;
        }
    }
    return found;
}

static void check_fake_levels(const float *values, int count, int64_t group, float spread)
{
    const struct gpu_levels levels = {.values = values, .count = count, .group_size = group};
    double low = INFINITY, high = -INFINITY;
    struct fake_rig f;

    fake_open(&f, 2, group, spread);
    for (int i = 0; i < count; i++) {
        low = isfinite(values[i]) ? fmin(low, (double)values[i]) : low;
        high = isfinite(values[i]) ? fmax(high, (double)values[i]) : high;
    }
    floats(&f.u)[0] = (float)low; /* the ends are inside */
    floats(&f.u)[1] = (float)high;
    floats(&f.u)[2] = 1e30f;
    floats(&f.u)[3] = -1e30f;
    ck_assert_rc_ok(f.rig.ops->fake_levels(f.rig.stream, &f.wq, NULL, &f.u, &f.scale, &levels));
    ck_assert_rc_ok(f.rig.ops->fake_levels(f.rig.stream, NULL, &f.codes, &f.u, &f.scale, &levels));
    ck_assert_rc_ok(f.rig.ops->fake_levels_grad(f.rig.stream, &f.du, &f.dscale, &f.dwq, &f.u, &f.scale, &levels));
    for (int p = 0; p < ROWS * GROUPS; p++) {
        double scale = (double)floats(&f.scale)[p], dscale = 0, energy = 0;
        for (int64_t i = p * group; i < (p + 1) * group; i++) {
            double u = (double)floats(&f.u)[i], d = (double)floats(&f.dwq)[i];
            int code = nearest_of(fmin(fmax(u, low), high), values, count);
            ck_assert_int_eq(bytes(&f.codes)[i], code);
            ck_assert_float_eq(floats(&f.wq)[i], (float)scale * values[code]);
            ck_assert_float_eq(floats(&f.du)[i], u >= low && u <= high ? (float)scale * (float)d : 0.0f);
            dscale += d * (double)values[code];
            energy += fabs(d * (double)values[code]);
        }
        ck_assert_near(floats(&f.dscale)[p], dscale, 1e-6 * (energy + 1e-3));
    }
    fake_close(&f);
}

START_TEST(levels_are_right)
{
    static const float signs[] = {1, -1};
    float e2m1[16], many[256];

    for (int i = 0; i < 16; i++) { /* with a negative zero, which stands for nothing */
        e2m1[i] = dtype_decode(DTYPE_F4_E2M1, (uint8_t)i);
    }
    for (int i = 0; i < 256; i++) { /* with NaN */
        many[i] = dtype_decode(DTYPE_F8_E4M3, (uint8_t)i);
    }
    check_fake_levels(e2m1, 16, 16, 3);
    check_fake_levels(e2m1, 16, 37, 3);
    check_fake_levels(dtype_nf4_levels, 16, 600, 0.7f);
    check_fake_levels(many, 256, 32, 200);
    check_fake_levels(signs, 2, 8, 1);
    check_fake_levels(signs, 1, 8, 1);
}
END_TEST

/* Of two at one distance the lower; the same level and code with and without vectors. */
START_TEST(levels_at_one_distance)
{
    static const float values[] = {3, -1, 1, -1, 2};
    const struct gpu_levels levels = {.values = values, .count = 5, .group_size = 4};
    static const float u[] = {0, 1.5f, 2.5f, -7};
    static const uint8_t want[] = {1, 2, 4, 1};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 1, 4), scale = rig_tensor(&rig, DTYPE_F32, 1, 1);
    struct tensor wq = rig_tensor(&rig, DTYPE_F32, 1, 4), codes = rig_tensor(&rig, DTYPE_U8, 1, 4);

    memcpy(x.data, u, sizeof(u));
    floats(&scale)[0] = 2;
    ck_assert_rc_ok(rig.ops->fake_levels(rig.stream, NULL, &codes, &x, &scale, &levels));
    ck_assert_rc_ok(rig.ops->fake_levels(rig.stream, &wq, NULL, &x, &scale, &levels));
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(bytes(&codes)[i], want[i]);
        ck_assert_float_eq(floats(&wq)[i], 2 * values[want[i]]);
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &scale);
    gpu_tensor_free(&rig.gpu, &wq);
    gpu_tensor_free(&rig.gpu, &codes);
    rig_close(&rig);
}
END_TEST

START_TEST(sign_steps_are_right)
{
    for (int centered = 0; centered < 2; centered++) {
        struct rig rig;
        rig_open(&rig, 2);
        struct tensor p = rig_random(&rig, 7, 33, 1), was = rig_random(&rig, 7, 33, 1), g = rig_random(&rig, 7, 33, 2);
        struct tensor center = rig_random(&rig, 7, 33, 3);
        floats(&g)[5] = 0;
        floats(&g)[6] = -0.0f;
        ck_assert_rc_ok(
            rig.ops->sign_step(rig.stream, &p, &g, centered ? &center : NULL, 0.125, -0.5, centered ? 0.75 : INFINITY));
        for (int i = 0; i < 7 * 33; i++) {
            float at = floats(&was)[i], d = floats(&g)[i], c = centered ? floats(&center)[i] : 0;
            at -= d > 0 ? 0.125f : d < 0 ? -0.125f : 0.0f;
            ck_assert_float_eq(floats(&p)[i], fminf(fmaxf(at, c - 0.5f), centered ? c + 0.75f : INFINITY));
        }
        gpu_tensor_free(&rig.gpu, &p);
        gpu_tensor_free(&rig.gpu, &was);
        gpu_tensor_free(&rig.gpu, &g);
        gpu_tensor_free(&rig.gpu, &center);
        rig_close(&rig);
    }
}
END_TEST

/* Twenty steps against the formulas in double. */
START_TEST(adamw_is_right)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor p = rig_random(&rig, 3, 37, 1), g = rig_tensor(&rig, DTYPE_F32, 3, 37);
    struct tensor m = rig_tensor(&rig, DTYPE_F32, 3, 37), v = rig_tensor(&rig, DTYPE_F32, 3, 37);
    double want[111], first[111] = {0}, second[111] = {0};

    for (int i = 0; i < 111; i++) {
        want[i] = (double)floats(&p)[i];
    }
    for (int step = 1; step <= 20; step++) {
        const struct gpu_adamw spec = {
            .lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .factor = 0.5, .step = step};
        uint64_t seed = (uint64_t)step;
        for (int i = 0; i < 111; i++) {
            floats(&g)[i] = i == 0 ? 0 : random_normal(&seed);
            double d = 0.5 * (double)floats(&g)[i];
            want[i] -= spec.lr * spec.decay * want[i];
            first[i] = spec.beta1 * first[i] + (1 - spec.beta1) * d;
            second[i] = spec.beta2 * second[i] + (1 - spec.beta2) * d * d;
            want[i] -= spec.lr * first[i] / (1 - pow(spec.beta1, step)) /
                       (sqrt(second[i] / (1 - pow(spec.beta2, step))) + spec.eps);
        }
        ck_assert_rc_ok(rig.ops->adamw(rig.stream, &p, &m, &v, &g, &spec));
        for (int i = 0; i < 111; i++) {
            ck_assert_near(floats(&p)[i], want[i], 2e-6);
        }
    }
    gpu_tensor_free(&rig.gpu, &p);
    gpu_tensor_free(&rig.gpu, &g);
    gpu_tensor_free(&rig.gpu, &m);
    gpu_tensor_free(&rig.gpu, &v);
    rig_close(&rig);
}
END_TEST

START_TEST(fake_arguments_are_checked)
{
    const struct gpu_grid grid = {.bits = 4, .group_size = 16}, odd = {.bits = 4, .group_size = 7};
    static const float nothing[] = {NAN, INFINITY}, one[] = {1};
    const struct gpu_levels none = {.values = nothing, .count = 2, .group_size = 16};
    const struct gpu_levels uneven = {.values = one, .count = 1, .group_size = 7};
    const struct gpu_adamw bad = {.lr = 1, .beta1 = 1, .beta2 = 0.9, .eps = 1e-8, .factor = 1, .step = 1};
    const struct gpu_adamw early = {.lr = 1, .beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8, .factor = 1};
    struct fake_rig f;

    fake_open(&f, 1, 16, 1);
    const struct gpu_ops *ops = f.rig.ops;
    struct gpu_stream *stream = f.rig.stream;
    ck_assert_refused(ops->fake_round(stream, &f.wq, NULL, &f.u, &f.scale, &f.zero, &odd), "groups of 7");
    ck_assert_refused(ops->fake_round(stream, &f.u, NULL, &f.u, &f.scale, &f.zero, &grid), "wq and u share memory");
    ck_assert_refused(ops->fake_round(stream, &f.scale, NULL, &f.u, &f.scale, &f.zero, &grid), "fake_round: wq");
    ck_assert_refused(ops->fake_round_grad(stream, &f.du, &f.du, NULL, &f.dwq, &f.u, &f.scale, &f.zero, &grid),
                      "dscale");
    ck_assert_refused(ops->fake_levels(stream, &f.wq, NULL, &f.u, &f.scale, &none), "none of 2 levels is finite");
    ck_assert_refused(ops->fake_levels_grad(stream, &f.du, NULL, &f.dwq, &f.u, &f.scale, &uneven), "groups of 7");
    ck_assert_refused(ops->sign_step(stream, &f.u, &f.dwq, NULL, 1, 1, -1), "within [1, -1]");
    ck_assert_refused(ops->sign_step(stream, &f.u, &f.scale, NULL, 1, -1, 1), "sign_step: g");
    ck_assert_refused(ops->adamw(stream, &f.u, &f.du, &f.wq, &f.dwq, &bad), "beta 1");
    ck_assert_refused(ops->adamw(stream, &f.u, &f.du, &f.wq, &f.dwq, &early), "step 0");
    ck_assert_refused(ops->adamw(stream, &f.u, &f.du, &f.du, &f.dwq, &(struct gpu_adamw){.factor = 1, .step = 1}),
                      "m and v share memory");
    fake_close(&f);
}
END_TEST

UNIT_MAIN("gpu/grad_round", rounding_is_right, rounding_is_that_of_grids, gradients_of_rounding_add, levels_are_right,
          levels_at_one_distance, sign_steps_are_right, adamw_is_right, fake_arguments_are_checked)
