/* Table layout. */

#include "cli/print.h"
#include "tests/unit/unit.h"

#include <locale.h>
#include <math.h>
#include <string.h>

static char *printed(const struct table *table)
{
    char *text = NULL;
    size_t size = 0;

    FILE *out = open_memstream(&text, &size);
    ck_assert_rc_ok(table_print(table, out));
    fclose(out);
    return text;
}

START_TEST(test_columns)
{
    struct table *table = table_new((const char *const[]){"NAME", ">BYTES", "NOTE", NULL});

    TABLE_ROW(table, "a", "12345678", "x");
    TABLE_ROW(table, "longer name", "1", NULL);
    char *text = printed(table);
    ck_assert_str_eq(text, "NAME            BYTES  NOTE\n"
                           "a            12345678  x\n"
                           "longer name         1  -\n");
    free(text);
    table_free(table);
}
END_TEST

START_TEST(test_cells_of_a_server)
{
    ck_assert_ptr_nonnull(setlocale(LC_CTYPE, "C.UTF-8"));
    struct table *table = table_new((const char *const[]){"NAME", "ID", NULL});

    TABLE_ROW(table, "\xe6\xbc\xa2\xe5\xad\x97", "1");
    TABLE_ROW(table, "a\nb\x1b[H", "2");
    char *text = printed(table);
    ck_assert_str_eq(text, "NAME          ID\n"
                           "\xe6\xbc\xa2\xe5\xad\x97          1\n"
                           "a\\x0ab\\x1b[H  2\n");
    free(text);
    table_free(table);
}
END_TEST

START_TEST(test_numbers)
{
    char out[PRINT_SIZE];
    json_t *object =
        json_pack("{s:f,s:n,s:s,s:I,s:b}", "pi", 3.14159, "none", "text", "t", "at", (json_int_t)0, "yes", 1);

    ck_assert_str_eq(print_bytes(0, out), "0 B");
    ck_assert_str_eq(print_bytes(1023, out), "1023 B");
    ck_assert_str_eq(print_bytes(1536, out), "1.5 KiB");
    ck_assert_str_eq(print_bytes(5368709120.0, out), "5.0 GiB");
    ck_assert_str_eq(print_seconds(2.34, out), "2.3s");
    ck_assert_str_eq(print_seconds(59.4, out), "59s");
    ck_assert_str_eq(print_seconds(61, out), "1m01s");
    ck_assert_str_eq(print_seconds(3599.7, out), "1h00m");
    ck_assert_str_eq(print_seconds(90061, out), "25h01m");
    ck_assert_str_eq(print_seconds(359999, out), "99h59m");
    ck_assert_str_eq(print_seconds(360000, out), "4d04h");
    ck_assert_str_eq(print_seconds(2e9, out), "23148d03h");
    ck_assert_str_eq(print_seconds(-1, out), "-");
    ck_assert_str_eq(print_seconds(NAN, out), "-");
    ck_assert_str_eq(print_seconds(1e300, out), "-");
    ck_assert_str_eq(print_number(object, "pi", 3, out), "3.14");
    ck_assert_str_eq(print_number(object, "none", 3, out), "-");
    ck_assert_str_eq(print_number(object, "absent", 3, out), "-");
    ck_assert_str_eq(print_text(object, "text"), "t");
    ck_assert_str_eq(print_text(object, "pi"), "-");
    ck_assert_str_eq(print_value(json_object_get(object, "yes"), out), "true");
    ck_assert_str_eq(print_value(NULL, out), "-");
    ck_assert_str_eq(print_time(object, "pi", out), "-");
    json_decref(object);
}
END_TEST

UNIT_MAIN("cli_table", test_columns, test_cells_of_a_server, test_numbers)
