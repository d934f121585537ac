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

void format_add_name(json_t *list, const struct model *model, const char *name)
{
    char spellings[MODEL_SPELLINGS_MAX][PLAN_NAME_MAX];
    int count = model_spellings(model, name, spellings);

    for (int i = 0; i < count; i++) {
        json_array_append_new(list, json_string(spellings[i]));
    }
}

/* Without "model." before it. */
static const char *bare_module(const char *module)
{
    static const char prefix[] = "model.";

    return strncmp(module, prefix, sizeof(prefix) - 1) == 0 ? module + sizeof(prefix) - 1 : module;
}

void format_below(const char *module, const char *begin, char out[2 * PLAN_NAME_MAX])
{
    const size_t size = (size_t)2 * PLAN_NAME_MAX;
    size_t used = (size_t)snprintf(out, size, "%s^(model\\.)?", begin);

    used += format_escape(bare_module(module), out + used, size - used);
    snprintf(out + used, size - used, "\\.");
}

json_t *format_not_quantized(const struct format_config *config, const struct format_module *const *table)
{
    if (model_is_bare(config->model)) {
        return format_bare_ignored(config, table);
    }
    json_t *list = json_array(), *left = format_left_in_float(config, table);
    char name[PLAN_NAME_MAX];

    format_add_name(list, config->model, model_head_module(config->model));
    for (const char *const *extra = model_extras(config->model); *extra != NULL; extra++) {
        json_array_append_new(list, json_string(bare_module(*extra)));
        snprintf(name, sizeof(name), "model.%.100s", bare_module(*extra));
        json_array_append_new(list, json_string(name));
    }
    json_array_extend(list, left);
    json_decref(left);
    return list;
}

json_t *format_dynamic_skips(const struct format_config *config, const struct format_module *const *table)
{
    json_t *names = format_left_in_float(config, table), *name, *skips = NULL;
    char pattern[2 * PLAN_NAME_MAX + 8];
    size_t i;

    for (const char *const *extra = model_extras(config->model); *extra != NULL; extra++) {
        skips = skips != NULL ? skips : json_object();
        format_below(*extra, "-:", pattern);
        json_object_set_new(skips, pattern, json_object());
    }
    json_array_foreach(names, i, name)
    {
        skips = skips != NULL ? skips : json_object();
        expression(json_string_value(name), pattern, sizeof(pattern));
        json_object_set_new(skips, pattern, json_object());
    }
    json_decref(names);
    return skips;
}
