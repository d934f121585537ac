/* The rows of families with experts: see arch.c. */

#include "models/families/families.h"

#include <stddef.h>

static const struct arch_experts qwen2_moe_experts = {
    .count = "num_experts",
    .size = "moe_intermediate_size",
    .normalize = "norm_topk_prob",
    .shared_size = "shared_expert_intermediate_size",
    .layers = EXPERTS_STEP,
    FAMILY_EXPERTS_STACKED,
    .default_count = 60,
    .default_per_token = 4,
    .default_size = 1408,
    .default_shared = 5632,
};

const struct arch arch_qwen2_moe = {
    .name = "Qwen2MoeForCausalLM",
    .model_type = "qwen2_moe",
    .plan = family_qwen2_moe_plan,
    LLAMA_NAMES,
    .sample = "{\"use_sliding_window\": false}",
    .qkv_bias = true,
    .window = WINDOW_NEVER,
    .refused = {"use_sliding_window"}, /* of which layers: programs disagree */
    .experts = &qwen2_moe_experts,
    .default_kv_heads = 16,
    .default_max_position = 32768,
};

static const struct arch_experts olmoe_experts = {
    .count = "num_experts",
    .normalize = "norm_topk_prob",
    FAMILY_EXPERTS_STACKED,
    .default_count = 64,
    .default_per_token = 8,
};

const struct arch arch_olmoe = {
    .name = "OlmoeForCausalLM",
    .model_type = "olmoe",
    .plan = family_olmoe_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_NEVER,
    .refused = {"clip_qkv"},
    .experts = &olmoe_experts,
    .default_max_position = 4096,
    .default_norm_eps = 1e-5,
};

static const struct arch_latent deepseek_v2_latent = {
    .default_query_rank = 1536,
    .default_rank = 512,
    .default_nope = 128,
    .default_rope = 64,
    .default_value = 128,
    .interleaved = true,
};

static const char *const deepseek_v2_methods[] = {"greedy", "group_limited_greedy", NULL};

static const struct arch_experts deepseek_v2_experts = {
    .count = "n_routed_experts",
    .size = "moe_intermediate_size",
    .shared_count = "n_shared_experts",
    .scaled = true,
    .grouped = true,
    .methods = deepseek_v2_methods,
    .layers = EXPERTS_AFTER,
    FAMILY_EXPERTS_STACKED,
    .default_count = 64,
    .default_size = 1407,
    .default_shared = 2,
};

const struct arch arch_deepseek_v2 = {
    .name = "DeepseekV2ForCausalLM",
    .model_type = "deepseek_v2",
    .plan = family_deepseek_v2_plan,
    LLAMA_NAMES,
    .sample = "{\"num_key_value_heads\": 4, \"mlp_bias\": false}",
    .attention_bias = true,
    .window = WINDOW_NEVER,
    .refused = {"mlp_bias"},
    .experts = &deepseek_v2_experts,
    .latent = &deepseek_v2_latent,
    .default_max_position = 2048,
};

static const struct arch_latent deepseek_v3_latent = {
    .default_query_rank = 1536,
    .default_rank = 512,
    .default_nope = 128,
    .default_rope = 64,
    .default_value = 128,
    .interleaved = true,
    .choosable = true,
};

static const struct arch_experts deepseek_v3_experts = {
    .count = "n_routed_experts",
    .size = "moe_intermediate_size",
    .normalize = "norm_topk_prob",
    .shared_count = "n_shared_experts",
    .scaled = true,
    .grouped = true,
    .scoring = "sigmoid",
    .layers = EXPERTS_AFTER,
    FAMILY_EXPERTS_STACKED,
    .default_count = 256,
    .default_per_token = 8,
    .default_size = 2048,
    .default_shared = 1,
    .default_groups = 8,
    .default_group_top_k = 4,
    .default_dense = 3,
    .default_normalize = true,
    .default_factor = 2.5,
};

const struct arch arch_deepseek_v3 = {
    .name = "DeepseekV3ForCausalLM",
    .model_type = "deepseek_v3",
    .also_type = "kimi_k2",
    .plan = family_deepseek_v3_plan,
    LLAMA_NAMES,
    .sample = "{\"num_key_value_heads\": 4}",
    .attention_bias = true,
    .window = WINDOW_NEVER,
    .experts = &deepseek_v3_experts,
    .latent = &deepseek_v3_latent,
    .default_kv_heads = 128,
    .default_max_position = 4096,
};

static const struct arch_latent glm4_lite_latent = {
    .default_query_rank = 768,
    .default_rank = 512,
    .default_nope = 192,
    .default_rope = 64,
    .default_value = 256,
    .interleaved = true,
    .choosable = true,
};

static const struct arch_experts glm4_lite_experts = {
    .count = "n_routed_experts",
    .size = "moe_intermediate_size",
    .normalize = "norm_topk_prob",
    .shared_count = "n_shared_experts",
    .scaled = true,
    .grouped = true,
    .scoring = "sigmoid",
    .layers = EXPERTS_LISTED,
    FAMILY_EXPERTS_STACKED,
    .default_count = 64,
    .default_per_token = 4,
    .default_size = 1536,
    .default_shared = 1,
    .default_groups = 1,
    .default_group_top_k = 1,
    .default_normalize = true,
    .default_factor = 1.8,
};

const struct arch arch_glm4_moe_lite = {
    .name = "Glm4MoeLiteForCausalLM",
    .model_type = "glm4_moe_lite",
    .plan = family_deepseek_v3_plan,
    LLAMA_NAMES,
    .sample = "{\"num_key_value_heads\": 4}",
    .attention_bias = true,
    .window = WINDOW_NEVER,
    .experts = &glm4_lite_experts,
    .latent = &glm4_lite_latent,
    .default_kv_heads = 20,
    .default_max_position = 202752,
    .default_norm_eps = 1e-5,
};

static const struct arch_experts ernie_moe_experts = {
    .count = "moe_num_experts",
    .per_token = "moe_k",
    .size = "moe_intermediate_size",
    .always_normalized = true,
    .shared_count = "moe_num_shared_experts",
    .layers = EXPERTS_SPAN,
    .default_count = 64,
    .default_per_token = 6,
    .default_size = 1536,
    .default_shared = 2,
};

const struct arch arch_ernie_moe = {
    .name = "Ernie4_5_MoeForCausalLM",
    .model_type = "ernie4_5_moe",
    .plan = family_ernie_moe_plan,
    LLAMA_NAMES,
    .rope_neighbours = true,
    .tied = true,
    .window = WINDOW_NEVER,
    .refused = {"use_bias"},
    .experts = &ernie_moe_experts,
    .default_kv_heads = 4,
    .default_max_position = 131072,
    .default_rope_theta = 500000,
    .default_norm_eps = 1e-5,
};

static const struct arch_experts glm4_moe_experts = {
    .count = "n_routed_experts",
    .size = "moe_intermediate_size",
    .normalize = "norm_topk_prob",
    .shared_count = "n_shared_experts",
    .scaled = true,
    .grouped = true,
    .scoring = "sigmoid",
    .layers = EXPERTS_AFTER,
    FAMILY_EXPERTS_STACKED,
    .default_count = 128,
    .default_per_token = 8,
    .default_size = 1408,
    .default_shared = 1,
    .default_groups = 1,
    .default_group_top_k = 1,
    .default_dense = 1,
    .default_normalize = true,
};

const struct arch arch_glm4_moe = {
    .name = "Glm4MoeForCausalLM",
    .model_type = "glm4_moe",
    .plan = family_glm4_moe_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .o_unbiased = true,
    .partial_rope = true,
    .head_norms_member = "use_qk_norm",
    .window = WINDOW_NEVER,
    .experts = &glm4_moe_experts,
    .default_kv_heads = 8,
    .default_max_position = 131072,
    .default_partial = 0.5,
    .default_norm_eps = 1e-5,
};

static const struct arch_experts dots1_experts = {
    .count = "n_routed_experts",
    .size = "moe_intermediate_size",
    .normalize = "norm_topk_prob",
    .shared_count = "n_shared_experts",
    .scaled = true,
    .grouped = true,
    .scoring = "sigmoid",
    .layers = EXPERTS_AFTER,
    FAMILY_EXPERTS_STACKED,
    .default_size = 1408,
    .default_groups = 1,
    .default_group_top_k = 1,
};

const struct arch arch_dots1 = {
    .name = "Dots1ForCausalLM",
    .model_type = "dots1",
    .plan = family_dots1_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .sample = "{\"n_routed_experts\": 8, \"sliding_window\": null}",
    .window = WINDOW_NEVER,
    .refused = {"sliding_window"},
    .experts = &dots1_experts,
    .default_kv_heads = 32,
    .default_max_position = 2048,
};

static const struct arch_experts flex_olmo_experts = {
    .count = "num_experts",
    .normalize = "norm_topk_prob",
    FAMILY_EXPERTS_STACKED,
    .default_count = 7,
    .default_per_token = 5,
};

const struct arch arch_flex_olmo = {
    .name = "FlexOlmoForCausalLM",
    .model_type = "flex_olmo",
    .plan = family_flex_olmo_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_NEVER,
    .experts = &flex_olmo_experts,
    .default_max_position = 4096,
};

static const struct arch_experts gpt_oss_experts = {
    .count = "num_experts",
    .always_normalized = true,
    .default_count = 128,
    .default_per_token = 4,
};

const struct arch arch_gpt_oss = {
    .name = "GptOssForCausalLM",
    .model_type = "gpt_oss",
    .plan = family_gpt_oss_plan,
    .configure = family_gpt_oss_configure,
    LLAMA_NAMES,
    .attention_bias = true,
    .biased = true,
    .sinks = true,
    .window = WINDOW_PATTERN,
    .layer_types = 1U << LAYER_FULL | 1U << LAYER_SLIDING,
    .experts = &gpt_oss_experts,
    .default_kv_heads = 8,
    .default_head_dim = 64,
    .default_window = 128,
    .default_pattern = 2,
    .default_max_position = 131072,
    .default_rope_theta = 150000,
    .default_norm_eps = 1e-5,
};

static const struct arch_experts granite_moe_experts = {
    .count = "num_experts",
    .always_normalized = true,
    .default_count = 8,
    .default_per_token = 2,
};

const struct arch arch_granite_moe = {
    .name = "GraniteMoeForCausalLM",
    .model_type = "granitemoe",
    .plan = family_granite_moe_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .multipliers = true,
    .window = WINDOW_NEVER,
    .experts = &granite_moe_experts,
    .default_max_position = 2048,
};

static const struct arch_experts llama4_experts = {
    .count = "num_local_experts",
    .scoring = "sigmoid",
    .layers = EXPERTS_INTERLEAVED,
    .default_count = 16,
    .default_per_token = 1,
};

const struct arch arch_llama4 = {
    .name = "Llama4ForCausalLM",
    .model_type = "llama4_text",
    .plan = family_llama4_plan,
    .configure = family_llama4_configure,
    LLAMA_NAMES,
    .attention_bias = true,
    .rope_neighbours = true,
    .nope = true,
    .window = WINDOW_NEVER,
    .layer_types = 1U << LAYER_FULL | 1U << LAYER_CHUNKED,
    .experts = &llama4_experts,
    .default_kv_heads = 8,
    .default_head_dim = 128,
    .default_max_position = 131072,
    .default_rope_theta = 500000,
    .default_norm_eps = 1e-5,
};
