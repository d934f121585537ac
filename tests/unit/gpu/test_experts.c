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
    ck_assert_rc_ok(rig.ops->route(rig.stream, &ids, &weights, &logits, spec));
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
            double want = exp((double)row[chosen[i]]) / (spec->all && !spec->normalize ? all : sum);
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
    check_route(53, 8, &(struct gpu_route){.top_k = 2, .all = true, .normalize = true, .factor = 1});
    check_route(53, 8, &(struct gpu_route){.top_k = 2, .all = true, .factor = 2});
    check_route(17, 64, &(struct gpu_route){.top_k = 6, .factor = 1});
    check_route(1, 1, &(struct gpu_route){.top_k = 1, .all = true, .factor = 1});
    check_route(0, 4, &(struct gpu_route){.top_k = 4, .factor = 1});
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
    ck_assert_rc_ok(rig.ops->route(rig.stream, &ids, &weights, &logits, &(struct gpu_route){.top_k = 3, .factor = 1}));
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
        ck_assert_rc_ok(rig.ops->gather_rows(rig.stream, &part, &x, &own, K));
        ck_assert_rc_ok(rig.ops->scatter_rows(rig.stream, &y, &part, &own, &weights));
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

    ck_assert_int_eq(rig.ops->route(rig.stream, &ids, &weights, &logits, &(struct gpu_route){.top_k = 3, .factor = 1}),
                     ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->route(rig.stream, &ids, &wrong, &logits, &(struct gpu_route){.top_k = 2, .factor = 1}),
                     ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->route(rig.stream, &ids, &weights, &logits, &(struct gpu_route){.top_k = 0, .factor = 1}),
                     ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->group_places(rig.stream, &places, offsets, &ids, 4), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->group_places(rig.stream, &ids, offsets, &ids, 4), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->gather_rows(rig.stream, &more, &logits, &places, 0), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->gather_rows(rig.stream, &more, &logits, &ids, 2), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->scatter_rows(rig.stream, &logits, &more, &places, &weights), ERR_INTERNAL);
    struct tensor *all[] = {&logits, &ids, &weights, &wrong, &more, &places};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/experts", routes, routes_nonfinite, groups_gathers_and_adds, refuses)
