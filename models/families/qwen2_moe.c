/* Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671): Qwen2's layer with a choice of experts in the MLP's
 * place, next to a shared expert that a gate of its own weighs. */

#include "models/families/families.h"

int family_qwen2_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {
        FAMILY_EXPERTS_QWEN,
        .shared = {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"},
        .shared_gate = "mlp.shared_expert_gate",
    };
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, arch_has_experts(c, layer) ? families_experts(b, c, in, &names) : families_mlp(b, c, in));
}
