/* The list of what the end-to-end phase made: it comes back as it was, and what another version wrote, or what is not
 * as it was written, is none. */

#include "pipeline/end_list.h"

#include "base/fs.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIST_BYTES 65536

static char directory[256];

static void write_sample(void)
{
    struct end_list_block blocks[2] = {{.file = "block-00000-e2e.safetensors"},
                                       {.file = "block-00001-e2e.safetensors"}};
    struct end_list list = {.blocks = blocks, .count = 2};
    list.curve = (struct tune_curve){.done = true, .steps = 7, .best = 0.25, .note = "as it was", .count = 1};
    list.curve.points[0] = (struct tune_point){.step = 7, .lr = 0.05, .loss = 0.25};
    memset(blocks[0].before, 'a', DIGEST_HEX_SIZE - 1);
    memset(blocks[1].after, 'b', DIGEST_HEX_SIZE - 1);
    ck_assert_rc_ok(end_list_write(directory, &list));
}

static bool is_there(struct end_list *list)
{
    bool found;
    ck_assert_rc_ok(end_list_read(directory, list, &found));
    return found;
}

START_TEST(test_it_comes_back)
{
    struct end_list list = {.count = 0};
    scratch_make(directory);
    ck_assert(!is_there(&list));
    write_sample();
    ck_assert(is_there(&list));
    ck_assert_int_eq(list.count, 2);
    ck_assert_str_eq(list.blocks[1].file, "block-00001-e2e.safetensors");
    ck_assert_int_eq(list.blocks[0].before[DIGEST_HEX_SIZE - 2], 'a');
    ck_assert_str_eq(list.blocks[0].after, "");
    ck_assert_int_eq(list.blocks[1].after[0], 'b');
    ck_assert(list.curve.done);
    ck_assert_int_eq(list.curve.steps, 7);
    ck_assert_str_eq(list.curve.note, "as it was");
    ck_assert_double_eq(list.curve.points[0].loss, 0.25);
    end_list_deinit(&list);
    scratch_remove(directory);
}
END_TEST

/* Each byte another one, and each length. */
START_TEST(test_others_are_none)
{
    struct end_list list = {.count = 0};
    char path[512], *data;
    size_t size;
    scratch_make(directory);
    write_sample();
    snprintf(path, sizeof(path), "%s/%s", directory, END_LIST_FILE);
    ck_assert_rc_ok(fs_read_file(path, LIST_BYTES, &data, &size));
    for (size_t i = 0; i < size; i += i < 64 ? 1 : 17) {
        data[i] ^= 1;
        ck_assert_rc_ok(fs_write_atomic(path, data, size));
        ck_assert_msg(!is_there(&list), "byte %zu", i);
        data[i] ^= 1;
        ck_assert_rc_ok(fs_write_atomic(path, data, i));
        ck_assert_msg(!is_there(&list), "%zu bytes", i);
    }
    ck_assert_rc_ok(fs_write_atomic(path, data, size));
    ck_assert(is_there(&list));
    end_list_deinit(&list);
    ck_assert_int_eq(truncate(path, (off_t)1 << 30), 0);
    ck_assert(!is_there(&list));
    free(data);
    scratch_remove(directory);
}
END_TEST

/* Complete, with its digest, of the next version. */
START_TEST(test_another_version_is_none)
{
    struct end_list list = {.count = 0};
    char path[512], *data;
    size_t size;
    scratch_make(directory);
    write_sample();
    snprintf(path, sizeof(path), "%s/%s", directory, END_LIST_FILE);
    ck_assert_rc_ok(fs_read_file(path, LIST_BYTES, &data, &size));
    int64_t version = END_LIST_VERSION, next = version + 1;
    char *at = memmem(data, 64, &version, sizeof(version));
    ck_assert_ptr_nonnull(at);
    memcpy(at, &next, sizeof(next));
    digest_bytes(data, size - DIGEST_HEX_SIZE, data + size - DIGEST_HEX_SIZE);
    ck_assert_rc_ok(fs_write_atomic(path, data, size));
    ck_assert(!is_there(&list));
    memcpy(at, &version, sizeof(version));
    digest_bytes(data, size - DIGEST_HEX_SIZE, data + size - DIGEST_HEX_SIZE);
    ck_assert_rc_ok(fs_write_atomic(path, data, size));
    ck_assert(is_there(&list));
    end_list_deinit(&list);
    free(data);
    scratch_remove(directory);
}
END_TEST

UNIT_MAIN("end_list", test_it_comes_back, test_others_are_none, test_another_version_is_none)
