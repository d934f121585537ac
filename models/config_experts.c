/* Layers of experts in the words of config.json, by the row of the family (struct arch_experts). */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"
#include "gpu/gpu.h"

#include <stdio.h>
#include <string.h>

/* A model of such a family without any: members that say more of them have no meaning. */
static bool experts_absent(const json_t *config, const struct arch_experts *row)
{
    const json_t *count = json_object_get(config, row->count), *layers = json_object_get(config, "moe_layers");
    bool nowhere = row->layers == EXPERTS_INTERLEAVED && json_is_array(layers) && json_array_size(layers) == 0;

    return nowhere || (row->optional && json_is_integer(count) && json_integer_value(count) == 0);
}

/* How many experts there are, in either spelling: transformers 5 writes num_local_experts for every family. */
static int read_experts(const json_t *config, struct model_config *c)
{
    const struct arch_experts *row = c->arch->experts;
    int64_t local = 0;

    TRY(config_int(config, row->count, ARCH_EXPERTS_MAX, row->default_count, &c->num_experts));
    TRY(config_int(config, "num_local_experts", ARCH_EXPERTS_MAX, c->num_experts, &local));
    if (local != c->num_experts && json_is_integer(json_object_get(config, row->count))) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s %lld and num_local_experts %lld differ", row->count,
                         (long long)c->num_experts, (long long)local);
    }
    c->num_experts = local;
    const char *per_token = row->per_token != NULL ? row->per_token : "num_experts_per_tok";
    TRY(config_int(config, per_token, ARCH_EXPERTS_MAX, row->default_per_token, &c->experts_per_token));
    if (c->experts_per_token > c->num_experts || c->experts_per_token > GPU_ROUTE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: %s %lld is not in [1, %lld]: there are %lld experts, and at most %d for each "
                         "token are supported",
                         per_token, (long long)c->experts_per_token,
                         (long long)(c->num_experts < GPU_ROUTE_MAX ? c->num_experts : GPU_ROUTE_MAX),
                         (long long)c->num_experts, GPU_ROUTE_MAX);
    }
    return 0;
}

static void set_dense(struct model_config *c, int64_t layer)
{
    c->dense_layers[layer / 64] |= (uint64_t)1 << (layer % 64);
}

/* A list of layers by their numbers; null or absent: of none. */
static int read_numbers(const json_t *config, const char *key, const struct model_config *c,
                        uint64_t bits[ARCH_LAYERS_MAX / 64])
{
    const json_t *list = json_object_get(config, key);

    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s is not a list", key);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        json_int_t layer = json_integer_value(entry);
        if (!json_is_integer(entry) || layer < 0 || layer >= c->num_layers) {
            return err_raise(ERR_INVALID_MODEL, "config.json: %s[%zu] is not the number of a layer, 0 to %lld", key, i,
                             (long long)c->num_layers - 1);
        }
        bits[layer / 64] |= (uint64_t)1 << (layer % 64);
    }
    return 0;
}

static int parse_dense_layers(const json_t *config, struct model_config *c)
{
    TRY(read_numbers(config, "mlp_only_layers", c, c->dense_layers));
    return config_int(config, "decoder_sparse_step", ARCH_LAYERS_MAX, 1, &c->sparse_step);
}

static int parse_interleaved(const json_t *config, struct model_config *c)
{
    const json_t *list = json_object_get(config, "moe_layers");

    if (list == NULL || json_is_null(list)) {
        return config_int(config, "interleave_moe_layer_step", ARCH_LAYERS_MAX, 1, &c->sparse_step);
    }
    TRY(read_numbers(config, "moe_layers", c, c->dense_layers));
    for (size_t i = 0; i < sizeof(c->dense_layers) / sizeof(c->dense_layers[0]); i++) {
        c->dense_layers[i] = ~c->dense_layers[i];
    }
    return 0;
}

/* The first layers, which are dense. Programs disagree on a moe_layer_freq other than 1. */
static int parse_first_dense(const json_t *config, struct model_config *c)
{
    int64_t dense = c->arch->experts->default_dense, step = 1;

    TRY(config_count(config, "first_k_dense_replace", ARCH_LAYERS_MAX, &dense));
    for (int64_t layer = 0; layer < dense && layer < c->num_layers; layer++) {
        set_dense(c, layer);
    }
    TRY(config_int(config, "moe_layer_freq", ARCH_LAYERS_MAX, 1, &step));
    return step == 1 ? 0 : config_unsupported("a layer of experts with", "moe_layer_freq above 1");
}

/* mlp_layer_types: "dense" or "sparse" for each layer. */
static int parse_listed(const json_t *config, struct model_config *c)
{
    const json_t *list = json_object_get(config, "mlp_layer_types");

    if (list == NULL || json_is_null(list)) {
        set_dense(c, 0);
        return 0;
    }
    if (!json_is_array(list) || (int64_t)json_array_size(list) != c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: mlp_layer_types has %zu entries for %lld layers",
                         json_array_size(list), (long long)c->num_layers);
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const char *type = json_string_value(json_array_get(list, (size_t)layer));
        bool dense = type != NULL && strcmp(type, "dense") == 0;
        if (!dense && (type == NULL || strcmp(type, "sparse") != 0)) {
            return config_unsupported("config.json: mlp_layer_types with", type != NULL ? type : "(not a string)");
        }
        if (dense) {
            set_dense(c, layer);
        }
    }
    return 0;
}

/* The layers between two numbers, both included; -1: to the last. */
static int parse_span(const json_t *config, struct model_config *c)
{
    int64_t first = 1, last = -1;

    TRY(config_count(config, "moe_layer_start_index", ARCH_LAYERS_MAX, &first));
    int rc = config_check(json_get_int(config, "moe_layer_end_index", -1, ARCH_LAYERS_MAX, &last));
    TRY(rc < 0 ? rc : 0);
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        if (layer < first || (last >= 0 && layer > last)) {
            set_dense(c, layer);
        }
    }
    return config_int(config, "moe_layer_interval", ARCH_LAYERS_MAX, 1, &c->sparse_step);
}

static int parse_layers(const json_t *config, struct model_config *c)
{
    switch (c->arch->experts->layers) {
    case EXPERTS_STEP:
        return parse_dense_layers(config, c);
    case EXPERTS_AFTER:
        return parse_first_dense(config, c);
    case EXPERTS_LISTED:
        return parse_listed(config, c);
    case EXPERTS_SPAN:
        return parse_span(config, c);
    case EXPERTS_INTERLEAVED:
        return parse_interleaved(config, c);
    default:
        return 0;
    }
}

/* Groups of experts of which a token takes some. */
static int read_groups(const json_t *config, struct model_config *c)
{
    const struct arch_experts *row = c->arch->experts;
    const char *method = json_string_value(json_object_get(config, "topk_method"));
    int64_t groups = row->default_groups, taken = row->default_group_top_k;

    TRY(config_count(config, "n_group", ARCH_EXPERTS_MAX, &groups));
    TRY(config_count(config, "topk_group", ARCH_EXPERTS_MAX, &taken));
    bool none = groups <= 1 || (row->methods != NULL && (method == NULL || strcmp(method, row->methods[0]) == 0));
    c->expert_groups = none ? 1 : groups;
    c->expert_group_top_k = none ? 1 : taken;
    if (c->num_experts % c->expert_groups != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: n_group %lld does not divide %lld experts", (long long)groups,
                         (long long)c->num_experts);
    }
    if (c->expert_group_top_k < 1 || c->expert_group_top_k > c->expert_groups) {
        return err_raise(ERR_INVALID_MODEL, "config.json: topk_group %lld is not in [1, %lld], the number of groups",
                         (long long)taken, (long long)c->expert_groups);
    }
    bool pairs = row->scoring != NULL; /* groups are then judged by two of their experts */
    if (pairs && c->expert_groups > 1 && c->num_experts / c->expert_groups < 2) {
        return err_raise(ERR_INVALID_MODEL, "config.json: n_group %lld groups have one expert each, and two are needed",
                         (long long)groups);
    }
    int64_t reached = c->expert_group_top_k * (c->num_experts / c->expert_groups);
    if (c->experts_per_token > reached) {
        return err_raise(
            ERR_INVALID_MODEL,
            "config.json: num_experts_per_tok %lld is more than the %lld experts of topk_group %lld groups",
            (long long)c->experts_per_token, (long long)reached, (long long)taken);
    }
    return 0;
}

static int read_shared(const json_t *config, struct model_config *c)
{
    const struct arch_experts *row = c->arch->experts;
    int64_t count = row->default_shared;

    if (row->shared_count != NULL) {
        TRY(config_count(config, row->shared_count, ARCH_EXPERTS_MAX, &count));
        c->shared_size = count * c->expert_size;
    } else if (row->shared_size != NULL) {
        TRY(config_int(config, row->shared_size, CONFIG_WIDE_MAX, row->default_shared, &c->shared_size));
    }
    return c->shared_size <= CONFIG_WIDE_MAX
               ? 0
               : err_raise(ERR_INVALID_MODEL, "config.json: a shared expert of width %lld is above %lld",
                           (long long)c->shared_size, (long long)CONFIG_WIDE_MAX);
}

/* The width of what experts read and make, where it is not the layer's. */
static int read_latent(const json_t *config, struct model_config *c)
{
    const struct arch_experts *row = c->arch->experts;
    const json_t *size = row->latent_size != NULL ? json_object_get(config, row->latent_size) : NULL;

    return size == NULL || json_is_null(size)
               ? 0
               : config_int(config, row->latent_size, CONFIG_WIDE_MAX, 0, &c->expert_latent);
}

static bool is_read(const char *member, const char *key)
{
    return member != NULL && strcmp(member, key) == 0;
}

/* Members of other families of experts, which would change what is computed. */
static int refuse_members(const json_t *config, const struct arch_experts *row)
{
    const struct {
        const char *key;
        double neutral;
        bool read;
    } members[] = {
        {"n_shared_experts", row->shared_size != NULL ? 1 : 0, is_read(row->shared_count, "n_shared_experts")},
        {"shared_expert_intermediate_size", 0, is_read(row->shared_size, "shared_expert_intermediate_size")},
        {"routed_scaling_factor", 1, row->scaled},
        {"n_group", 1, row->grouped},
        {"moe_latent_size", 0, row->latent_size != NULL},
    };
    char value[64];

    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        double given = json_number_value(json_object_get(config, members[i].key));
        if (!members[i].read && given != 0 && given != members[i].neutral) {
            snprintf(value, sizeof(value), "%s = %g", members[i].key, given);
            return config_unsupported("a layer of experts with", value);
        }
    }
    return 0;
}

/* The words for how experts are scored and chosen. */
static int refuse_words(const json_t *config, const struct arch_experts *row)
{
    const char *scores = json_string_value(json_object_get(config, "scoring_func"));
    const char *method = json_string_value(json_object_get(config, "topk_method"));
    bool known = row->methods == NULL || method == NULL;

    for (int i = 0; !known && row->methods[i] != NULL; i++) {
        known = strcmp(method, row->methods[i]) == 0;
    }
    if (scores != NULL && strcmp(scores, row->scoring != NULL ? row->scoring : "softmax") != 0) {
        return config_unsupported("scoring_func", scores);
    }
    if (row->normalize == NULL && !row->always_normalized && json_is_true(json_object_get(config, "norm_topk_prob"))) {
        return config_unsupported("norm_topk_prob", "true");
    }
    return known ? 0 : config_unsupported("topk_method", method);
}

static int refuse_listed(const json_t *config, const struct arch *arch)
{
    for (size_t i = 0; i < sizeof(arch->refused) / sizeof(arch->refused[0]) && arch->refused[i] != NULL; i++) {
        const json_t *value = json_object_get(config, arch->refused[i]);
        bool neutral = value == NULL || json_is_null(value) || json_is_false(value) ||
                       (json_is_number(value) && json_number_value(value) == 0);
        if (!neutral) {
            return config_unsupported("config.json: a value of", arch->refused[i]);
        }
    }
    return 0;
}

int config_experts(const json_t *config, struct model_config *c)
{
    const struct arch_experts *row = c->arch->experts;

    c->sparse_step = 1;
    c->expert_groups = 1;
    c->expert_group_top_k = 1;
    c->experts_factor = 1;
    TRY(refuse_listed(config, c->arch));
    if (c->arch->head_norms_member != NULL) {
        TRY(config_flag(config, c->arch->head_norms_member, &c->head_norms));
    }
    bool enabled = row != NULL && row->enabled == NULL;
    if (row != NULL && row->enabled != NULL) {
        TRY(config_flag(config, row->enabled, &enabled));
    }
    if (!enabled || experts_absent(config, row)) {
        return 0;
    }
    TRY(refuse_members(config, row));
    TRY(refuse_words(config, row));
    TRY(read_experts(config, c));
    c->expert_size = c->intermediate_size;
    if (row->size != NULL) {
        TRY(config_int(config, row->size, CONFIG_WIDE_MAX, row->default_size, &c->expert_size));
    }
    c->normalize_experts = row->always_normalized || row->default_normalize;
    if (row->normalize != NULL) {
        TRY(config_flag(config, row->normalize, &c->normalize_experts));
    }
    if (row->scaled) {
        c->experts_factor = row->default_factor > 0 ? row->default_factor : 1;
        TRY(config_positive(config, "routed_scaling_factor", 1e6, &c->experts_factor));
    }
    TRY(read_latent(config, c));
    TRY(parse_layers(config, c));
    if (row->grouped) {
        TRY(read_groups(config, c));
    }
    return read_shared(config, c);
}
