/* Scales that their stored type does not hold are named, whatever the method; others are not. */

#include "pipeline/stored_scales.h"
#include "tests/unit/quantizers/support.h"

#define N 8
#define K 256

static int notices;

static int on_message(void *data, const struct message *message)
{
    (void)data;
    ck_assert_int_eq(message->kind, MESSAGE_WARNING);
    ck_assert_str_eq(message->warning.code, "scales_clamped");
    ck_assert_ptr_nonnull(strstr(message->warning.text, "F16"));
    notices++;
    return 0;
}

enum weights { ORDINARY, A_ROW_OF_ZEROS, A_LARGE_ROW, A_SMALL_ROW, WEIGHTS_COUNT };

static const struct {
    const char *method, *text;
    enum dtype dtype;
    bool large, small; /* found? */
} rows[] = {
    {"rtn", "{\"bits\":4,\"group_size\":64}", DTYPE_F16, true, true},
    {"rtn", "{\"bits\":8,\"group_size\":-1,\"sym\":false}", DTYPE_F16, true, true},
    {"rtn", "{\"bits\":4,\"group_size\":64,\"mse_search\":true}", DTYPE_F16, true, true},
    {"rtn", "{\"bits\":4,\"group_size\":64}", DTYPE_BF16, false, false},
    {"fp8", "{}", DTYPE_F16, true, true},
    {"fp8", "{\"granularity\":\"block\"}", DTYPE_F16, true, false}, /* the small row is not alone in its block */
    {"nf4", "{}", DTYPE_F32, false, false},
    {"kmeans", "{\"bits\":3}", DTYPE_F16, true, false}, /* tables are rounded value by value */
    {"ggml", "{\"type\":\"q8_0\"}", DTYPE_F16, true, true},
    {"ggml", "{\"type\":\"q4_0\"}", DTYPE_F16, true, true},
    {"ggml", "{\"type\":\"q4_k\"}", DTYPE_F16, true, true},
    {"ggml", "{\"type\":\"q6_k\"}", DTYPE_F16, true, true},
};

START_TEST(what_does_not_fit_is_named)
{
    struct rig rig;
    rig_open(&rig, 2);
    const struct pipeline pipeline = {.format = format_find("gguf"), .gpu = &rig.gpu, .receive = on_message};
    struct message_sender sender = {.p = &pipeline};
    struct run run = {.p = &pipeline, .sender = &sender, .stream = rig.stream};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (int kind = 0; kind < WEIGHTS_COUNT; kind++) {
            static const float factors[] = {1.0f, 0.0f, 1e9f, 1e-10f};
            struct tensor w = rig_random(&rig, N, K, 4);
            for (int k = 0; k < K; k++) {
                floats(&w)[3 * K + k] *= factors[kind];
            }
            struct linear_job job = solve_one(&rig, rows[i].method, rows[i].text, rows[i].dtype, NULL, &w);
            bool expected = (kind == A_LARGE_ROW && rows[i].large) || (kind == A_SMALL_ROW && rows[i].small);
            notices = 0;
            ck_assert_rc_ok(check_stored_scales(&run, &w, &job));
            ck_assert_msg((job.fallback[0] != '\0') == expected, "%s %s %d: \"%s\"", rows[i].method, rows[i].text, kind,
                          job.fallback);
            ck_assert_int_eq(notices, expected);
            ck_assert(!expected || kind != A_LARGE_ROW || strstr(job.fallback, ": 0 beyond") == NULL);
            ck_assert(!expected || kind != A_SMALL_ROW || strstr(job.fallback, " 0 too small") == NULL);
            qtensor_deinit(&job.result);
            gpu_tensor_free(&rig.gpu, &w);
        }
    }
    rig_close(&rig);
}
END_TEST

START_TEST(input_scales_stay_in_their_type)
{
    struct linear_job job = {.fallback = ""};

    ck_assert_float_eq(stored_input_scale(0, DTYPE_I8, DTYPE_F16, &job), 1.0f);
    ck_assert_float_eq(stored_input_scale(254, DTYPE_I8, DTYPE_F16, &job), 2.0f);
    ck_assert_str_eq(job.fallback, "");
    ck_assert_float_eq(stored_input_scale(1e9f, DTYPE_I8, DTYPE_F16, &job), 65504.0f);
    ck_assert_ptr_nonnull(strstr(job.fallback, "does not fit F16"));
    job.fallback[0] = '\0';
    ck_assert_float_eq(stored_input_scale(1e9f, DTYPE_I8, DTYPE_BF16, &job), dtype_round(1e9f / 127, DTYPE_BF16));
    ck_assert_str_eq(job.fallback, "");
    ck_assert(stored_input_scale(1e-9f, DTYPE_I8, DTYPE_F16, &job) < 1e-6f);
    ck_assert_ptr_nonnull(strstr(job.fallback, "does not fit F16"));
}
END_TEST

UNIT_MAIN("scales", what_does_not_fit_is_named, input_scales_stay_in_their_type)
