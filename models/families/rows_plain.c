/* The rows of families with layer norms, and linears that are stored by themselves: see arch.c. */

#include "models/families/families.h"

#include <stddef.h>

static const struct arch_alias opt_aliases[] = {{"ffn_dim", "intermediate_size"}, {NULL, NULL}};

const struct arch arch_opt = {
    .name = "OPTForCausalLM",
    .model_type = "opt",
    .plan = family_opt_plan,
    .layers = "model.decoder.layers.",
    .attention = "self_attn",
    .embedding = "model.decoder.embed_tokens",
    .norm = "model.decoder.final_layer_norm",
    .head = "lm_head",
    .positions = "model.decoder.embed_positions",
    .position_row = 2,
    .aliases = opt_aliases,
    .configure = family_opt_configure,
    .layer_norms = true,
    .norm_biases = true,
    .no_rope = true,
    .tied = true,
    .default_activation = ACTIVATION_RELU,
    .activations = ACTIVATIONS_PLAIN,
    .activation_member = "activation_function",
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
    .default_norm_eps = 1e-5,
};

const struct arch arch_starcoder2 = {
    .name = "Starcoder2ForCausalLM",
    .model_type = "starcoder2",
    .plan = family_starcoder2_plan,
    LLAMA_NAMES,
    .configure = family_starcoder2_configure,
    .layer_norms = true,
    .norm_biases = true,
    .tied = true,
    .default_activation = ACTIVATION_GELU_TANH,
    .activations = ACTIVATIONS_PLAIN,
    .eps_member = "norm_epsilon",
    .window = WINDOW_ALL,
    .default_kv_heads = 2,
    .default_max_position = 4096,
    .default_norm_eps = 1e-5,
};

const struct arch arch_phi = {
    .name = "PhiForCausalLM",
    .model_type = "phi",
    .plan = family_phi_plan,
    .layers = "model.layers.",
    .attention = "self_attn",
    .embedding = "model.embed_tokens",
    .norm = "model.final_layernorm",
    .head = "lm_head",
    .head_bias = true,
    .configure = family_phi_configure,
    .layer_norms = true,
    .norm_biases = true,
    .partial_rope = true,
    .default_activation = ACTIVATION_GELU_TANH,
    .activations = ACTIVATIONS_PLAIN,
    .eps_member = "layer_norm_eps",
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
    .default_partial = 0.5,
    .default_norm_eps = 1e-5,
};

const struct arch arch_nemotron = {
    .name = "NemotronForCausalLM",
    .model_type = "nemotron",
    .plan = family_nemotron_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .mlp_bias = true,
    .layer_norms = true,
    .norm_biases = true,
    .unit_offset = true,
    .partial_rope = true,
    .default_activation = ACTIVATION_RELU2,
    .activations = ACTIVATIONS_PLAIN,
    .eps_member = "norm_eps",
    .window = WINDOW_NEVER,
    .default_max_position = 4096,
    .default_partial = 0.5,
    .default_norm_eps = 1e-5,
};
