/* The rows of families with fused linears, or without a gate. */

#include "models/families/families.h"

#include <stddef.h>

const struct arch arch_phi3 = {
    .name = "Phi3ForCausalLM",
    .model_type = "phi3",
    .plan = family_phi3_plan,
    LLAMA_NAMES,
    .partial_rope = true,
    .activations = ACTIVATIONS_PLAIN,
    .window = WINDOW_ALL,
    .default_max_position = 4096,
    .default_norm_eps = 1e-5,
};

static const struct arch_alias gpt_neox_aliases[] = {
    {"rotary_pct", "partial_rotary_factor"}, {"rotary_emb_base", "rope_theta"}, {NULL, NULL}};

const struct arch arch_gpt_neox = {
    .name = "GPTNeoXForCausalLM",
    .model_type = "gpt_neox",
    .plan = family_gpt_neox_plan,
    .layers = "gpt_neox.layers.",
    .attention = "attention",
    .embedding = "gpt_neox.embed_in",
    .norm = "gpt_neox.final_layer_norm",
    .head = "embed_out",
    .loaded = {"embed_out", "lm_head"},
    .masks = {"attention.bias", "attention.masked_bias"},
    .aliases = gpt_neox_aliases,
    .configure = family_gpt_neox_configure,
    .layer_norms = true,
    .norm_biases = true,
    .partial_rope = true,
    .default_activation = ACTIVATION_GELU,
    .activations = ACTIVATIONS_PLAIN,
    .eps_member = "layer_norm_eps",
    .window = WINDOW_NEVER,
    .default_max_position = 2048,
    .default_norm_eps = 1e-5,
    .default_partial = 0.25,
};

static const struct arch_alias falcon_aliases[] = {
    {"n_embed", "hidden_size"}, {"ffn_hidden_size", "intermediate_size"}, {NULL, NULL}};

const struct arch arch_falcon = {
    .name = "FalconForCausalLM",
    .model_type = "falcon",
    .plan = family_falcon_plan,
    .layers = "transformer.h.",
    .attention = "self_attention",
    .embedding = "transformer.word_embeddings",
    .norm = "transformer.ln_f",
    .head = "lm_head",
    .aliases = falcon_aliases,
    .configure = family_falcon_configure,
    .own_linears = true,
    .layer_norms = true,
    .norm_biases = true,
    .tied = true,
    .default_activation = ACTIVATION_GELU,
    .activations = ACTIVATIONS_PLAIN,
    .activation_member = "activation",
    .eps_member = "layer_norm_epsilon",
    .window = WINDOW_NEVER,
    .default_mlp = 4,
    .default_max_position = 2048,
    .default_norm_eps = 1e-5,
};

static const struct arch_alias gpt2_aliases[] = {
    {"n_embd", "hidden_size"},         {"n_layer", "num_hidden_layers"},
    {"n_head", "num_attention_heads"}, {"n_positions", "max_position_embeddings"},
    {"n_inner", "intermediate_size"},  {NULL, NULL}};

const struct arch arch_gpt2 = {
    .name = "GPT2LMHeadModel",
    .model_type = "gpt2",
    .plan = family_gpt2_plan,
    .layers = "transformer.h.",
    .attention = "attn",
    .embedding = "transformer.wte",
    .norm = "transformer.ln_f",
    .head = "lm_head",
    .positions = "transformer.wpe",
    .prefix = "transformer.",
    .masks = {"attn.bias", "attn.masked_bias"},
    .aliases = gpt2_aliases,
    .configure = family_gpt2_configure,
    .layer_norms = true,
    .norm_biases = true,
    .no_rope = true,
    .tied = true,
    .default_activation = ACTIVATION_GELU_TANH,
    .activations = ACTIVATIONS_PLAIN,
    .activation_member = "activation_function",
    .eps_member = "layer_norm_epsilon",
    .window = WINDOW_NEVER,
    .default_mlp = 4,
    .default_max_position = 1024,
    .default_norm_eps = 1e-5,
};

const struct arch arch_glm4 = {
    .name = "Glm4ForCausalLM",
    .model_type = "glm4",
    .plan = family_glm4_plan,
    LLAMA_NAMES,
    .attention_bias = true,
    .biased = true,
    .o_unbiased = true,
    .partial_rope = true,
    .rope_neighbours = true,
    .window = WINDOW_NEVER,
    .default_kv_heads = 2,
    .default_head_dim = 128,
    .default_max_position = 131072,
    .default_partial = 0.5,
    .default_norm_eps = 1.5625e-7,
};
