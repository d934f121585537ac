/* Eight-bit floats, scaled rows and columns, and inputs after quantization. */

#include "tests/unit/gpu/support.h"

/* The nearest code by search over all 256, ties to the even code. */
static uint8_t nearest(float value, float (*decode)(uint8_t))
{
    int best = 0;
    double least = INFINITY;
    for (int code = 0; code < 256; code++) {
        float at = decode((uint8_t)code);
        double distance = fabs((double)at - (double)value);
        bool same_sign = signbit(at) == signbit(value);
        if (isfinite(at) && same_sign && (distance < least || (distance == least && (code & 1) == 0))) {
            least = distance;
            best = code;
        }
    }
    return (uint8_t)best;
}

START_TEST(every_code_of_eight_bit_floats_comes_back)
{
    for (int code = 0; code < 256; code++) {
        float e4m3 = dtype_e4m3_to_f32((uint8_t)code), e5m2 = dtype_e5m2_to_f32((uint8_t)code);
        if (!isnan(e4m3)) {
            ck_assert_uint_eq(dtype_f32_to_e4m3(e4m3), code);
        } else {
            ck_assert_uint_eq(code & 0x7f, 0x7f);
        }
        if (isfinite(e5m2)) {
            ck_assert_uint_eq(dtype_f32_to_e5m2(e5m2), code);
        }
    }
    ck_assert(dtype_e4m3_to_f32(0x7e) == 448.0f && dtype_e4m3_to_f32(0x38) == 1.0f);
    ck_assert(dtype_e4m3_to_f32(0x01) == 0x1p-9f && dtype_e5m2_to_f32(0x01) == 0x1p-16f);
    ck_assert(dtype_e5m2_to_f32(0x7b) == 57344.0f);
    ck_assert_uint_eq(dtype_f32_to_e4m3(448.1f), 0x7e);
    ck_assert_uint_eq(dtype_f32_to_e4m3(-1e30f), 0xfe);
    ck_assert_uint_eq(dtype_f32_to_e5m2(INFINITY), 0x7b);
    ck_assert(isnan(dtype_e4m3_to_f32(dtype_f32_to_e4m3(NAN))) && isnan(dtype_e5m2_to_f32(dtype_f32_to_e5m2(-NAN))));
}
END_TEST

START_TEST(floats_between_codes_go_to_the_nearer_one)
{
    uint64_t state = 11;
    for (int i = 0; i < 20000; i++) {
        float value = ldexpf(random_unit(&state), (int)(random_bits(&state) % 24) - 14);
        ck_assert_uint_eq(dtype_f32_to_e4m3(value), nearest(value, dtype_e4m3_to_f32));
        ck_assert_uint_eq(dtype_f32_to_e5m2(value), nearest(value, dtype_e5m2_to_f32));
    }
    for (int code = 0; code < 0x7e; code++) { /* halfway: the even neighbour */
        float middle = 0.5f * (dtype_e4m3_to_f32((uint8_t)code) + dtype_e4m3_to_f32((uint8_t)(code + 1)));
        ck_assert_uint_eq(dtype_f32_to_e4m3(middle), (code & 1) == 0 ? code : code + 1);
    }
}
END_TEST

START_TEST(rows_and_columns_are_scaled)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 37, 19), rows = rig_tensor(&rig, DTYPE_F32, 1, 37);
    struct tensor cols = rig_tensor(&rig, DTYPE_F32, 1, 19), kept = rig_tensor(&rig, DTYPE_F32, 37, 19);
    uint64_t state = 3;
    for (int i = 0; i < 37 * 19; i++) {
        floats(&kept)[i] = floats(&w)[i] = random_unit(&state);
    }
    for (int i = 0; i < 37; i++) {
        floats(&rows)[i] = 1.0f + (float)i;
    }
    for (int i = 0; i < 19; i++) {
        floats(&cols)[i] = 2.0f / (1.0f + (float)i);
    }
    ck_assert_rc_ok(rig.ops->scale(rig.stream, &w, &rows, &cols));
    for (int i = 0; i < 37 * 19; i++) {
        float factor = floats(&rows)[i / 19] * floats(&cols)[i % 19];
        ck_assert(floats(&w)[i] == floats(&kept)[i] * factor);
    }
    ck_assert_rc_ok(rig.ops->convert(rig.stream, &w, &kept));
    ck_assert_rc_ok(rig.ops->scale(rig.stream, &w, NULL, &cols));
    ck_assert(floats(&w)[20] == floats(&kept)[20] * floats(&cols)[1]);
    ck_assert_int_eq(rig.ops->scale(rig.stream, &w, &cols, NULL), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &rows);
    gpu_tensor_free(&rig.gpu, &cols);
    gpu_tensor_free(&rig.gpu, &kept);
    rig_close(&rig);
}
END_TEST

START_TEST(inputs_are_within_half_a_step_and_kept_columns_pass)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 21, 64), y = rig_tensor(&rig, DTYPE_F32, 21, 64);
    struct tensor keep = rig_tensor(&rig, DTYPE_F32, 1, 64);
    uint64_t state = 5;
    for (int i = 0; i < 21 * 64; i++) {
        floats(&x)[i] = i < 64 ? 0.0f : random_unit(&state) * (i % 64 == 7 ? 60.0f : 1.0f);
    }
    floats(&keep)[7] = 1.0f;
    const struct gpu_input dynamic = {.element = DTYPE_I8, .dynamic = true};
    const struct gpu_input fixed = {.element = DTYPE_F8_E4M3, .scale = 1.0f / 448.0f};
    ck_assert_rc_ok(rig.ops->quantize_input(rig.stream, &y, &x, &keep, &dynamic));
    for (int i = 0; i < 21 * 64; i++) {
        float error = fabsf(floats(&y)[i] - floats(&x)[i]);
        ck_assert(i % 64 == 7 || i < 64 ? error == 0.0f : error <= 0.5001f / 127.0f); /* |x| < 1 beside the outlier */
    }
    ck_assert_rc_ok(rig.ops->quantize_input(rig.stream, &y, &x, NULL, &fixed));
    for (int i = 64; i < 21 * 64; i++) {
        float value = fmaxf(fminf(floats(&x)[i], 1.0f), -1.0f);
        ck_assert(fabsf(floats(&y)[i] - value) <= fabsf(value) / 16.0f + 1e-5f); /* three bits of mantissa */
    }
    ck_assert_int_eq(rig.ops->quantize_input(rig.stream, &y, &x, NULL, &(struct gpu_input){0}), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &keep);
    rig_close(&rig);
}
END_TEST

/* A row of 80 in runs of 32: the last one has 16, a scale of its own and nothing of the next row. */
START_TEST(runs_have_a_scale_each_and_the_last_may_be_shorter)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, 3, 80), y = rig_tensor(&rig, DTYPE_F32, 3, 80);
    uint64_t state = 9;
    for (int i = 0; i < 3 * 80; i++) {
        floats(&x)[i] = random_unit(&state) * (float)(1 + i % 80 / 32 * 100) * (i % 80 == 3 ? 0.0f : 1.0f);
    }
    for (int half = 0; half < 2; half++) {
        const struct gpu_input spec = {.element = DTYPE_I8, .dynamic = true, .group_size = 32, .half = half == 1};
        ck_assert_rc_ok(rig.ops->quantize_input(rig.stream, &y, &x, NULL, &spec));
        for (int i = 0; i < 3 * 80; i++) {
            int first = i / 80 * 80 + i % 80 / 32 * 32, end = i % 80 < 64 ? first + 32 : i / 80 * 80 + 80;
            float most = 0;
            for (int k = first; k < end; k++) {
                most = fmaxf(most, fabsf(floats(&x)[k]));
            }
            float scale = most / 127.0f, kept = half == 1 ? dtype_round(scale, DTYPE_F16) : scale;
            ck_assert_float_eq(floats(&y)[i], rintf(floats(&x)[i] / scale) * kept);
        }
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

/* The scalar definition of quantize_input. */
static void expect_input(float *y, const float *x, const float *outliers, int count, const struct gpu_input *spec)
{
    float most = 0, largest = (float)dtype_max(spec->element);

    for (int i = 0; i < count; i++) {
        most = (outliers == NULL || outliers[i] == 0.0f) && fabsf(x[i]) > most ? fabsf(x[i]) : most;
    }
    float scale = spec->dynamic ? most / largest : spec->scale;
    float stored = spec->half ? dtype_round(scale, DTYPE_F16) : scale;
    for (int i = 0; i < count; i++) {
        float v = x[i] / scale;
        float code = spec->element == DTYPE_I8 ? fminf(fmaxf(rintf(v), -127.0f), 127.0f)
                                               : dtype_e4m3_to_f32(dtype_f32_to_e4m3(v));
        bool passes = (outliers != NULL && outliers[i] != 0.0f) || scale == 0.0f;
        y[i] = passes ? x[i] : code * stored;
    }
}

#define HARD_ROWS 11
#define HARD_COLS 83

/* Ties, both zeros, subnormals, NaN, infinities, values beyond the range, a row of zeros and one of a single number. */
static void fill_hard(float *x)
{
    static const float special[] = {0.5f, -0.5f, -0.0f, 1.5f, 0x1p-9f, -0x1p-10f, 0x1.8p-9f, 447.9f, -449.0f, 1e-40f};
    uint64_t state = 41;

    for (int i = 0; i < HARD_ROWS * HARD_COLS; i++) {
        int row = i / HARD_COLS;
        x[i] = ldexpf(random_unit(&state), row < 4 ? 8 : row < 6 ? -2 - (int)(random_bits(&state) % 12) : -140);
        x[i] = row == 3 || random_bits(&state) % 4 == 0 ? special[random_bits(&state) % 10] : x[i];
        x[i] = row == 7 ? 0.0f : row == 8 ? -3.25f : row == 9 ? x[i] * 1e30f : x[i];
        x[i] = row == 10 && i % 5 == 0 ? (i % 2 == 0 ? NAN : -INFINITY) : x[i];
    }
}

static void check_input_level(const char *level, const float *out)
{
    static const struct gpu_input specs[] = {
        {.element = DTYPE_I8, .dynamic = true},
        {.element = DTYPE_F8_E4M3, .dynamic = true},
        {.element = DTYPE_I8, .dynamic = true, .group_size = 32, .half = true},
        {.element = DTYPE_F8_E4M3, .dynamic = true, .group_size = 24},
        {.element = DTYPE_I8, .scale = 1.0f},
        {.element = DTYPE_F8_E4M3, .scale = 1.0f},
        {.element = DTYPE_F8_E4M3, .scale = 0.37f},
    };
    float expected[HARD_ROWS * HARD_COLS];

    setenv("QUANTD_CPU_LEVEL", level, 1);
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_tensor(&rig, DTYPE_F32, HARD_ROWS, HARD_COLS),
                  y = rig_tensor(&rig, DTYPE_F32, HARD_ROWS, HARD_COLS);
    struct tensor keep = rig_tensor(&rig, DTYPE_F32, 1, HARD_COLS);
    if (out != NULL) {
        memcpy(keep.data, out, HARD_COLS * sizeof(float));
    }
    for (size_t s = 0; s < sizeof(specs) / sizeof(specs[0]); s++) {
        int size = specs[s].group_size > 0 ? (int)specs[s].group_size : HARD_COLS;
        fill_hard(floats(&x));
        for (int at = 0; at < HARD_ROWS * HARD_COLS;) {
            int col = at % HARD_COLS, count = HARD_COLS - col < size ? HARD_COLS - col : size;
            expect_input(expected + at, floats(&x) + at, out != NULL ? out + col : NULL, count, &specs[s]);
            at += count;
        }
        ck_assert_rc_ok(rig.ops->quantize_input(rig.stream, &y, &x, out != NULL ? &keep : NULL, &specs[s]));
        ck_assert_mem_eq(y.data, expected, sizeof(expected));
        ck_assert_rc_ok(rig.ops->quantize_input(rig.stream, &x, &x, out != NULL ? &keep : NULL, &specs[s]));
        ck_assert_mem_eq(x.data, expected, sizeof(expected)); /* in place */
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &keep);
    rig_close(&rig);
    unsetenv("QUANTD_CPU_LEVEL");
}

START_TEST(every_level_gives_the_bits_of_the_scalar_definition)
{
    static const float outliers[HARD_COLS] = {[7] = 1.0f, [31] = -2.0f, [82] = 1.0f};

    for (int i = 0; i < 6; i++) {
        check_input_level(i < 2 ? "generic" : i < 4 ? "avx2" : "avx512", i % 2 != 0 ? outliers : NULL);
    }
}
END_TEST

UNIT_MAIN("gpu/scaling", every_code_of_eight_bit_floats_comes_back, floats_between_codes_go_to_the_nearer_one,
          rows_and_columns_are_scaled, inputs_are_within_half_a_step_and_kept_columns_pass,
          runs_have_a_scale_each_and_the_last_may_be_shorter, every_level_gives_the_bits_of_the_scalar_definition)
