/* GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745): layer norms, attention and MLP side by side or one after
 * the other, queries, keys and values of each head next to each other, a part of each head rotated. */

#include "models/config_internal.h"
#include "models/families/families.h"

#include "base/err.h"

int family_gpt_neox_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.qkv = "attention.query_key_value",
                                              .out = "attention.dense",
                                              .up = "mlp.dense_h_to_4h",
                                              .down = "mlp.dense_4h_to_h",
                                              .by_group = true};
    int in = families_norm(b, c, 0, "input_layernorm", NULL, c->hidden_size);
    int attention = families_fused_attention(b, c, layer, in, &names);

    if (c->parallel) {
        in = families_norm(b, c, 0, "post_attention_layernorm", NULL, c->hidden_size);
        return plan_add(b, 0, plan_add(b, attention, families_plain_mlp(b, c, in, &names)));
    }
    int x = plan_add(b, 0, attention);
    in = families_norm(b, c, x, "post_attention_layernorm", NULL, c->hidden_size);
    return plan_add(b, x, families_plain_mlp(b, c, in, &names));
}

int family_gpt_neox_configure(const json_t *config, struct model_config *c)
{
    bool bias = true;

    c->num_kv_heads = c->num_heads;
    c->parallel = true;
    c->parallel_norms = 2;
    TRY(config_flag(config, "use_parallel_residual", &c->parallel));
    TRY(config_flag(config, "attention_bias", &bias));
    c->qkv_bias = c->o_bias = bias;
    c->mlp_bias = true;
    return 0;
}
