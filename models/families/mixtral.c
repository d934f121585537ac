/* Mixtral and Qwen3-MoE (Jiang et al. 2024, arXiv 2401.04088; Yang et al. 2025, arXiv 2505.09388): the layers of
 * Mistral and Qwen3 with a choice of experts in the MLP's place. */

#include "models/families/families.h"

int family_mixtral_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {.router = "block_sparse_moe.gate",
                                                .path = "block_sparse_moe.experts",
                                                .gate = "w1",
                                                .up = "w3",
                                                .down = "w2",
                                                .fused = "w1 and w3"};
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, families_experts(b, c, in, &names));
}

int family_qwen3_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN};
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_HEAD));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, arch_has_experts(c, layer) ? families_experts(b, c, in, &names) : families_mlp(b, c, in));
}
