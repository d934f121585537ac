/* Linears left in float, in the words of the one loader that knows them by regular expressions alone: GPTQModel reads
 * `dynamic`, where an expression after "-:" names what is not quantized, and passes over the lists that other loaders
 * read. It matches from the start of a module's path, so an expression here is one whole path. */

#include "formats/common.h"

#include <stdio.h>
#include <string.h>

/* "model.layers.1" as "-:^model\.layers\.1$". */
static void expression(const char *name, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "-:^");

    for (; *name != '\0' && used + 4 < size; name++) {
        if (strchr("\\^$.|?*+()[]{}", *name) != NULL) {
            out[used++] = '\\';
        }
        out[used++] = *name;
    }
    snprintf(out + used, size - used, "$");
}

json_t *format_dynamic_skips(const struct format_config *config, const struct format_module *const *table)
{
    int64_t count = model_config(config->model)->num_layers * LINEAR_COUNT;
    json_t *skips = NULL;
    char name[128], pattern[2 * sizeof(name) + 8];

    for (int64_t i = 0; i < count; i++) {
        if (table[i] == NULL) {
            skips = skips != NULL ? skips : json_object();
            model_linear_name(config->model, i / LINEAR_COUNT, (enum linear_role)(i % LINEAR_COUNT), name);
            expression(name, pattern, sizeof(pattern));
            json_object_set_new(skips, pattern, json_object());
        }
    }
    return skips;
}
