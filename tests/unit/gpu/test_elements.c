/* Weights as a scale times an element of a fixed set: ranges, codes and values against plain loops, for tiles of every
 * kind. */

#include "tests/unit/gpu/support.h"

#define N 37
#define K 200

static const struct gpu_tiles all[] = {
    {DTYPE_F8_E4M3, 1, K}, {DTYPE_F8_E4M3, N, K}, {DTYPE_F8_E4M3, 16, 64}, {DTYPE_F8_E5M2, 1, K},
    {DTYPE_I8, 1, K},      {DTYPE_NF4, 1, 64},    {DTYPE_NF4, 3, 7},       {DTYPE_F4_E2M1, 1, 32},
};

static int64_t above(int64_t count, int64_t size)
{
    return (count + size - 1) / size;
}

static float element(const struct gpu_tiles *spec, uint8_t code)
{
    return spec->element == DTYPE_NF4       ? dtype_nf4_levels[code]
           : spec->element == DTYPE_I8      ? (float)code - 128.0f
           : spec->element == DTYPE_F8_E5M2 ? dtype_e5m2_to_f32(code)
           : spec->element == DTYPE_F4_E2M1 ? dtype_e2m1_to_f32(code)
                                            : dtype_e4m3_to_f32(code);
}

/* The distance of x to the nearest element. */
static double least_distance(const struct gpu_tiles *spec, double x)
{
    int first = spec->element == DTYPE_I8 ? 1 : 0, count = 1 << dtype_rows[spec->element].bits;
    double least = INFINITY;

    for (int code = first; code < count; code++) {
        double distance = fabs((double)element(spec, (uint8_t)code) - x);
        least = distance < least ? distance : least; /* NaN is no less */
    }
    return least;
}

static void check_kind(const struct gpu_tiles *spec)
{
    int64_t groups = above(K, spec->cols), bands = above(N, spec->rows);
    struct rig rig;
    rig_open(&rig, 3);
    struct tensor w = rig_random(&rig, N, K, 71), codes = rig_tensor(&rig, DTYPE_U8, N, K);
    struct tensor scale = rig_tensor(&rig, DTYPE_F32, bands, groups), back = rig_tensor(&rig, DTYPE_F32, N, K);

    ck_assert_rc_ok(rig.gpu.ops->tile_range(rig.stream, &scale, &w, spec));
    for (int64_t t = 0; t < bands * groups; t++) {
        float most = 0;
        for (int64_t i = 0; i < N * K; i++) {
            bool inside = i / K / spec->rows == t / groups && i % K / spec->cols == t % groups;
            most = inside ? fmaxf(most, fabsf(floats(&w)[i])) : most;
        }
        ck_assert(floats(&scale)[t] == most);
        floats(&scale)[t] = most / (float)dtype_rows[spec->element].max;
    }
    ck_assert_rc_ok(rig.gpu.ops->tile_encode(rig.stream, &codes, &w, &scale, spec));
    ck_assert_rc_ok(rig.gpu.ops->tile_decode(rig.stream, &back, &codes, &scale, spec));
    for (int64_t i = 0; i < N * K; i++) {
        float s = floats(&scale)[i / K / spec->rows * groups + i % K / spec->cols];
        uint8_t code = bytes(&codes)[i];
        double x = (double)floats(&w)[i] / (double)s;
        double found = fabs((double)element(spec, code) - x);
        ck_assert(found <= least_distance(spec, x) * (1 + 1e-5) + 1e-6);
        ck_assert(floats(&back)[i] == s * element(spec, code));
    }
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &codes);
    gpu_tensor_free(&rig.gpu, &scale);
    gpu_tensor_free(&rig.gpu, &back);
    rig_close(&rig);
}

START_TEST(ranges_codes_and_values)
{
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_kind(&all[i]);
    }
}
END_TEST

/* The eight magnitudes of E2M1 and the ties between them; powers of two as E8M0 keeps them. */
START_TEST(microscaling_types)
{
    static const float levels[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    static const float ties[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    static const uint8_t even[] = {0, 2, 2, 4, 4, 6, 6};

    for (uint8_t i = 0; i < 8; i++) {
        ck_assert_float_eq(dtype_e2m1_to_f32(i), levels[i]);
        ck_assert_float_eq(dtype_e2m1_to_f32(i | 8), -levels[i]);
        ck_assert_uint_eq(dtype_f32_to_e2m1(levels[i]), i);
        ck_assert_uint_eq(dtype_f32_to_e2m1(-levels[i]), i | 8);
    }
    for (int i = 0; i < 7; i++) {
        ck_assert_uint_eq(dtype_f32_to_e2m1(ties[i]), even[i]);
        ck_assert_uint_eq(dtype_f32_to_e2m1(nextafterf(ties[i], 9)), i + 1);
        ck_assert_uint_eq(dtype_f32_to_e2m1(nextafterf(ties[i], 0)), i);
    }
    ck_assert_uint_eq(dtype_f32_to_e2m1(INFINITY), 7);
    ck_assert_uint_eq(dtype_f32_to_e2m1(-1e30f), 15);
    ck_assert_uint_eq(dtype_f32_to_e2m1(NAN), 0);
    for (int i = 0; i < 255; i++) {
        float value = dtype_e8m0_to_f32((uint8_t)i);
        ck_assert_double_eq(value, ldexp(1, i - 127));
        ck_assert_uint_eq(dtype_f32_to_e8m0(value), i);
        ck_assert_uint_eq(dtype_f32_to_e8m0(nextafterf(value, 0)), i > 0 ? i - 1 : 0);
        ck_assert_uint_eq(dtype_f32_to_e8m0(value * 1.99f), i);
    }
    ck_assert(isnan(dtype_e8m0_to_f32(255)));
    ck_assert_uint_eq(dtype_f32_to_e8m0(NAN), 255);
    ck_assert_uint_eq(dtype_f32_to_e8m0(-1), 255);
    ck_assert_uint_eq(dtype_f32_to_e8m0(0), 0);
    ck_assert_uint_eq(dtype_f32_to_e8m0(INFINITY), 254);
}
END_TEST

/* What the table says of a type is what its conversions do. */
START_TEST(limits_are_those_of_the_conversions)
{
    static const struct {
        enum dtype dtype;
        float (*back)(uint8_t);
        int first, last; /* codes of the least and the largest */
        int fraction;    /* bits of it that are stored */
    } small[] = {{DTYPE_F8_E4M3, dtype_e4m3_to_f32, 1, 0x7e, 3},
                 {DTYPE_F8_E5M2, dtype_e5m2_to_f32, 1, 0x7b, 2},
                 {DTYPE_F8_E8M0, dtype_e8m0_to_f32, 0, 254, 0},
                 {DTYPE_F4_E2M1, dtype_e2m1_to_f32, 1, 7, 1}};
    static const int fractions[] = {[DTYPE_F32] = 23, [DTYPE_F16] = 10, [DTYPE_BF16] = 7};

    for (size_t i = 0; i < sizeof(small) / sizeof(small[0]); i++) {
        const struct dtype_row *row = &dtype_rows[small[i].dtype];
        ck_assert_double_eq(row->min, (double)small[i].back((uint8_t)small[i].first));
        ck_assert_double_eq(row->max, (double)small[i].back((uint8_t)small[i].last));
        ck_assert_double_eq(row->max, dtype_max(small[i].dtype));
        ck_assert_double_eq(row->min, ldexp(row->min_normal, -small[i].fraction));
    }
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        const struct dtype_row *row = &dtype_rows[dtype];
        ck_assert_double_eq((double)dtype_round((float)row->max, dtype), row->max);
        ck_assert_double_eq((double)dtype_round((float)row->min, dtype), row->min);
        ck_assert_float_eq(dtype_round((float)(row->min / 4), dtype), dtype == DTYPE_F32 ? (float)(row->min / 4) : 0);
        ck_assert_float_eq(dtype_round_finite(INFINITY, dtype), (float)row->max);
        ck_assert_float_eq(dtype_round_finite(-INFINITY, dtype), -(float)row->max);
        ck_assert_double_eq(row->min, ldexp(row->min_normal, -fractions[dtype]));
        ck_assert_double_eq(2 - row->max / exp2(floor(log2(row->max))), exp2(-fractions[dtype]));
    }
    ck_assert_double_eq(dtype_rows[DTYPE_NF4].max, (double)dtype_nf4_levels[15]);
    ck_assert_double_eq(dtype_rows[DTYPE_NF4].min, (double)dtype_nf4_levels[8]);
    ck_assert_int_eq(dtype_from_name("NF4"), -1); /* no checkpoint holds these */
    ck_assert_int_eq(dtype_from_name("F4_E2M1"), -1);
    ck_assert_int_eq(dtype_from_name("F8_E8M0"), DTYPE_F8_E8M0);
}
END_TEST

START_TEST(packed_codes_of_nf4_are_the_scalar_ones)
{
    enum { COUNT = 40000 };
    const struct gpu_tiles spec = {DTYPE_NF4, 1, 64};
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 1, COUNT, 72), codes = rig_tensor(&rig, DTYPE_U8, 1, COUNT);
    struct tensor scale = rig_tensor(&rig, DTYPE_F32, 1, COUNT / 64);

    for (int i = 0; i < 15; i++) { /* middles: the lower level */
        floats(&w)[i] = (dtype_nf4_levels[i] + dtype_nf4_levels[i + 1]) / 2.0f;
    }
    for (int64_t g = 0; g < COUNT / 64; g++) {
        floats(&scale)[g] = g == 0 ? 1.0f : g == 1 ? 0.0f : g == 2 ? 1e-40f : 0.5f + (float)g;
    }
    for (int64_t i = 128; i < 192; i++) {
        floats(&w)[i] = 1e-40f * dtype_nf4_levels[i % 16];
    }
    ck_assert_rc_ok(rig.gpu.ops->tile_encode(rig.stream, &codes, &w, &scale, &spec));
    for (int64_t i = 0; i < COUNT; i++) {
        float s = floats(&scale)[i / 64], inverse = 1.0f / s;
        float x = s == 0 ? 0.0f : isfinite(inverse) ? floats(&w)[i] * inverse : floats(&w)[i] / s;
        ck_assert_uint_eq(bytes(&codes)[i], dtype_f32_to_nf4(x));
    }
    for (int i = 0; i < 15; i++) {
        ck_assert_uint_eq(bytes(&codes)[i], i);
    }
    ck_assert_uint_eq(bytes(&codes)[64], 7);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &codes);
    gpu_tensor_free(&rig.gpu, &scale);
    rig_close(&rig);
}
END_TEST

/* All numbers of BF16, and floats with the bits of a counter that is multiplied: of every size, NaN among them. */
#define EVERY (2 << 16)
#define EVERY_TILE 4099 /* not a multiple of any vector's length */

static float every(int i)
{
    return dtype_float_of(i < 1 << 16 ? (uint32_t)i << 16 : (uint32_t)i * 2654435761u);
}

static uint8_t plain_code(const struct gpu_tiles *spec, float w, float scale)
{
    switch (spec->element) {
    case DTYPE_NF4:
        return dtype_f32_to_nf4(w * (1.0f / scale));
    case DTYPE_I8:
        return (uint8_t)(128 + (int)fminf(fmaxf(rintf(w / scale), -127.0f), 127.0f));
    case DTYPE_F8_E5M2:
        return dtype_f32_to_e5m2(w / scale);
    case DTYPE_F4_E2M1:
        return dtype_f32_to_e2m1(w / scale);
    default:
        return dtype_f32_to_e4m3(w / scale);
    }
}

/* NaN has one sign and payload of an operation, and another of a constant; that it is one is what counts. */
static bool same_number(float a, float b)
{
    return dtype_bits_of(a) == dtype_bits_of(b) || (isnan(a) && isnan(b));
}

static void check_every(const struct gpu_tiles *spec, const char *level)
{
    static const float scales[] = {1.0f, 0.37f, 0x1p-20f, 3.1e5f};
    const int64_t tiles = above(EVERY, EVERY_TILE);
    struct rig rig;
    setenv("QUANTD_CPU_LEVEL", level, 1);
    rig_open(&rig, 2);
    unsetenv("QUANTD_CPU_LEVEL");
    struct tensor w = rig_tensor(&rig, DTYPE_F32, 1, EVERY), codes = rig_tensor(&rig, DTYPE_U8, 1, EVERY);
    struct tensor scale = rig_tensor(&rig, DTYPE_F32, 1, tiles), back = rig_tensor(&rig, DTYPE_F32, 1, EVERY);

    for (size_t s = 0; s < sizeof(scales) / sizeof(scales[0]); s++) {
        for (int i = 0; i < EVERY; i++) {
            floats(&w)[i] = every(i);
        }
        for (int64_t t = 0; t < tiles; t++) {
            floats(&scale)[t] = scales[s];
        }
        ck_assert_rc_ok(rig.gpu.ops->tile_encode(rig.stream, &codes, &w, &scale, spec));
        int wrong = -1; /* one check of all: each writes a note of where it is */
        for (int i = 0; i < EVERY; i++) {
            wrong = bytes(&codes)[i] != plain_code(spec, floats(&w)[i], scales[s]) ? i : wrong;
            bytes(&codes)[i] = (uint8_t)(i & ((1 << dtype_rows[spec->element].bits) - 1));
        }
        ck_assert_msg(wrong < 0, "%s: %s of %a / %a", level, dtype_rows[spec->element].name, (double)every(wrong),
                      (double)scales[s]);
        ck_assert_rc_ok(rig.gpu.ops->tile_decode(rig.stream, &back, &codes, &scale, spec));
        for (int i = 0; i < EVERY; i++) {
            wrong = same_number(floats(&back)[i], scales[s] * element(spec, bytes(&codes)[i])) ? wrong : i;
        }
        ck_assert_msg(wrong < 0, "%s: %s of code %d", level, dtype_rows[spec->element].name, wrong);
    }
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &codes);
    gpu_tensor_free(&rig.gpu, &scale);
    gpu_tensor_free(&rig.gpu, &back);
    rig_close(&rig);
}

START_TEST(codes_and_values_are_the_scalar_ones_on_every_level)
{
    static const char *const levels[] = {"generic", "avx2", "avx512"};
    static const enum dtype kinds[] = {DTYPE_F8_E4M3, DTYPE_F8_E5M2, DTYPE_I8, DTYPE_NF4, DTYPE_F4_E2M1};

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        for (size_t level = 0; level < sizeof(levels) / sizeof(levels[0]); level++) {
            check_every(&(const struct gpu_tiles){kinds[i], 1, EVERY_TILE}, levels[level]);
        }
    }
}
END_TEST

START_TEST(what_does_not_fit_is_refused)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, 8, 73), scale = rig_tensor(&rig, DTYPE_F32, 1, 1),
                  codes = rig_tensor(&rig, DTYPE_U8, 4, 7);
    const struct gpu_tiles whole = {DTYPE_F8_E4M3, 4, 8}, rows = {DTYPE_F8_E4M3, 1, 8}, none = {DTYPE_F8_E4M3, 0, 8};

    ck_assert_rc_ok(rig.gpu.ops->tile_range(rig.stream, &scale, &w, &whole));
    ck_assert_int_eq(rig.gpu.ops->tile_range(rig.stream, &scale, &w, &rows), ERR_INTERNAL);
    ck_assert_int_eq(rig.gpu.ops->tile_range(rig.stream, &scale, &w, &none), ERR_INTERNAL);
    ck_assert_int_eq(rig.gpu.ops->tile_encode(rig.stream, &codes, &w, &scale, &whole), ERR_INTERNAL);
    ck_assert_int_eq(rig.gpu.ops->tile_decode(rig.stream, &w, &codes, &scale, &whole), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &codes);
    gpu_tensor_free(&rig.gpu, &scale);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/elements", ranges_codes_and_values, microscaling_types, limits_are_those_of_the_conversions,
          packed_codes_of_nf4_are_the_scalar_ones, codes_and_values_are_the_scalar_ones_on_every_level,
          what_does_not_fit_is_refused)
