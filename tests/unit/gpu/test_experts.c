/* Routing, grouping, gathering and adding back against the definitions in double. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

static int32_t *numbers(const struct tensor *tensor)
{
    return tensor->data;
}

static void check_route(int64_t tokens, int64_t experts, const struct gpu_route *spec)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor logits = rig_random(&rig, tokens, experts, 7);
    struct tensor ids = rig_tensor(&rig, DTYPE_I32, tokens, spec->top_k);
    struct tensor weights = rig_tensor(&rig, DTYPE_F32, tokens, spec->top_k);

    for (int64_t i = 0; i < tokens * experts; i += 2) {
        floats(&logits)[i] = rintf(floats(&logits)[i]); /* ties */
    }
    ck_assert_rc_ok(rig.ops->route(rig.stream, &ids, &weights, &logits, NULL, spec));
    for (int64_t t = 0; t < tokens; t++) {
        const float *row = floats(&logits) + t * experts;
        const int32_t *chosen = numbers(&ids) + t * spec->top_k;
        double all = 0, sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            int64_t before = 0; /* experts that come first */
            for (int64_t o = 0; o < experts; o++) {
                before += row[o] > row[e] || (row[o] == row[e] && o < e);
            }
            all += exp((double)row[e]);
            sum += before < spec->top_k ? exp((double)row[e]) : 0;
            ck_assert(before >= spec->top_k || chosen[before] == e);
        }
        for (int64_t i = 0; i < spec->top_k; i++) {
            double want =
                exp((double)row[chosen[i]]) / (spec->scores == GPU_SCORES_ALL && !spec->normalize ? all : sum);
            ck_assert_near(floats(&weights)[t * spec->top_k + i], want * (double)spec->factor, 1e-6 * want);
        }
    }
    gpu_tensor_free(&rig.gpu, &logits);
    gpu_tensor_free(&rig.gpu, &ids);
    gpu_tensor_free(&rig.gpu, &weights);
    rig_close(&rig);
}

START_TEST(routes)
{
    check_route(53, 8, &(struct gpu_route){.top_k = 2, .scores = GPU_SCORES_ALL, .normalize = true, .factor = 1});
    check_route(53, 8, &(struct gpu_route){.top_k = 2, .scores = GPU_SCORES_ALL, .factor = 2});
    check_route(17, 64, &(struct gpu_route){.top_k = 6, .scores = GPU_SCORES_CHOSEN, .factor = 1});
    check_route(1, 1, &(struct gpu_route){.top_k = 1, .scores = GPU_SCORES_ALL, .factor = 1});
    check_route(0, 4, &(struct gpu_route){.top_k = 4, .scores = GPU_SCORES_CHOSEN, .factor = 1});
}
END_TEST

static double score_of(const float *row, int64_t experts, int64_t e, enum gpu_scores scores)
{
    double sum = 0;

    for (int64_t o = 0; o < experts; o++) {
        sum += exp((double)row[o] - (double)row[e]);
    }
    return scores == GPU_SCORES_SIGMOID ? 1 / (1 + exp(-(double)row[e])) : 1 / sum;
}

/* How many of the values come before number i: the larger, of equals the lower number. */
static int64_t rank_among(const double *values, int64_t count, int64_t i)
{
    int64_t before = 0;

    for (int64_t o = 0; o < count; o++) {
        before += values[o] > values[i] || (values[o] == values[i] && o < i);
    }
    return before;
}

/* What one token's choice is by: score + bias, -1000 outside the best groups. */
static void keys_by_hand(const float *row, const float *bias, int64_t experts, const struct gpu_route *spec,
                         double *keys)
{
    double groups[64] = {0};
    int64_t count = spec->groups > 1 ? spec->groups : 1, size = experts / count;

    for (int64_t e = 0; e < experts; e++) {
        keys[e] = (double)((float)score_of(row, experts, e, spec->scores) + (bias != NULL ? bias[e] : 0));
    }
    for (int64_t e = 0; e < experts; e++) {
        int64_t rank = rank_among(keys + e / size * size, size, e % size);
        groups[e / size] += rank < (spec->group_pairs ? 2 : 1) ? keys[e] : 0;
    }
    for (int64_t e = 0; e < experts && count > 1; e++) {
        keys[e] = rank_among(groups, count, e / size) < spec->group_top_k ? keys[e] : -1000;
    }
}

static void check_biased(int64_t experts, bool biased, const struct gpu_route *spec)
{
    enum { T = 41 };
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor logits = rig_random(&rig, T, experts, 8), bias = rig_random(&rig, 1, experts, 9);
    struct tensor ids = rig_tensor(&rig, DTYPE_I32, T, spec->top_k);
    struct tensor weights = rig_tensor(&rig, DTYPE_F32, T, spec->top_k);
    double keys[64];

    ck_assert_rc_ok(rig.ops->route(rig.stream, &ids, &weights, &logits, biased ? &bias : NULL, spec));
    for (int64_t t = 0; t < T; t++) {
        const float *row = floats(&logits) + t * experts;
        const int32_t *chosen = numbers(&ids) + t * spec->top_k;
        double sum = 0;
        keys_by_hand(row, biased ? floats(&bias) : NULL, experts, spec, keys);
        for (int64_t e = 0; e < experts; e++) {
            int64_t rank = rank_among(keys, experts, e);
            ck_assert(rank >= spec->top_k || chosen[rank] == e);
            sum += rank < spec->top_k ? score_of(row, experts, e, spec->scores) : 0;
        }
        for (int64_t i = 0; i < spec->top_k; i++) {
            double want = score_of(row, experts, chosen[i], spec->scores) /
                          (spec->normalize ? sum + (double)spec->epsilon : 1) * (double)spec->factor;
            ck_assert_near(floats(&weights)[t * spec->top_k + i], want, 1e-6 * want);
        }
    }
    gpu_tensor_free(&rig.gpu, &logits);
    gpu_tensor_free(&rig.gpu, &bias);
    gpu_tensor_free(&rig.gpu, &ids);
    gpu_tensor_free(&rig.gpu, &weights);
    rig_close(&rig);
}

START_TEST(routes_by_bias_and_groups)
{
    check_biased(16, false, &(struct gpu_route){.top_k = 3, .scores = GPU_SCORES_SIGMOID, .factor = 1});
    check_biased(16, true,
                 &(struct gpu_route){
                     .top_k = 3, .scores = GPU_SCORES_SIGMOID, .normalize = true, .factor = 2.5f, .epsilon = 0.125f});
    check_biased(64, true,
                 &(struct gpu_route){.top_k = 6,
                                     .scores = GPU_SCORES_SIGMOID,
                                     .normalize = true,
                                     .groups = 8,
                                     .group_top_k = 3,
                                     .group_pairs = true,
                                     .factor = 2});
    check_biased(
        60, false,
        &(struct gpu_route){.top_k = 6, .scores = GPU_SCORES_ALL, .groups = 6, .group_top_k = 2, .factor = 16});
    check_biased(24, true, &(struct gpu_route){.top_k = 4, .scores = GPU_SCORES_ALL, .normalize = true, .factor = 1});
    check_biased(8, true, &(struct gpu_route){.top_k = 2, .scores = GPU_SCORES_ALL, .factor = 1});
}
END_TEST

/* Logits that are not numbers come last: what is chosen are always different experts that exist. */
START_TEST(routes_nonfinite)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor logits = rig_tensor(&rig, DTYPE_F32, 2, 4), ids = rig_tensor(&rig, DTYPE_I32, 2, 3);
    struct tensor weights = rig_tensor(&rig, DTYPE_F32, 2, 3);
    const float rows[] = {NAN, -INFINITY, 1, NAN, NAN, NAN, NAN, NAN};
    const int32_t want[] = {2, 0, 1, 0, 1, 2};

    memcpy(logits.data, rows, sizeof(rows));
    ck_assert_rc_ok(
        rig.ops->route(rig.stream, &ids, &weights, &logits, NULL, &(struct gpu_route){.top_k = 3, .factor = 1}));
    ck_assert_mem_eq(ids.data, want, sizeof(want));
    gpu_tensor_free(&rig.gpu, &logits);
    gpu_tensor_free(&rig.gpu, &ids);
    gpu_tensor_free(&rig.gpu, &weights);
    rig_close(&rig);
}
END_TEST

START_TEST(groups_gathers_and_adds)
{
    enum { T = 150, K = 2, E = 5, D = 13 };
    struct rig rig;
    rig_open(&rig, 3);
    struct tensor ids = rig_tensor(&rig, DTYPE_I32, T, K), places = rig_tensor(&rig, DTYPE_I32, T, K);
    struct tensor x = rig_random(&rig, T, D, 1), weights = rig_random(&rig, T, K, 2),
                  y = rig_tensor(&rig, DTYPE_F32, T, D);
    struct tensor rows = rig_tensor(&rig, DTYPE_F32, T, D);
    int64_t offsets[E + 1];

    for (int i = 0; i < T * K; i++) {
        numbers(&ids)[i] = (i / K * 3 + i % K) % (E - 1); /* the last one has none */
    }
    ck_assert_rc_ok(rig.ops->group_places(rig.stream, &places, offsets, &ids, E));
    ck_assert_int_eq(offsets[0], 0);
    ck_assert_int_eq(offsets[E], T * K);
    ck_assert_int_eq(offsets[E - 1], T * K);
    for (int e = 0; e < E; e++) {
        struct tensor own = tensor_1d(numbers(&places) + offsets[e], DTYPE_I32, offsets[e + 1] - offsets[e]);
        struct tensor part = tensor_rows(&rows, 0, own.shape[0]);
        for (int64_t i = 0; i < own.shape[0]; i++) {
            ck_assert_int_eq(numbers(&ids)[numbers(&own)[i]], e);
            ck_assert(i == 0 || numbers(&own)[i] > numbers(&own)[i - 1]);
        }
        ck_assert_rc_ok(rig.ops->gather_rows(rig.stream, &part, &x, &own, NULL, K));
        ck_assert_rc_ok(rig.ops->scatter_rows(rig.stream, &y, &part, &own, &weights, K));
    }
    for (int t = 0; t < T; t++) {
        double sum = (double)floats(&weights)[t * K] + (double)floats(&weights)[t * K + 1];
        for (int c = 0; c < D; c++) {
            double want = (double)floats(&x)[t * D + c] * sum;
            ck_assert_near(floats(&y)[t * D + c], want, 1e-6 * (1 + fabs(want)));
        }
    }
    struct tensor *all[] = {&ids, &places, &x, &weights, &y, &rows};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(refuses)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor logits = rig_tensor(&rig, DTYPE_F32, 3, 4), ids = rig_tensor(&rig, DTYPE_I32, 3, 2);
    struct tensor weights = rig_tensor(&rig, DTYPE_F32, 3, 2), wrong = rig_tensor(&rig, DTYPE_F32, 3, 3);
    struct tensor more = rig_tensor(&rig, DTYPE_F32, 4, 4), places = rig_tensor(&rig, DTYPE_I32, 4, 1);
    int64_t offsets[5];

    ck_assert_int_eq(
        rig.ops->route(rig.stream, &ids, &weights, &logits, NULL, &(struct gpu_route){.top_k = 3, .factor = 1}),
        ERR_INTERNAL);
    ck_assert_int_eq(
        rig.ops->route(rig.stream, &ids, &wrong, &logits, NULL, &(struct gpu_route){.top_k = 2, .factor = 1}),
        ERR_INTERNAL);
    ck_assert_int_eq(
        rig.ops->route(rig.stream, &ids, &weights, &logits, NULL, &(struct gpu_route){.top_k = 0, .factor = 1}),
        ERR_INTERNAL);
    static const struct gpu_route groups[] = {
        {.top_k = 2, .factor = 1, .groups = 3, .group_top_k = 1}, /* do not divide 4 */
        {.top_k = 2, .factor = 1, .groups = 2, .group_top_k = 3},
        {.top_k = 2, .factor = 1, .groups = 2, .group_top_k = 0},
        {.top_k = 2, .factor = 1, .groups = 4, .group_top_k = 1}, /* has one expert */
        {.top_k = 2, .factor = 1, .groups = 4, .group_top_k = 2, .group_pairs = true},
    };
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        ck_assert_int_eq(rig.ops->route(rig.stream, &ids, &weights, &logits, NULL, &groups[i]), ERR_INTERNAL);
    }
    ck_assert_int_eq(
        rig.ops->route(rig.stream, &ids, &weights, &logits, &wrong, &(struct gpu_route){.top_k = 2, .factor = 1}),
        ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->group_places(rig.stream, &places, offsets, &ids, 4), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->group_places(rig.stream, &ids, offsets, &ids, 4), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->gather_rows(rig.stream, &more, &logits, &places, NULL, 0), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->gather_rows(rig.stream, &more, &logits, &ids, NULL, 2), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->scatter_rows(rig.stream, &logits, &more, &places, &weights, 2), ERR_INTERNAL);
    struct tensor *all[] = {&logits, &ids, &weights, &wrong, &more, &places};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/experts", routes, routes_by_bias_and_groups, routes_nonfinite, groups_gathers_and_adds, refuses)
