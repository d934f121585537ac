/* GLM-4 (GLM Team 2024, arXiv 2406.12793; the layer of 0414): RMS norms before and after attention and MLP, half of
 * each head rotated with neighbours, gate and up in one linear. */

#include "models/families/families.h"

int family_glm4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.up = "mlp.gate_up_proj", .down = "mlp.down_proj"};
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int out = families_attention(b, c, layer, in, FAMILY_NORMS_NONE);
    int x = plan_add(b, 0, plan_row_norm(b, out, "post_self_attn_layernorm", NULL));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    out = families_fused_mlp(b, c, in, &names);
    return plan_add(b, x, plan_row_norm(b, out, "post_mlp_layernorm", NULL));
}
