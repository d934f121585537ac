/* Tensors against config.json: everything that it asks for is there with its shape, and nothing is there that the
 * forward pass would leave out. The second half catches a config that says less than the weights do (too few
 * layers, no biases): such a model would run and be wrong. */

#include "base/err.h"
#include "models/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 192

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

/* cols 0: a vector of rows. */
static int want(const struct model *model, const char *name, int64_t rows, int64_t cols)
{
    const int64_t shape[2] = {rows, cols};
    int rank = cols > 0 ? 2 : 1;
    char wanted[96], found[96];

    struct model_tensor tensor = model_find(model, name);
    shape_text(wanted, sizeof(wanted), shape, rank);
    if (tensor.file == NULL) {
        return err_raise(ERR_INVALID_MODEL, "tensor %s is missing; config.json asks for it with shape %s", name,
                         wanted);
    }
    const struct safetensors_entry *entry = tensor.entry;
    if (entry->rank != rank || entry->shape[0] != rows || (rank == 2 && entry->shape[1] != cols)) {
        shape_text(found, sizeof(found), entry->shape, entry->rank);
        return err_raise(ERR_INVALID_MODEL, "tensor %s has shape %s; config.json asks for %s", name, found, wanted);
    }
    if (entry->dtype != DTYPE_F32 && entry->dtype != DTYPE_F16 && entry->dtype != DTYPE_BF16) {
        return err_raise(ERR_INVALID_MODEL, "tensor %s is %s; weights must be F32, F16 or BF16", name,
                         dtype_rows[entry->dtype].name);
    }
    return 0;
}

static int64_t norm_size(const struct model_config *config, enum norm_role role)
{
    return role == NORM_Q || role == NORM_K ? config->head_dim : config->hidden_size;
}

static int check_layer(const struct model *model, int64_t layer)
{
    const struct model_config *config = &model->config;
    char module[128], name[NAME_MAX_BYTES];
    int rc = 0;

    for (int role = 0; rc == 0 && role < LINEAR_COUNT; role++) {
        int64_t rows, cols;
        arch_linear_shape(config, (enum linear_role)role, &rows, &cols);
        model_linear_name(model, layer, (enum linear_role)role, module);
        snprintf(name, sizeof(name), "%s.weight", module);
        rc = want(model, name, rows, cols);
        if (rc == 0 && arch_linear_bias(config, (enum linear_role)role)) {
            snprintf(name, sizeof(name), "%s.bias", module);
            rc = want(model, name, rows, 0);
        }
    }
    for (int role = 0; rc == 0 && role < NORM_COUNT; role++) {
        if (config->arch->norms[role] != NULL) {
            snprintf(name, sizeof(name), MODEL_LAYER_PREFIX "%lld.%s.weight", (long long)layer,
                     config->arch->norms[role]);
            rc = want(model, name, norm_size(config, (enum norm_role)role), 0);
        }
    }
    return rc;
}

/* Whether "q_proj.weight" and the like, behind the layer number, is one that check_layer wants. */
static bool is_layer_tensor(const struct model_config *config, const char *path)
{
    for (int role = 0; role < LINEAR_COUNT; role++) {
        size_t length = strlen(config->arch->linears[role]);
        if (strncmp(path, config->arch->linears[role], length) == 0) {
            return strcmp(path + length, ".weight") == 0 ||
                   (strcmp(path + length, ".bias") == 0 && arch_linear_bias(config, (enum linear_role)role));
        }
    }
    for (int role = 0; role < NORM_COUNT; role++) {
        const char *norm = config->arch->norms[role];
        if (norm != NULL && strncmp(path, norm, strlen(norm)) == 0 && strcmp(path + strlen(norm), ".weight") == 0) {
            return true;
        }
    }
    return false;
}

/* The end of a name behind "model.", or behind "model.layers.N.self_attn.", whatever N is; else NULL. */
static const char *behind_rotary_owner(const char *name)
{
    static const char model[] = "model.", layers[] = "layers.", attention[] = ".self_attn.";

    if (strncmp(name, model, sizeof(model) - 1) != 0) {
        return NULL;
    }
    name += sizeof(model) - 1;
    if (strncmp(name, layers, sizeof(layers) - 1) != 0) {
        return name;
    }
    name += sizeof(layers) - 1;
    name += strspn(name, "0123456789");
    return strncmp(name, attention, sizeof(attention) - 1) == 0 ? name + sizeof(attention) - 1 : NULL;
}

bool model_is_rotary_table(const char *name)
{
    static const char *const tables[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"};
    const char *end = behind_rotary_owner(name);

    for (size_t i = 0; end != NULL && i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (strcmp(end, tables[i]) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_known(const struct model_config *config, const char *name)
{
    static const char *const outside[] = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
    size_t prefix = strlen(MODEL_LAYER_PREFIX);

    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        if (strcmp(name, outside[i]) == 0) {
            return true;
        }
    }
    if (model_is_rotary_table(name)) {
        return true;
    }
    if (strncmp(name, MODEL_LAYER_PREFIX, prefix) != 0 || name[prefix] < '0' || name[prefix] > '9') {
        return false;
    }
    char *end;
    long long layer = strtoll(name + prefix, &end, 10);
    if (name[prefix] == '0' && end != name + prefix + 1) {
        return false; /* "layers.00": nothing asks for a tensor of that name, so its shape was never looked at */
    }
    return layer < config->num_layers && *end == '.' && is_layer_tensor(config, end + 1);
}

int model_check_tensors(const struct model *model)
{
    const struct model_config *config = &model->config;
    int rc = want(model, "model.embed_tokens.weight", config->vocab_size, config->hidden_size);

    rc = rc != 0 ? rc : want(model, "model.norm.weight", config->hidden_size, 0);
    if (rc == 0 && (!config->tie_word_embeddings || model_find(model, "lm_head.weight").file != NULL)) {
        rc = want(model, "lm_head.weight", config->vocab_size, config->hidden_size);
    }
    for (int64_t layer = 0; rc == 0 && layer < config->num_layers; layer++) {
        rc = check_layer(model, layer);
    }
    for (size_t i = 0; rc == 0 && i < model->tensor_count; i++) {
        if (!is_known(config, model->tensors[i].name)) {
            rc = err_raise(ERR_INVALID_MODEL, "tensor %.160s is not part of a %s with this config.json",
                           model->tensors[i].name, config->arch->name);
        }
    }
    return rc;
}
