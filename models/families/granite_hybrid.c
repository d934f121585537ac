/* Granite 4 (IBM 2025): layers of Mamba 2 or of attention, which rotates only where position_embedding_type says so,
 * and an MLP whose gate and up are one linear; factors of the residual stream as in Granite 3. */

#include "models/families/families.h"

static int granite_shared_mlp(struct plan_builder *b, const struct model_config *c, int in)
{
    int64_t size = c->recurrence.shared_size;
    int both = plan_linear(b, in, "shared_mlp.input_linear", NULL, 2 * size, false);
    int gate = plan_select(b, both, &(struct plan_select){.stride = 2 * size, .count = size});
    int up = plan_select(b, both, &(struct plan_select){.stride = 2 * size, .first = size, .count = size});

    return plan_linear(b, plan_activate(b, (enum plan_activation)c->activation, gate, up), "shared_mlp.output_linear",
                       NULL, c->hidden_size, false);
}

int family_granite_hybrid_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_mamba mamba = {FAMILY_MAMBA_NAMES("mamba")};
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    bool linear = c->layer_types[layer] == LAYER_LINEAR;
    int x = families_add(
        b, c, 0, linear ? families_mamba(b, c, in, &mamba) : families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return families_add(b, c, x, granite_shared_mlp(b, c, in));
}
