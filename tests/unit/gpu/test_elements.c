/* Weights as a scale times an element of a fixed set: ranges, codes and values against plain loops, for tiles of every
 * kind. */

#include "tests/unit/gpu/support.h"

#define N 37
#define K 200

static const struct gpu_tiles all[] = {
    {GPU_ELEMENT_E4M3, 1, K}, {GPU_ELEMENT_E4M3, N, K}, {GPU_ELEMENT_E4M3, 16, 64}, {GPU_ELEMENT_E5M2, 1, K},
    {GPU_ELEMENT_INT8, 1, K}, {GPU_ELEMENT_NF4, 1, 64}, {GPU_ELEMENT_NF4, 3, 7},
};

static int64_t above(int64_t count, int64_t size)
{
    return (count + size - 1) / size;
}

static float element(const struct gpu_tiles *spec, uint8_t code)
{
    return spec->element == GPU_ELEMENT_NF4    ? dtype_nf4_levels[code]
           : spec->element == GPU_ELEMENT_INT8 ? (float)code - 128.0f
           : spec->element == GPU_ELEMENT_E5M2 ? dtype_e5m2_to_f32(code)
                                               : dtype_e4m3_to_f32(code);
}

/* The distance of x to the nearest element. */
static double least_distance(const struct gpu_tiles *spec, double x)
{
    int first = spec->element == GPU_ELEMENT_INT8 ? 1 : 0, count = spec->element == GPU_ELEMENT_NF4 ? 16 : 256;
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
    const float largest[] = {448.0f, 57344.0f, 1.0f, 127.0f};
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
        floats(&scale)[t] = most / largest[spec->element];
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

START_TEST(packed_codes_of_nf4_are_the_scalar_ones)
{
    enum { COUNT = 40000 };
    const struct gpu_tiles spec = {GPU_ELEMENT_NF4, 1, 64};
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

START_TEST(what_does_not_fit_is_refused)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor w = rig_random(&rig, 4, 8, 73), scale = rig_tensor(&rig, DTYPE_F32, 1, 1),
                  codes = rig_tensor(&rig, DTYPE_U8, 4, 7);
    const struct gpu_tiles whole = {GPU_ELEMENT_E4M3, 4, 8}, rows = {GPU_ELEMENT_E4M3, 1, 8},
                           none = {GPU_ELEMENT_E4M3, 0, 8};

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

UNIT_MAIN("gpu/elements", ranges_codes_and_values, packed_codes_of_nf4_are_the_scalar_ones,
          what_does_not_fit_is_refused)
