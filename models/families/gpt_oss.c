/* gpt-oss (OpenAI 2025, arXiv 2508.10925): Llama's attention with sinks and windows in turns, and experts that are
 * scored among the chosen and stored as one tensor for each linear. */

#include "models/families/families.h"

#include "base/err.h"
#include "models/config_internal.h"

int family_gpt_oss_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_stacked stacked = {.both = "mlp.experts.gate_up_proj",
                                                  .both_bias = "mlp.experts.gate_up_proj_bias",
                                                  .down = "mlp.experts.down_proj",
                                                  .down_bias = "mlp.experts.down_proj_bias",
                                                  .by_inputs = true,
                                                  .in_turns = true};
    static const struct family_experts names = {.router = "mlp.router",
                                                .path = "mlp.experts",
                                                .gate = "gate_proj",
                                                .up = "up_proj",
                                                .down = "down_proj",
                                                .fused = "gate and up",
                                                .scores = SCORES_SOFTMAX_CHOSEN,
                                                .router_bias = true,
                                                .expert_bias = true,
                                                .activation = ACTIVATION_SWIGLU_CLAMPED,
                                                .stacked = &stacked};
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = plan_add(b, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return plan_add(b, x, families_experts(b, c, in, &names));
}

/* The constants of the activation are those of the operation. */
int family_gpt_oss_configure(const json_t *config, struct model_config *c)
{
    double limit = 7, alpha = 1.702;

    (void)c;
    TRY(config_positive(config, "swiglu_limit", 1e6, &limit));
    TRY(config_positive(config, "swiglu_alpha", 1e6, &alpha));
    return limit == 7 && alpha == 1.702
               ? 0
               : config_unsupported("config.json: another value than 7 and 1.702 of", "swiglu_limit and swiglu_alpha");
}
