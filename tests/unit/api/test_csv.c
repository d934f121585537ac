/* CSV: quoting, order by column, and no formulas. */

#include "../unit.h"
#include "api/csv.h"

START_TEST(test_csv_rows)
{
    static const char *const columns[] = {"module", "loss", "shape", "fallback", NULL};
    json_t *rows =
        json_pack("[{s:s, s:f, s:[i,i], s:n}, {s:s, s:b, s:s, s:s}, {}]", "module", "a,\"b\"", "loss", 0.5, "shape", 2,
                  3, "fallback", "fallback", "=1+1", "loss", 1, "module", "x\r\ny", "extra", "z");
    ck_assert_ptr_nonnull(rows);
    size_t size;
    char *text = csv_write(columns, rows, &size);
    json_decref(rows);
    ck_assert_str_eq(text, "module,loss,shape,fallback\r\n"
                           "\"a,\"\"b\"\"\",0.5,\"[2,3]\",\r\n"
                           "\"x\r\ny\",true,,\"'=1+1\"\r\n"
                           ",,,\r\n");
    ck_assert_uint_eq(size, strlen(text));
    free(text);
}
END_TEST

UNIT_MAIN("csv", test_csv_rows)
