/* Names of modules and tensors, from the family's words and the plans, and back. */

#include "models/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct plans *model_plans(const struct model *model)
{
    return model->plans;
}

const char *model_embedding_name(const struct model *model)
{
    return model->embedding;
}

const char *model_norm_name(const struct model *model)
{
    return model->norm;
}

const char *model_head_name(const struct model *model)
{
    return model->head;
}

void model_module_name(const struct model *model, int64_t layer, int module, char out[PLAN_NAME_MAX])
{
    snprintf(out, PLAN_NAME_MAX, "%s%lld.%s", model->config.arch->layers, (long long)layer,
             plans_layer(model->plans, layer)->modules[module].path);
}

void model_tensor_name(const struct model *model, int64_t layer, const char *path, const char *member,
                       char out[MODEL_NAME_MAX])
{
    snprintf(out, MODEL_NAME_MAX, "%s%lld.%s.%s", model->config.arch->layers, (long long)layer, path, member);
}

int64_t model_find_layer(const struct model *model, const char *name, const char **path)
{
    const char *layers = model->config.arch->layers;
    size_t prefix = strlen(layers);
    char *end;

    if (strncmp(name, layers, prefix) != 0 || name[prefix] < '0' || name[prefix] > '9') {
        return -1;
    }
    long long layer = strtoll(name + prefix, &end, 10);
    bool padded = name[prefix] == '0' && end != name + prefix + 1; /* "layers.00" does not name a layer */
    if (*end != '.' || padded || layer >= model->config.num_layers) {
        return -1;
    }
    *path = end + 1;
    return layer;
}

int model_find_module(const struct model *model, const char *name, int64_t *layer)
{
    const char *path;
    int64_t found = model_find_layer(model, name, &path);
    int module = found >= 0 ? plan_find_module(plans_layer(model->plans, found), path) : -1;

    if (module >= 0) {
        *layer = found;
    }
    return module;
}
