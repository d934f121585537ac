/* Phi-1, Phi-1.5 and Phi-2 (Li et al. 2023, arXiv 2309.05463): attention and MLP side by side on one layer norm, a part
 * of each head rotated, biases everywhere, the output head's included. */

#include "models/config_internal.h"
#include "models/families/families.h"

#include "base/err.h"

int family_phi_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.up = "mlp.fc1", .down = "mlp.fc2"};
    int in = families_norm(b, c, 0, "input_layernorm", NULL, c->hidden_size);
    int attention = families_attention_into(b, c, layer, in, FAMILY_NORMS_NONE, "self_attn.dense");

    return plan_add(b, 0, plan_add(b, attention, families_plain_mlp(b, c, in, &names)));
}

int family_phi_configure(const json_t *config, struct model_config *c)
{
    bool head_norms = false;

    TRY(config_flag(config, "qk_layernorm", &head_norms));
    c->qkv_bias = c->o_bias = c->mlp_bias = true;
    return head_norms ? config_unsupported("Phi with", "qk_layernorm") : 0;
}
