/* Mixtral and Qwen3-MoE (Jiang et al. 2024, arXiv 2401.04088; Yang et al. 2025, arXiv 2505.09388): the layers of
 * Mistral and Qwen3 with a choice of experts in the MLP's place. */

#include "models/families/families.h"

int families_experts(struct plan_builder *b, const struct model_config *c, int in, const struct family_experts *names)
{
    const struct plan_experts experts = {.path = names->path,
                                         .count = c->num_experts,
                                         .top_k = c->experts_per_token,
                                         .scores = SCORES_SOFTMAX_ALL,
                                         .normalize = c->normalize_experts,
                                         .factor = 1};
    int logits = plan_router(b, in, names->router, NULL, c->num_experts);
    struct plan_builder *expert = plan_expert(b, c->hidden_size);
    int gate = plan_linear(expert, 0, names->gate, NULL, c->expert_size, false);
    int up = plan_linear(expert, 0, names->up, NULL, c->expert_size, false);

    plan_fuse(expert, names->fused, (int[]){gate, up}, 2);
    int product = plan_activate(expert, ACTIVATION_SILU, gate, up);
    int out = plan_linear(expert, product, names->down, NULL, c->hidden_size, false);
    return plan_experts(b, in, logits, &experts, expert, out);
}

int family_mixtral_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {
        "block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2", "w1 and w3"};
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, families_experts(b, c, in, &names));
}

int family_qwen3_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {"mlp.gate", "mlp.experts", "gate_proj",
                                                "up_proj",  "down_proj",   "gate and up"};
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_HEAD));

    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return plan_add(b, x, arch_has_experts(c, layer) ? families_experts(b, c, in, &names) : families_mlp(b, c, in));
}
