/* The rows, and what follows from a parsed configuration: shapes, biases, windows, rotary tables.
 *
 * A row says which members of config.json count and what those mean that it lacks. Defaults are those that the
 * families' reference implementation assumes. */

#include "models/arch.h"

#include "models/families/families.h"

#include <math.h>
#include <stddef.h>

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
    .default_kv_heads = 32,
    .default_head_dim = 128,
    .default_window = 4096,
    .default_max_position = 32768,
};

static const struct arch mixtral = {
    .name = "MixtralForCausalLM",
    .model_type = "mixtral",
    .plan = family_mixtral_plan,
    LLAMA_NAMES,
    .window = WINDOW_ALL,
    .experts = EXPERTS_ALL,
    .default_kv_heads = 8,
    .default_max_position = 131072,
    .default_experts = 8,
    .default_experts_per_token = 2,
    .default_rope_theta = 1e6,
    .default_norm_eps = 1e-5,
};

static const struct arch qwen3_moe = {
    .name = "Qwen3MoeForCausalLM",
    .model_type = "qwen3_moe",
    .plan = family_qwen3_moe_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .window = WINDOW_OPTIONAL,
    .experts = EXPERTS_SPARSE,
    .default_kv_heads = 4,
    .default_window = 4096,
    .default_max_position = 32768,
    .default_experts = 128,
    .default_experts_per_token = 8,
    .default_expert_size = 768,
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

static const struct arch *const rows[] = {&llama, &mistral, &mixtral, &olmo2, &qwen2, &qwen3, &qwen3_moe, NULL};

const struct arch *const *arch_list(void)
{
    return rows;
}

int64_t arch_window(const struct model_config *config, int64_t layer)
{
    return layer >= config->sliding_from_layer ? config->sliding_window : 0;
}

bool arch_has_experts(const struct model_config *config, int64_t layer)
{
    bool dense = (config->dense_layers[layer / 64] >> (layer % 64) & 1) != 0;

    return config->num_experts > 0 && !dense && (layer + 1) % config->sparse_step == 0;
}

/* Llama 3's stretch: long wavelengths are divided by the factor, short ones kept, those between blended. */
static double stretch(const struct model_config *config, double frequency)
{
    double turns = config->rope_original_max * frequency / (2 * M_PI); /* within the original context */

    if (turns < config->rope_low_freq) {
        return frequency / config->rope_factor;
    }
    if (turns > config->rope_high_freq) {
        return frequency;
    }
    double smooth = (turns - config->rope_low_freq) / (config->rope_high_freq - config->rope_low_freq);
    return (1 - smooth) * frequency / config->rope_factor + smooth * frequency;
}

static double rope_frequency(const struct model_config *config, int64_t i)
{
    double frequency = pow(config->rope_theta, -2.0 * (double)i / (double)config->head_dim);

    switch (config->rope_type) {
    case ROPE_LINEAR:
        return frequency / config->rope_factor;
    case ROPE_LLAMA3:
        return stretch(config, frequency);
    case ROPE_DEFAULT:
        break;
    }
    return frequency;
}

void arch_rope_tables(const struct model_config *config, int64_t length, float *cosine, float *sine)
{
    int64_t half = config->head_dim / 2;

    for (int64_t i = 0; i < half; i++) {
        double frequency = rope_frequency(config, i);
        for (int64_t t = 0; t < length; t++) {
            cosine[t * half + i] = (float)cos((double)t * frequency);
            sine[t * half + i] = (float)sin((double)t * frequency);
        }
    }
}
