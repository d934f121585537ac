/* Element types, views, scalar conversions, the registry, and conversions of whole tensors against the scalar ones. */

#include "base/ids.h"
#include "gpu/cpu/internal.h"
#include "tests/unit/gpu/support.h"

#include <errno.h>
#include <stdlib.h>

START_TEST(names_round_trip)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        ck_assert_int_eq(dtype_from_name(dtype_rows[i].name), dtype_rows[i].stored ? i : -1);
    }
    ck_assert_int_eq(dtype_from_name("F8_E4M3"), DTYPE_F8_E4M3);
    ck_assert_int_eq(dtype_from_name("f32"), -1);
    ck_assert_int_eq(dtype_from_name(""), -1);
}
END_TEST

START_TEST(views)
{
    float data[12];
    struct tensor tensor = tensor_2d(data, DTYPE_F32, 3, 4);
    struct tensor rows = tensor_rows(&tensor, 1, 2);

    ck_assert_int_eq(tensor_count(&tensor), 12);
    ck_assert_uint_eq(tensor_bytes(&tensor), 48);
    ck_assert_ptr_eq(rows.data, data + 4);
    ck_assert_int_eq(rows.shape[0], 2);
    ck_assert_int_eq(rows.shape[1], 4);
}
END_TEST

START_TEST(every_half_round_trips)
{
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float f16 = dtype_f16_to_f32((uint16_t)bits), bf16 = dtype_bf16_to_f32((uint16_t)bits);
        if (!isnan(f16)) {
            ck_assert_uint_eq(dtype_f32_to_f16(f16), bits);
        } else {
            ck_assert(isnan(dtype_f16_to_f32(dtype_f32_to_f16(f16))));
        }
        if (!isnan(bf16)) {
            ck_assert_uint_eq(dtype_f32_to_bf16(bf16), bits);
        } else {
            ck_assert(isnan(dtype_bf16_to_f32(dtype_f32_to_bf16(bf16))));
        }
    }
}
END_TEST

/* The nearest of all finite halves, ties to the even code: true by definition. */
START_TEST(f16_is_nearest_even)
{
    uint64_t seed = 7;
    for (int i = 0; i < 3000; i++) {
        float value = ldexpf(random_unit(&seed), (int)(random_bits(&seed) % 42) - 26);
        if (i % 3 == 0) { /* exactly between two neighbours */
            uint16_t low = (uint16_t)(random_bits(&seed) % 0x7bff);
            value = (float)(((double)dtype_f16_to_f32(low) + (double)dtype_f16_to_f32((uint16_t)(low + 1))) / 2);
        }
        uint16_t got = dtype_f32_to_f16(value);
        double error = fabs((double)dtype_f16_to_f32(got) - (double)value);
        for (int step = -1; step <= 1; step += 2) {
            uint16_t other = (uint16_t)(got + step);
            if ((other & 0x7c00) == 0x7c00 || (got & 0x7fff) == 0) {
                continue;
            }
            double other_error = fabs((double)dtype_f16_to_f32(other) - (double)value);
            ck_assert(error < other_error || (error == other_error && (got & 1) == 0));
        }
    }
}
END_TEST

START_TEST(conversion_edges)
{
    ck_assert_uint_eq(dtype_f32_to_f16(65504.0f), 0x7bff);
    ck_assert_uint_eq(dtype_f32_to_f16(65519.99f), 0x7bff);
    ck_assert_uint_eq(dtype_f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(dtype_f32_to_f16(-INFINITY), 0xfc00);
    ck_assert_uint_eq(dtype_f32_to_f16(0x1p-24f), 1);
    ck_assert_uint_eq(dtype_f32_to_f16(0x1p-25f), 0); /* a tie, to even */
    ck_assert_uint_eq(dtype_f32_to_f16(0x1.8p-24f), 2);
    ck_assert_uint_eq(dtype_f32_to_f16(-0.0f), 0x8000);
    ck_assert_uint_eq(dtype_f32_to_bf16(0x1.01p0f), 0x3f80); /* ties, to even */
    ck_assert_uint_eq(dtype_f32_to_bf16(0x1.03p0f), 0x3f82);
    ck_assert_uint_eq(dtype_f32_to_bf16(0x1.fffffep127f), 0x7f80);
    ck_assert_float_eq(dtype_round(1.0009766f, DTYPE_F16), 1.0009766f);
    ck_assert_float_eq(dtype_round(0.1f, DTYPE_F32), 0.1f);
}
END_TEST

static void check_level(const char *level)
{
    struct rig rig;
    setenv("QUANTD_CPU_LEVEL", level, 1);
    rig_open(&rig, 2);
    struct tensor f16 = rig_tensor(&rig, DTYPE_F16, 1, 65536), bf16 = rig_tensor(&rig, DTYPE_BF16, 1, 65536);
    struct tensor wide = rig_tensor(&rig, DTYPE_F32, 1, 65536);
    uint64_t seed = 3;

    for (uint32_t i = 0; i < 65536; i++) {
        ((uint16_t *)f16.data)[i] = (uint16_t)i;
    }
    ck_assert_rc_ok(rig.ops->convert(rig.stream, &wide, &f16));
    for (uint32_t i = 0; i < 65536; i++) {
        float want = dtype_f16_to_f32((uint16_t)i);
        ck_assert_msg(memcmp(&floats(&wide)[i], &want, 4) == 0, "%s: half %04x", level, i);
    }
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t bits = (uint32_t)random_bits(&seed);
        memcpy(&floats(&wide)[i], &bits, 4);
    }
    ck_assert_rc_ok(rig.ops->convert(rig.stream, &f16, &wide));
    ck_assert_rc_ok(rig.ops->convert(rig.stream, &bf16, &wide));
    for (uint32_t i = 0; i < 65536; i++) {
        ck_assert_uint_eq(((uint16_t *)f16.data)[i], dtype_f32_to_f16(floats(&wide)[i]));
        ck_assert_uint_eq(((uint16_t *)bf16.data)[i], dtype_f32_to_bf16(floats(&wide)[i]));
    }
    gpu_tensor_free(&rig.gpu, &f16);
    gpu_tensor_free(&rig.gpu, &bf16);
    gpu_tensor_free(&rig.gpu, &wide);
    rig_close(&rig);
    unsetenv("QUANTD_CPU_LEVEL");
}

START_TEST(packed_conversions_agree_with_scalar)
{
    check_level("generic");
    check_level("avx2");
    check_level("avx512");
}
END_TEST

START_TEST(convert_refuses)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor a = rig_tensor(&rig, DTYPE_F32, 1, 4), b = rig_tensor(&rig, DTYPE_F16, 1, 5);
    struct tensor c = rig_tensor(&rig, DTYPE_U8, 1, 4);

    ck_assert_int_eq(rig.ops->convert(rig.stream, &b, &a), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->convert(rig.stream, &c, &a), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &a);
    gpu_tensor_free(&rig.gpu, &b);
    gpu_tensor_free(&rig.gpu, &c);
    rig_close(&rig);
}
END_TEST

START_TEST(find_nonfinite)
{
    struct rig rig;
    int64_t index = 5;
    rig_open(&rig, 3);
    struct tensor x = rig_random(&rig, 300, 1000, 1), half = rig_tensor(&rig, DTYPE_F16, 1, 100);

    ck_assert_rc_ok(rig.ops->find_nonfinite(rig.stream, &index, &x));
    ck_assert_int_eq(index, -1);
    floats(&x)[299999] = NAN;
    floats(&x)[123456] = -INFINITY;
    ck_assert_rc_ok(rig.ops->find_nonfinite(rig.stream, &index, &x));
    ck_assert_int_eq(index, 123456);
    ((uint16_t *)half.data)[42] = 0x7c00;
    ck_assert_rc_ok(rig.ops->find_nonfinite(rig.stream, &index, &half));
    ck_assert_int_eq(index, 42);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &half);
    rig_close(&rig);
}
END_TEST

/* A large block that was freed is the next of its size; zeros are zeros nevertheless. */
/* Every type that can hold a NaN or Inf, at the edges of what is looked at in one go. */
START_TEST(find_nonfinite_stored)
{
    static const struct {
        enum dtype dtype;
        uint64_t finite, bad[3];
    } rows[] = {
        {DTYPE_F64, 0x7fefffffffffffff, {0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000001}},
        {DTYPE_F32, 0x7f7fffff, {0x7f800000, 0xff800000, 0x7fc00000}},
        {DTYPE_F16, 0x7bff, {0x7c00, 0xfc00, 0x7e00}},
        {DTYPE_BF16, 0xff7f, {0x7f80, 0xff80, 0x7fc0}},
        {DTYPE_F8_E4M3, 0x7e, {0x7f, 0xff, 0x7f}},
        {DTYPE_F8_E5M2, 0x7b, {0x7c, 0xfc, 0x7e}},
        {DTYPE_F8_E8M0, 0xfe, {0xff, 0xff, 0xff}},
    };
    static const int64_t places[] = {0, 4095, 4096, 8191, 8192, 9999};
    enum { COUNT = 10000 };
    unsigned char *data = malloc((size_t)COUNT * 8);

    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
        size_t width = dtype_rows[rows[r].dtype].bytes;
        for (int64_t i = 0; i < COUNT; i++) {
            memcpy(data + (size_t)i * width, &rows[r].finite, width);
        }
        ck_assert_int_eq(dtype_find_nonfinite(rows[r].dtype, data, COUNT), -1);
        for (size_t k = 0; k < 6; k++) {
            memcpy(data + (size_t)places[k] * width, &rows[r].bad[k % 3], width);
            ck_assert_int_eq(dtype_find_nonfinite(rows[r].dtype, data, COUNT), places[k]);
            ck_assert_int_eq(dtype_find_nonfinite(rows[r].dtype, data, places[k]), -1);
            memcpy(data + (size_t)places[k] * width, &rows[r].finite, width);
        }
    }
    memset(data, 0xff, COUNT);
    ck_assert_int_eq(dtype_find_nonfinite(DTYPE_I32, data, COUNT / 4), -1);
    free(data);
}
END_TEST

START_TEST(memory_is_used_again)
{
    const struct gpu_ops *ops = gpu_cpu_ops();
    const size_t large = (size_t)3 << 20, larger = (size_t)5 << 20;
    struct gpu_stream *stream;
    struct gpu_device *device;
    void *first, *second, *other;

    ck_assert_rc_ok(ops->device_open(0, 1, &device));
    ck_assert_rc_ok(ops->stream_new(device, &stream));
    ck_assert_rc_ok(ops->alloc(device, large, false, &first));
    memset(first, 0xa5, large);
    ops->free(device, first);
    ck_assert_rc_ok(ops->alloc(device, large, false, &second));
    ck_assert_ptr_eq(second, first);
    ops->free(device, second);
    ck_assert_rc_ok(ops->alloc(device, large, true, &second));
    ck_assert_ptr_eq(second, first);
    ck_assert_int_eq(*(char *)second, 0);
    ck_assert_int_eq(memcmp(second, (char *)second + 1, large - 1), 0);
    ck_assert_rc_ok(ops->alloc(device, larger, true, &other));
    ops->free(device, second);
    ck_assert_rc_ok(ops->alloc(device, larger, true, &first)); /* drives the other size out */
    ops->free(device, first);
    ops->free(device, other);
    ops->stream_free(stream);
    ops->device_close(device);
}
END_TEST

/* Memory that could not be had leaves no room for others to be kept. */
START_TEST(memory_that_is_not_there)
{
    const struct gpu_ops *ops = gpu_cpu_ops();
    const size_t large = (size_t)3 << 20, larger = (size_t)5 << 20;
    struct gpu_device *device;
    void *block;

    ck_assert_rc_ok(ops->device_open(0, 1, &device));
    ck_assert_rc_ok(ops->alloc(device, large, false, &block));
    ops->free(device, block);
    ck_assert_int_gt(memory_idle(device), (int64_t)large);
    ck_assert_int_eq(ops->alloc(device, (size_t)1 << 62, false, &block), ERR_HOST_OUT_OF_MEMORY);
    ck_assert_int_eq(memory_idle(device), 0); /* it was tried without */
    ck_assert_rc_ok(ops->alloc(device, large, false, &block));
    ops->free(device, block);
    ck_assert_rc_ok(ops->alloc(device, larger, false, &block));
    ck_assert_int_eq(memory_idle(device), 0); /* both were never in use at once */
    ops->free(device, block);
    ops->device_close(device);
}
END_TEST

START_TEST(registry)
{
    struct gpu gpu;
    struct tensor tensor;

    ck_assert_rc_ok(gpu_load_backends(NULL));
    ck_assert_ptr_nonnull(strstr(gpu_backend_notes(), "cuda: no module"));
    ck_assert_int_eq(gpu_open("cuda:0", 0, &gpu), ERR_CONFIG);
    ck_assert_int_eq(gpu_open("cpu:1", 0, &gpu), ERR_CONFIG);
    ck_assert_int_eq(gpu_open("cpu:x", 0, &gpu), ERR_CONFIG);
    ck_assert_int_eq(gpu_open("", 0, &gpu), ERR_CONFIG);
    ck_assert_rc_ok(gpu_open("auto", 2, &gpu));
    ck_assert_str_eq(gpu.info.id, "cpu");
    ck_assert_int_eq(gpu.info.threads, 2);
    ck_assert_int_gt(gpu.info.memory_total, 0);
    ck_assert_int_gt(gpu.info.memory_free, 0);
    ck_assert_int_le(gpu.info.memory_free, gpu.info.memory_total);
    ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 2, (const int64_t[]){INT64_MAX / 2, 8}, &tensor), ERR_INTERNAL);
    ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){-1}, &tensor), ERR_INTERNAL);
    ck_assert_int_eq(gpu_tensor_new(&gpu, DTYPE_F32, 1, (const int64_t[]){INT64_MAX / 8}, &tensor),
                     ERR_HOST_OUT_OF_MEMORY);
    for (int64_t n = 1; n < 3000000; n *= 11) { /* small and mapped blocks */
        ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 1, &n, &tensor));
        ck_assert_uint_eq((uintptr_t)tensor.data % 64, 0);
        ck_assert_float_eq(floats(&tensor)[0] + floats(&tensor)[n - 1], 0.0f);
        floats(&tensor)[n - 1] = 1.0f;
        gpu_tensor_free(&gpu, &tensor);
        ck_assert_ptr_null(tensor.data);
    }
    gpu_tensor_free(&gpu, &tensor);
    gpu_close(&gpu);
}
END_TEST

/* A machine with AVX-512 whose BLAS runs the kernels of an older one loses half its speed without a word. */
START_TEST(blas_uses_the_widest_kernels)
{
    struct gpu gpu;
    ck_assert_rc_ok(gpu_open("cpu", 1, &gpu));
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        getenv("OPENBLAS_CORETYPE") == NULL) {
        ck_assert_ptr_null(strstr(gpu.info.detail, "Haswell"));
        ck_assert_ptr_nonnull(strstr(gpu.info.detail, "avx512"));
    }
#endif
    ck_assert_ptr_nonnull(strstr(gpu.info.detail, "openblas"));
    gpu_close(&gpu);
}
END_TEST

/* A backend without operations: callers find each of them in the front door, where it raises its name. */
START_TEST(missing_operations_are_refused_by_name)
{
    struct gpu_ops ops = *gpu_cpu_ops(), front;
    struct gpu_stream_head head = {&ops};
    struct gpu_stream *stream = (struct gpu_stream *)(void *)&head;
    double loss;

#define GPU_OP(group, name, does, ...) ops.name = NULL;
#include "gpu/ops.def"
    gpu_front(&ops, &front);
    ck_assert_int_eq(front.sweep(stream, NULL, NULL, NULL, NULL, NULL, NULL, 128, NULL, &loss), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "'cpu' has no operation 'sweep'"));
    ck_assert_int_eq(front.add(stream, NULL, NULL), ERR_UNSUPPORTED);
#define GPU_OP(group, name, does, ...) ck_assert(front.name != NULL);
#include "gpu/ops.def"
    ck_assert_ptr_null(gpu_missing_call(&ops));
    ops.upload = NULL;
    ck_assert_str_eq(gpu_missing_call(&ops), "upload");
}
END_TEST

/* Time passes from one event to the next, and the second one may be moved. */
START_TEST(events_tell_time)
{
    struct rig rig;
    struct gpu_event *first, *last;
    double once = -1, twice = -1, none = -1;

    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 64, 64, 1), y = rig_tensor(&rig, DTYPE_F32, 64, 64);
    ck_assert_rc_ok(rig.ops->event_new(rig.gpu.device, &first));
    ck_assert_rc_ok(rig.ops->event_new(rig.gpu.device, &last));
    double begun = clock_monotonic_seconds();
    ck_assert_rc_ok(rig.ops->event_record(rig.stream, first));
    ck_assert_rc_ok(rig.ops->multiply(rig.stream, &y, &x, &x));
    ck_assert_rc_ok(rig.ops->event_record(rig.stream, last));
    ck_assert_rc_ok(rig.ops->event_elapsed(first, last, &once));
    ck_assert_rc_ok(rig.ops->multiply(rig.stream, &y, &x, &x));
    ck_assert_rc_ok(rig.ops->event_wait(rig.stream, last));
    ck_assert_rc_ok(rig.ops->event_record(rig.stream, last));
    ck_assert_rc_ok(rig.ops->event_elapsed(first, last, &twice));
    ck_assert_rc_ok(rig.ops->event_elapsed(last, last, &none));
    ck_assert(once > 0 && twice > once && twice <= clock_monotonic_seconds() - begun);
    ck_assert_double_eq(none, 0);
    rig.ops->event_free(first);
    rig.ops->event_free(last);
    rig.ops->event_free(NULL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}
END_TEST

START_TEST(tensors_from_the_host)
{
    struct rig rig;
    struct tensor made;
    float host[6] = {1, 2, 3, 4, 5, 6};

    rig_open(&rig, 1);
    ck_assert_rc_ok(gpu_tensor_from_host(&rig.gpu, rig.stream, DTYPE_F32, 2, (const int64_t[]){2, 3}, host, &made));
    memset(host, 0, sizeof(host)); /* it is free */
    ck_assert_float_eq(floats(&made)[5], 6.0f);
    ck_assert_int_eq(made.shape[1], 3);
    ck_assert_rc_ok(gpu_tensor_upload(&rig.gpu, rig.stream, &made, host));
    ck_assert_float_eq(floats(&made)[5], 0.0f);
    gpu_tensor_free(&rig.gpu, &made);
    ck_assert_int_eq(gpu_tensor_from_host(&rig.gpu, rig.stream, DTYPE_F32, 1, (const int64_t[]){-1}, host, &made),
                     ERR_INTERNAL);
    ck_assert_ptr_null(made.data);
    rig_close(&rig);
}
END_TEST

enum { HELD_BYTES = 3 << 20 }; /* large enough to be idle memory of the device once it is free */

static int hold_tensors(const struct rig *rig, bool fail, struct tensor *out)
{
    const int64_t bytes = HELD_BYTES;

    AUTO_TENSOR(none, &rig->gpu);
    AUTO_TENSOR(first, &rig->gpu);
    TRY(gpu_tensor_new(&rig->gpu, DTYPE_U8, 1, &bytes, &first));
    TRY(fail ? ERR_INTERNAL : 0);
    AUTO_TENSOR(second, &rig->gpu);
    TRY(gpu_tensor_new(&rig->gpu, DTYPE_U8, 1, &bytes, &second));
    *out = tensor_move(&first);
    errno = ENOENT;
    return none.data == NULL && first.data == NULL ? 0 : ERR_INTERNAL;
}

/* Each way out of a scope frees its tensors, but for those that were moved out. */
START_TEST(scopes_free_tensors)
{
    struct rig rig;
    struct tensor made = {0};

    rig_open(&rig, 1);
    ck_assert_int_eq(hold_tensors(&rig, true, &made), ERR_INTERNAL);
    ck_assert_int_ge(memory_idle(rig.gpu.device), HELD_BYTES);
    ck_assert_rc_ok(hold_tensors(&rig, false, &made));
    ck_assert_int_eq(errno, ENOENT);
    ck_assert_ptr_nonnull(made.data);
    ck_assert_int_eq(made.shape[0], HELD_BYTES);
    ck_assert_int_ge(memory_idle(rig.gpu.device), HELD_BYTES);
    memset(made.data, 1, HELD_BYTES);
    gpu_tensor_free(&rig.gpu, &made);
    ck_assert_int_ge(memory_idle(rig.gpu.device), (int64_t)2 * HELD_BYTES);
    rig_close(&rig);
}
END_TEST

/* Memory that an output shares with an input, or that is not aligned, is refused before a backend sees it. */
START_TEST(front_door_looks_at_memory)
{
    struct rig rig;

    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 8, 8, 1), w = rig_random(&rig, 8, 8, 2), y = rig_random(&rig, 8, 8, 3);
    struct tensor odd = w, inside = tensor_rows(&x, 4, 4), h = rig_random(&rig, 4, 4, 4);
    odd.data = (char *)w.data + 2;
    odd.shape[0] = 7;
    ck_assert_rc_ok(rig.ops->linear(rig.stream, &y, &x, &w, NULL));
    ck_assert_int_eq(rig.ops->linear(rig.stream, &x, &x, &w, NULL), ERR_INTERNAL);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "linear: y and x share memory"));
    ck_assert_int_eq(rig.ops->gram(rig.stream, &w, &w), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->add(rig.stream, &odd, &odd), ERR_INTERNAL);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "aligned"));
    inside.shape[1] = 4;
    inside.shape[0] = 8;
    ck_assert_int_eq(rig.ops->multiply(rig.stream, &inside, &x, &h), ERR_INTERNAL); /* shape */
    ck_assert_int_eq(rig.ops->multiply(rig.stream, &inside, &inside, &h), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &y);
    gpu_tensor_free(&rig.gpu, &h);
    rig_close(&rig);
}
END_TEST

/* The stored number is not above the value, and the next one is. */
START_TEST(rounding_down_stays_below)
{
    uint64_t seed = 9;
    for (int i = 0; i < 3000; i++) {
        float value = fabsf(ldexpf(random_unit(&seed), (int)(random_bits(&seed) % 40) - 26));
        float f16 = dtype_round_down(value, DTYPE_F16), bf16 = dtype_round_down(value, DTYPE_BF16);
        ck_assert(f16 <= value && dtype_f16_to_f32((uint16_t)(dtype_f32_to_f16(f16) + 1)) > value);
        ck_assert(bf16 <= value && dtype_bf16_to_f32((uint16_t)(dtype_f32_to_bf16(bf16) + 1)) > value);
        ck_assert(dtype_round_down(f16, DTYPE_F16) == f16 && dtype_round_down(value, DTYPE_F32) == value);
    }
    ck_assert(dtype_round_down(1e6f, DTYPE_F16) == 65504.0f);
}
END_TEST

UNIT_MAIN("gpu/tensor", names_round_trip, views, every_half_round_trips, f16_is_nearest_even, conversion_edges,
          rounding_down_stays_below, packed_conversions_agree_with_scalar, convert_refuses, find_nonfinite,
          find_nonfinite_stored, memory_is_used_again, memory_that_is_not_there, registry, blas_uses_the_widest_kernels,
          missing_operations_are_refused_by_name, events_tell_time, tensors_from_the_host, scopes_free_tensors,
          front_door_looks_at_memory)
