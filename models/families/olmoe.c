/* OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): Llama's layer with norms of queries and keys over all heads
 * together, and a choice of experts in the MLP's place. FlexOlmo (Shi et al. 2025, arXiv 2507.07024) has its norms
 * after attention and experts, as OLMo 2. */

#include "models/families/families.h"

int family_olmoe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN};
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_ROW));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, families_experts(b, c, in, &names));
}

int family_flex_olmo_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN};
    int out = families_attention(b, c, layer, 0, FAMILY_NORMS_ROW);
    int x = plan_add(b, 0, plan_row_norm(b, out, "post_attention_layernorm", NULL));

    out = families_experts(b, c, x, &names);
    return plan_add(b, x, plan_row_norm(b, out, "post_feedforward_layernorm", NULL));
}
