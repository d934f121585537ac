/* OLMo 2 (OLMo Team 2024, arXiv 2501.00656): Llama's attention and MLP read the residual stream itself, and RMS norms
 * follow them; queries and keys have norms over all heads together. */

#include "models/families/families.h"

int family_olmo2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    int out = families_attention(b, c, layer, 0, FAMILY_NORMS_ROW);
    int x = plan_add(b, 0, plan_row_norm(b, out, "post_attention_layernorm", "post_attention_norm"));

    out = families_mlp(b, c, x);
    return plan_add(b, x, plan_row_norm(b, out, "post_feedforward_layernorm", "post_ffw_norm"));
}
