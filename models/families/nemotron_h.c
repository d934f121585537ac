/* Nemotron-H and Nemotron 3 (NVIDIA 2025, arXiv 2504.03624): a layer is one norm and one of Mamba 2, attention without
 * positions, an MLP of relu^2, or a choice of such MLPs next to a shared one. In the larger of Nemotron 3 the chosen
 * read a narrower row, and their sum is widened again (LatentMoE); the published quantizations leave the linears
 * between the two widths in float. */

#include "models/families/families.h"

#include <math.h>

static int attention(struct plan_builder *b, const struct model_config *c, int in)
{
    const struct plan_attention attention = {.heads = c->num_heads,
                                             .kv_heads = c->num_kv_heads,
                                             .head_dim = c->head_dim,
                                             .scale = 1.0 / sqrt((double)c->head_dim)};
    int q = plan_linear(b, in, "mixer.q_proj", NULL, c->num_heads * c->head_dim, false);
    int k = plan_linear(b, in, "mixer.k_proj", NULL, c->num_kv_heads * c->head_dim, false);
    int v = plan_linear(b, in, "mixer.v_proj", NULL, c->num_kv_heads * c->head_dim, false);

    plan_fuse(b, "q, k and v", (int[]){q, k, v}, 3);
    return plan_linear(b, plan_attend(b, q, k, v, &attention), "mixer.o_proj", NULL, c->hidden_size, false);
}

static int mlp(struct plan_builder *b, const struct model_config *c, int in)
{
    int up = plan_linear(b, in, "mixer.up_proj", NULL, c->intermediate_size, c->mlp_bias);
    int made = plan_activate(b, (enum plan_activation)c->activation, up, -1);

    return plan_linear(b, made, "mixer.down_proj", NULL, c->hidden_size, c->mlp_bias);
}

int family_nemotron_h_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_mamba mamba = {FAMILY_MAMBA_NAMES("mixer")};
    static const struct family_experts experts = {
        .router = "mixer.gate",
        .path = "mixer.experts",
        .up = "up_proj",
        .down = "down_proj",
        .scores = SCORES_SIGMOID,
        .epsilon = 1e-20,
        .group_pairs = true,
        .bias = "mixer.gate.e_score_correction_bias",
        .shared = {NULL, "mixer.shared_experts.up_proj", "mixer.shared_experts.down_proj"},
        .latent = {"mixer.fc1_latent_proj", "mixer.fc2_latent_proj"},
    };
    int in = plan_row_norm(b, 0, "norm", NULL);

    switch ((enum layer_type)c->layer_types[layer]) {
    case LAYER_LINEAR:
        return plan_add(b, 0, families_mamba(b, c, in, &mamba));
    case LAYER_MLP:
        return plan_add(b, 0, mlp(b, c, in));
    case LAYER_EXPERTS:
        return plan_add(b, 0, families_experts(b, c, in, &experts));
    default:
        return plan_add(b, 0, attention(b, c, in));
    }
}
