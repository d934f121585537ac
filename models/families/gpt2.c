/* GPT-2 (Radford et al. 2019): layer norms, biases everywhere, weights stored by inputs (Conv1D), positions from a
 * table that is added to the embedding. */

#include "models/config_internal.h"
#include "models/families/families.h"

#include "base/err.h"

int family_gpt2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {
        .qkv = "attn.c_attn", .out = "attn.c_proj", .up = "mlp.c_fc", .down = "mlp.c_proj", .by_inputs = true};
    int in = families_norm(b, c, 0, "ln_1", NULL, c->hidden_size);
    int x = plan_add(b, 0, families_fused_attention(b, c, layer, in, &names));

    in = families_norm(b, c, x, "ln_2", NULL, c->hidden_size);
    return plan_add(b, x, families_plain_mlp(b, c, in, &names));
}

int family_gpt2_configure(const json_t *config, struct model_config *c)
{
    static const char *const flags[] = {"add_cross_attention", "scale_attn_by_inverse_layer_idx"};
    bool scaled = true;

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        bool set = false;
        TRY(config_flag(config, flags[i], &set));
        if (set) {
            return config_unsupported("config.json:", flags[i]);
        }
    }
    TRY(config_flag(config, "scale_attn_weights", &scaled));
    c->num_kv_heads = c->num_heads;
    c->qkv_bias = c->o_bias = c->mlp_bias = true;
    return scaled ? 0 : config_unsupported("scale_attn_weights", "false");
}
