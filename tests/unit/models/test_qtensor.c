/* The neutral tensor and its checkpoint: values survive, damage is seen. */

#include "models/qtensor.h"
#include "models/safetensors.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static const struct qscheme four = {.bits = 4, .group_size = 4, .sym = true, .scale_dtype = DTYPE_F16};
static const struct qscheme three = {.bits = 3, .group_size = 8, .per_channel = true, .scale_dtype = DTYPE_F32};

static void make(struct qtensor *q, const char *name, const struct qscheme *scheme)
{
    ck_assert_rc_ok(qtensor_new(name, scheme, 3, 8, q));
    for (int i = 0; i < 24; i++) {
        q->codes[i] = (uint8_t)(i % (1 << scheme->bits));
    }
    for (int64_t i = 0; i < q->rows * q->groups; i++) {
        q->scales[i] = 0.5f + (float)i;
        q->zeros[i] = scheme->sym ? (uint8_t)(1 << (scheme->bits - 1)) : (uint8_t)(i % 8);
    }
}

START_TEST(test_new)
{
    struct qtensor q = {0};
    struct qscheme odd = four;
    char longer[200];

    ck_assert_rc_ok(qtensor_new("m", &four, 3, 8, &q));
    ck_assert_int_eq(q.groups, 2);
    ck_assert_double_eq_tol(qtensor_bits_per_weight(&q), 4 + 16.0 / 4, 1e-12);
    qtensor_deinit(&q);
    qtensor_deinit(&q);
    ck_assert_rc_ok(qtensor_new("m", &three, 3, 8, &q));
    ck_assert_double_eq_tol(qtensor_bits_per_weight(&q), 3 + (32 + 3) / 8.0, 1e-12);
    qtensor_deinit(&q);

    odd.group_size = 3;
    ck_assert_int_eq(qtensor_new("m", &odd, 3, 8, &q), ERR_INCOMPATIBLE_OPTIONS);
    odd.group_size = 0;
    ck_assert_int_eq(qtensor_new("m", &odd, 3, 8, &q), ERR_INCOMPATIBLE_OPTIONS);
    odd.group_size = 16;
    ck_assert_int_eq(qtensor_new("m", &odd, 3, 8, &q), ERR_INCOMPATIBLE_OPTIONS);
    odd = four;
    odd.bits = 9;
    ck_assert_int_eq(qtensor_new("m", &odd, 3, 8, &q), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_int_eq(qtensor_new("m", &four, 0, 8, &q), ERR_INVALID_MODEL);
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    ck_assert_int_eq(qtensor_new(longer, &four, 3, 8, &q), ERR_INVALID_MODEL);
}
END_TEST

START_TEST(test_dequantize)
{
    struct qtensor q;
    float w[24];

    make(&q, "m", &three);
    qtensor_dequantize(&q, w);
    for (int n = 0; n < 3; n++) {
        for (int k = 0; k < 8; k++) {
            ck_assert_float_eq(w[n * 8 + k], q.scales[n] * (float)((int)q.codes[n * 8 + k] - (int)q.zeros[n]));
        }
    }
    qtensor_deinit(&q);
    make(&q, "m", &four);
    qtensor_dequantize(&q, w);
    ck_assert_float_eq(w[5], q.scales[1] * (5 - 8));
    qtensor_deinit(&q);
}
END_TEST

static void save_two(const char *path, char hex[65])
{
    struct qtensor items[2];

    make(&items[0], "model.layers.0.z", &four);
    make(&items[1], "model.layers.0.a", &three);
    ck_assert_rc_ok(qtensor_save(path, items, 2, hex));
    qtensor_deinit(&items[0]);
    qtensor_deinit(&items[1]);
}

START_TEST(test_round_trip)
{
    char folder[256], path[300], hex[65], again[65];
    struct qtensor_file *file;
    struct qtensor made, read;

    scratch_make(folder);
    snprintf(path, sizeof(path), "%s/block", folder);
    save_two(path, hex);
    save_two(path, again);
    ck_assert_str_eq(hex, again); /* the same bytes */
    ck_assert_rc_ok(qtensor_file_open(path, hex, &file));
    ck_assert_int_eq(qtensor_file_count(file), 2);
    ck_assert_str_eq(qtensor_file_meta(file, 0)->name, "model.layers.0.z");
    ck_assert_str_eq(qtensor_file_meta(file, 1)->name, "model.layers.0.a");
    ck_assert_ptr_null(qtensor_file_meta(file, 0)->codes);
    make(&made, "model.layers.0.a", &three);
    ck_assert_rc_ok(qtensor_file_read(file, 1, &read));
    ck_assert_int_eq(memcmp(read.codes, made.codes, 24), 0);
    ck_assert_int_eq(memcmp(read.scales, made.scales, 12), 0);
    ck_assert_int_eq(memcmp(read.zeros, made.zeros, 3), 0);
    ck_assert(read.scheme.bits == 3 && read.scheme.per_channel && !read.scheme.sym &&
              read.scheme.scale_dtype == DTYPE_F32 && read.scheme.group_size == 8);
    qtensor_deinit(&made);
    qtensor_deinit(&read);
    qtensor_file_close(file);

    ck_assert_rc_ok(qtensor_save(path, NULL, 0, hex)); /* a block where nothing is quantized */
    ck_assert_rc_ok(qtensor_file_open(path, hex, &file));
    ck_assert_int_eq(qtensor_file_count(file), 0);
    qtensor_file_close(file);
    scratch_remove(folder);
}
END_TEST

START_TEST(test_damage)
{
    char folder[256], path[300], hex[65], *text;
    struct qtensor_file *file = NULL;
    struct qtensor q;
    size_t size;

    scratch_make(folder);
    snprintf(path, sizeof(path), "%s/block", folder);
    ck_assert_int_eq(qtensor_file_open(path, NULL, &file), ERR_SOURCE_CORRUPT);
    save_two(path, hex);
    ck_assert_rc_ok(fs_read_file(path, 1 << 20, &text, &size));

    text[size - 1] = 0x7f; /* the last byte: a code or zero beyond its grid */
    ck_assert_rc_ok(fs_write_atomic(path, text, size));
    ck_assert_int_eq(qtensor_file_open(path, hex, &file), ERR_SOURCE_CORRUPT);
    ck_assert_rc_ok(qtensor_file_open(path, NULL, &file));
    ck_assert_int_eq(qtensor_file_read(file, 0, &q), ERR_SOURCE_CORRUPT);
    ck_assert_rc_ok(qtensor_file_read(file, 1, &q));
    qtensor_deinit(&q);
    qtensor_file_close(file);

    ck_assert_rc_ok(fs_write_atomic(path, text, size - 1));
    ck_assert_int_eq(qtensor_file_open(path, NULL, &file), ERR_SOURCE_CORRUPT);
    char *bits = memmem(text, size, "\\\"bits\\\":4", 10);
    ck_assert_ptr_nonnull(bits);
    bits[9] = '9';
    ck_assert_rc_ok(fs_write_atomic(path, text, size));
    ck_assert_int_eq(qtensor_file_open(path, NULL, &file), ERR_SOURCE_CORRUPT);
    free(text);
    scratch_remove(folder);
}
END_TEST

START_TEST(test_save_fails)
{
    char hex[65] = "untouched";

    ck_assert_int_eq(qtensor_save("/nonexistent/block", NULL, 0, hex), ERR_NOT_FOUND);
    ck_assert_str_eq(hex, "untouched");
}
END_TEST

UNIT_MAIN("qtensor", test_new, test_dequantize, test_round_trip, test_damage, test_save_fails)
