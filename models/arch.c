/* The rows, and what follows from a parsed configuration for a layer.
 *
 * A row says which members of config.json count and what those mean that it lacks. Defaults are those that the
 * families' reference implementation assumes. */

#include "models/arch.h"

#include "models/families/families.h"

#include <stddef.h>

#define LAYERS_WINDOWED (1U << LAYER_FULL | 1U << LAYER_SLIDING)

static const struct arch llama = {
    .name = "LlamaForCausalLM",
    .model_type = "llama",
    .gguf = "llama",
    .gguf_neighbours = true,
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .mlp_bias = true,
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
};

static const struct arch mistral = {
    .name = "MistralForCausalLM",
    .model_type = "mistral",
    .gguf = "llama",
    .gguf_neighbours = true,
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .window = WINDOW_ALL,
    .default_kv_heads = 8,
    .default_window = 4096,
    .default_max_position = 131072,
};

static const struct arch qwen2 = {
    .name = "Qwen2ForCausalLM",
    .model_type = "qwen2",
    .gguf = "qwen2",
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .qkv_bias = true,
    .window = WINDOW_OPTIONAL,
    .layer_types = LAYERS_WINDOWED,
    .default_kv_heads = 32,
    .default_window = 4096,
    .default_max_position = 32768,
};

static const struct arch qwen3 = {
    .name = "Qwen3ForCausalLM",
    .model_type = "qwen3",
    .gguf = "qwen3",
    .plan = family_qwen3_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_OPTIONAL,
    .layer_types = LAYERS_WINDOWED,
    .default_kv_heads = 32,
    .default_head_dim = 128,
    .default_window = 4096,
    .default_max_position = 32768,
};

static const struct arch_experts mixtral_experts = {
    .count = "num_experts",
    .always_normalized = true,
    .default_count = 8,
    .default_per_token = 2,
};

static const struct arch mixtral = {
    .name = "MixtralForCausalLM",
    .model_type = "mixtral",
    .plan = family_mixtral_plan,
    LLAMA_NAMES,
    .window = WINDOW_ALL,
    .experts = &mixtral_experts,
    .default_kv_heads = 8,
    .default_max_position = 131072,
    .default_rope_theta = 1e6,
    .default_norm_eps = 1e-5,
};

static const struct arch_experts qwen3_moe_experts = {
    .count = "num_experts",
    .size = "moe_intermediate_size",
    .normalize = "norm_topk_prob",
    .layers = EXPERTS_STEP,
    FAMILY_EXPERTS_STACKED,
    .default_count = 128,
    .default_per_token = 8,
    .default_size = 768,
};

static const struct arch qwen3_moe = {
    .name = "Qwen3MoeForCausalLM",
    .model_type = "qwen3_moe",
    .plan = family_qwen3_moe_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_OPTIONAL,
    .layer_types = LAYERS_WINDOWED,
    .experts = &qwen3_moe_experts,
    .default_kv_heads = 4,
    .default_window = 4096,
    .default_max_position = 32768,
};

static const struct arch ministral = {
    .name = "MinistralForCausalLM",
    .model_type = "ministral",
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .window = WINDOW_ALL,
    .layer_types = LAYERS_WINDOWED,
    .default_kv_heads = 8,
    .default_window = 4096,
    .default_max_position = 131072,
};

static const struct arch ministral3 = {
    .name = "Ministral3ForCausalLM",
    .model_type = "ministral3",
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .window = WINDOW_ALL,
    .query_scaling = true,
    .default_kv_heads = 8,
    .default_head_dim = 128,
    .default_max_position = 262144,
    .default_rope_theta = 1e6,
    .default_norm_eps = 1e-5,
};

static const struct arch smollm3 = {
    .name = "SmolLM3ForCausalLM",
    .model_type = "smollm3",
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .mlp_bias = true,
    .tied = true,
    .nope = true,
    .window = WINDOW_NOPE,
    .layer_types = LAYERS_WINDOWED,
    .default_kv_heads = 4,
    .default_max_position = 32768,
    .default_rope_theta = 2e6,
};

static const struct arch granite = {
    .name = "GraniteForCausalLM",
    .model_type = "granite",
    .plan = family_llama_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .mlp_bias = true,
    .multipliers = true,
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
};

static const struct arch olmo3 = {
    .name = "Olmo3ForCausalLM",
    .model_type = "olmo3",
    .plan = family_olmo2_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_PATTERN,
    .layer_types = LAYERS_WINDOWED,
    .ropes_by_type = true,
    .default_window = 4096,
    .default_pattern = 4,
    .default_max_position = 2048,
    .default_rope_theta = 5e5,
    .default_local_theta = 5e5,
    .default_norm_eps = 1e-5,
};

static const struct arch gemma2 = {
    .name = "Gemma2ForCausalLM",
    .model_type = "gemma2",
    .plan = family_gemma2_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .tied = true,
    .unit_offset = true,
    .embedding_root = true,
    .query_scalar = true,
    .soft_caps = true,
    .activation_member = "hidden_activation",
    .default_activation = ACTIVATION_GELU_TANH,
    .window = WINDOW_PATTERN,
    .layer_types = LAYERS_WINDOWED,
    .default_window = 4096,
    .default_pattern = 2,
    .default_heads = 8,
    .default_kv_heads = 4,
    .default_head_dim = 256,
    .default_vocab = 256000,
    .default_max_position = 8192,
    .default_query_scalar = 256,
    .default_attention_cap = 50,
    .default_logit_cap = 30,
};

static const struct arch gemma3 = {
    .name = "Gemma3ForCausalLM",
    .model_type = "gemma3_text",
    .plan = family_gemma3_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .tied = true,
    .unit_offset = true,
    .embedding_root = true,
    .query_scalar = true,
    .soft_caps = true,
    .ropes_by_type = true,
    .activation_member = "hidden_activation",
    .default_activation = ACTIVATION_GELU_TANH,
    .window = WINDOW_PATTERN,
    .layer_types = LAYERS_WINDOWED,
    .default_window = 4096,
    .default_pattern = 6,
    .default_heads = 8,
    .default_kv_heads = 4,
    .default_head_dim = 256,
    .default_vocab = 262208,
    .default_max_position = 131072,
    .default_query_scalar = 256,
    .default_rope_theta = 1e6,
    .default_local_theta = 1e4,
};

static const struct arch cohere2 = {
    .name = "Cohere2ForCausalLM",
    .model_type = "cohere2",
    .plan = family_cohere2_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .tied = true,
    .layer_norms = true,
    .rope_neighbours = true,
    .full_nope = true,
    .logit_scale = true,
    .eps_member = "layer_norm_eps",
    .window = WINDOW_PATTERN,
    .layer_types = LAYERS_WINDOWED,
    .default_window = 4096,
    .default_pattern = 4,
    .default_max_position = 8192,
    .default_norm_eps = 1e-5,
    .default_logit_scale = 0.0625,
};

static const struct arch olmo2 = {
    .name = "Olmo2ForCausalLM",
    .model_type = "olmo2",
    .gguf = "olmo2",
    .plan = family_olmo2_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
    .default_norm_eps = 1e-5,
};

static const struct arch exaone4 = {
    .name = "Exaone4ForCausalLM",
    .model_type = "exaone4",
    .plan = family_exaone4_plan,
    LLAMA_NAMES,
    .configure = family_exaone4_configure,
    .full_nope = true,
    .window = WINDOW_PATTERN,
    .layer_types = LAYERS_WINDOWED,
    .default_window = 4096,
    .default_pattern = 4,
    .default_heads = 32,
    .default_kv_heads = 32,
    .default_vocab = 102400,
    .default_max_position = 2048,
    .default_norm_eps = 1e-5,
};

static const struct arch *const rows[] = {&arch_deepseek_v2,
                                          &arch_deepseek_v3,
                                          &arch_dots1,
                                          &arch_ernie_moe,
                                          &arch_falcon,
                                          &arch_glm4,
                                          &arch_flex_olmo,
                                          &arch_glm4_moe,
                                          &arch_glm4_moe_lite,
                                          &arch_gemma4,
                                          &arch_gpt2,
                                          &arch_gpt_oss,
                                          &arch_granite_moe,
                                          &arch_llama4,
                                          &arch_gpt_neox,
                                          &arch_nemotron,
                                          &arch_granite_hybrid,
                                          &arch_nemotron_h,
                                          &arch_olmoe,
                                          &arch_opt,
                                          &arch_phi,
                                          &arch_phi3,
                                          &arch_qwen2_5_vl,
                                          &arch_qwen2_moe,
                                          &arch_qwen2_vl,
                                          &arch_starcoder2,
                                          &arch_qwen3_5,
                                          &arch_qwen3_5_moe,
                                          &arch_qwen3_next,
                                          &arch_qwen3_vl,
                                          &arch_qwen3_vl_moe,
                                          &cohere2,
                                          &exaone4,
                                          &gemma2,
                                          &gemma3,
                                          &granite,
                                          &llama,
                                          &ministral,
                                          &ministral3,
                                          &mistral,
                                          &mixtral,
                                          &olmo2,
                                          &olmo3,
                                          &qwen2,
                                          &qwen3,
                                          &qwen3_moe,
                                          &smollm3,
                                          NULL};

const struct arch *const *arch_list(void)
{
    return rows;
}

int64_t arch_window(const struct model_config *config, int64_t layer)
{
    return config->layer_types[layer] == LAYER_SLIDING ? config->sliding_window : 0;
}

bool arch_rotates(const struct model_config *config, int64_t layer)
{
    return config->rope_count > 0 && (config->nope_layers[layer / 64] >> (layer % 64) & 1) == 0;
}

int64_t arch_head_dim(const struct model_config *config, int64_t layer)
{
    bool own = config->full_head_dim > 0 && config->layer_types[layer] == LAYER_FULL;

    return own ? config->full_head_dim : config->head_dim;
}

int64_t arch_kv_heads(const struct model_config *config, int64_t layer)
{
    bool own = config->full_kv_heads > 0 && config->layer_types[layer] == LAYER_FULL;

    return own ? config->full_kv_heads : config->num_kv_heads;
}

int arch_rope(const struct model_config *config, int64_t layer)
{
    return config->arch->ropes_by_type && config->layer_types[layer] == LAYER_SLIDING ? 1 : 0;
}

int arch_key_rope(const struct model_config *config, int64_t layer)
{
    return config->ropes[0].growth > 0 ? 1 : arch_rope(config, layer);
}

bool arch_has_experts(const struct model_config *config, int64_t layer)
{
    bool dense = (config->dense_layers[layer / 64] >> (layer % 64) & 1) != 0;

    return config->num_experts > 0 && !dense && (layer + 1) % config->sparse_step == 0;
}
