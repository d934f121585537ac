#include "base/bytes.h"

#include <math.h>
#include <stdio.h>

struct bytes_unit bytes_unit_of(const double *sizes, size_t count)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    struct bytes_unit unit = {names[0], 1};
    double most = 0;

    for (size_t i = 0; i < count; i++) {
        most = fmax(most, fabs(sizes[i]));
    }
    for (size_t i = 1; i < sizeof(names) / sizeof(names[0]) && most >= 1024 * unit.bytes; i++) {
        unit = (struct bytes_unit){names[i], 1024 * unit.bytes};
    }
    return unit;
}

const char *bytes_in(const struct bytes_unit *unit, double size, char out[BYTES_SIZE])
{
    const struct bytes_unit own = bytes_unit_of(&size, 1);
    double value = size / unit->bytes;

    if (fabs(value) < 0.1) { /* two decimals would leave a digit or none */
        unit = &own;
        value = size / own.bytes;
    }
    int decimals = unit->bytes == 1 || fabs(value) >= 100 ? 0 : fabs(value) >= 10 ? 1 : 2;

    snprintf(out, BYTES_SIZE, "%.*f %s", decimals, value, unit->name);
    return out;
}
