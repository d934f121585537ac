/* What a checkpoint holds next to the language model: towers, projectors, and layers after the last that predict
 * further tokens. The forward pass has no use for them, and artifacts keep them as they are. */

#include "base/err.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool extra_below(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* The number of a layer that predicts further tokens, by the configuration; else -1. */
static int64_t extra_layer(const struct model *model, const char *name)
{
    const char *digits = name + strlen(model->layers);
    char *end;

    if (!extra_below(name, model->layers) || *digits < '0' || *digits > '9') {
        return -1;
    }
    long long layer = strtoll(digits, &end, 10), first = model->config.num_layers;
    return *end == '.' && layer >= first && layer < first + model->config.mtp_layers ? layer : -1;
}

static bool extra_tokens(const char *name)
{
    return extra_below(name, "mtp.") || extra_below(name, "model.mtp.");
}

/* Next to the language model of a composite checkpoint. */
static bool extra_outside(const struct model *model, const char *name)
{
    const char *text = model->layout.head[0] != '\0' ? model->layout.head : model->layout.model;
    size_t head = strlen(model->head_module);

    return model->config.composite != NULL && !extra_below(name, text) &&
           !(extra_below(name, model->head_module) && name[head] == '.');
}

bool model_is_extra(const struct model *model, const char *name)
{
    return extra_tokens(name) || extra_outside(model, name) || extra_layer(model, name) >= 0;
}

/* The module that an extra tensor's part is below: "vision_tower", "model.vision_tower", or a layer with its number. */
static size_t extra_root(const struct model *model, const char *name)
{
    size_t skip = extra_layer(model, name) >= 0 ? strlen(model->layers)
                  : extra_below(name, "model.") ? sizeof("model.") - 1
                                                : 0;

    return skip + strcspn(name + skip, ".");
}

static bool extra_listed(const struct model *model, size_t count, const char *root, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (strncmp(model->extras[i], root, length) == 0 && model->extras[i][length] == '\0') {
            return true;
        }
    }
    return false;
}

int model_extras_list(struct model *model)
{
    size_t count = 0;

    TRY(mem_array(&model->extras, 1));
    for (size_t i = 0; i < model->tensor_count; i++) {
        const char *name = model->tensors[i].name;
        if (!model_is_extra(model, name)) {
            continue;
        }
        size_t length = extra_root(model, name);
        if (!extra_listed(model, count, name, length)) {
            TRY(mem_resize(&model->extras, count + 2));
            model->extras[count++] = arena_strndup(&model->arena, name, length);
            model->extras[count] = NULL;
        }
    }
    return arena_check(&model->arena);
}

const char *const *model_extras(const struct model *model)
{
    return (const char *const *)model->extras;
}
