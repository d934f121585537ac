/* The neutral tensor and its checkpoint: values survive, damage is seen. */

#include "models/qtensor.h"
#include "models/safetensors.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
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

/* Block-scaled kinds of every element, block and scale type that there is room for. */
static const struct qscheme scaled[] = {
    {.kind = QTENSOR_INT, .bits = 4, .group_size = 8, .scale_dtype = DTYPE_F16},
    {.kind = QTENSOR_INT, .bits = 8, .group_size = 24, .group_rows = 2, .sym = true, .scale_dtype = DTYPE_BF16},
    {.kind = QTENSOR_NF4, .bits = 4, .group_size = 7, .scale_dtype = DTYPE_F32},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .group_size = 16, .group_rows = 3, .element = DTYPE_F8_E4M3},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .group_size = 24, .element = DTYPE_F8_E5M2, .scale_dtype = DTYPE_F8_E8M0},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .group_size = 32, .element = DTYPE_F8_E4M3, .scale_dtype = DTYPE_F8_E8M0},
    {.kind = QTENSOR_FLOAT4, .bits = 4, .group_size = 32, .scale_dtype = DTYPE_F8_E8M0}, /* MXFP4 */
    {.kind = QTENSOR_FLOAT4, .bits = 4, .group_size = 16, .scale_dtype = DTYPE_F8_E4M3}, /* NVFP4 */
    {.kind = QTENSOR_FLOAT4, .bits = 4, .group_size = 5, .group_rows = 2, .scale_dtype = DTYPE_F32},
};
#define SCALED_COUNT (sizeof(scaled) / sizeof(scaled[0]))
enum { SCALED_ROWS = 5, SCALED_COLS = 24 };

static bool has_tensor_scale(const struct qscheme *scheme)
{
    return scheme->kind == QTENSOR_FLOAT4 && scheme->scale_dtype == DTYPE_F8_E4M3;
}

static void make_scaled(struct qtensor *q, const struct qscheme *scheme)
{
    uint32_t seed = 5;

    ck_assert_rc_ok(qtensor_new("model.layers.0.m", scheme, SCALED_ROWS, SCALED_COLS, q));
    for (int i = 0; i < SCALED_ROWS * SCALED_COLS; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->codes[i] = (uint8_t)(seed >> 24 & (scheme->kind == QTENSOR_FLOAT8 ? 0xbbu : (1u << scheme->bits) - 1));
    }
    for (int64_t i = 0; i < q->row_groups * q->groups; i++) {
        q->scales[i] = dtype_round_scale(0.3f * (float)(i + 1), scheme->scale_dtype);
        if (q->zeros != NULL) {
            q->zeros[i] = (uint8_t)(scheme->sym ? 1 << (scheme->bits - 1) : i % 8);
        }
    }
    q->tensor_scale = has_tensor_scale(scheme) ? 0.0123f : 0;
}

/* The value of a code by the element's definition, in double. */
static double level_of(const struct qscheme *scheme, uint8_t code)
{
    static const double e2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    int mantissa = scheme->element == DTYPE_F8_E5M2 ? 2 : 3, bias = scheme->element == DTYPE_F8_E5M2 ? 15 : 7;
    int exponent = (code & 0x7f) >> mantissa;
    double fraction = (double)(code & ((1 << mantissa) - 1)) / (1 << mantissa);

    switch (scheme->kind) {
    case QTENSOR_NF4:
        return (double)dtype_nf4_levels[code];
    case QTENSOR_FLOAT4:
        return (code & 8) != 0 ? -e2m1[code & 7] : e2m1[code & 7];
    case QTENSOR_FLOAT8:
        return (code & 0x80 ? -1 : 1) *
               (exponent > 0 ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias));
    default:
        return code;
    }
}

START_TEST(test_scaled_values)
{
    float w[SCALED_ROWS * SCALED_COLS];

    for (size_t s = 0; s < SCALED_COUNT; s++) {
        struct qtensor q;
        make_scaled(&q, &scaled[s]);
        qtensor_dequantize(&q, w);
        int64_t size = q.scheme.group_size, bits = dtype_rows[q.scheme.scale_dtype].bits;
        for (int64_t i = 0; i < SCALED_ROWS * SCALED_COLS; i++) {
            int64_t n = i / SCALED_COLS, k = i % SCALED_COLS;
            int64_t block = q.scheme.kind == QTENSOR_NF4 ? i / size : n / q.scheme.group_rows * q.groups + k / size;
            double zero = q.scheme.kind == QTENSOR_INT ? q.zeros[block] : 0;
            double wanted = (double)q.scales[block] * (level_of(&q.scheme, q.codes[i]) - zero);
            wanted *= q.tensor_scale != 0 ? (double)q.tensor_scale : 1;
            ck_assert_double_le(fabs((double)w[i] - wanted), 1e-6 * fabs(wanted));
        }
        double zeros = q.scheme.kind == QTENSOR_INT && !q.scheme.sym ? q.scheme.bits : 0;
        double blocks = (double)(q.row_groups * q.groups) / (SCALED_ROWS * SCALED_COLS);
        double more = q.tensor_scale != 0 ? 32.0 / (SCALED_ROWS * SCALED_COLS) : 0;
        ck_assert_double_eq_tol(qtensor_bits_per_weight(&q), q.scheme.bits + blocks * ((double)bits + zeros) + more,
                                1e-9);
        qtensor_deinit(&q);
    }
}
END_TEST

START_TEST(test_scaled_round_trip)
{
    char folder[256], path[300], hex[65], *text;
    struct qtensor_file *file;
    struct qtensor q, read;
    size_t size;

    scratch_make(folder);
    snprintf(path, sizeof(path), "%s/block", folder);
    for (size_t s = 0; s < SCALED_COUNT; s++) {
        make_scaled(&q, &scaled[s]);
        ck_assert_rc_ok(qtensor_save(path, &q, 1, NULL, hex));
        ck_assert_rc_ok(qtensor_file_open(path, hex, &file));
        ck_assert_rc_ok(qtensor_file_read(file, 0, &read));
        ck_assert_int_eq(memcmp(read.codes, q.codes, SCALED_ROWS * SCALED_COLS), 0);
        ck_assert_int_eq(memcmp(read.scales, q.scales, (size_t)(q.row_groups * q.groups) * sizeof(float)), 0);
        ck_assert_float_eq(read.tensor_scale, q.tensor_scale);
        ck_assert_float_eq(qtensor_file_meta(file, 0)->tensor_scale, q.tensor_scale);
        ck_assert_int_eq(read.scheme.scale_dtype, scaled[s].scale_dtype);
        ck_assert_int_eq(qscheme_element(&read.scheme), qscheme_element(&scaled[s]));
        qtensor_deinit(&read);
        qtensor_file_close(file);
        qtensor_deinit(&q);
    }
    make_scaled(&q, &scaled[7]);
    q.scales[0] = 0.33f; /* nothing that E4M3 holds */
    ck_assert_rc_ok(qtensor_save(path, &q, 1, NULL, hex));
    ck_assert_rc_ok(qtensor_file_open(path, hex, &file));
    ck_assert_int_eq(qtensor_file_read(file, 0, &read), ERR_SOURCE_CORRUPT);
    qtensor_file_close(file);
    ck_assert_rc_ok(fs_read_file(path, 1 << 20, &text, &size));
    char *at = memmem(text, size, "\\\"tensor_scale\\\":0", 18);
    ck_assert_ptr_nonnull(at);
    at[17] = '-'; /* not a number any more */
    ck_assert_rc_ok(fs_write_atomic(path, text, size));
    ck_assert_int_eq(qtensor_file_open(path, NULL, &file), ERR_SOURCE_CORRUPT);
    free(text);
    qtensor_deinit(&q);
    scratch_remove(folder);
}
END_TEST

/* Small scales are for the kinds that have them, and a file cannot give others a scale of the tensor. */
START_TEST(test_scaled_limits)
{
    struct qtensor q = {0};
    struct qscheme bad = scaled[0];

    bad.scale_dtype = DTYPE_F8_E4M3;
    ck_assert_int_eq(qtensor_new("m", &bad, 4, 24, &q), ERR_INCOMPATIBLE_OPTIONS);
    bad = scaled[2];
    bad.scale_dtype = DTYPE_F8_E8M0;
    ck_assert_int_eq(qtensor_new("m", &bad, 4, 24, &q), ERR_INCOMPATIBLE_OPTIONS);
    bad = scaled[6];
    bad.bits = 5;
    ck_assert_int_eq(qtensor_new("m", &bad, 4, 24, &q), ERR_INCOMPATIBLE_OPTIONS);
    bad = scaled[6];
    bad.scale_dtype = DTYPE_F8_E5M2;
    ck_assert_int_eq(qtensor_new("m", &bad, 4, 24, &q), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_ptr_null(qtensor_scaling(QTENSOR_TABLE));
    ck_assert_ptr_null(qtensor_scaling(QTENSOR_KIND_COUNT));
}
END_TEST

static void save_two(const char *path, char hex[65])
{
    struct qtensor items[2];

    make(&items[0], "model.layers.0.z", &four);
    make(&items[1], "model.layers.0.a", &three);
    ck_assert_rc_ok(qtensor_save(path, items, 2, NULL, hex));
    qtensor_deinit(&items[0]);
    qtensor_deinit(&items[1]);
}

/* The largest block that a config may ask for: three modules of each of 4096 experts. */
START_TEST(test_experts_of_a_block)
{
    enum { COUNT = 3 * 4096 + 4 };
    static struct qtensor items[COUNT];
    char folder[256], path[300], hex[65], name[64];
    struct qtensor_file *file;

    scratch_make(folder);
    snprintf(path, sizeof(path), "%s/block", folder);
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof(name), "model.layers.0.mlp.experts.%d.w%d", i / 3, i % 3);
        make(&items[i], name, &four);
    }
    ck_assert_rc_ok(qtensor_save(path, items, COUNT, NULL, hex));
    ck_assert_rc_ok(qtensor_file_open(path, hex, &file));
    ck_assert_int_eq(qtensor_file_count(file), COUNT);
    ck_assert_str_eq(qtensor_file_meta(file, COUNT - 1)->name, name);
    qtensor_file_close(file);
    for (int i = 0; i < COUNT; i++) {
        qtensor_deinit(&items[i]);
    }
    scratch_remove(folder);
}
END_TEST

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
    qtensor_deinit(&read);
    ck_assert_rc_ok(qtensor_file_read_without_codes(file, 1, &read));
    ck_assert_ptr_null(read.codes);
    ck_assert_int_eq(memcmp(read.scales, made.scales, 12), 0);
    ck_assert_int_eq(memcmp(read.zeros, made.zeros, 3), 0);
    qtensor_deinit(&made);
    qtensor_deinit(&read);
    qtensor_file_close(file);

    ck_assert_rc_ok(qtensor_save(path, NULL, 0, NULL, hex)); /* a block where nothing is quantized */
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
    ck_assert_int_eq(qtensor_file_read_without_codes(file, 0, &q), ERR_SOURCE_CORRUPT);
    ck_assert_rc_ok(qtensor_file_read(file, 1, &q));
    qtensor_deinit(&q);
    qtensor_file_close(file);

    ck_assert_rc_ok(fs_write_atomic(path, text, size - 1));
    ck_assert_int_eq(qtensor_file_open(path, NULL, &file), ERR_SOURCE_CORRUPT);
    save_two(path, hex);
    /* A value that no scheme has, names that are none, and another version. */
    static const struct {
        const char *found, *changed;
        int rc;
    } changes[] = {
        {"\\\"bits\\\":4", "\\\"bits\\\":9", ERR_SOURCE_CORRUPT},
        {"\\\"element\\\":\\\"F32\\\"", "\\\"element\\\":\\\"F33\\\"", ERR_SOURCE_CORRUPT},
        {"\\\"input_number\\\":\\\"none\\\"", "\\\"input_number\\\":\\\"nine\\\"", ERR_SOURCE_CORRUPT},
        {"\\\"kind\\\":\\\"int\\\"", "\\\"kind\\\":\\\"ink\\\"", ERR_SOURCE_CORRUPT},
        {"\"version\":\"1\"", "\"version\":\"2\"", ERR_UNSUPPORTED},
        {"\"version\":\"1\"", "\"venison\":\"1\"", ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        free(text);
        save_two(path, hex);
        ck_assert_rc_ok(fs_read_file(path, 1 << 20, &text, &size));
        char *at = memmem(text, size, changes[i].found, strlen(changes[i].found));
        ck_assert_msg(at != NULL, "no %s", changes[i].found);
        memcpy(at, changes[i].changed, strlen(changes[i].changed));
        ck_assert_rc_ok(fs_write_atomic(path, text, size));
        ck_assert_int_eq(qtensor_file_open(path, NULL, &file), changes[i].rc);
    }
    free(text);
    scratch_remove(folder);
}
END_TEST

/* Packed in memory, some rows after the others, they make the same file; a code of too many bits makes none. */
static void expect_packed(const struct qtensor *q, const char *path, const char *hex)
{
    struct qtensor packed;
    char again[65];
    uint8_t large[4001] = {0};

    ck_assert_rc_ok(qtensor_new_packed("m", &q->scheme, q->rows, q->cols, &packed));
    ck_assert(packed.packed == (q->scheme.bits < 8));
    if (!packed.packed) {
        ck_assert_int_eq(qtensor_pack_rows(&packed, 0, q->rows, q->codes), ERR_INTERNAL);
        memcpy(packed.codes, q->codes, (size_t)(q->rows * q->cols));
    }
    for (int64_t n = 0; packed.packed && n < q->rows; n += 2) {
        ck_assert_rc_ok(qtensor_pack_rows(&packed, n, q->rows - n < 2 ? 1 : 2, q->codes + n * q->cols));
    }
    if (packed.packed) {
        large[q->cols - 1] = (uint8_t)(1u << q->scheme.bits);
        ck_assert_int_eq(qtensor_pack_rows(&packed, 0, 1, large), ERR_INTERNAL);
        ck_assert_int_eq(qtensor_pack_rows(&packed, q->rows, 1, q->codes), ERR_INTERNAL);
    }
    ck_assert_rc_ok(qtensor_save(path, &packed, 1, NULL, again));
    ck_assert_str_eq(again, hex);
    qtensor_deinit(&packed);
}

/* Codes of every width and kind that is packed, rows that do not end on a byte, more rows than one stretch holds: they
 * come back, and the file has their bits and no more. */
START_TEST(test_packed_codes)
{
    static const struct {
        enum qtensor_kind kind;
        int bits;
        int64_t rows, cols;
    } cases[] = {{QTENSOR_INT, 2, 5, 7},  {QTENSOR_INT, 3, 3, 1},    {QTENSOR_INT, 5, 4, 13},
                 {QTENSOR_INT, 7, 2, 9},  {QTENSOR_INT, 8, 3, 5},    {QTENSOR_INT, 4, 700, 4001},
                 {QTENSOR_NF4, 4, 3, 15}, {QTENSOR_TABLE, 3, 6, 11}, {QTENSOR_TABLE, 8, 2, 300}};
    char folder[256], path[300], hex[65];

    scratch_make(folder);
    snprintf(path, sizeof(path), "%s/block", folder);
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        int64_t rows = cases[c].rows, cols = cases[c].cols, bits = cases[c].bits;
        struct qscheme scheme = {
            .kind = cases[c].kind, .bits = (int)bits, .group_size = cols, .scale_dtype = DTYPE_F32};
        struct qtensor q, read;
        struct qtensor_file *file;
        uint32_t seed = 7;
        char *text;
        size_t size;
        ck_assert_rc_ok(qtensor_new("m", &scheme, rows, cols, &q));
        for (int64_t i = 0; i < rows * cols; i++) {
            seed = seed * 1664525u + 1013904223u;
            q.codes[i] = (uint8_t)(seed >> 24 & ((1u << bits) - 1));
        }
        ck_assert_rc_ok(qtensor_save(path, &q, 1, NULL, hex));
        ck_assert_rc_ok(qtensor_file_open(path, hex, &file));
        ck_assert_rc_ok(qtensor_file_read(file, 0, &read));
        ck_assert_int_eq(memcmp(read.codes, q.codes, (size_t)(rows * cols)), 0);
        ck_assert_rc_ok(fs_read_file(path, 1 << 22, &text, &size));
        struct qtensor_part parts[QTENSOR_PARTS_MAX];
        uint64_t head;
        memcpy(&head, text, sizeof(head));
        size_t wanted = sizeof(head) + head;
        for (int i = qtensor_parts(&q, parts) - 1; i > 0; i--) {
            wanted += (size_t)(parts[i].rows * parts[i].cols) * dtype_rows[parts[i].dtype].bytes;
        }
        ck_assert_uint_eq(size, wanted + (size_t)(rows * ((cols * bits + 7) / 8)));
        free(text);
        qtensor_file_close(file);
        qtensor_deinit(&read);
        expect_packed(&q, path, hex);
        qtensor_deinit(&q);
    }
    scratch_remove(folder);
}
END_TEST

/* What follows a row's last code is zero, and what is saved fits its bits. */
START_TEST(test_packed_damage)
{
    static const struct qscheme scheme = {.bits = 3, .group_size = 7, .sym = true, .scale_dtype = DTYPE_F32};
    char folder[256], path[300], hex[65], *text;
    struct qtensor_file *file;
    struct qtensor q, read;
    size_t size;

    scratch_make(folder);
    snprintf(path, sizeof(path), "%s/block", folder);
    ck_assert_rc_ok(qtensor_new("m", &scheme, 2, 7, &q));
    q.codes[13] = 7;
    ck_assert_rc_ok(qtensor_save(path, &q, 1, NULL, hex));
    ck_assert_rc_ok(fs_read_file(path, 1 << 20, &text, &size));
    char *row = text + size - 2 - 3; /* zero points [2, 1] lie last, before them rows of 21 bits */
    ck_assert_uint_eq((unsigned char)row[2], 7 << 2);
    for (int bit = 0; bit < 8; bit++) {
        row[2] = (char)(7 << 2 ^ 1 << bit);
        ck_assert_rc_ok(fs_write_atomic(path, text, size));
        ck_assert_rc_ok(qtensor_file_open(path, NULL, &file));
        int rc = qtensor_file_read(file, 0, &read);
        ck_assert_int_eq(rc, bit < 5 ? 0 : ERR_SOURCE_CORRUPT);
        if (rc == 0) {
            qtensor_deinit(&read);
        }
        qtensor_file_close(file);
    }
    free(text);
    q.codes[0] = 8;
    ck_assert_int_eq(qtensor_save(path, &q, 1, NULL, hex), ERR_INTERNAL);
    qtensor_deinit(&q);
    scratch_remove(folder);
}
END_TEST

START_TEST(test_save_fails)
{
    char hex[65] = "untouched";

    ck_assert_int_eq(qtensor_save("/nonexistent/block", NULL, 0, NULL, hex), ERR_NOT_FOUND);
    ck_assert_str_eq(hex, "untouched");
}
END_TEST

UNIT_MAIN("qtensor", test_scaled_values, test_scaled_round_trip, test_scaled_limits, test_new, test_dequantize,
          test_experts_of_a_block, test_round_trip, test_damage, test_packed_codes, test_packed_damage, test_save_fails)
