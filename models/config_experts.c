/* Layers of experts in the words of config.json. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"
#include "gpu/gpu.h"

#include <stdio.h>
#include <string.h>

/* How many experts there are, in either spelling: transformers 5 writes num_local_experts for every family. */
static int read_experts(const json_t *config, struct model_config *c)
{
    int64_t local = 0;

    TRY(config_int(config, "num_experts", ARCH_EXPERTS_MAX, c->arch->default_experts, &c->num_experts));
    TRY(config_int(config, "num_local_experts", ARCH_EXPERTS_MAX, c->num_experts, &local));
    if (local != c->num_experts && json_is_integer(json_object_get(config, "num_experts"))) {
        return err_raise(ERR_INVALID_MODEL, "config.json: num_experts %lld and num_local_experts %lld differ",
                         (long long)c->num_experts, (long long)local);
    }
    c->num_experts = local;
    return 0;
}

static int parse_dense_layers(const json_t *config, struct model_config *c)
{
    const json_t *list = json_object_get(config, "mlp_only_layers");

    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: mlp_only_layers is not a list");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        json_int_t layer = json_integer_value(entry);
        if (!json_is_integer(entry) || layer < 0 || layer >= c->num_layers) {
            return err_raise(ERR_INVALID_MODEL,
                             "config.json: mlp_only_layers[%zu] is not the number of a layer, 0 to %lld", i,
                             (long long)c->num_layers - 1);
        }
        c->dense_layers[layer / 64] |= (uint64_t)1 << (layer % 64);
    }
    return config_int(config, "decoder_sparse_step", ARCH_LAYERS_MAX, 1, &c->sparse_step);
}

/* Members of other families of experts, which would change what is computed. */
static int refuse_routing(const json_t *config)
{
    static const char *const shared[] = {"n_shared_experts", "shared_expert_intermediate_size"};
    const char *scores = json_string_value(json_object_get(config, "scoring_func"));
    char value[64];

    for (size_t i = 0; i < sizeof(shared) / sizeof(shared[0]); i++) {
        json_int_t count = json_integer_value(json_object_get(config, shared[i]));
        if (count != 0) {
            snprintf(value, sizeof(value), "%s = %lld", shared[i], (long long)count);
            return config_unsupported("a layer of experts with", value);
        }
    }
    double factor = json_number_value(json_object_get(config, "routed_scaling_factor"));
    if (factor != 0 && factor != 1) {
        snprintf(value, sizeof(value), "routed_scaling_factor = %g", factor);
        return config_unsupported("a layer of experts with", value);
    }
    return scores != NULL && strcmp(scores, "softmax") != 0 ? config_unsupported("scoring_func", scores) : 0;
}

int config_experts(const json_t *config, struct model_config *c)
{
    const struct arch *arch = c->arch;

    c->sparse_step = 1;
    if (arch->experts == EXPERTS_NEVER) {
        return 0;
    }
    TRY(read_experts(config, c));
    TRY(config_int(config, "num_experts_per_tok", ARCH_EXPERTS_MAX, arch->default_experts_per_token,
                   &c->experts_per_token));
    if (c->experts_per_token > c->num_experts || c->experts_per_token > GPU_ROUTE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: num_experts_per_tok %lld is not in [1, %lld]: there are %lld experts, and at "
                         "most %d for each token are supported",
                         (long long)c->experts_per_token,
                         (long long)(c->num_experts < GPU_ROUTE_MAX ? c->num_experts : GPU_ROUTE_MAX),
                         (long long)c->num_experts, GPU_ROUTE_MAX);
    }
    c->expert_size = c->intermediate_size;
    c->normalize_experts = true;
    if (arch->experts == EXPERTS_SPARSE) {
        c->normalize_experts = false;
        TRY(config_flag(config, "norm_topk_prob", &c->normalize_experts));
        TRY(config_int(config, "moe_intermediate_size", CONFIG_WIDE_MAX, arch->default_expert_size, &c->expert_size));
        TRY(parse_dense_layers(config, c));
    }
    return refuse_routing(config);
}
