/* Linears left in float, in the words of the one loader that knows them by regular expressions alone: GPTQModel reads
 * `dynamic`, where an expression after "-:" names what is not quantized, and passes over the lists that other loaders
 * read. It matches from the start of a module's path, so an expression here is one complete path. */

#include "formats/common.h"

#include <stdio.h>
#include <string.h>

size_t format_escape(const char *name, char *out, size_t size)
{
    size_t used = 0;

    for (; *name != '\0' && used + 3 < size; name++) {
        if (strchr("\\^$.|?*+()[]{}", *name) != NULL) {
            out[used++] = '\\';
        }
        out[used++] = *name;
    }
    out[used] = '\0';
    return used;
}

/* "a.1" as "-:^a\.1$". */
static void expression(const char *name, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "-:^");

    used += format_escape(name, out + used, size - used);
    snprintf(out + used, size - used, "$");
}

json_t *format_dynamic_skips(const struct format_config *config, const struct format_module *const *table)
{
    json_t *names = format_left_in_float(config, table), *name, *skips = NULL;
    char pattern[2 * PLAN_NAME_MAX + 8];
    size_t i;

    json_array_foreach(names, i, name)
    {
        skips = skips != NULL ? skips : json_object();
        expression(json_string_value(name), pattern, sizeof(pattern));
        json_object_set_new(skips, pattern, json_object());
    }
    json_decref(names);
    return skips;
}
