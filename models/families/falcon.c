/* Falcon (Almazrouei et al. 2023, arXiv 2311.16867): layer norms, attention and MLP side by side, on one norm or each
 * on its own; one key head for all, or groups whose queries, key and value lie next to each other. */

#include "models/config_internal.h"
#include "models/families/families.h"

#include "base/err.h"

int family_falcon_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.qkv = "self_attention.query_key_value",
                                              .out = "self_attention.dense",
                                              .up = "mlp.dense_h_to_4h",
                                              .down = "mlp.dense_4h_to_h",
                                              .by_group = true};
    int in = families_norm(b, c, 0, c->parallel && c->parallel_norms == 2 ? "ln_attn" : "input_layernorm", NULL,
                           c->hidden_size);
    int attention = families_fused_attention(b, c, layer, in, &names);

    if (c->parallel) {
        in = c->parallel_norms == 2 ? families_norm(b, c, 0, "ln_mlp", NULL, c->hidden_size) : in;
        return plan_add(b, 0, plan_add(b, attention, families_plain_mlp(b, c, in, &names)));
    }
    int x = plan_add(b, 0, attention);
    in = families_norm(b, c, x, "post_attention_layernorm", NULL, c->hidden_size);
    return plan_add(b, x, families_plain_mlp(b, c, in, &names));
}

/* The old layers have one key head (multi_query) or one for each query head; the new ones num_kv_heads, and always run
 * side by side. */
int family_falcon_configure(const json_t *config, struct model_config *c)
{
    bool alibi = false, grouped = false, multi_query = true, bias = false;

    TRY(config_flag(config, "alibi", &alibi));
    TRY(config_flag(config, "new_decoder_architecture", &grouped));
    TRY(config_flag(config, "multi_query", &multi_query));
    c->parallel = true;
    TRY(config_flag(config, "parallel_attn", &c->parallel));
    TRY(config_flag(config, "bias", &bias));
    if (alibi) {
        return config_unsupported("positions of", "alibi");
    }
    if (grouped && !c->parallel) {
        return config_unsupported("new_decoder_architecture with", "parallel_attn false");
    }
    c->qkv_bias = c->o_bias = c->mlp_bias = bias;
    c->num_kv_heads = grouped || !multi_query ? c->num_heads : 1;
    if (grouped) {
        TRY(config_int(config, "num_kv_heads", CONFIG_HEADS_MAX, c->num_heads, &c->num_kv_heads));
    }
    TRY(config_int(config, "num_ln_in_parallel_attn", 2, grouped ? 2 : 1, &c->parallel_norms));
    if (c->num_heads % c->num_kv_heads != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: num_kv_heads %lld does not divide %lld heads",
                         (long long)c->num_kv_heads, (long long)c->num_heads);
    }
    if (!grouped && c->parallel_norms == 2) {
        return config_unsupported("num_ln_in_parallel_attn 2 without", "new_decoder_architecture");
    }
    return 0;
}
