/* The rows, and what follows from a parsed configuration: shapes, biases, windows, rotary tables.
 *
 * All four families are one decoder block (RMSNorm, rotary attention with grouped keys, SwiGLU) under the same tensor
 * names; a row says where they differ. Defaults are those that the families' reference implementation assumes. */

#include "models/arch.h"

#include "models/families/families.h"

#include <math.h>
#include <stddef.h>

const enum site arch_linear_site[LINEAR_COUNT] = {
    [LINEAR_Q] = SITE_ATTENTION, [LINEAR_K] = SITE_ATTENTION, [LINEAR_V] = SITE_ATTENTION, [LINEAR_O] = SITE_OUTPUT,
    [LINEAR_GATE] = SITE_MLP,    [LINEAR_UP] = SITE_MLP,      [LINEAR_DOWN] = SITE_DOWN,
};

/* The names that the families share. */
#define LLAMA_LINEARS                                                                                      \
    {                                                                                                      \
        [LINEAR_Q] = "self_attn.q_proj", [LINEAR_K] = "self_attn.k_proj", [LINEAR_V] = "self_attn.v_proj", \
        [LINEAR_O] = "self_attn.o_proj", [LINEAR_GATE] = "mlp.gate_proj", [LINEAR_UP] = "mlp.up_proj",     \
        [LINEAR_DOWN] = "mlp.down_proj",                                                                   \
    }
#define LLAMA_NORMS [NORM_ATTENTION] = "input_layernorm", [NORM_MLP] = "post_attention_layernorm"

static const struct arch llama = {
    .name = "LlamaForCausalLM",
    .plan = family_llama_plan,
    .linears = LLAMA_LINEARS,
    .norms = {LLAMA_NORMS},
    .attention_bias = true,
    .mlp_bias = true,
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
};

static const struct arch mistral = {
    .name = "MistralForCausalLM",
    .plan = family_llama_plan,
    .linears = LLAMA_LINEARS,
    .norms = {LLAMA_NORMS},
    .window = WINDOW_ALL,
    .default_kv_heads = 8,
    .default_window = 4096,
    .default_max_position = 131072,
};

static const struct arch qwen2 = {
    .name = "Qwen2ForCausalLM",
    .plan = family_llama_plan,
    .linears = LLAMA_LINEARS,
    .norms = {LLAMA_NORMS},
    .qkv_bias = true,
    .window = WINDOW_OPTIONAL,
    .default_kv_heads = 32,
    .default_window = 4096,
    .default_max_position = 32768,
};

static const struct arch qwen3 = {
    .name = "Qwen3ForCausalLM",
    .plan = family_qwen3_plan,
    .linears = LLAMA_LINEARS,
    .norms = {LLAMA_NORMS, [NORM_Q] = "self_attn.q_norm", [NORM_K] = "self_attn.k_norm"},
    .attention_bias = true,
    .qk_norm = true,
    .window = WINDOW_OPTIONAL,
    .default_kv_heads = 32,
    .default_head_dim = 128,
    .default_window = 4096,
    .default_max_position = 32768,
};

static const struct arch *const rows[] = {&llama, &mistral, &qwen2, &qwen3, NULL};

const struct arch *const *arch_list(void)
{
    return rows;
}

void arch_linear_shape(const struct model_config *config, enum linear_role role, int64_t *out_rows, int64_t *out_cols)
{
    int64_t attention = config->num_heads * config->head_dim, kv = config->num_kv_heads * config->head_dim;
    int64_t hidden = config->hidden_size, wide = config->intermediate_size;
    const int64_t shapes[LINEAR_COUNT][2] = {
        [LINEAR_Q] = {attention, hidden}, [LINEAR_K] = {kv, hidden},      [LINEAR_V] = {kv, hidden},
        [LINEAR_O] = {hidden, attention}, [LINEAR_GATE] = {wide, hidden}, [LINEAR_UP] = {wide, hidden},
        [LINEAR_DOWN] = {hidden, wide},
    };

    *out_rows = shapes[role][0];
    *out_cols = shapes[role][1];
}

bool arch_linear_bias(const struct model_config *config, enum linear_role role)
{
    switch (arch_linear_site[role]) {
    case SITE_ATTENTION:
        return config->qkv_bias;
    case SITE_OUTPUT:
        return config->o_bias;
    default:
        return config->mlp_bias;
    }
}

int64_t arch_window(const struct model_config *config, int64_t layer)
{
    return layer >= config->sliding_from_layer ? config->sliding_window : 0;
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
