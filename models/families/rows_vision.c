/* The rows of language models that no class has alone: they are found within composite checkpoints (arch_composite.c).
 * Their layers are those of other rows. A column goes by one of three positions, of which a text has one
 * (config_rope.c).
 */

#include "models/families/families.h"

#include <stddef.h>

#define QWEN2_VL_MEMBERS                                                                                   \
    .plan = family_llama_plan, LLAMA_NAMES, .qkv_bias = true, .sections = true, .window = WINDOW_OPTIONAL, \
    .layer_types = 1U << LAYER_FULL | 1U << LAYER_SLIDING, .default_kv_heads = 8, .default_window = 4096,  \
    .default_window_from = 80, .default_max_position = 32768, .default_rope_theta = 1e6, .default_norm_eps = 1e-5

/* Wang et al. 2024, arXiv 2409.12191: Qwen2. */
const struct arch arch_qwen2_vl = {.name = "Qwen2VLTextModel", .model_type = "qwen2_vl_text", QWEN2_VL_MEMBERS};

/* Bai et al. 2025, arXiv 2502.13923: the same. */
const struct arch arch_qwen2_5_vl = {.name = "Qwen2_5_VLTextModel", .model_type = "qwen2_5_vl_text", QWEN2_VL_MEMBERS};

/* Qwen Team 2025: Qwen3. */
const struct arch arch_qwen3_vl = {
    .name = "Qwen3VLTextModel",
    .model_type = "qwen3_vl_text",
    .plan = family_qwen3_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .sections = true,
    .window = WINDOW_NEVER,
    .default_kv_heads = 32,
    .default_head_dim = 128,
    .default_max_position = 128000,
    .default_rope_theta = 5e5,
};

static const struct arch_experts qwen3_vl_moe_experts = {
    .count = "num_experts",
    .size = "moe_intermediate_size",
    .always_normalized = true,
    .layers = EXPERTS_STEP,
    .stacked = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
    .turned = true,
    .default_count = 60,
    .default_per_token = 4,
    .default_size = 1408,
};

/* Qwen3 MoE, with a layer's experts in two tensors. */
const struct arch arch_qwen3_vl_moe = {
    .name = "Qwen3VLMoeTextModel",
    .model_type = "qwen3_vl_moe_text",
    .plan = family_qwen3_moe_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .sections = true,
    .window = WINDOW_NEVER,
    .experts = &qwen3_vl_moe_experts,
    .default_kv_heads = 16,
    .default_max_position = 128000,
    .default_rope_theta = 5e5,
};
