/* Tensors against config.json: everything that it asks for is there with its shape, and nothing is there that the
 * forward pass would leave out. The second half catches a config that says less than the weights do (too few
 * layers, no biases): such a model would run and be wrong. */

#include "base/err.h"
#include "models/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void shape_text(char *out, size_t size, const int64_t *shape, int rank)
{
    size_t used = (size_t)snprintf(out, size, "[");

    for (int i = 0; i < rank && used < size; i++) {
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i > 0 ? ", " : "", (long long)shape[i]);
    }
    if (used < size) {
        snprintf(out + used, size - used, "]");
    }
}

static int check_tensor(const struct model *model, const char *name, const int64_t *shape, int rank)
{
    char expected[96], actual[96];

    struct model_tensor tensor = model_find(model, name);
    shape_text(expected, sizeof(expected), shape, rank);
    if (tensor.file == NULL) {
        return err_raise(ERR_INVALID_MODEL, "tensor %s is missing; config.json asks for it with shape %s", name,
                         expected);
    }
    const struct safetensors_entry *entry = tensor.entry;
    if (entry->rank != rank || memcmp(entry->shape, shape, (size_t)rank * sizeof(*shape)) != 0) {
        shape_text(actual, sizeof(actual), entry->shape, entry->rank);
        return err_raise(ERR_INVALID_MODEL, "tensor %s has shape %s; config.json asks for %s", name, actual, expected);
    }
    if (entry->dtype != DTYPE_F32 && entry->dtype != DTYPE_F16 && entry->dtype != DTYPE_BF16) {
        return err_raise(ERR_INVALID_MODEL, "tensor %s is %s; weights must be F32, F16 or BF16", name,
                         dtype_rows[entry->dtype].name);
    }
    return 0;
}

/* cols 0: a vector of rows. */
static int check_tensor_shape(const struct model *model, const char *name, int64_t rows, int64_t cols)
{
    return check_tensor(model, name, (const int64_t[]){rows, cols}, cols > 0 ? 2 : 1);
}

static int check_part(const struct model *model, int64_t layer, const struct plan_module *module, bool bias)
{
    char name[MODEL_NAME_MAX];
    int64_t shape[3];
    int rank = model_part_shape(module, bias, shape);

    model_part_name(model, layer, module, bias, name);
    return check_tensor(model, name, shape, rank);
}

static int check_layer(const struct model *model, int64_t layer)
{
    const struct plan *plan = plans_layer(model->plans, layer);
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *module = &plan->modules[i];
        TRY(check_part(model, layer, module, false));
        TRY(module->bias ? check_part(model, layer, module, true) : 0);
    }
    for (int i = 0; i < plan->norm_count; i++) {
        const struct plan_norm *norm = &plan->norms[i];
        if (norm->path != NULL) {
            model_tensor_name(model, layer, norm->path, "weight", name);
            TRY(check_tensor_shape(model, name, norm->size, 0));
        }
        if (norm->path != NULL && norm->bias) {
            model_tensor_name(model, layer, norm->path, "bias", name);
            TRY(check_tensor_shape(model, name, norm->size, 0));
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        model_parameter_name(model, layer, plan->parameters[i].path, name);
        TRY(check_tensor(model, name, plan->parameters[i].shape, plan->parameters[i].rank));
    }
    return 0;
}

/* What follows `module` and a dot in path, or NULL. */
static const char *check_member(const char *path, const char *module)
{
    size_t length = strlen(module);

    return strncmp(path, module, length) == 0 && path[length] == '.' ? path + length + 1 : NULL;
}

static bool is_own_part(const struct plan_module *module, const char *path, bool bias)
{
    const struct plan_stored *stored = module->stored;
    const char *other = stored == NULL ? NULL : bias ? stored->bias : stored->weight;
    const char *member = other == NULL ? check_member(path, module->path) : NULL;

    return other != NULL ? strcmp(path, other) == 0 : member != NULL && strcmp(member, bias ? "bias" : "weight") == 0;
}

/* Whether "<module>.weight" and the like, after the layer number, is one that check_layer wants. */
static bool is_layer_tensor(const struct plan *plan, const char *path)
{
    for (int i = 0; i < plan->parameter_count; i++) { /* before modules, of which some begin like one */
        if (strcmp(path, plan->parameters[i].path) == 0) {
            return true;
        }
    }
    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *module = &plan->modules[i];
        if (is_own_part(module, path, false) || (module->bias && is_own_part(module, path, true))) {
            return true;
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        const struct plan_norm *norm = &plan->norms[i];
        const char *member = norm->path != NULL ? check_member(path, norm->path) : NULL;
        if (member != NULL && (strcmp(member, "weight") == 0 || (strcmp(member, "bias") == 0 && norm->bias))) {
            return true;
        }
    }
    return false;
}

/* The end of a name after "model.", or after "<layers>N.self_attn.", whatever N is; else NULL. */
static const char *after_rotary_owner(const struct model *model, const char *name)
{
    const char *attention = model->config.arch->attention;
    size_t layers = strlen(model->layers), owner = strlen(attention), outer = strlen(model->layout.model);

    if (strncmp(name, model->layers, layers) != 0) {
        return strncmp(name, model->layout.model, outer) == 0 ? name + outer : NULL;
    }
    name += layers;
    name += strspn(name, "0123456789");
    return name[0] == '.' && strncmp(name + 1, attention, owner) == 0 && name[1 + owner] == '.' ? name + 2 + owner
                                                                                                : NULL;
}

static bool is_mask(const struct model *model, const char *name)
{
    const char *const *masks = model->config.arch->masks;
    const char *path;
    bool layer = model_find_layer(model, name, &path) >= 0;

    for (size_t i = 0; layer && i < sizeof(model->config.arch->masks) / sizeof(masks[0]); i++) {
        if (masks[i] != NULL && strcmp(path, masks[i]) == 0) {
            return true;
        }
    }
    return false;
}

bool model_is_rotary_table(const struct model *model, const char *name)
{
    static const char *const tables[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"};
    const char *end = after_rotary_owner(model, name);

    for (size_t i = 0; end != NULL && i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (strcmp(end, tables[i]) == 0) {
            return true;
        }
    }
    return is_mask(model, name);
}

/* What a layer would have of its own if it did not take it from an earlier one. */
static bool is_unread(const struct model *model, int64_t layer, const char *path)
{
    const char *const *names = model->config.arch->unread;
    bool takes = plan_taken(plans_layer(model->plans, layer)) != 0;

    for (size_t i = 0; takes && i < sizeof(model->config.arch->unread) / sizeof(names[0]); i++) {
        if (names[i] != NULL && strcmp(path, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

static bool check_is_known(const struct model *model, const char *name)
{
    const char *path;
    int64_t layer = model_find_layer(model, name, &path);

    const char *const outside[] = {model->embedding, model->norm,      model->head,
                                   model->norm_bias, model->positions, model->head_bias,
                                   model->tokens[0], model->tokens[1], model->tokens[2]};

    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        if (strcmp(name, outside[i]) == 0) { /* no name is empty */
            return true;
        }
    }
    if (model_is_rotary_table(model, name)) {
        return true;
    }
    return layer >= 0 && (is_unread(model, layer, path) || is_layer_tensor(plans_layer(model->plans, layer), path));
}

/* What makes a layer's share of its tokens. */
static int check_tokens(const struct model *model)
{
    const struct model_config *c = &model->config;
    int64_t columns = c->num_layers * c->token_columns;

    if (c->token_columns == 0) {
        return 0;
    }
    TRY(check_tensor_shape(model, model->tokens[MODEL_TOKENS_TABLE], c->token_rows, columns));
    TRY(check_tensor_shape(model, model->tokens[MODEL_TOKENS_PROJECTION], columns, c->hidden_size));
    return check_tensor_shape(model, model->tokens[MODEL_TOKENS_NORM], c->token_columns, 0);
}

int model_check_tensors(const struct model *model)
{
    const struct model_config *config = &model->config;

    TRY(check_tensor_shape(model, model->embedding, config->vocab_size, config->hidden_size));
    TRY(check_tensor_shape(model, model->norm, config->hidden_size, 0));
    if (model->norm_bias[0] != '\0') {
        TRY(check_tensor_shape(model, model->norm_bias, config->hidden_size, 0));
    }
    if (model->positions[0] != '\0') {
        TRY(check_tensor_shape(model, model->positions, config->max_position + config->arch->position_row,
                               config->hidden_size));
    }
    if (model->head_bias[0] != '\0') {
        TRY(check_tensor_shape(model, model->head_bias, config->vocab_size, 0));
    }
    TRY(check_tokens(model));
    if (!config->tie_word_embeddings || model_find(model, model->head).file != NULL) {
        TRY(check_tensor_shape(model, model->head, config->vocab_size, config->hidden_size));
    }
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        TRY(check_layer(model, layer));
    }
    for (size_t i = 0; i < model->tensor_count; i++) {
        const char *name = model->tensors[i].name;
        if (!check_is_known(model, name) && !model_is_extra(model, name)) {
            return err_raise(ERR_INVALID_MODEL, "tensor %.160s is not part of a %s with this config.json", name,
                             config->composite != NULL ? config->composite->name : config->arch->name);
        }
    }
    return 0;
}
