/* Names of modules and tensors, from the family's words and the plans, and back. */

#include "base/err.h"
#include "models/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct arch_layout plain_layout = {"model.", ""};

/* What follows `prefix` in a name, or NULL. */
static const char *after_prefix(const char *name, const char *prefix)
{
    size_t length = strlen(prefix);

    return strncmp(name, prefix, length) == 0 ? name + length : NULL;
}

/* A row's name in a layout: its "model." is replaced, and the head gets the layout's word. */
static void layout_name(const struct arch_layout *layout, const char *name, const char *suffix,
                        char out[MODEL_NAME_MAX])
{
    const char *rest = after_prefix(name, plain_layout.model);

    snprintf(out, MODEL_NAME_MAX, "%s%s%s", rest != NULL ? layout->model : layout->head, rest != NULL ? rest : name,
             suffix);
}

/* By which of the embeddings there is. */
static int find_layout(const struct model *model, struct arch_layout *out)
{
    const struct arch_composite *composite = model->config.composite;
    char name[MODEL_NAME_MAX], other[MODEL_NAME_MAX] = "";

    *out = composite != NULL ? composite->layouts[0] : plain_layout;
    for (size_t i = 0; composite != NULL && i < 2 && composite->layouts[i].model != NULL; i++) {
        layout_name(&composite->layouts[i], model->config.arch->embedding, ".weight", name);
        if (model_find(model, name).file == NULL) {
            continue;
        }
        if (other[0] != '\0') {
            return err_raise(ERR_INVALID_MODEL, "the checkpoint has two language models: %s and %s", other, name);
        }
        *out = composite->layouts[i];
        memcpy(other, name, sizeof(other));
    }
    return 0;
}

/* How much of the row's names the checkpoint leaves out. */
static size_t omitted_prefix(const struct model *model)
{
    const struct arch *arch = model->config.arch;
    size_t prefix = arch->prefix != NULL ? strlen(arch->prefix) : 0;
    char name[MODEL_NAME_MAX];

    snprintf(name, sizeof(name), "%s.weight", arch->embedding + prefix);
    return model_find(model, name).file != NULL ? prefix : 0;
}

int model_names_find(struct model *model)
{
    const struct arch *arch = model->config.arch;
    size_t omitted = omitted_prefix(model);
    char name[MODEL_NAME_MAX];

    TRY(find_layout(model, &model->layout));
    layout_name(&model->layout, arch->head, ".weight", name);
    if (model_find(model, name).file == NULL) { /* next to the language model, where there is one */
        snprintf(name, sizeof(name), "%s.weight", arch->head);
        model->layout.head = model_find(model, name).file != NULL ? "" : model->layout.head;
    }
    layout_name(&model->layout, arch->layers + omitted, "", model->layers);
    layout_name(&model->layout, arch->embedding + omitted, "", model->embedding_module);
    layout_name(&model->layout, arch->head, "", model->head_module);
    layout_name(&model->layout, arch->embedding + omitted, ".weight", model->embedding);
    layout_name(&model->layout, arch->norm + omitted, ".weight", model->norm);
    layout_name(&model->layout, arch->head, ".weight", model->head);
    if (arch->norm_biases) {
        layout_name(&model->layout, arch->norm + omitted, ".bias", model->norm_bias);
    }
    if (arch->positions != NULL) {
        layout_name(&model->layout, arch->positions + omitted, ".weight", model->positions);
    }
    if (arch->head_bias) {
        layout_name(&model->layout, arch->head, ".bias", model->head_bias);
    }
    for (int i = 0; model->config.token_columns > 0 && i < MODEL_TOKENS; i++) {
        layout_name(&model->layout, arch->tokens[i] + omitted, ".weight", model->tokens[i]);
    }
    if (model->config.token_columns > 0) {
        layout_name(&model->layout, arch->tokens[MODEL_TOKENS_PROJECTION] + omitted, "", model->tokens_module);
    }
    return 0;
}

/* A name below one prefix, below another. */
static bool respell(const char *name, const char *from, const char *to, char out[PLAN_NAME_MAX])
{
    const char *rest = after_prefix(name, from);

    return rest != NULL && snprintf(out, PLAN_NAME_MAX, "%s%s", to, rest) < PLAN_NAME_MAX;
}

int model_spellings(const struct model *model, const char *name, char out[MODEL_SPELLINGS_MAX][PLAN_NAME_MAX])
{
    const struct arch_composite *composite = model->config.composite;
    const char *head = model->config.arch->head;
    char old_head[PLAN_NAME_MAX];

    snprintf(out[0], PLAN_NAME_MAX, "%s", name);
    if (composite == NULL) {
        const char *const *loaded = model->config.arch->loaded;
        return loaded[0] != NULL && respell(name, loaded[0], loaded[1], out[1]) ? 2 : 1;
    }
    const struct arch_layout *new = &composite->layouts[0], *old = &composite->layouts[1];
    if (old->model == NULL) {
        return 1;
    }
    snprintf(old_head, sizeof(old_head), "%s%s", old->head, head);
    bool found =
        respell(name, new->model, old->model, out[1]) || respell(name, old->model, new->model, out[1]) ||
        (old->head[0] != '\0' && (respell(name, old_head, head, out[1]) || respell(name, head, old_head, out[1])));
    return found ? 2 : 1;
}

const char *model_layers_prefix(const struct model *model)
{
    return model->layers;
}

const char *model_embedding_module(const struct model *model)
{
    return model->embedding_module;
}

const char *model_head_module(const struct model *model)
{
    return model->head_module;
}

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

const char *model_norm_bias_name(const struct model *model)
{
    return model->norm_bias[0] != '\0' ? model->norm_bias : NULL;
}

const char *model_positions_name(const struct model *model)
{
    return model->positions[0] != '\0' ? model->positions : NULL;
}

const char *model_head_bias_name(const struct model *model)
{
    return model->head_bias[0] != '\0' ? model->head_bias : NULL;
}

const char *model_tokens_name(const struct model *model, enum model_tokens which)
{
    return model->tokens[which][0] != '\0' ? model->tokens[which] : NULL;
}

const char *model_tokens_module(const struct model *model)
{
    return model->tokens_module[0] != '\0' ? model->tokens_module : NULL;
}

const char *model_head_name(const struct model *model)
{
    return model->head;
}

void model_module_name(const struct model *model, int64_t layer, int module, char out[PLAN_NAME_MAX])
{
    if (model->bare != NULL) {
        snprintf(out, PLAN_NAME_MAX, "%s", plans_layer(model->plans, layer)->modules[module].path);
        return;
    }
    snprintf(out, PLAN_NAME_MAX, "%s%lld.%s", model->layers, (long long)layer,
             plans_layer(model->plans, layer)->modules[module].path);
}

void model_tensor_name(const struct model *model, int64_t layer, const char *path, const char *member,
                       char out[MODEL_NAME_MAX])
{
    if (model->bare != NULL) {
        snprintf(out, MODEL_NAME_MAX, "%s.%s", path, member);
        return;
    }
    snprintf(out, MODEL_NAME_MAX, "%s%lld.%s.%s", model->layers, (long long)layer, path, member);
}

void model_parameter_name(const struct model *model, int64_t layer, const char *path, char out[MODEL_NAME_MAX])
{
    snprintf(out, MODEL_NAME_MAX, "%s%lld.%s", model->layers, (long long)layer, path);
}

int64_t model_find_layer(const struct model *model, const char *name, const char **path)
{
    const char *layers = model->layers;
    size_t prefix = strlen(layers);
    char *end;
    int module;

    if (model->bare != NULL) {
        *path = name;
        return bare_find(model, name, &module);
    }
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
    int bare = -1;
    int64_t found = model->bare != NULL ? bare_find(model, name, &bare) : model_find_layer(model, name, &path);
    int module = model->bare != NULL ? bare
                 : found >= 0        ? plan_find_module(plans_layer(model->plans, found), path)
                                     : -1;

    if (module >= 0) {
        *layer = found;
    }
    return module;
}
