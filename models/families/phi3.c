/* Phi-3 and Phi-4 (Abdin et al. 2024, arXiv 2404.14219 and 2412.08905): Llama's layer with queries, keys and values in
 * one linear, gate and up in another; some rotate a part of each head. */

#include "models/families/families.h"

int family_phi3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {
        .qkv = "self_attn.qkv_proj", .out = "self_attn.o_proj", .up = "mlp.gate_up_proj", .down = "mlp.down_proj"};
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = plan_add(b, 0, families_fused_attention(b, c, layer, in, &names));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return plan_add(b, x, families_fused_mlp(b, c, in, &names));
}
