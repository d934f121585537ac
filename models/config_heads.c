/* Heads of layers of full attention, where a family gives these others than layers of a window (struct arch,
 * full_heads): global_head_dim and, where one linear makes keys and values, num_global_key_value_heads. Files of newer
 * versions of transformers have per_layer_config in their place: by layer, what differs from head_dim and
 * num_key_value_heads. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct heads {
    int64_t dim, kv;
};

/* The layer that a member of per_layer_config is of; -1: none. */
static int64_t heads_layer(const char *key, const struct model_config *c)
{
    size_t digits = strspn(key, "0123456789");
    long long layer = digits > 0 && digits < 10 && key[digits] == '\0' ? strtoll(key, NULL, 10) : -1;

    return layer < c->num_layers ? layer : -1;
}

static int heads_check_entry(const char *key, const json_t *entry, const struct model_config *c)
{
    const char *member;
    json_t *value;

    if (heads_layer(key, c) < 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: per_layer_config: \"%.60s\" is not a layer, 0 to %lld", key,
                         (long long)c->num_layers - 1);
    }
    if (!json_is_object(entry)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: per_layer_config.%.60s is not an object", key);
    }
    json_object_foreach((json_t *)entry, member, value)
    {
        if (strcmp(member, "head_dim") != 0 && strcmp(member, "num_key_value_heads") != 0) {
            return config_unsupported("config.json: per_layer_config with the member", member);
        }
    }
    return 0;
}

/* What the list says of a layer, in as many entries as it has. */
static int heads_read(const json_t *list, int64_t layer, const struct model_config *c, struct heads *h)
{
    const char *key;
    json_t *entry;

    json_object_foreach((json_t *)list, key, entry)
    {
        if (heads_layer(key, c) == layer) {
            TRY(config_int(entry, "head_dim", CONFIG_HEAD_DIM_MAX, h->dim, &h->dim));
            TRY(config_int(entry, "num_key_value_heads", CONFIG_HEADS_MAX, h->kv, &h->kv));
        }
    }
    return 0;
}

/* Layers of one type have the same heads, those of a window the configuration's. */
static int heads_listed(const json_t *list, struct model_config *c)
{
    const char *key;
    json_t *entry;
    char number[32];
    bool seen = false;

    json_object_foreach((json_t *)list, key, entry)
    {
        TRY(heads_check_entry(key, entry, c));
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        struct heads own = {c->head_dim, c->num_kv_heads};
        TRY(heads_read(list, layer, c, &own));
        bool full = c->layer_types[layer] == LAYER_FULL;
        if (full && !seen) {
            c->full_head_dim = own.dim;
            c->full_kv_heads = own.kv;
            seen = true;
        }
        if (own.dim != (full ? c->full_head_dim : c->head_dim) ||
            own.kv != (full ? c->full_kv_heads : c->num_kv_heads)) {
            snprintf(number, sizeof(number), "%lld", (long long)layer);
            return config_unsupported("config.json: per_layer_config with other heads than its type's for layer",
                                      number);
        }
    }
    return 0;
}

/* The members of older files: where the list is there as well, they must say the same. */
static int heads_global(const json_t *config, bool listed, struct model_config *c)
{
    struct heads h = {listed ? c->full_head_dim : c->arch->default_full_head_dim,
                      listed ? c->full_kv_heads : c->num_kv_heads};
    struct heads given = h;

    TRY(config_int(config, "global_head_dim", CONFIG_HEAD_DIM_MAX, h.dim, &given.dim));
    if (c->keys_are_values) {
        TRY(config_int(config, "num_global_key_value_heads", CONFIG_HEADS_MAX, h.kv, &given.kv));
    }
    if (listed && (given.dim != h.dim || given.kv != h.kv)) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: global_head_dim and num_global_key_value_heads make %lld key heads of %lld, "
                         "per_layer_config %lld of %lld",
                         (long long)given.kv, (long long)given.dim, (long long)h.kv, (long long)h.dim);
    }
    c->full_head_dim = given.dim;
    c->full_kv_heads = given.kv;
    return 0;
}

static int heads_check(const struct model_config *c)
{
    if (c->num_heads % c->full_kv_heads != 0) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: %lld key heads of full attention do not divide num_attention_heads %lld",
                         (long long)c->full_kv_heads, (long long)c->num_heads);
    }
    if (c->full_head_dim % 2 != 0 || c->num_heads * c->full_head_dim > CONFIG_WIDE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: %lld heads of %lld for full attention: a head's columns must be even, and "
                         "those of all heads at most %lld",
                         (long long)c->num_heads, (long long)c->full_head_dim, (long long)CONFIG_WIDE_MAX);
    }
    return 0;
}

int config_full_heads(const json_t *config, struct model_config *c)
{
    const json_t *list = json_object_get(config, "per_layer_config");
    bool listed = list != NULL && !json_is_null(list);

    if (!c->arch->full_heads) {
        return 0;
    }
    if (listed && !json_is_object(list)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: per_layer_config is not an object");
    }
    c->layer_types[c->num_layers - 1] = LAYER_FULL; /* whatever the list of types says, as transformers has it */
    TRY(config_flag(config, "attention_k_eq_v", &c->keys_are_values));
    if (listed) {
        TRY(heads_listed(list, c));
    }
    TRY(heads_global(config, listed, c));
    return heads_check(c);
}
