/* OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): Llama's layer with norms of queries and keys over all heads
 * together, and a choice of experts in the MLP's place. */

#include "models/families/families.h"

int family_olmoe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN};
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_ROW));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, families_experts(b, c, in, &names));
}
