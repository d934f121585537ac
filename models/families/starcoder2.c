/* StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173): layer norms, rotary positions, grouped key heads, an MLP without
 * a gate, biases. */

#include "models/config_internal.h"
#include "models/families/families.h"

#include "base/err.h"

int family_starcoder2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.up = "mlp.c_fc", .down = "mlp.c_proj"};
    int in = families_norm(b, c, 0, "input_layernorm", NULL, c->hidden_size);
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = families_norm(b, c, x, "post_attention_layernorm", NULL, c->hidden_size);
    return plan_add(b, x, families_plain_mlp(b, c, in, &names));
}

int family_starcoder2_configure(const json_t *config, struct model_config *c)
{
    bool biases = true;

    TRY(config_flag(config, "use_bias", &biases));
    c->qkv_bias = c->o_bias = c->mlp_bias = biases;
    return 0;
}
