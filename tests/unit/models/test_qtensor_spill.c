/* Tensors' arrays in a file until their block is written: they come back as they were, also from beyond 4 GiB, and a
 * tensor that does not fit stays in memory. The program's fs_pwrite_full is the one here (meson.build). */

#include "base/fs.h"
#include "models/qtensor.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

int __real_fs_pwrite_full(int fd, const void *buffer, size_t size, int64_t offset);
int __wrap_fs_pwrite_full(int fd, const void *buffer, size_t size, int64_t offset);

static int writes_left; /* until the disk is full; -1 = it never is */
static bool skips;      /* nothing is written: the file has a hole there */
static int64_t written_to;

int __wrap_fs_pwrite_full(int fd, const void *buffer, size_t size, int64_t offset)
{
    written_to = offset + (int64_t)size;
    if (writes_left >= 0 && writes_left-- == 0) {
        return err_raise_errno(ENOSPC, "cannot write %zu bytes", size);
    }
    return skips ? 0 : __real_fs_pwrite_full(fd, buffer, size, offset);
}

static char folder[256];
static struct qtensor_spill *spill;

static void spill_open(void)
{
    writes_left = -1;
    skips = false;
    scratch_make(folder);
    ck_assert_rc_ok(qtensor_spill_new(folder, &spill));
}

static void spill_close(void)
{
    qtensor_spill_free(spill);
    scratch_remove(folder);
}

static const struct qscheme schemes[] = {
    {.kind = QTENSOR_INT, .bits = 4, .group_size = 8, .scale_dtype = DTYPE_F16},
    {.kind = QTENSOR_FLOAT4, .bits = 4, .group_size = 8, .group_rows = 2, .scale_dtype = DTYPE_F8_E4M3},
    {.kind = QTENSOR_NF4, .bits = 4, .group_size = 7, .nested = true, .scale_dtype = DTYPE_F32},
    {.kind = QTENSOR_TABLE, .bits = 3, .scale_dtype = DTYPE_F16},
    {.kind = QTENSOR_CODEBOOKS, .bits = 8, .group_size = 8, .group_rows = 1, .codebooks = 2, .scale_dtype = DTYPE_F16},
    {.kind = QTENSOR_DENSE, .bits = 16, .group_size = 1, .scale_dtype = DTYPE_BF16},
};
enum { SCHEMES = sizeof(schemes) / sizeof(schemes[0]), ROWS = 6, COLS = 16 };

/* Each byte of each array by where it is. */
static void make(int i, struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    char name[32];

    snprintf(name, sizeof(name), "experts.%d", i);
    ck_assert_rc_ok(qtensor_new(name, &schemes[i], ROWS, COLS, q));
    if (schemes[i].kind == QTENSOR_TABLE || schemes[i].kind == QTENSOR_INT) {
        ck_assert_rc_ok(qtensor_reserve_index(q, 3));
    }
    q->input_scale = 0.25f;
    q->tensor_scale = schemes[i].scale_dtype == DTYPE_F8_E4M3 ? 0.5f : 0;
    int count = qtensor_parts(q, parts);
    for (int p = 0; p < count; p++) {
        size_t bytes = (size_t)(parts[p].rows * parts[p].cols) * dtype_rows[parts[p].dtype].bytes;
        for (size_t k = 0; k < bytes; k++) {
            ((uint8_t *)parts[p].data)[k] = (uint8_t)(31 * (unsigned)i + 7 * (unsigned)p + (unsigned)k);
        }
    }
}

static void expect_same(const struct qtensor *a, const struct qtensor *b)
{
    struct qtensor_part ours[QTENSOR_PARTS_MAX], theirs[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(a, ours);

    ck_assert_str_eq(a->name, b->name);
    ck_assert_mem_eq(&a->scheme, &b->scheme, sizeof(a->scheme));
    ck_assert_int_eq(a->groups, b->groups);
    ck_assert_int_eq(a->index_count, b->index_count);
    ck_assert_float_eq(a->input_scale, b->input_scale);
    ck_assert_float_eq(a->tensor_scale, b->tensor_scale);
    ck_assert_int_eq(qtensor_parts(b, theirs), count);
    for (int p = 0; p < count; p++) {
        ck_assert_ptr_ne(ours[p].data, theirs[p].data);
        ck_assert_mem_eq(ours[p].data, theirs[p].data,
                         (size_t)(ours[p].rows * ours[p].cols) * dtype_rows[ours[p].dtype].bytes);
    }
}

static void expect_read(const struct qtensor *spilled, int i)
{
    struct qtensor original, back;

    make(i, &original);
    ck_assert_rc_ok(qtensor_spill_read(spill, spilled, &back));
    expect_same(&original, &back);
    qtensor_deinit(&original);
    qtensor_deinit(&back);
}

static void expect_without_arrays(const struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);

    for (int p = 0; p < count; p++) {
        ck_assert_ptr_null(parts[p].data);
    }
}

START_TEST(test_round_trip)
{
    struct qtensor all[SCHEMES], other;

    spill_open();
    for (int i = 0; i < SCHEMES; i++) {
        make(i, &all[i]);
        ck_assert(!qtensor_spill_has(spill, &all[i]) && !qtensor_spill_has(NULL, &all[i]));
        ck_assert_rc_ok(qtensor_spill_put(spill, &all[i]));
        ck_assert(qtensor_spill_has(spill, &all[i]));
        expect_without_arrays(&all[i]);
    }
    for (int i = SCHEMES - 1; i >= 0; i--) { /* in any order, and as often as needed */
        expect_read(&all[i], i);
        expect_read(&all[i], i);
        qtensor_deinit(&all[i]);
    }
    ck_assert_rc_ok(qtensor_new("another", &schemes[0], ROWS, COLS, &other));
    ck_assert_int_eq(qtensor_spill_read(spill, &other, &all[0]), ERR_INTERNAL);
    qtensor_deinit(&other);
    spill_close();
}
END_TEST

/* Packed codes stay packed: what is read back makes the file that the tensor itself would have made. */
START_TEST(test_packed)
{
    struct qtensor q, back;
    char path[300], hex[65], again[65];
    uint8_t codes[ROWS * COLS];
    const struct qscheme scheme = {.kind = QTENSOR_INT, .bits = 3, .group_size = COLS, .scale_dtype = DTYPE_F32};

    spill_open();
    for (int i = 0; i < ROWS * COLS; i++) {
        codes[i] = (uint8_t)(i * 5 % 8);
    }
    ck_assert_rc_ok(qtensor_new_packed("m", &scheme, ROWS, COLS, &q));
    ck_assert_rc_ok(qtensor_pack_rows(&q, 0, ROWS, codes));
    snprintf(path, sizeof(path), "%s/block", folder);
    ck_assert_rc_ok(qtensor_save(path, &q, 1, NULL, hex));
    ck_assert_rc_ok(qtensor_spill_put(spill, &q));
    ck_assert_rc_ok(qtensor_spill_read(spill, &q, &back));
    ck_assert_rc_ok(qtensor_save(path, &back, 1, NULL, again));
    ck_assert_str_eq(again, hex);
    ck_assert_rc_ok(qtensor_save(path, &q, 1, spill, again));
    ck_assert_str_eq(again, hex);
    qtensor_deinit(&back);
    qtensor_deinit(&q);
    spill_close();
}
END_TEST

/* More tensors than the first list of them has room for. */
START_TEST(test_many)
{
    struct qtensor all[200];

    spill_open();
    for (int i = 0; i < 200; i++) {
        make(0, &all[i]);
        snprintf(all[i].name, sizeof(all[i].name), "experts.%d", i);
        all[i].codes[0] = (uint8_t)i;
        ck_assert_rc_ok(qtensor_spill_put(spill, &all[i]));
    }
    for (int i = 0; i < 200; i++) {
        struct qtensor back;
        ck_assert_rc_ok(qtensor_spill_read(spill, &all[i], &back));
        ck_assert_int_eq(back.codes[0], i);
        qtensor_deinit(&back);
        qtensor_deinit(&all[i]);
    }
    spill_close();
}
END_TEST

/* Nothing is left in the folder, whatever ends the process. */
START_TEST(test_file_has_no_name)
{
    spill_open();
    DIR *list = opendir(folder);
    ck_assert_ptr_nonnull(list);
    for (const struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
        ck_assert_int_eq(entry->d_name[0], '.');
    }
    closedir(list);
    spill_close();
    ck_assert_int_eq(qtensor_spill_new("/nonexistent/folder", &spill), ERR_NOT_FOUND);
}
END_TEST

/* Whichever array the disk has no space for, all of them stay in memory, and the file goes on where it was. */
START_TEST(test_full_disk)
{
    struct qtensor first, q;

    spill_open();
    make(1, &first);
    ck_assert_rc_ok(qtensor_spill_put(spill, &first));
    int64_t end = written_to;
    make(0, &q);
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(&q, parts);
    int64_t bytes = 0;
    for (int p = 0; p < count; p++) {
        bytes += parts[p].rows * parts[p].cols * (int64_t)dtype_rows[parts[p].dtype].bytes;
        struct qtensor original;
        writes_left = p;
        ck_assert_int_eq(qtensor_spill_put(spill, &q), ERR_DISK_FULL);
        ck_assert_str_eq(err_last()->module, q.name);
        ck_assert(!qtensor_spill_has(spill, &q));
        make(0, &original);
        expect_same(&original, &q);
        qtensor_deinit(&original);
    }
    writes_left = -1;
    ck_assert_rc_ok(qtensor_spill_put(spill, &q));
    ck_assert_int_eq(written_to, end + bytes);
    expect_read(&first, 1);
    expect_read(&q, 0);
    qtensor_deinit(&first);
    qtensor_deinit(&q);
    spill_close();
}
END_TEST

/* A tensor of 6 GiB, of which only the size counts, and one after it. */
START_TEST(test_beyond_four_gib)
{
    const struct qscheme wide = {.kind = QTENSOR_INT, .bits = 4, .group_size = 98304, .scale_dtype = DTYPE_F16};
    const int64_t rows = 65536, cols = 98304, size = rows * cols + rows * 5; /* a code each, a scale and a zero a row */
    struct qtensor large, q;

    spill_open();
    ck_assert_rc_ok(qtensor_describe("experts.large", &wide, rows, cols, 0, &large));
    skips = true;
    ck_assert_rc_ok(qtensor_spill_put(spill, &large));
    ck_assert_int_eq(written_to, size);
    skips = false;
    make(2, &q);
    ck_assert_rc_ok(qtensor_spill_put(spill, &q));
    ck_assert_int_gt(written_to, size);
    expect_read(&q, 2);
    qtensor_deinit(&large);
    qtensor_deinit(&q);
    spill_close();
}
END_TEST

UNIT_MAIN("models_qtensor_spill", test_round_trip, test_packed, test_many, test_file_has_no_name, test_full_disk,
          test_beyond_four_gib)
