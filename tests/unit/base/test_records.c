/* How many sequences calibration records make, by their first bytes. */

#include "tests/unit/unit.h"

#include "base/records.h"

#include <string.h>

static int64_t records_in(const char *text, int64_t length, bool packing)
{
    return records_sequences(text, strlen(text), (int64_t)strlen(text), length, packing, 4);
}

START_TEST(ids_are_counted)
{
    const char *text = "{\"input_ids\": [1, 2, 3, 4, 5]}\n\n{\"input_ids\": [6, 7]}\n{\"input_ids\": [8, 9, 10, 11]}";

    ck_assert_int_eq(records_in(text, 4, true), 2);  /* 11 tokens end to end */
    ck_assert_int_eq(records_in(text, 4, false), 2); /* two records that have four */
    ck_assert_int_eq(records_in(text, 5, false), 1);
    ck_assert_int_eq(records_in(text, 12, true), 0);
}
END_TEST

START_TEST(texts_are_measured)
{
    /* 16 and 8 bytes of text, names of members apart; the role is one of the strings */
    ck_assert_int_eq(records_in("{\"text\": \"sixteen bytes...\"}\n", 2, true), 2);
    ck_assert_int_eq(records_in("{\"messages\": [{\"role\": \"user\", \"content\": \"four\"}]}\n", 2, true), 1);
    ck_assert_int_eq(records_in("{\"text\": \"sixteen bytes...\"}\n{\"text\": \"short\"}\n", 4, false), 1);
}
END_TEST

START_TEST(the_head_stands_for_all)
{
    const char *line = "{\"input_ids\": [1, 2, 3, 4]}\n";
    int64_t total = 1000 * (int64_t)strlen(line);
    char head[400];

    for (size_t i = 0; i < sizeof(head); i++) {
        head[i] = line[i % strlen(line)];
    }
    ck_assert_int_eq(records_sequences(head, sizeof(head), total, 8, true, 4), 500);
    ck_assert_int_eq(records_sequences(head, sizeof(head), total, 4, false, 4), 1000);
    /* one record that is longer than the head */
    ck_assert_int_eq(records_sequences("{\"text\": \"aaaa", 14, 4000, 10, true, 4), 100);
}
END_TEST

START_TEST(what_cannot_be_read_makes_none)
{
    ck_assert_int_eq(records_in("", 4, true), 0);
    char deep[4096];

    memset(deep, '[', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = '\0';
    ck_assert_int_eq(records_in(deep, 1, true), 0);
    ck_assert_int_eq(records_in("not JSON\n[1, 2]\n\"text\n{\"input_ids\": 7}\n\xff\xfe\n", 1, true), 0);
}
END_TEST

UNIT_MAIN("records", ids_are_counted, texts_are_measured, the_head_stands_for_all, what_cannot_be_read_makes_none)
