/* Gemma 2 and 3 (Gemma Team 2024, arXiv 2408.00118; 2025, arXiv 2503.19786): norms before and after attention and MLP,
 * whose factor is 1 + weight, a gated GELU, windows in most layers, capped scores (2), norms of each query and key head
 * and a rotary table for the layers with windows (3). */

#include "models/families/families.h"

static int gemma_plan(const struct model_config *c, int64_t layer, struct plan_builder *b, enum family_norms norms)
{
    int64_t size = c->hidden_size;
    int in = families_norm(b, c, 0, "input_layernorm", NULL, size);
    int out = families_attention(b, c, layer, in, norms);
    int x = plan_add(b, 0, families_norm(b, c, out, "post_attention_layernorm", NULL, size));

    in = families_norm(b, c, x, "pre_feedforward_layernorm", NULL, size);
    out = families_mlp(b, c, in);
    return plan_add(b, x, families_norm(b, c, out, "post_feedforward_layernorm", NULL, size));
}

int family_gemma2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    return gemma_plan(c, layer, b, FAMILY_NORMS_NONE);
}

int family_gemma3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    return gemma_plan(c, layer, b, FAMILY_NORMS_HEAD);
}
