/* GLM-4.5 and ERNIE 4.5 (GLM-4.5 Team 2025, arXiv 2508.06471; Baidu 2025, technical report): Llama's attention, with
 * part of each head rotated or neighbours rotated against each other, and experts next to a shared one: by sigmoid with
 * a bias that only moves the choice, or by softmax with such a bias. */

#include "models/families/families.h"

static int glm_layer(const struct model_config *c, int64_t layer, struct plan_builder *b, enum family_norms norms,
                     const struct family_experts *names)
{
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = plan_add(b, 0, families_attention(b, c, layer, in, norms));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return plan_add(b, x, arch_has_experts(c, layer) ? families_experts(b, c, in, names) : families_mlp(b, c, in));
}

int family_glm4_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN, FAMILY_SHARED_EXPERTS, FAMILY_EXPERTS_BIASED};

    return glm_layer(c, layer, b, c->head_norms ? FAMILY_NORMS_HEAD : FAMILY_NORMS_NONE, &names);
}

/* dots.llm1 (rednote-hilab 2025, arXiv 2506.05767): the same with norms of queries and keys in each layer. */
int family_dots1_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN, FAMILY_SHARED_EXPERTS, FAMILY_EXPERTS_BIASED};

    return glm_layer(c, layer, b, FAMILY_NORMS_HEAD, &names);
}

int family_ernie_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {
        FAMILY_EXPERTS_QWEN,
        FAMILY_SHARED_EXPERTS,
        .bias = "mlp.moe_statics.e_score_correction_bias",
        .bias_rank = 2,
    };

    return glm_layer(c, layer, b, FAMILY_NORMS_NONE, &names);
}
