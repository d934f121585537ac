/* Qwen2 and Qwen3 (Yang et al. 2024, arXiv 2407.10671; Yang et al. 2025, arXiv 2505.09388): Llama's layer with biases
 * of q, k and v (2), or with norms of each query and key head (3), and windows from some layer on. */

#include "models/families/families.h"

int family_qwen3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_HEAD));
    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, families_mlp(b, c, in));
}
