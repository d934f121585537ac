/* Scopes that release: on every way out, once, in reverse order; what was moved out stays. */

#include "tests/unit/unit.h"

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/digest.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

struct noted {
    char name;
};

static char order[8];

static void noted_free(struct noted *noted)
{
    order[strlen(order)] = noted->name;
    errno = EIO;
}

static void noted_deinit(struct noted *noted)
{
    noted_free(noted);
}

CLEANUP_FREE(noted, struct noted, noted_free)
CLEANUP_DEINIT(noted_in_place, struct noted, noted_deinit)

static int fail_after(int steps, struct noted *a, struct noted *b)
{
    AUTO(noted) struct noted *first = a;
    TRY(steps == 1 ? ERR_INTERNAL : 0);
    AUTO(noted) struct noted *second = b;
    AUTO(noted) struct noted *none = NULL;
    AUTO(noted_in_place) struct noted third = {.name = 'c'};
    TRY(steps == 2 ? err_raise(ERR_NOT_FOUND, "step 2") : 0);
    (void)first;
    (void)second;
    (void)none;
    (void)third;
    return 0;
}

START_TEST(every_way_out_releases_in_reverse_order)
{
    struct noted a = {.name = 'a'}, b = {.name = 'b'};
    static const struct {
        int steps, rc;
        const char *order;
    } rows[] = {{1, ERR_INTERNAL, "a"}, {2, ERR_NOT_FOUND, "cba"}, {3, 0, "cba"}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        memset(order, 0, sizeof(order));
        errno = ENOENT;
        ck_assert_int_eq(fail_after(rows[i].steps, &a, &b), rows[i].rc);
        ck_assert_int_eq(errno, ENOENT);
        ck_assert_str_eq(order, rows[i].order);
    }
}
END_TEST

static int evaluated;

static int count_evaluation(int rc)
{
    evaluated++;
    return rc;
}

static int try_twice(int rc)
{
    if (rc == 0)
        TRY(count_evaluation(rc));
    else
        TRY(count_evaluation(rc));
    return 1;
}

START_TEST(try_is_one_statement_that_evaluates_once)
{
    ck_assert_int_eq(try_twice(0), 1);
    ck_assert_int_eq(try_twice(ERR_CANCELLED), ERR_CANCELLED);
    ck_assert_int_eq(evaluated, 2);
}
END_TEST

static int make_text(int fail, char **out)
{
    AUTO_FREE char *text = NULL;
    TRY(mem_strdup(&text, "moved"));
    TRY(fail);
    *out = MOVE(text);
    return text == NULL ? 0 : ERR_INTERNAL;
}

START_TEST(what_is_moved_out_belongs_to_the_caller)
{
    char *text = NULL;

    ck_assert_int_eq(make_text(ERR_STORAGE, &text), ERR_STORAGE); /* the leak checker looks on */
    ck_assert_ptr_null(text);
    ck_assert_rc_ok(make_text(0, &text));
    ck_assert_str_eq(text, "moved");
    free(text);
}
END_TEST

START_TEST(descriptors_are_closed)
{
    int closed = -1, moved = -1;
    {
        AUTO_CLOSE int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        AUTO_CLOSE int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
        AUTO_CLOSE int none = -1;
        ck_assert_int_ge(fd, 0);
        closed = fd;
        moved = cleanup_move_fd(&other);
        ck_assert_int_eq(other, -1);
        (void)none;
    }
    ck_assert_int_eq(fcntl(closed, F_GETFD), -1);
    ck_assert_int_eq(errno, EBADF);
    ck_assert_int_ge(fcntl(moved, F_GETFD), 0);
    close(moved);
}
END_TEST

START_TEST(types_of_libraries_are_released)
{
    json_t *shared = json_object();
    int fd;
    {
        AUTO_JSON json_t *reference = json_incref(shared);
        AUTO_JSON json_t *none = NULL;
        AUTO_FILE FILE *file = fopen("/dev/null", "r");
        AUTO(digest) struct digest *digest = digest_new();
        AUTO(arena) struct arena arena = {0};
        ck_assert_ptr_nonnull(arena_alloc(&arena, 100));
        ck_assert_ptr_nonnull(digest);
        ck_assert_uint_eq(reference->refcount, 2);
        fd = fileno(file);
        (void)none;
    }
    ck_assert_uint_eq(shared->refcount, 1);
    ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
    json_decref(shared);
}
END_TEST

UNIT_MAIN("cleanup", every_way_out_releases_in_reverse_order, try_is_one_statement_that_evaluates_once,
          what_is_moved_out_belongs_to_the_caller, descriptors_are_closed, types_of_libraries_are_released)
