/* clip and hqq against the formulas in double, and what they promise: never worse than min-max. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

#define N 40
#define K 96

struct bench {
    struct rig rig;
    struct gpu_grid grid;
    struct tensor w, h, scale, zero, codes, wq;
};

static void bench_open(struct bench *b, const struct gpu_grid *grid, int threads)
{
    int64_t groups = K / grid->group_size;

    memset(b, 0, sizeof(*b));
    rig_open(&b->rig, threads);
    b->grid = *grid;
    b->w = rig_random(&b->rig, N, K, 31);
    struct tensor x = rig_random(&b->rig, 3 * K, K, 32);
    for (int64_t i = 0; i < 3 * K * K; i++) { /* inputs of different sizes, neighbours alike */
        floats(&x)[i] = floats(&x)[i] * (float)(1 + i % K % 7) + (i % K > 0 ? 0.5f * floats(&x)[i - 1] : 0.0f);
    }
    b->h = rig_tensor(&b->rig, DTYPE_F32, K, K);
    ck_assert_rc_ok(b->rig.ops->gram(b->rig.stream, &b->h, &x));
    ck_assert_rc_ok(b->rig.ops->symmetrize(b->rig.stream, &b->h, 1.0 / (3 * K)));
    gpu_tensor_free(&b->rig.gpu, &x);
    b->scale = rig_tensor(&b->rig, DTYPE_F32, N, groups);
    b->zero = rig_tensor(&b->rig, DTYPE_F32, N, groups);
    b->codes = rig_tensor(&b->rig, DTYPE_U8, N, K);
    b->wq = rig_tensor(&b->rig, DTYPE_F32, N, K);
}

static void bench_close(struct bench *b)
{
    struct tensor *const all[] = {&b->w, &b->h, &b->scale, &b->zero, &b->codes, &b->wq};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&b->rig.gpu, all[i]);
    }
    rig_close(&b->rig);
}

static void min_max(struct bench *b)
{
    struct gpu_grid plain = b->grid;
    plain.mse = false;
    ck_assert_rc_ok(b->rig.ops->grid(b->rig.stream, &b->scale, &b->zero, &b->w, NULL, &plain));
}

/* w of one weight on its grid, by the letter. */
static double on_grid(const struct bench *b, double w, double scale, double zero)
{
    double code = rint((double)(float)((float)w / (float)scale)) + zero, top = (1 << b->grid.bits) - 1;
    code = code < 0 ? 0 : code > top ? top : code;
    return scale * (code - zero);
}

/* d H_gg d^T of one group, or sum |d| when there is no h. */
static double group_loss(const struct bench *b, int64_t row, int64_t group, float scale, float zero, const float *h)
{
    int64_t g = b->grid.group_size;
    double d[K], sum = 0;

    for (int64_t i = 0; i < g; i++) {
        double w = (double)floats(&b->w)[row * K + group * g + i];
        d[i] = w - on_grid(b, w, (double)scale, (double)zero);
    }
    for (int64_t i = 0; i < g; i++) {
        for (int64_t j = 0; h != NULL && j < g; j++) {
            sum += d[i] * (double)h[(group * g + i) * K + group * g + j] * d[j];
        }
        sum += h == NULL ? fabs(d[i]) : 0;
    }
    return sum;
}

/* The least loss over all cuts, each grid made by `grid` from weights that were really cut. */
static void least_losses(struct bench *b, double *least)
{
    int64_t groups = K / b->grid.group_size;
    struct tensor kept = b->w;
    struct gpu_grid plain = b->grid;
    plain.mse = false;

    for (int64_t i = 0; i < N * groups; i++) {
        least[i] = INFINITY;
    }
    for (int c = 0; c < (int)(b->grid.max_shrink * b->grid.steps + 1e-9); c++) {
        float p = (float)(1 - (double)c / b->grid.steps);
        struct tensor cut = rig_tensor(&b->rig, DTYPE_F32, N, K);
        for (int64_t i = 0; i < N * groups; i++) {
            const float *w = floats(&kept) + i * b->grid.group_size;
            float most = 0, *to = floats(&cut) + i * b->grid.group_size;
            for (int64_t k = 0; k < b->grid.group_size; k++) {
                most = fabsf(w[k]) > most ? fabsf(w[k]) : most;
            }
            for (int64_t k = 0; k < b->grid.group_size; k++) {
                to[k] = fminf(fmaxf(w[k], -p * most), p * most);
            }
        }
        ck_assert_rc_ok(b->rig.ops->grid(b->rig.stream, &b->scale, &b->zero, &cut, NULL, &plain));
        for (int64_t i = 0; i < N * groups; i++) {
            double loss =
                group_loss(b, i / groups, i % groups, floats(&b->scale)[i], floats(&b->zero)[i], floats(&b->h));
            least[i] = loss < least[i] ? loss : least[i];
        }
        gpu_tensor_free(&b->rig.gpu, &cut);
    }
}

START_TEST(clip_takes_the_best_cut)
{
    static const int64_t sizes[] = {24, 32, K};
    for (int i = 0; i < 12; i++) {
        const struct gpu_grid grid = {.bits = 2 + i % 2 * 2,
                                      .group_size = sizes[i / 4],
                                      .sym = i / 2 % 2 == 0,
                                      .max_shrink = 0.5,
                                      .steps = 20,
                                      .scale_dtype = i % 2 == 0 ? DTYPE_F16 : DTYPE_BF16};
        struct bench b;
        double least[N * K / 24];
        int64_t groups = K / grid.group_size;
        bench_open(&b, &grid, 2);
        least_losses(&b, least);
        ck_assert_rc_ok(b.rig.ops->clip(b.rig.stream, &b.scale, &b.zero, &b.w, &b.h, &b.grid));
        for (int64_t k = 0; k < N * groups; k++) {
            float scale = floats(&b.scale)[k];
            double loss = group_loss(&b, k / groups, k % groups, scale, floats(&b.zero)[k], floats(&b.h));
            if (loss > least[k] * (1 + 1e-4) || scale != dtype_round(scale, grid.scale_dtype)) {
                ck_abort_msg("group %lld loses %g, the best cut %g", (long long)k, loss, least[k]);
            }
        }
        bench_close(&b);
    }
}
END_TEST

START_TEST(threads_and_empty_groups)
{
    const struct gpu_grid grid = {
        .bits = 3, .group_size = 32, .max_shrink = 0.5, .steps = 20, .scale_dtype = DTYPE_F32};
    float first[2][N * 3];

    for (int threads = 1; threads <= 2; threads++) {
        struct bench b;
        bench_open(&b, &grid, threads);
        memset(floats(&b.w) + 5 * K + 32, 0, 32 * sizeof(float));
        ck_assert_rc_ok(b.rig.ops->clip(b.rig.stream, &b.scale, &b.zero, &b.w, &b.h, &b.grid));
        ck_assert_float_eq(floats(&b.scale)[5 * 3 + 1], 1.0f);
        ck_assert_float_eq(floats(&b.zero)[5 * 3 + 1], 0.0f);
        if (threads == 1) {
            memcpy(first[0], b.scale.data, sizeof(first[0]));
            memcpy(first[1], b.zero.data, sizeof(first[1]));
        } else {
            ck_assert_int_eq(memcmp(first[0], b.scale.data, sizeof(first[0])), 0);
            ck_assert_int_eq(memcmp(first[1], b.zero.data, sizeof(first[1])), 0);
        }
        bench_close(&b);
    }
}
END_TEST

START_TEST(hqq_never_loses_and_mostly_gains)
{
    for (int bits = 2; bits <= 4; bits++) {
        const struct gpu_grid grid = {.bits = bits, .group_size = 32, .scale_dtype = DTYPE_F16};
        struct bench b;
        double before = 0, after = 0;
        bench_open(&b, &grid, 2);
        floats(&b.w)[7] = 4.0f; /* one that is far out */
        memset(floats(&b.w) + K, 0, 32 * sizeof(float));
        min_max(&b);
        double lost[N * 3];
        for (int64_t i = 0; i < N * 3; i++) {
            lost[i] = group_loss(&b, i / 3, i % 3, floats(&b.scale)[i], floats(&b.zero)[i], NULL);
            before += lost[i];
        }
        ck_assert_rc_ok(b.rig.ops->hqq(b.rig.stream, &b.scale, &b.zero, &b.w, &b.grid));
        for (int64_t i = 0; i < N * 3; i++) {
            float scale = floats(&b.scale)[i], zero = floats(&b.zero)[i];
            double loss = group_loss(&b, i / 3, i % 3, scale, zero, NULL);
            after += loss;
            if (loss > lost[i] * (1 + 1e-5) || scale != dtype_round(scale, DTYPE_F16) || zero != rintf(zero) ||
                zero < 0 || zero > (float)((1 << bits) - 1)) {
                ck_abort_msg("group %lld: %g, min-max %g; scale %g, zero %g", (long long)i, loss, lost[i],
                             (double)scale, (double)zero);
            }
        }
        ck_assert_double_lt(after, 0.995 * before);
        bench_close(&b);
    }
}
END_TEST

/* Weights on their grid already: nothing to refine. And a grid without zero points to move is refused. */
START_TEST(hqq_fixed_point)
{
    const struct gpu_grid grid = {.bits = 3, .group_size = 32, .scale_dtype = DTYPE_F32};
    struct bench b;

    bench_open(&b, &grid, 1);
    for (int64_t i = 0; i < N * K; i++) {
        floats(&b.w)[i] = 0.25f * (float)(i % 8 - 3);
    }
    min_max(&b);
    ck_assert_rc_ok(b.rig.ops->hqq(b.rig.stream, &b.scale, &b.zero, &b.w, &b.grid));
    for (int64_t i = 0; i < N * 3; i++) {
        ck_assert_float_eq(floats(&b.scale)[i], 0.25f);
        ck_assert_float_eq(floats(&b.zero)[i], 3.0f);
    }
    b.grid.sym = true;
    ck_assert_int_eq(b.rig.ops->hqq(b.rig.stream, &b.scale, &b.zero, &b.w, &b.grid), ERR_INTERNAL);
    ck_assert_int_eq(b.rig.ops->clip(b.rig.stream, &b.scale, &b.zero, &b.w, &b.h, &b.grid), ERR_INTERNAL); /* steps 0 */
    b.grid.steps = 20;
    ck_assert_int_eq(b.rig.ops->clip(b.rig.stream, &b.scale, &b.zero, &b.w, &b.w, &b.grid), ERR_INTERNAL);
    bench_close(&b);
}
END_TEST

UNIT_MAIN("gpu/clip", clip_takes_the_best_cut, threads_and_empty_groups, hqq_never_loses_and_mostly_gains,
          hqq_fixed_point)
