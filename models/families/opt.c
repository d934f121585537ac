/* OPT (Zhang et al. 2022, arXiv 2205.01068): layer norms before attention and MLP, relu, biases, and positions from a
 * table that is added to the embedding, whose first two rows no token has. */

#include "models/config_internal.h"
#include "models/families/families.h"

#include "base/err.h"

#include <stdio.h>

int family_opt_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.up = "fc1", .down = "fc2"};
    int in = families_norm(b, c, 0, "self_attn_layer_norm", NULL, c->hidden_size);
    int x = plan_add(b, 0, families_attention_into(b, c, layer, in, FAMILY_NORMS_NONE, "self_attn.out_proj"));

    in = families_norm(b, c, x, "final_layer_norm", NULL, c->hidden_size);
    return plan_add(b, x, families_plain_mlp(b, c, in, &names));
}

/* Models whose norms come after the sums (opt-350m), whose embeddings are narrower than their layers, or whose norms
 * have no weights are refused. */
int family_opt_configure(const json_t *config, struct model_config *c)
{
    bool before = true, affine = true, biases = true, unnormed = false;
    int64_t embedding = 0;
    char value[64];

    TRY(config_flag(config, "do_layer_norm_before", &before));
    TRY(config_flag(config, "layer_norm_elementwise_affine", &affine));
    TRY(config_flag(config, "_remove_final_layer_norm", &unnormed));
    TRY(config_flag(config, "enable_bias", &biases));
    TRY(config_int(config, "word_embed_proj_dim", CONFIG_HIDDEN_MAX, c->hidden_size, &embedding));
    if (!before || !affine || unnormed) {
        return config_unsupported("OPT with", !before   ? "do_layer_norm_before false"
                                              : !affine ? "layer_norm_elementwise_affine false"
                                                        : "_remove_final_layer_norm");
    }
    if (embedding != c->hidden_size) {
        snprintf(value, sizeof(value), "word_embed_proj_dim = %lld, not hidden_size", (long long)embedding);
        return config_unsupported("OPT with", value);
    }
    c->qkv_bias = c->o_bias = c->mlp_bias = biases;
    return 0;
}
