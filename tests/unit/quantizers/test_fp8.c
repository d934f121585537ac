/* FP8: scales, codes and the identities of floating point grids. */

#include "tests/unit/quantizers/support.h"

#include <math.h>

#define N 130
#define K 256

static struct linear_job solved(struct rig *rig, const char *text, enum dtype dtype, const struct tensor *w)
{
    return solve_one(rig, "fp8", text, dtype, NULL, w);
}

/* A normal number is off by at most half of its last bit; below the smallest normal, by half of the smallest step. */
START_TEST(errors_are_bounded)
{
    static const char *const texts[] = {"{\"granularity\":\"per_tensor\"}", "{\"granularity\":\"per_channel\"}",
                                        "{\"granularity\":\"block\"}",
                                        "{\"fmt\":\"e5m2\",\"activation_scheme\":\"none\"}"};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, N, K, 5);

    for (int t = 0; t < 4; t++) {
        struct linear_job job = solved(&rig, texts[t], DTYPE_F32, &w);
        const struct qtensor *q = &job.result;
        float *wq = dequantized(q);
        double relative = t == 3 ? 0x1p-3 : 0x1p-4, smallest = t == 3 ? 0x1p-17 : 0x1p-10;
        int64_t wrong = 0;
        for (int64_t i = 0; i < N * K; i++) {
            double x = (double)floats(&w)[i], error = fabs(x - (double)wq[i]);
            double scale = (double)q->scales[i / K / q->scheme.group_rows * q->groups + i % K / q->scheme.group_size];
            wrong += error > fmax(relative * fabs(x), smallest * scale) * 1.000001;
        }
        ck_assert_int_eq(wrong, 0);
        ck_assert_int_eq(q->row_groups * q->groups, t == 0 ? 1 : t == 2 ? 4 : N);
        free(wq);
        qtensor_deinit(&job.result);
    }
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* The largest magnitude lands on 448, and what was quantized stays as it is. */
START_TEST(fixed_points)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, K, 6);

    struct linear_job first = solved(&rig, "{}", DTYPE_BF16, &w);
    float *wq = dequantized(&first.result);
    memcpy(w.data, wq, tensor_bytes(&w));
    struct linear_job second = solved(&rig, "{}", DTYPE_BF16, &w);
    float *again = dequantized(&second.result);
    ck_assert_int_eq(memcmp(wq, again, tensor_bytes(&w)), 0);
    for (int n = 0; n < 4; n++) {
        int max = 0;
        for (int k = 0; k < K; k++) {
            int magnitude = first.result.codes[n * K + k] & 0x7f;
            max = magnitude > max ? magnitude : max;
        }
        ck_assert_int_eq(max, 0x7e); /* 448 */
    }
    free(wq);
    free(again);
    qtensor_deinit(&first.result);
    qtensor_deinit(&second.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* Linears of one call share a per-tensor scale, as their runtime will use it; channels keep their own. */
START_TEST(fused_linears_share_a_scale)
{
    const struct quantizer *method = quantizer_find("fp8");
    struct rig rig;
    rig_open(&rig, 1);
    struct solve_context context = context_of(&rig, DTYPE_BF16);
    struct tensor a = rig_random(&rig, 8, K, 1), b = rig_random(&rig, 4, K, 2);
    floats(&b)[17] = 30;

    for (int per_tensor = 0; per_tensor < 2; per_tensor++) {
        void *params = params_new(method, per_tensor ? "{\"granularity\":\"per_tensor\"}" : "{}");
        struct linear_job jobs[2] = {job_of(&a, params), job_of(&b, params)};
        ck_assert_rc_ok(method->solve(&context, NULL, jobs, 2));
        if (per_tensor) {
            ck_assert(jobs[0].result.scales[0] == jobs[1].result.scales[0]);
            ck_assert(jobs[0].result.scales[0] == dtype_round(30.0f / 448, DTYPE_BF16));
        } else {
            ck_assert(jobs[0].result.scales[0] < jobs[1].result.scales[0]);
        }
        qtensor_deinit(&jobs[0].result);
        qtensor_deinit(&jobs[1].result);
        params_free(method, params);
    }
    gpu_tensor_free(&rig.gpu, &a);
    gpu_tensor_free(&rig.gpu, &b);
    rig_close(&rig);
}
END_TEST

START_TEST(contradictions_are_refused)
{
    const struct quantizer *method = quantizer_find("fp8");
    static const char *const texts[] = {"{\"fmt\":\"e5m2\"}",
                                        "{\"granularity\":\"block\",\"activation_scheme\":\"static\"}"};
    struct qscheme scheme;

    for (int i = 0; i < 2; i++) {
        struct validation_errors errors = {0};
        void *params = params_new(method, texts[i]);
        method->check(params, "/quantization", &errors);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, "/quantization/activation_scheme");
        params_free(method, params);
    }
    void *block = params_new(method, "{\"granularity\":\"block\"}");
    ck_assert_rc_ok(method->scheme(block, 200, 256, &scheme));
    ck_assert_int_eq(scheme.input.group_size, 128);
    params_free(method, block);
}
END_TEST

/* Blocks at the right and lower edge are what is left of the weight, each with a scale of its own. */
START_TEST(blocks_need_not_tile)
{
    static const int64_t shapes[][2] = {{200, 320}, {64, 128}, {130, 50}};

    for (int s = 0; s < 3; s++) {
        int64_t rows = shapes[s][0], cols = shapes[s][1], down = (rows + 127) / 128, across = (cols + 127) / 128;
        struct rig rig;
        rig_open(&rig, 2);
        struct tensor w = rig_random(&rig, rows, cols, 3);
        for (int64_t i = 0; i < rows * cols; i++) { /* blocks of very different size */
            floats(&w)[i] *= (i % cols < 128 ? 1.0f : 100.0f) * (i / cols < 128 ? 1.0f : 0.01f);
        }
        struct linear_job job = solved(&rig, "{\"granularity\":\"block\"}", DTYPE_F32, &w);
        ck_assert_int_eq(job.result.row_groups, down);
        ck_assert_int_eq(job.result.groups, across);
        float *back = dequantized(&job.result);
        for (int64_t i = 0; i < rows * cols; i++) {
            float scale = job.result.scales[i / cols / 128 * across + i % cols / 128], x = floats(&w)[i];
            ck_assert(fabsf(back[i] - x) <= fabsf(x) / 15.0f + scale * 0x1p-9f);
        }
        free(back);
        qtensor_deinit(&job.result);
        gpu_tensor_free(&rig.gpu, &w);
        rig_close(&rig);
    }
}
END_TEST

UNIT_MAIN("fp8", errors_are_bounded, fixed_points, fused_linears_share_a_scale, contradictions_are_refused,
          blocks_need_not_tile)
