/* Numbers and JSON for people. */

#include "cli/print.h"

#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static void dump(const json_t *value, size_t flags)
{
    flags |= JSON_ENCODE_ANY | (isatty(STDOUT_FILENO) != 0 ? JSON_ENSURE_ASCII : 0);
    (void)json_dumpf(value, stdout, flags);
    putchar('\n');
}

void print_json(const json_t *value)
{
    dump(value, JSON_INDENT(2));
}

void print_json_line(const json_t *value)
{
    dump(value, JSON_COMPACT);
    (void)fflush(stdout);
}

const char *print_value(const json_t *value, char out[PRINT_SIZE])
{
    if (json_is_string(value)) {
        return json_string_value(value);
    }
    if (json_is_boolean(value)) {
        return json_is_true(value) ? "true" : "false";
    }
    if (json_is_integer(value)) {
        snprintf(out, PRINT_SIZE, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return out;
    }
    if (json_is_real(value)) {
        snprintf(out, PRINT_SIZE, "%g", json_real_value(value));
        return out;
    }
    return value == NULL || json_is_null(value) ? "-" : "(...)";
}

const char *print_text(const json_t *object, const char *key)
{
    const char *text = json_get_string(object, key);
    return text != NULL && text[0] != '\0' ? text : "-";
}

const char *print_number(const json_t *object, const char *key, int digits, char out[PRINT_SIZE])
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_number(value)) {
        return "-";
    }
    snprintf(out, PRINT_SIZE, "%.*g", digits, json_number_value(value));
    return out;
}

const char *print_bytes(double bytes, char out[PRINT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;

    while (fabs(bytes) >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, PRINT_SIZE, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

const char *print_seconds(double seconds, char out[PRINT_SIZE])
{
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e12) {
        return "-";
    }
    long all = (long)(seconds + 0.5);
    if (seconds < 9.95) {
        snprintf(out, PRINT_SIZE, "%.1fs", seconds);
    } else if (all < 60) {
        snprintf(out, PRINT_SIZE, "%lds", all);
    } else if (all < 3600) {
        snprintf(out, PRINT_SIZE, "%ldm%02lds", all / 60, all % 60);
    } else if (all < 100L * 3600) {
        snprintf(out, PRINT_SIZE, "%ldh%02ldm", all / 3600, all / 60 % 60);
    } else {
        snprintf(out, PRINT_SIZE, "%ldd%02ldh", all / 86400, all / 3600 % 24);
    }
    return out;
}

const char *print_time(const json_t *object, const char *key, char out[PRINT_SIZE])
{
    const json_t *value = json_object_get(object, key);
    time_t at = (time_t)json_integer_value(value);
    struct tm broken;

    if (!json_is_integer(value) || localtime_r(&at, &broken) == NULL ||
        strftime(out, PRINT_SIZE, "%Y-%m-%d %H:%M:%S", &broken) == 0) {
        return "-";
    }
    return out;
}

int print_columns(void)
{
    struct winsize size;

    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20 ? size.ws_col : 100;
}
