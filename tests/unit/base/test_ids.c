/* Ids: shape, strict order in one process, no double among threads. */

#include "tests/unit/unit.h"

#include "base/ids.h"

#include <pthread.h>
#include <string.h>

START_TEST(ids_have_their_shape)
{
    char id[ID_SIZE];

    id_new("job", id);
    ck_assert_uint_eq(strlen(id), 30);
    ck_assert(id_valid(id, "job"));
    ck_assert(!id_valid(id, "jo"));
    ck_assert(!id_valid(id, "art"));
    ck_assert(!id_valid("job_", "job"));
    ck_assert(!id_valid("", "job"));
    ck_assert(!id_valid("job_01ARZ3NDEKTSV4RRFFQ69G5FA", "job"));
    ck_assert(id_valid("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "job"));
    ck_assert(!id_valid("job_01ARZ3NDEKTSV4RRFFQ69G5FAVX", "job"));
    ck_assert(!id_valid("job_01ARZ3NDEKTSV4RRFFQ69G5FAU", "job")); /* no U in Crockford's digits */
    ck_assert(!id_valid("job_01ARZ3NDEKTSV4RRFFQ69G5/..", "job"));
    ck_assert(!id_valid("job_01arz3ndektsv4rrffq69g5fav", "job"));
}
END_TEST

START_TEST(ids_only_grow)
{
    char last[ID_SIZE] = "", id[ID_SIZE];

    for (int i = 0; i < 20000; i++) {
        id_new("evt", id);
        ck_assert_int_gt(strcmp(id, last), 0);
        memcpy(last, id, sizeof(last));
    }
}
END_TEST

enum { EACH = 2000 };

static void *make(void *data)
{
    char(*ids)[ID_SIZE] = data;
    for (int i = 0; i < EACH; i++) {
        id_new("x", ids[i]);
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    return strcmp(a, b);
}

START_TEST(threads_never_share_one)
{
    static char ids[2 * EACH][ID_SIZE];
    pthread_t other;

    pthread_create(&other, NULL, make, ids + EACH);
    make(ids);
    pthread_join(other, NULL);
    qsort(ids, (size_t)2 * EACH, ID_SIZE, compare);
    for (int i = 1; i < 2 * EACH; i++) {
        ck_assert_str_ne(ids[i - 1], ids[i]);
    }
}
END_TEST

START_TEST(the_time_is_in_front)
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    char id[ID_SIZE];
    int64_t before = clock_unix_ms(), ms = 0;

    id_new("a", id);
    for (int i = 2; i < 12; i++) {
        ms = ms * 32 + (strchr(digits, id[i]) - digits);
    }
    ck_assert_int_ge(ms, before);
    ck_assert_int_le(ms, clock_unix_ms());
    ck_assert_int_le(clock_unix_seconds() * 1000, clock_unix_ms());
    ck_assert_int_ge(clock_monotonic_ms(), 0);
    ck_assert_double_gt(clock_monotonic_seconds(), 0);
}
END_TEST

START_TEST(floors_are_before_what_was_made_since)
{
    char id[ID_SIZE], floor[ID_SIZE], later[ID_SIZE], first[ID_SIZE], last[ID_SIZE];
    int64_t now = clock_unix_seconds();

    id_new("job", id);
    id_floor("job", now, floor);
    id_floor("job", now + 60, later);
    ck_assert(id_valid(floor, "job") && id_valid(later, "job"));
    ck_assert(strcmp(floor, id) < 0 && strcmp(id, later) < 0);
    id_floor("job", -1, first); /* times that no id can hold are the nearest that one can */
    ck_assert_str_eq(first, "job_00000000000000000000000000");
    id_floor("job", INT64_MAX, last);
    ck_assert(id_valid(last, "job"));
    ck_assert(strcmp(later, last) < 0);
}
END_TEST

UNIT_MAIN("ids", ids_have_their_shape, the_time_is_in_front, ids_only_grow, threads_never_share_one,
          floors_are_before_what_was_made_since)
