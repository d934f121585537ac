/* Sizes in words, those of a sentence in one unit. */

#include "tests/unit/unit.h"

#include "base/bytes.h"

static void bytes_expect(double size, double most, const char *expected)
{
    const double sizes[] = {size, most};
    const struct bytes_unit unit = bytes_unit_of(sizes, 2);
    char text[BYTES_SIZE];

    ck_assert_str_eq(bytes_in(&unit, size, text), expected);
}

START_TEST(the_largest_has_the_unit)
{
    bytes_expect(0, 0, "0 B");
    bytes_expect(1023, 0, "1023 B");
    bytes_expect(1024, 0, "1.00 KiB");
    bytes_expect(300e6, 0, "286 MiB");
    bytes_expect(300e6, 24e9, "0.28 GiB");
    bytes_expect(24e9, 300e6, "22.4 GiB");
    bytes_expect(2e6, 24e9, "1.91 MiB"); /* not 0.00 GiB */
    bytes_expect(80e6, 24e9, "76.3 MiB");
    bytes_expect(0, 24e9, "0 B");
    bytes_expect(-24e9, 0, "-22.4 GiB");
    bytes_expect(9e15, 0, "7.99 PiB");
}
END_TEST

UNIT_MAIN("bytes", the_largest_has_the_unit)
