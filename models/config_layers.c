/* Kinds of layers in the words of config.json: which attend through a window, which do not rotate. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"

#include <string.h>

static const char *const layer_type_names[LAYER_TYPES] = {[LAYER_FULL] = "full_attention",
                                                          [LAYER_SLIDING] = "sliding_attention",
                                                          [LAYER_CHUNKED] = "chunked_attention",
                                                          [LAYER_LINEAR] = "linear_attention",
                                                          [LAYER_MLP] = "mlp",
                                                          [LAYER_EXPERTS] = "moe"};

static void layers_no_rope(struct model_config *c, int64_t layer)
{
    c->nope_layers[layer / 64] |= (uint64_t)1 << (layer % 64);
}

/* no_rope_layers has 1 for layers that rotate; without it each no_rope_layer_interval-th does not. */
static int parse_nope(const json_t *config, struct model_config *c)
{
    const json_t *list = json_object_get(config, "no_rope_layers");
    int64_t interval = 4;

    TRY(config_int(config, "no_rope_layer_interval", ARCH_LAYERS_MAX, interval, &interval));
    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: no_rope_layers is not a list");
    }
    size_t size = json_array_size(list);
    if (size > 0 && (int64_t)size < c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: no_rope_layers has %zu entries for %lld layers", size,
                         (long long)c->num_layers);
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const json_t *entry = json_array_get(list, (size_t)layer);
        json_int_t value = json_integer_value(entry);
        if (size > 0 && (!json_is_integer(entry) || value < 0 || value > 1)) {
            return err_raise(ERR_INVALID_MODEL, "config.json: no_rope_layers[%lld] is neither 0 nor 1",
                             (long long)layer);
        }
        if (size > 0 ? value == 0 : (layer + 1) % interval == 0) {
            layers_no_rope(c, layer);
        }
    }
    return 0;
}

static int parse_layer_types(const json_t *list, struct model_config *c)
{
    bool windowed = false;

    if ((int64_t)json_array_size(list) != c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: layer_types has %zu entries for %lld layers",
                         json_array_size(list), (long long)c->num_layers);
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const char *name = json_string_value(json_array_get(list, (size_t)layer));
        int type = 0;
        while (name != NULL && type < LAYER_TYPES && strcmp(name, layer_type_names[type]) != 0) {
            type++;
        }
        if (name == NULL || type == LAYER_TYPES || (c->arch->layer_types >> type & 1) == 0) {
            return config_unsupported("config.json: layer_types with", name != NULL ? name : "(not a string)");
        }
        c->layer_types[layer] = (uint8_t)type;
        windowed = windowed || type == LAYER_SLIDING;
    }
    if (windowed && c->sliding_window == 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: layer_types asks for a window, but there is none");
    }
    return 0;
}

/* Which layers have the window when layer_types does not say so: sliding_window_pattern is not read where it does. */
static int parse_rule(const json_t *config, struct model_config *c, bool listed)
{
    const enum window_rule rule = c->arch->window;
    int64_t from = c->arch->default_window_from > 0 ? c->arch->default_window_from : 28;
    int64_t pattern = c->arch->default_pattern;

    TRY(config_count(config, "max_window_layers", CONFIG_POSITION_MAX, &from));
    if (rule == WINDOW_PATTERN && !listed) {
        TRY(config_int(config, "sliding_window_pattern", ARCH_LAYERS_MAX, pattern, &pattern));
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        bool nope = (c->nope_layers[layer / 64] >> (layer % 64) & 1) != 0;
        bool sliding = rule == WINDOW_PATTERN ? (layer + 1) % pattern != 0
                       : rule == WINDOW_NOPE  ? nope
                       : rule == WINDOW_ALL   ? true
                                              : rule == WINDOW_OPTIONAL && layer >= from;
        c->layer_types[layer] = sliding && c->sliding_window > 0 ? LAYER_SLIDING : LAYER_FULL;
    }
    return 0;
}

static int parse_window(const json_t *config, struct model_config *c)
{
    const enum window_rule rule = c->arch->window;
    bool use = rule == WINDOW_ALL || rule == WINDOW_PATTERN;

    if (rule == WINDOW_NEVER) {
        return 0;
    }
    if (json_object_get(config, "sliding_window") == NULL) {
        c->sliding_window = c->arch->default_window;
    }
    int rc = config_check(json_get_int(config, "sliding_window", 1, CONFIG_POSITION_MAX, &c->sliding_window));
    if (rc < 0) {
        return rc;
    }
    if (rule != WINDOW_ALL && rule != WINDOW_PATTERN) {
        TRY(config_flag(config, "use_sliding_window", &use));
    }
    c->sliding_window = use ? c->sliding_window : 0;
    return 0;
}

/* Attention to what comes after a token, too. Of "vision" the tokens of an image alone make use. */
static int refuse_both_ways(const json_t *config, const struct arch *arch)
{
    const json_t *value = json_object_get(config, "use_bidirectional_attention");
    const char *word = arch->vision_both_ways ? json_string_value(value) : NULL;
    bool both = word != NULL && strcmp(word, "vision") != 0;

    if (word == NULL) {
        TRY(config_flag(config, "use_bidirectional_attention", &both));
    }
    return both ? config_unsupported("attention with", "use_bidirectional_attention") : 0;
}

int config_layers(const json_t *config, struct model_config *c)
{
    const json_t *types = json_object_get(config, "layer_types");
    bool listed = c->arch->layer_types != 0 && c->arch->recurrence == NULL && types != NULL && !json_is_null(types);

    if (c->arch->nope) {
        TRY(parse_nope(config, c));
    }
    TRY(parse_window(config, c));
    TRY(parse_rule(config, c, listed));
    TRY(refuse_both_ways(config, c->arch));
    TRY(config_count(config, "num_nextn_predict_layers", ARCH_LAYERS_MAX, &c->mtp_layers));
    if (listed) {
        TRY(json_is_array(types) ? parse_layer_types(types, c)
                                 : err_raise(ERR_INVALID_MODEL, "config.json: layer_types is not a list"));
    }
    for (int64_t layer = 0; c->arch->full_nope && layer < c->num_layers; layer++) {
        if (c->layer_types[layer] == LAYER_FULL) {
            layers_no_rope(c, layer);
        }
    }
    return 0;
}
