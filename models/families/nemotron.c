/* Nemotron (Parmar et al. 2024, arXiv 2402.16819): layer norms whose factor is 1 + weight, a part of each head rotated,
 * grouped key heads, an MLP of a squared relu without a gate. */

#include "models/families/families.h"

int family_nemotron_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_fused names = {.up = "mlp.up_proj", .down = "mlp.down_proj"};
    int in = families_norm(b, c, 0, "input_layernorm", NULL, c->hidden_size);
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = families_norm(b, c, x, "post_attention_layernorm", NULL, c->hidden_size);
    return plan_add(b, x, families_plain_mlp(b, c, in, &names));
}
