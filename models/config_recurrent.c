/* Layers that are recurrences in the words of config.json, by the row of the family (struct arch_recurrence). */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"
#include "gpu/gpu.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define CONV_MAX 64 /* columns of a convolution's kernel */

/* What lists call the layers: of today, and of before. */
static const struct {
    const char *name, *old;
    char letter; /* of hybrid_override_pattern */
    enum layer_type type;
} recurrent_words[] = {
    {"linear_attention", "mamba", 'M', LAYER_LINEAR},
    {"full_attention", "attention", '*', LAYER_FULL},
    {"mlp", "mlp", '-', LAYER_MLP},
    {"moe", "moe", 'E', LAYER_EXPERTS},
    {0},
};

static const char *const list_names[] = {"layers_block_type", "layer_types"};

static const json_t *recurrent_list(const json_t *config)
{
    const json_t *list = NULL;

    for (size_t i = 0; list == NULL && i < sizeof(list_names) / sizeof(list_names[0]); i++) {
        list = json_object_get(config, list_names[i]);
        list = json_is_null(list) ? NULL : list;
    }
    return list;
}

int64_t config_recurrent_layers(const json_t *config)
{
    const json_t *list = recurrent_list(config);
    const char *pattern = json_string_value(json_object_get(config, "hybrid_override_pattern"));

    return json_is_array(list) ? (int64_t)json_array_size(list) : pattern != NULL ? (int64_t)strlen(pattern) : 0;
}

static int set_type(struct model_config *c, int64_t layer, int word, const char *said)
{
    if (recurrent_words[word].name == NULL || (c->arch->layer_types >> recurrent_words[word].type & 1) == 0) {
        return config_unsupported("config.json: a layer of type", said);
    }
    c->layer_types[layer] = (uint8_t)recurrent_words[word].type;
    return 0;
}

static int parse_block_list(const json_t *list, struct model_config *c)
{
    if (!json_is_array(list) || (int64_t)json_array_size(list) != c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: the list of layer types has %zu entries for %lld layers",
                         json_array_size(list), (long long)c->num_layers);
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const char *name = json_string_value(json_array_get(list, (size_t)layer));
        int word = 0;
        while (name != NULL && recurrent_words[word].name != NULL && strcmp(name, recurrent_words[word].name) != 0 &&
               strcmp(name, recurrent_words[word].old) != 0) {
            word++;
        }
        if (name == NULL) {
            return err_raise(ERR_INVALID_MODEL, "config.json: the type of layer %lld is not a string",
                             (long long)layer);
        }
        TRY(set_type(c, layer, word, name));
    }
    return 0;
}

static int parse_pattern(const char *pattern, struct model_config *c)
{
    if ((int64_t)strlen(pattern) != c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: hybrid_override_pattern has %zu letters for %lld layers",
                         strlen(pattern), (long long)c->num_layers);
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const char said[2] = {pattern[layer], '\0'};
        int word = 0;
        while (recurrent_words[word].name != NULL && recurrent_words[word].letter != pattern[layer]) {
            word++;
        }
        TRY(set_type(c, layer, word, said));
    }
    return 0;
}

/* Each full_attention_interval-th layer attends. */
static int parse_interval(const json_t *config, struct model_config *c)
{
    int64_t interval = c->arch->recurrence->default_interval;

    TRY(config_int(config, "full_attention_interval", ARCH_LAYERS_MAX, interval, &interval));
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        c->layer_types[layer] = (layer + 1) % interval != 0 ? LAYER_LINEAR : LAYER_FULL;
    }
    return 0;
}

static int parse_types(const json_t *config, struct model_config *c)
{
    const json_t *list = recurrent_list(config), *pattern = json_object_get(config, "hybrid_override_pattern");
    bool patterned = c->arch->recurrence->patterned && pattern != NULL && !json_is_null(pattern);
    uint8_t listed[ARCH_LAYERS_MAX];

    if (list != NULL) {
        TRY(parse_block_list(list, c));
        memcpy(listed, c->layer_types, sizeof(listed));
    }
    if (patterned && !json_is_string(pattern)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: hybrid_override_pattern is not a string");
    }
    if (patterned) {
        TRY(parse_pattern(json_string_value(pattern), c));
        return list == NULL || memcmp(listed, c->layer_types, sizeof(listed)) == 0
                   ? 0
                   : err_raise(ERR_INVALID_MODEL,
                               "config.json: hybrid_override_pattern contradicts the list of layer types");
    }
    if (list == NULL && c->arch->recurrence->default_interval == 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: what the layers of a %s are is missing: %s", c->arch->name,
                         c->arch->recurrence->patterned ? "layers_block_type or hybrid_override_pattern"
                                                        : "layer_types");
    }
    return list == NULL ? parse_interval(config, c) : 0;
}

/* A limit of time steps: a number, or what stands for infinity. */
static int parse_limit(const json_t *value, double *out)
{
    const char *word = json_string_value(json_is_object(value) ? json_object_get(value, "__float__") : value);

    if (word != NULL && strcmp(word, "Infinity") == 0) {
        *out = INFINITY;
        return 0;
    }
    *out = json_number_value(value);
    return json_is_number(value) && *out >= 0
               ? 0
               : err_raise(ERR_INVALID_MODEL, "config.json: time_step_limit is not two numbers of at least 0");
}

static int parse_steps(const json_t *config, struct model_config *c)
{
    const struct arch_recurrence *row = c->arch->recurrence;
    const json_t *limits = json_object_get(config, "time_step_limit");
    struct recurrence *r = &c->recurrence;

    r->dt_max = INFINITY;
    if (row->step_min != NULL) { /* the other limit is not read */
        r->dt_min = row->default_step_min;
        return config_optional(config, row->step_min, &r->dt_min);
    }
    if (limits == NULL || json_is_null(limits)) {
        return 0;
    }
    if (json_array_size(limits) != 2) {
        return err_raise(ERR_INVALID_MODEL, "config.json: time_step_limit is not two numbers of at least 0");
    }
    TRY(parse_limit(json_array_get(limits, 0), &r->dt_min));
    TRY(parse_limit(json_array_get(limits, 1), &r->dt_max));
    return r->dt_min <= r->dt_max
               ? 0
               : err_raise(ERR_INVALID_MODEL, "config.json: time_step_limit begins with the larger number");
}

static int check_sizes(const struct model_config *c, const struct arch_recurrence *row)
{
    const struct recurrence *r = &c->recurrence;
    char value[64];

    if (r->heads % r->groups != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s %lld does not divide %s %lld", row->groups,
                         (long long)r->groups, row->heads, (long long)r->heads);
    }
    if (r->heads * r->head_dim > CONFIG_WIDE_MAX || r->groups * r->state > CONFIG_WIDE_MAX) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s %lld of %lld is wider than %lld", row->heads,
                         (long long)r->heads, (long long)r->head_dim, (long long)CONFIG_WIDE_MAX);
    }
    if (r->state > GPU_STATE_MAX) {
        snprintf(value, sizeof(value), "%lld", (long long)r->state);
        return config_unsupported(row->state, value);
    }
    return 0;
}

/* A head's width: given, or what is left of a multiple of hidden_size. */
static int parse_head_dim(const json_t *config, struct model_config *c)
{
    const struct arch_recurrence *row = c->arch->recurrence;
    struct recurrence *r = &c->recurrence;
    int64_t expand = 0;

    if (row->expand == NULL) {
        return config_int(config, row->head_dim, CONFIG_HEAD_DIM_MAX, row->default_head_dim, &r->head_dim);
    }
    TRY(config_int(config, row->expand, 64, row->default_expand, &expand));
    const char *word = json_string_value(json_object_get(config, row->head_dim));
    int64_t whole = expand * c->hidden_size, own = whole / r->heads;
    r->head_dim = own;
    if (word == NULL || strcmp(word, "auto") != 0) {
        TRY(config_int(config, row->head_dim, CONFIG_HEAD_DIM_MAX, own > 0 ? own : 1, &r->head_dim));
    }
    return r->head_dim * r->heads == whole
               ? 0
               : err_raise(ERR_INVALID_MODEL, "config.json: %s %lld of %lld is not %s %lld times hidden_size %lld",
                           row->heads, (long long)r->heads, (long long)r->head_dim, row->expand, (long long)expand,
                           (long long)c->hidden_size);
}

static int check_activation(const json_t *config, const struct arch_recurrence *row)
{
    const char *act = row->activation != NULL ? json_string_value(json_object_get(config, row->activation)) : NULL;

    return act == NULL || strcmp(act, "silu") == 0 ? 0 : config_unsupported(row->activation, act);
}

/* Attention that goes by no position, unless it is said that it rotates. */
static int parse_positions(const json_t *config, struct model_config *c)
{
    const char *member = c->arch->recurrence->positions;
    const json_t *value = member != NULL ? json_object_get(config, member) : NULL;
    const char *kind = json_string_value(value);

    if (value != NULL && !json_is_null(value) && (kind == NULL || strcmp(kind, "rope") != 0)) {
        return config_unsupported(member, kind != NULL ? kind : "(not a string)");
    }
    for (size_t i = 0; member != NULL && kind == NULL && i < sizeof(c->nope_layers) / sizeof(c->nope_layers[0]); i++) {
        c->nope_layers[i] = ~(uint64_t)0;
    }
    return 0;
}

int config_recurrent(const json_t *config, struct model_config *c)
{
    const struct arch_recurrence *row = c->arch->recurrence;
    struct recurrence *r = &c->recurrence;

    if (row == NULL) {
        return 0;
    }
    TRY(parse_types(config, c));
    TRY(config_int(config, row->heads, CONFIG_HEADS_MAX, row->default_heads, &r->heads));
    TRY(config_int(config, row->groups, CONFIG_HEADS_MAX, row->default_groups, &r->groups));
    TRY(config_int(config, row->state, CONFIG_HEAD_DIM_MAX, row->default_state, &r->state));
    TRY(config_int(config, row->conv, CONV_MAX, row->default_conv, &r->conv));
    TRY(parse_head_dim(config, c));
    TRY(check_sizes(c, row));
    TRY(check_activation(config, row));
    TRY(parse_positions(config, c));
    r->conv_bias = row->default_conv_bias;
    if (row->conv_bias != NULL) {
        TRY(config_flag(config, row->conv_bias, &r->conv_bias));
    }
    if (row->bias != NULL) {
        TRY(config_flag(config, row->bias, &r->bias));
    }
    if (row->shared_size != NULL) {
        TRY(config_int(config, row->shared_size, CONFIG_WIDE_MAX, row->default_shared, &r->shared_size));
    }
    return row->steps ? parse_steps(config, c) : 0;
}
