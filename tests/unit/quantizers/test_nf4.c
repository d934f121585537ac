/* NF4: levels, blocks over the flat weight, nested scales. */

#include "tests/unit/quantizers/support.h"

#include <math.h>

#define NESTED "{\"bnb_4bit_use_double_quant\":true}"

/* Worked out by hand: 2, -2, 0, 1, .5, -.25. */
START_TEST(documented_codes)
{
    static const float values[8] = {2, -2, 0, 1, 0.5f, -0.25f, 0, 0};
    static const uint8_t codes[6] = {15, 0, 7, 12, 10, 6};
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 1, 8);
    memcpy(w.data, values, sizeof(values));

    struct linear_job job = solve_one(&rig, "nf4", "{}", DTYPE_F32, NULL, &w);
    ck_assert_int_eq(memcmp(job.result.codes, codes, sizeof(codes)), 0);
    ck_assert(job.result.scales[0] == 2.0f);
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* Blocks go over row ends; the largest of each is exact, no error exceeds half the widest gap, levels stay levels. */
START_TEST(blocks_of_the_flat_weight)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 7, 33, 8);

    struct linear_job job = solve_one(&rig, "nf4", "{}", DTYPE_F32, NULL, &w);
    ck_assert_int_eq(job.result.groups, 4); /* 231 weights */
    float *wq = dequantized(&job.result);
    for (int i = 0; i < 231; i++) {
        float scale = job.result.scales[i / 64], x = floats(&w)[i];
        ck_assert(fabsf(x - wq[i]) <= scale * 0.152f);
        ck_assert(fabsf(x) < scale || wq[i] == x);
    }
    memcpy(w.data, wq, 231 * sizeof(float));
    struct linear_job again = solve_one(&rig, "nf4", "{}", DTYPE_F32, NULL, &w);
    ck_assert_int_eq(memcmp(job.result.codes, again.result.codes, 231), 0);
    free(wq);
    qtensor_deinit(&job.result);
    qtensor_deinit(&again.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* Every code is the one whose value is nearest, by trying all sixteen, with nested scales too. */
START_TEST(codes_are_the_nearest)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 96, 256, 9);

    for (int nested = 0; nested < 2; nested++) {
        struct linear_job job = solve_one(&rig, "nf4", nested ? NESTED : "{}", DTYPE_F32, NULL, &w);
        int64_t wrong = 0;
        for (int64_t i = 0; i < 96 * 256; i++) {
            double scale = (double)job.result.scales[i / 64], x = (double)floats(&w)[i], min_error = INFINITY;
            for (int level = 0; level < 16; level++) {
                min_error = fmin(min_error, fabs(x - scale * (double)dtype_nf4_levels[level]));
            }
            wrong += fabs(x - scale * (double)dtype_nf4_levels[job.result.codes[i]]) > min_error * (1 + 1e-5) + 1e-9;
        }
        ck_assert_int_eq(wrong, 0);
        qtensor_deinit(&job.result);
    }
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

/* The scales are what a reader decodes, near what they were made from, and cost 4.127 bits a weight. */
START_TEST(nested_scales)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 128, 512, 10);
    float levels[256];

    qtensor_nested_levels(levels);
    ck_assert(levels[127] == 0 && levels[255] == 1.0f);
    ck_assert_near((double)levels[0], -0.99296874, 1e-7);
    struct linear_job plain = solve_one(&rig, "nf4", "{}", DTYPE_F32, NULL, &w);
    struct linear_job job = solve_one(&rig, "nf4", NESTED, DTYPE_F32, NULL, &w);
    const struct qtensor *q = &job.result;
    int64_t blocks = q->groups / QTENSOR_NESTED_BLOCK;
    for (int64_t i = 0; i < q->groups; i++) {
        float nested = q->tables[i / QTENSOR_NESTED_BLOCK];
        ck_assert(q->scales[i] == levels[q->zeros[i]] * nested + q->tables[blocks]);
        ck_assert(fabsf(q->scales[i] - plain.result.scales[i]) <= 0.008f * nested);
    }
    ck_assert_near(qtensor_bits_per_weight(q), 4.127, 0.0005);
    qtensor_deinit(&plain.result);
    qtensor_deinit(&job.result);
    gpu_tensor_free(&rig.gpu, &w);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("nf4", documented_codes, blocks_of_the_flat_weight, codes_are_the_nearest, nested_scales)
