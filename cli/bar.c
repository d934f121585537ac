/* Bars. Errors of layers differ by orders of magnitude, so their axis is logarithmic. */

#include "cli/bar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool bar_unicode(void)
{
    static const char *const variables[] = {"LC_ALL", "LC_CTYPE", "LANG"};

    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        const char *locale = getenv(variables[i]);
        if (locale != NULL && locale[0] != '\0') {
            return strcasestr(locale, "utf-8") != NULL || strcasestr(locale, "utf8") != NULL;
        }
    }
    return false;
}

static int clamp_width(int width)
{
    return width < 0 ? 0 : width > BAR_MAX ? BAR_MAX : width;
}

static double clamp(double fraction)
{
    return !(fraction > 0) ? 0 : fraction > 1 ? 1 : fraction;
}

const char *bar_fill(double fraction, int width, char out[BAR_SIZE])
{
    width = clamp_width(width);
    int full = (int)(clamp(fraction) * width);

    memset(out, '#', (size_t)full);
    memset(out + full, '-', (size_t)(width - full));
    out[width] = '\0';
    return out;
}

/* Eighths: U+2588 is a full block, U+258F down to U+2589 are 1/8 to 7/8 of one from the left. */
static void write_eighths(int eighths, bool unicode, char *out)
{
    if (!unicode) {
        int cells = (eighths + 4) / 8;
        memset(out, '#', (size_t)cells);
        out[cells] = '\0';
        return;
    }
    for (; eighths >= 8; eighths -= 8) {
        memcpy(out, "\xe2\x96\x88", 3);
        out += 3;
    }
    if (eighths > 0) {
        const char part[3] = {'\xe2', '\x96', (char)(0x90 - eighths)};
        memcpy(out, part, 3);
        out += 3;
    }
    *out = '\0';
}

const char *bar_log(double value, double low, double high, int width, bool unicode, char out[BAR_SIZE])
{
    out[0] = '\0';
    width = clamp_width(width);
    if (!(value > 0) || !isfinite(value) || width == 0) {
        return out;
    }
    double span = low > 0 && high > low ? log(high / low) : 0;
    double fraction = span > 0 ? clamp(log(value / low) / span) : 1;
    int eighths = (int)lround(fraction * width * 8);
    write_eighths(eighths > 0 ? eighths : 1, unicode, out);
    return out;
}

const char *bar_strip(const double *values, size_t count, int width, bool unicode, char out[BAR_SIZE])
{
    static const char digits[] = "12345678";
    double low = INFINITY, high = 0;
    char *at = out;

    width = clamp_width(width);
    size_t cells = count < (size_t)width ? count : (size_t)width;
    for (size_t i = 0; i < count; i++) {
        if (values[i] > 0 && isfinite(values[i])) {
            low = values[i] < low ? values[i] : low;
            high = values[i] > high ? values[i] : high;
        }
    }
    for (size_t cell = 0; cell < cells; cell++) {
        double value = 0;
        for (size_t i = cell * count / cells; i < (cell + 1) * count / cells; i++) {
            value = values[i] > value && isfinite(values[i]) ? values[i] : value;
        }
        if (!(value > 0)) {
            *at++ = '.';
            continue;
        }
        int level = high > low ? (int)(7.999 * clamp(log(value / low) / log(high / low))) : 0;
        if (unicode) { /* U+2581 to U+2588 */
            const char block[3] = {'\xe2', '\x96', (char)(0x81 + level)};
            memcpy(at, block, 3);
            at += 3;
        } else {
            *at++ = digits[level];
        }
    }
    *at = '\0';
    return out;
}
