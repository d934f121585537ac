/* Cohere 2 (Cohere 2025, arXiv 2504.00698): attention and MLP next to each other after one LayerNorm, rotation of
 * neighbouring columns in the layers with windows and none in the others. */

#include "models/families/families.h"

int family_cohere2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    int in = families_norm(b, c, 0, "input_layernorm", NULL, c->hidden_size);
    int attention = families_attention(b, c, layer, in, FAMILY_NORMS_NONE);

    return plan_add(b, 0, plan_add(b, attention, families_mlp(b, c, in)));
}
