/* Granite MoE and Granite 4 (IBM 2024, Granite 3.0 technical report; IBM 2025): factors of the residual stream as in
 * Granite 3, and experts that are scored among the chosen and stored as one tensor for each linear.
 *
 * A layer of Granite 4 is Mamba 2 or attention, which rotates only where position_embedding_type says so, and an MLP
 * whose gate and up are one linear; its larger models add a choice of experts to that MLP. */

#include "models/families/families.h"

static int granite_experts(struct plan_builder *b, const struct model_config *c, int in)
{
    static const struct family_stacked stacked = {.both = "block_sparse_moe.input_linear.weight",
                                                  .down = "block_sparse_moe.output_linear.weight"};
    static const struct family_experts names = {.router = "block_sparse_moe.router.layer",
                                                .path = "block_sparse_moe.experts",
                                                .gate = "gate_proj",
                                                .up = "up_proj",
                                                .down = "down_proj",
                                                .fused = "gate and up",
                                                .scores = SCORES_SOFTMAX_CHOSEN,
                                                .stacked = &stacked};

    return families_experts(b, c, in, &names);
}

int family_granite_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = families_add(b, c, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return families_add(b, c, x, granite_experts(b, c, in));
}

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
    int out = granite_shared_mlp(b, c, in); /* before the experts, so that no group comes after theirs */
    return families_add(b, c, x, arch_has_experts(c, layer) ? plan_add(b, granite_experts(b, c, in), out) : out);
}
