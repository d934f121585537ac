/* What a runtime that a format is for will not do with an artifact that is right all the same: said when the job is
 * submitted, among its warnings. */

#include "formats/common.h"

#include <stdarg.h>
#include <stdio.h>

void format_warn(json_t *warnings, const char *code, const char *text, ...)
{
    char message[384];
    va_list list;

    va_start(list, text);
    vsnprintf(message, sizeof(message), text, list);
    va_end(list);
    json_array_append_new(warnings, json_pack("{s:s, s:s}", "code", code, "message", message));
}

int format_warnings(const struct format *format, const struct format_config *config, json_t *warnings)
{
    return format->warn != NULL ? format->warn(config, warnings) : 0;
}
