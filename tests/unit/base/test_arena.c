/* Bump memory: alignment, zeroing, limits and sticky failure. */

#include "tests/unit/unit.h"

#include "base/arena.h"

#include <stdint.h>
#include <string.h>

START_TEST(pieces_are_aligned_zero_and_apart)
{
    struct arena arena;
    unsigned char *pieces[200];

    arena_init(&arena, 0);
    for (size_t i = 0; i < 200; i++) {
        size_t size = 1 + i * 37;
        pieces[i] = arena_alloc(&arena, size);
        ck_assert_ptr_nonnull(pieces[i]);
        ck_assert_uint_eq((uintptr_t)pieces[i] % 16, 0);
        size_t zeros = 0;
        while (zeros < size && pieces[i][zeros] == 0) {
            zeros++;
        }
        ck_assert_uint_eq(zeros, size);
        memset(pieces[i], (int)i, size);
    }
    for (size_t i = 0; i < 200; i++) {
        ck_assert_uint_eq(pieces[i][0], (unsigned char)i);
        ck_assert_uint_eq(pieces[i][i * 37], (unsigned char)i);
    }
    ck_assert_rc_ok(arena_check(&arena));
    arena_deinit(&arena);
    ck_assert_ptr_null(arena.chunks);
    arena_deinit(&arena);
}
END_TEST

START_TEST(large_pieces_get_their_own_chunk)
{
    struct arena arena = {0}; /* zeroed is valid */
    char *large = arena_alloc(&arena, (size_t)3 << 20);
    char *small = arena_alloc(&arena, 1);

    ck_assert_ptr_nonnull(large);
    ck_assert_ptr_nonnull(small);
    large[((size_t)3 << 20) - 1] = 1;
    *small = 1;
    arena_deinit(&arena);
}
END_TEST

START_TEST(the_limit_is_exact_and_failure_sticks)
{
    struct arena arena;
    arena_init(&arena, 100);
    ck_assert_ptr_nonnull(arena_alloc(&arena, 60));
    ck_assert_ptr_nonnull(arena_alloc(&arena, 40));
    ck_assert_rc_ok(arena_check(&arena));
    ck_assert_ptr_null(arena_alloc(&arena, 1));
    ck_assert_ptr_null(arena_alloc(&arena, 0)); /* sticky */
    ck_assert_int_eq(arena_check(&arena), ERR_HOST_OUT_OF_MEMORY);
    arena_deinit(&arena);
    ck_assert_rc_ok(arena_check(&arena));
    ck_assert_ptr_nonnull(arena_alloc(&arena, 100)); /* the limit stays, the failure does not */
    arena_deinit(&arena);
}
END_TEST

START_TEST(absurd_sizes_fail)
{
    struct arena arena = {0};
    ck_assert_ptr_null(arena_alloc(&arena, SIZE_MAX));
    ck_assert_int_eq(arena_check(&arena), ERR_HOST_OUT_OF_MEMORY);
    arena_deinit(&arena);
    ck_assert_ptr_null(arena_strndup(&arena, "x", SIZE_MAX));
    arena_deinit(&arena);
}
END_TEST

START_TEST(copies_end_with_nul)
{
    struct arena arena = {0};
    ck_assert_str_eq(arena_strndup(&arena, "hello world", 5), "hello");
    ck_assert_str_eq(arena_strndup(&arena, NULL, 0), "");
    arena_deinit(&arena);
}
END_TEST

UNIT_MAIN("arena", pieces_are_aligned_zero_and_apart, large_pieces_get_their_own_chunk,
          the_limit_is_exact_and_failure_sticks, absurd_sizes_fail, copies_end_with_nul)
