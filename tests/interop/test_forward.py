"""Logits of tiny random models: quantd's float forward against transformers, in fp32."""

import json
import os
import pathlib
import subprocess

import numpy
import pytest
import safetensors.torch
import torch
import transformers

SEQUENCES = 2
LENGTH = 48
TOLERANCE = 1e-4  # largest difference over largest logit
FOLDED = 5e-5  # likewise, of logits before and after factors were moved; a norm of 1 + w rounds them

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}


def llama(**more):
    return transformers.LlamaConfig(**{**SHAPE, **more})


def mistral(**more):
    return transformers.MistralConfig(**{**SHAPE, "sliding_window": 11, **more})


def qwen2(**more):
    return transformers.Qwen2Config(**{**SHAPE, "tie_word_embeddings": True, **more})


def qwen3(**more):
    return transformers.Qwen3Config(**{**SHAPE, "head_dim": 24, **more})


def mixtral(**more):
    return transformers.MixtralConfig(**{**SHAPE, "num_local_experts": 8, "num_experts_per_tok": 2, **more})


def qwen3_moe(**more):
    return transformers.Qwen3MoeConfig(**{**SHAPE, "head_dim": 24, "num_experts": 8, "num_experts_per_tok": 2,
                                          "moe_intermediate_size": 40, **more})


def qwen2_moe(**more):
    return transformers.Qwen2MoeConfig(**{**SHAPE, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
                                          "shared_expert_intermediate_size": 72, **more})


LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20,
          "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}


def deepseek_v2(**more):
    return transformers.DeepseekV2Config(**{**SHAPE, **LATENT, "n_shared_experts": 2, "first_k_dense_replace": 1,
                                            "routed_scaling_factor": 1.5, **more})


def deepseek_v3(**more):
    return transformers.DeepseekV3Config(**{**SHAPE, **LATENT, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, **more})


def glm4_moe_lite(**more):
    return transformers.Glm4MoeLiteConfig(**{**SHAPE, **LATENT, **more})


def glm4_moe(**more):
    return transformers.Glm4MoeConfig(**{**SHAPE, "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2,
                                         "moe_intermediate_size": 40, **more})


def dots1(**more):
    return transformers.Dots1Config(**{**SHAPE, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
                                       "n_shared_experts": 2, "first_k_dense_replace": 1, "sliding_window": None, **more})


def flex_olmo(**more):
    return transformers.FlexOlmoConfig(**{**SHAPE, "num_experts": 6, "num_experts_per_tok": 3, "pad_token_id": None, **more})


def gpt_oss(**more):
    return transformers.GptOssConfig(**{**SHAPE, "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40,
                                        "sliding_window": 11, **more})


def granite_moe(**more):
    return transformers.GraniteMoeConfig(**{**SHAPE, "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40, **more})


def ernie_moe(**more):
    return transformers.Ernie4_5_MoeConfig(**{**SHAPE, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 40, **more})


def olmoe(**more):
    return transformers.OlmoeConfig(**{**SHAPE, "num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40, **more})


def olmo2(**more):
    return transformers.Olmo2Config(**{**SHAPE, **more})


def smollm3(**more):
    return transformers.SmolLM3Config(**{**SHAPE, "num_hidden_layers": 4, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, **more})


def granite(**more):
    return transformers.GraniteConfig(**{**SHAPE, "embedding_multiplier": 3.5, "residual_multiplier": 0.3, "attention_multiplier": 0.2,
                                         "logits_scaling": 4.0, **more})


def ministral(**more):
    return transformers.MinistralConfig(**{**SHAPE, "sliding_window": 11, "head_dim": 16, **more})


def ministral3(**more):
    return transformers.Ministral3Config(**{**SHAPE, "head_dim": 24, "pad_token_id": 0, **more})


def olmo3(**more):
    return transformers.Olmo3Config(**{**SHAPE, "num_hidden_layers": 4, "sliding_window": 11, **more})


def exaone4(**more):
    return transformers.Exaone4Config(**{**SHAPE, "head_dim": 24, "num_hidden_layers": 4, "sliding_window": 11, **more})


def phi3(**more):
    return transformers.Phi3Config(**{**SHAPE, "pad_token_id": 0, **more})


def glm4(**more):
    return transformers.Glm4Config(**{**SHAPE, "head_dim": 24, "pad_token_id": 0, "eos_token_id": [0], **more})


def gpt_neox(**more):
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    return transformers.GPTNeoXConfig(**{**shape, **more})


def falcon(**more):
    shape = {key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "intermediate_size")}
    return transformers.FalconConfig(**{**shape, **more})


def gpt2(**more):
    return transformers.GPT2Config(vocab_size=SHAPE["vocab_size"], n_embd=64, n_layer=3, n_head=4, n_positions=96, **more)


def opt(**more):
    shape = {key: value for key, value in SHAPE.items()
             if key not in ("num_key_value_heads", "intermediate_size", "initializer_range")}
    return transformers.OPTConfig(**{**shape, "ffn_dim": 176, "init_std": 0.15, **more})


def starcoder2(**more):
    return transformers.Starcoder2Config(**{**SHAPE, **more})


def phi(**more):
    return transformers.PhiConfig(**{**SHAPE, **more})


def nemotron(**more):
    return transformers.NemotronConfig(**{**SHAPE, **more})


DELTA = {"linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "head_dim": 32, "num_hidden_layers": 4}
SPARSE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56}


def qwen3_next(**more):
    return transformers.Qwen3NextConfig(**{**SHAPE, **DELTA, **SPARSE, **more})


def qwen3_5(**more):
    return transformers.Qwen3_5TextConfig(**{**SHAPE, **DELTA, **more})


def qwen3_5_moe(**more):
    return transformers.Qwen3_5MoeTextConfig(**{**SHAPE, **DELTA, **SPARSE, **more})


def nemotron_h(**more):
    shape = {key: value for key, value in SHAPE.items() if key != "num_hidden_layers"}
    return transformers.NemotronHConfig(**{**shape, "head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8,
                                           "mamba_head_dim": 12, "n_groups": 2, "n_routed_experts": 8,
                                           "layers_block_type": ["linear_attention", "full_attention", "mlp",
                                                                 "linear_attention"],
                                           "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 40,
                                           **more})


def granite_hybrid(**more):
    return transformers.GraniteMoeHybridConfig(**{
        **SHAPE, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "mamba_n_heads": 8,
        "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_expand": 2, "num_local_experts": 0,
        "shared_intermediate_size": 96, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
        "attention_multiplier": 0.2, **more})


def gemma2(**more):
    return transformers.Gemma2Config(**{**SHAPE, "head_dim": 24, "sliding_window": 11, "query_pre_attn_scalar": 40,
                                        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0, **more})


def gemma3(**more):
    return transformers.Gemma3TextConfig(**{**SHAPE, "head_dim": 24, "sliding_window": 11, "num_hidden_layers": 7,
                                            "query_pre_attn_scalar": 40, **more})


def gemma4(**more):
    return transformers.Gemma4TextConfig(**{**SHAPE, "head_dim": 24, "global_head_dim": 40, "sliding_window": 11, "num_hidden_layers": 7,
                                            "hidden_size_per_layer_input": 0, **more})


def cohere2(**more):
    return transformers.Cohere2Config(**{**SHAPE, "num_hidden_layers": 4, "sliding_window": 11, "logit_scale": 0.7, **more})


def llama4(**more):
    """Chunks that sequences exceed, and queries that grow often and much."""
    return transformers.Llama4TextConfig(**{**SHAPE, "num_hidden_layers": 4, "head_dim": 24, "intermediate_size": 40,
                                            "intermediate_size_mlp": 176, "num_local_experts": 6, "interleave_moe_layer_step": 2,
                                            "attention_chunk_size": 11, "floor_scale": 7, "attn_scale": 0.4, **more})


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500000.0}

DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1 + i / 9 for i in range(8)],
            "long_factor": [1 + i * 2.5 for i in range(8)], "original_max_position_embeddings": 32}
GROWING = {**YARN, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
WINDOWS = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 32,
        "beta_slow": 1, "original_max_position_embeddings": 32}
# Keys and values of earlier layers, and inputs of each layer, without which transformers cannot run such layers.
SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 3, "num_hidden_layers": 6, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
          "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 170}
CASES = {
    "llama": (llama, {}),
    "llama-all-heads": (llama, {"num_key_value_heads": 4, "rope_theta": 5000.0}),
    "llama-biases": (llama, {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": (llama, {"tie_word_embeddings": True}),
    "llama-rope-llama3": (llama, {"rope_parameters": LLAMA3}),
    "llama-rope-linear": (llama, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-rope-dynamic": (llama, {"rope_parameters": DYNAMIC, "max_position_embeddings": 24}),
    "llama-rope-dynamic-short": (llama, {"rope_parameters": DYNAMIC}),
    "llama-rope-yarn": (llama, {"rope_parameters": YARN}),
    "llama-rope-yarn-all": (llama, {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.2,
                                                        "truncate": False}}),
    "llama-rope-yarn-factor": (llama, {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "llama-rope-longrope": (llama, {"rope_parameters": LONGROPE}),
    "llama-rope-longrope-short": (llama, {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 64, "factor": 2.0}}),
    "mistral-window": (mistral, {}),
    "mistral-no-window": (mistral, {"sliding_window": None, "head_dim": 32}),
    "qwen2": (qwen2, {}),
    "qwen2-window": (qwen2, {"tie_word_embeddings": False, "use_sliding_window": True, "sliding_window": 9,
                             "max_window_layers": 1}),
    "qwen3": (qwen3, {}),
    "qwen3-window": (qwen3, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2,
                             "attention_bias": True}),
    "mixtral": (mixtral, {}),
    "mixtral-window": (mixtral, {"sliding_window": 11, "num_experts_per_tok": 3, "num_local_experts": 5}),
    "qwen3-moe": (qwen3_moe, {"norm_topk_prob": True}),
    "qwen3-moe-scores": (qwen3_moe, {"num_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 16}),
    "qwen3-moe-sparse": (qwen3_moe, {"decoder_sparse_step": 2, "num_hidden_layers": 4, "mlp_only_layers": [3]}),
    "qwen2-moe": (qwen2_moe, {}),
    "qwen2-moe-sparse": (qwen2_moe, {"norm_topk_prob": True, "decoder_sparse_step": 2, "num_hidden_layers": 4,
                                     "mlp_only_layers": [3]}),
    "deepseek-v2": (deepseek_v2, {}),
    "deepseek-v2-groups": (deepseek_v2, {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
                                         "attention_bias": True}),
    "deepseek-v2-lite": (deepseek_v2, {"q_lora_rank": None, "n_routed_experts": 6, "n_shared_experts": 1}),
    "deepseek-v3": (deepseek_v3, {}),
    "deepseek-v3-halves": (deepseek_v3, {"rope_interleave": False, "norm_topk_prob": False, "q_lora_rank": None,
                                         "attention_bias": True, "first_k_dense_replace": 0}),
    "glm4-moe-lite": (glm4_moe_lite, {}),
    "glm4-moe-lite-types": (glm4_moe_lite, {"mlp_layer_types": ["sparse", "dense", "sparse"], "n_shared_experts": 2}),
    "glm4-moe": (glm4_moe, {"attention_bias": True}),
    "glm4-moe-norms": (glm4_moe, {"use_qk_norm": True, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 0}),
    "deepseek-v3-yarn": (deepseek_v3, {"rope_parameters": YARN}),
    "deepseek-v2-yarn": (deepseek_v2, {"rope_parameters": YARN}),
    "dots1": (dots1, {}),
    "dots1-biases": (dots1, {"attention_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 2, "topk_group": 1}),
    "flex-olmo": (flex_olmo, {}),
    "gpt-oss": (gpt_oss, {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "gpt-oss-yarn": (gpt_oss, {"num_hidden_layers": 2}),
    "granite-moe": (granite_moe, {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
                                  "logits_scaling": 2.0}),
    "granite-moe-biases": (granite_moe, {"attention_bias": True, "tie_word_embeddings": True}),
    "llama4": (llama4, {}),
    "llama4-lists": (llama4, {"no_rope_layers": [0, 1, 0, 1], "moe_layers": [0, 1], "use_qk_norm": False, "num_experts_per_tok": 3,
                              "attention_bias": True, "tie_word_embeddings": True,
                              "rope_parameters": {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0}}),
    "llama4-dense": (llama4, {"moe_layers": [], "attention_chunk_size": None, "attn_temperature_tuning": False, "no_rope_layer_interval": 2}),
    "ernie-moe": (ernie_moe, {}),
    "ernie-moe-span": (ernie_moe, {"moe_layer_start_index": 0, "moe_layer_end_index": 2, "moe_layer_interval": 2,
                                   "num_hidden_layers": 4, "moe_num_shared_experts": 0, "tie_word_embeddings": False}),
    "olmoe": (olmoe, {}),
    "olmoe-normalized": (olmoe, {"norm_topk_prob": True, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "olmo2": (olmo2, {}),
    "olmo2-all-heads": (olmo2, {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-layers": (qwen3, {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 4, "layer_types": WINDOWS}),
    "smollm3": (smollm3, {}),
    "smollm3-layers": (smollm3, {"no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 9, "attention_bias": True,
                                 "tie_word_embeddings": False}),
    "granite": (granite, {}),
    "granite-tied": (granite, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "ministral": (ministral, {"num_hidden_layers": 4, "layer_types": WINDOWS}),
    "ministral3": (ministral3, {"rope_parameters": GROWING}),
    "ministral3-window": (ministral3, {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
                                       "sliding_window": 13}),
    "olmo3": (olmo3, {}),
    "olmo3-layers": (olmo3, {"layer_types": WINDOWS, "rope_parameters": {
        "full_attention": {**YARN, "attention_factor": 1.2}, "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0}}}),
    "exaone4": (exaone4, {}),
    "exaone4-layers": (exaone4, {"layer_types": WINDOWS, "sliding_window_pattern": "LG", "rope_parameters": LLAMA3}),
    "exaone4-no-window": (exaone4, {"layer_types": ["full_attention"] * 4, "sliding_window": None, "tie_word_embeddings": True}),
    "phi3": (phi3, {}),
    "phi3-window": (phi3, {"sliding_window": 11, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "phi3-partial": (phi3, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}),
    "glm4": (glm4, {}),
    "glm4-unbiased": (glm4, {"attention_bias": False, "num_key_value_heads": 4}),
    "gpt-neox": (gpt_neox, {}),
    "gpt-neox-serial": (gpt_neox, {"use_parallel_residual": False, "hidden_act": "gelu_fast", "attention_bias": False,
                                   "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0,
                                                       "partial_rotary_factor": 1.0}}),
    "falcon": (falcon, {}),
    "falcon-groups": (falcon, {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True,
                               "tie_word_embeddings": False}),
    "falcon-groups-one-norm": (falcon, {"new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1}),
    "falcon-serial": (falcon, {"parallel_attn": False, "multi_query": False, "ffn_hidden_size": 96}),
    "gpt2": (gpt2, {}),
    "gpt2-own-head": (gpt2, {"n_inner": 144, "activation_function": "relu", "tie_word_embeddings": False}),
    "opt": (opt, {}),
    "opt-no-biases": (opt, {"enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False}),
    "starcoder2": (starcoder2, {}),
    "starcoder2-window": (starcoder2, {"sliding_window": 11, "use_bias": False, "tie_word_embeddings": False,
                                       "hidden_act": "gelu"}),
    "phi": (phi, {}),
    "phi-all-heads": (phi, {"num_key_value_heads": 4, "hidden_act": "relu",
                            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0,
                                                "partial_rotary_factor": 0.25}}),
    "nemotron": (nemotron, {}),
    "nemotron-biases": (nemotron, {"attention_bias": True, "mlp_bias": True, "head_dim": 24,
                                   "tie_word_embeddings": True,
                                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                       "partial_rotary_factor": 0.75}}),
    "gemma2": (gemma2, {}),
    "gemma2-no-caps": (gemma2, {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True}),
    "gemma3": (gemma3, {}),
    "gemma3-tables": (gemma3, {"layer_types": WINDOWS, "num_hidden_layers": 4, "tie_word_embeddings": False, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "gemma4": (gemma4, {}),
    "gemma4-one": (gemma4, {"layer_types": WINDOWS[::-1], "num_hidden_layers": 4, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                            "attention_bias": True, "tie_word_embeddings": False, "final_logit_softcapping": 9.0, "rope_parameters": {
                                "full_attention": {"rope_type": "proportional", "rope_theta": 2e5, "partial_rotary_factor": 0.6, "factor": 2.0},
                                "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0}}}),
    "gemma4-shared": (gemma4, SHARED),
    "gemma4-moe": (gemma4, {"num_hidden_layers": 3, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3,
                            "moe_intermediate_size": 40}),
    "cohere2": (cohere2, {}),
    "cohere2-layers": (cohere2, {"layer_types": WINDOWS, "attention_bias": True, "tie_word_embeddings": False}),
    "qwen3-moe-one": (qwen3_moe, {"num_experts": 1, "num_experts_per_tok": 1}),
    "qwen3-next": (qwen3_next, {}),
    "qwen3-next-dense": (qwen3_next, {"mlp_only_layers": [1, 3], "norm_topk_prob": False, "attention_bias": True,
                                      "linear_num_key_heads": 4, "tie_word_embeddings": True}),
    "qwen3.5": (qwen3_5, {}),
    "qwen3.5-moe": (qwen3_5_moe, {}),
    "nemotron-h": (nemotron_h, {}),
    "nemotron-h-biases": (nemotron_h, {"mlp_bias": True, "use_bias": True, "use_conv_bias": False, "time_step_min": 0.9}),
    "nemotron-h-moe": (nemotron_h, {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
                                    "routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2,
                                    "num_experts_per_tok": 3}),
    "nemotron-h-latent": (nemotron_h, {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
                                       "routed_scaling_factor": 2.5, "num_experts_per_tok": 3, "moe_latent_size": 32}),
    "nemotron-h-latent-wide": (nemotron_h, {"layers_block_type": ["moe", "linear_attention", "full_attention"], "n_group": 4, "topk_group": 2,
                                            "norm_topk_prob": False, "moe_latent_size": 72}),
    "granite-hybrid": (granite_hybrid, {}),
    "granite-hybrid-moe": (granite_hybrid, {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40}),
    "granite-hybrid-rope": (granite_hybrid, {"position_embedding_type": "rope", "time_step_limit": [0.3, 0.8]}),
}


def make(config, seed=1):
    """A model whose norms and biases are not the ones and zeros that would hide a mistake."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    return disturb(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def disturb(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
                if model.config.get_text_config().model_type == "gemma4_text" and name.endswith("q_norm.weight"):
                    parameter.mul_(0.2)  # as scores are not scaled, attention would see one token, and magnify rounding
            elif name.endswith(".gate.weight"):  # a router, which some families leave at zero
                parameter.normal_(0, 0.3)
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.randn_like(tensor) * 0.2)
            elif name.endswith("layer_scalar"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model.eval()


def reference(directory, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32,
                                                              attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids.astype(numpy.int64))).logits.numpy().reshape(-1, SHAPE["vocab_size"])


def tool():
    return pathlib.Path(os.environ.get("QUANTD_BUILD_DIR", "build")) / "tests" / "tools" / "quantd-forward"


def forward(directory, ids, folder):
    ids_file, out_file = folder / "ids.bin", folder / "logits.bin"
    ids.astype("<i4").tofile(ids_file)
    subprocess.run([tool(), directory, ids_file, str(ids.shape[0]), str(ids.shape[1]), out_file], check=True)
    return numpy.fromfile(out_file, "<f4").reshape(-1, SHAPE["vocab_size"])


def folds(directory, ids, folder, logits):
    """How many groups of linears have a fold; with factors moved by all of them, routers' inputs included, logits stay as they are."""
    ids_file, out_file = folder / "ids.bin", folder / "folded.bin"
    ids.astype("<i4").tofile(ids_file)
    done = subprocess.run([tool(), directory, ids_file, str(ids.shape[0]), str(ids.shape[1]), out_file, "fold"], check=True, stdout=subprocess.PIPE)
    found = numpy.fromfile(out_file, "<f4").reshape(logits.shape)
    assert numpy.abs(found - logits).max() / numpy.abs(logits).max() < FOLDED
    return int(done.stdout)


def compare(directory, folder):
    ids = numpy.random.default_rng(7).integers(0, SHAPE["vocab_size"], (SEQUENCES, LENGTH), dtype=numpy.int32)
    wanted, found = reference(directory, ids), forward(directory, ids, folder)
    assert numpy.isfinite(found).all()
    assert numpy.abs(found - wanted).max() / numpy.abs(wanted).max() < TOLERANCE
    return folds(directory, ids, folder, found)


@pytest.mark.parametrize("case", CASES)
def test_family(case, tmp_path):
    build, more = CASES[case]
    make(build(**more)).save_pretrained(tmp_path / "model")
    count = compare(tmp_path / "model", tmp_path)
    print(f"{case}: {count} folds")
    assert count > 0


@pytest.mark.parametrize("build", [llama, qwen3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(build, dtype, tmp_path):
    make(build()).to(dtype).save_pretrained(tmp_path / "model")
    compare(tmp_path / "model", tmp_path)


# Families whose experts transformers also saves as it has them: a layer's in two tensors.
UNCONVERTED = (qwen3_moe, qwen2_moe, olmoe, deepseek_v2, deepseek_v3, glm4_moe, glm4_moe_lite, dots1, flex_olmo, qwen3_next, qwen3_5_moe)


@pytest.mark.parametrize("build", UNCONVERTED)
def test_unconverted(build, tmp_path):
    """The same logits, to the bit, from both forms."""
    ids = numpy.random.default_rng(7).integers(0, SHAPE["vocab_size"], (SEQUENCES, LENGTH), dtype=numpy.int32)
    model, found = make(build()), []
    for form in ("apart", "stacked"):
        model.save_pretrained(tmp_path / form, save_original_format=form == "apart")
        names = list(safetensors.torch.load_file(tmp_path / form / "model.safetensors"))
        assert any(name.endswith(".experts.gate_up_proj") for name in names) == (form == "stacked")
        assert any(name.endswith(".experts.0.up_proj.weight") for name in names) == (form == "apart")
        found.append(forward(tmp_path / form, ids, tmp_path))
    assert numpy.array_equal(*found)


@pytest.mark.parametrize("build, missing", [(mixtral, "model.layers.0.block_sparse_moe.gate.weight"),
                                            (ernie_moe, "model.layers.1.mlp.experts.0.gate_proj.weight"),
                                            (granite_moe, "model.layers.0.block_sparse_moe.router.layer.weight"),
                                            (nemotron_h, "backbone.embeddings.weight")])
def test_unconverted_names(build, missing, tmp_path):
    """Where the module tree has other names than the checkpoints."""
    make(build()).save_pretrained(tmp_path, save_original_format=False)
    numpy.zeros(1, "<i4").tofile(tmp_path / "ids.bin")
    done = subprocess.run([tool(), tmp_path, tmp_path / "ids.bin", "1", "1", tmp_path / "logits.bin"], capture_output=True, text=True)
    assert done.returncode != 0 and f"{missing} is missing" in done.stderr


def test_unread(tmp_path):
    """Linears that layers would have without the keys and values that they take."""
    make(gemma4(**SHARED)).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name in ("k_proj", "v_proj", "k_norm"):
        tensors[f"model.layers.5.self_attn.{name}.weight"] = tensors[f"model.layers.1.self_attn.{name}.weight"] + 1
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    compare(tmp_path / "model", tmp_path)


def test_shards(tmp_path):
    make(llama()).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    compare(tmp_path / "model", tmp_path)


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def mistral3_composite():
    text = {**SHAPE, "intermediate_size": 192, "model_type": "mistral", "head_dim": 16, "sliding_window": 11}
    return transformers.Mistral3Config(text_config=text, vision_config={**VISION, "model_type": "pixtral"}, tie_word_embeddings=False)


def llava():
    return transformers.LlavaConfig(text_config={**SHAPE, "intermediate_size": 192, "model_type": "qwen2"}, vision_config={**VISION, "model_type": "clip_vision_model"})


def qwen3_5_composite():
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": SHAPE["hidden_size"],
              "num_position_embeddings": 16, "patch_size": 4}
    return transformers.Qwen3_5Config(text_config={**SHAPE, **DELTA}, vision_config=vision, tie_word_embeddings=False, image_token_id=1,
                                      video_token_id=2, vision_start_token_id=3, vision_end_token_id=4)


def gemma3_composite():
    text = {**SHAPE, "intermediate_size": 192, "model_type": "gemma3_text", "head_dim": 24, "sliding_window": 11, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.Gemma3Config(text_config=text, vision_config={**VISION, "model_type": "siglip_vision_model"},
                                     image_token_index=3, boi_token_index=4, eoi_token_index=5)


def llama4_composite(**more):
    text = llama4(**{"intermediate_size": 64, "intermediate_size_mlp": 128, "head_dim": 32, **more})
    vision = {**VISION, "vision_output_dim": 48, "projector_input_dim": 48, "projector_output_dim": 48}
    return transformers.Llama4Config(text_config=text.to_dict(), vision_config=vision, image_token_index=3, boi_token_index=4, eoi_token_index=5)


def gemma4_composite():
    text = {**SHAPE, "intermediate_size": 192, "head_dim": 24, "global_head_dim": 40, "sliding_window": 11, "attention_k_eq_v": True,
            "num_hidden_layers": 4, "layer_types": WINDOWS[::-1], "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 160, "use_bidirectional_attention": "vision"}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
              "head_dim": 16, "patch_size": 4, "position_embedding_size": 16}
    return transformers.Gemma4Config(text_config=text, vision_config=vision, image_token_id=3, video_token_id=4, audio_token_id=5)


# Llama 4's composite class reads this member of its language model's output, which transformers 5.24 does not give it.
transformers.modeling_outputs.MoeCausalLMOutputWithPast.image_outputs = None
COMPOSITES = {"gemma3-images": (gemma3_composite, transformers.Gemma3ForConditionalGeneration),
              "gemma4-images": (gemma4_composite, transformers.Gemma4ForConditionalGeneration),
              "llama4": (llama4_composite, transformers.Llama4ForConditionalGeneration),
              "mistral3": (mistral3_composite, transformers.Mistral3ForConditionalGeneration),
              "qwen3.5": (qwen3_5_composite, transformers.Qwen3_5ForConditionalGeneration),
              "llava": (llava, transformers.LlavaForConditionalGeneration)}


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("case", COMPOSITES)
def test_composite(case, new, tmp_path):
    """The language model of a checkpoint that has a tower, too, with names as it is saved, or those of the module tree."""
    build, model_class = COMPOSITES[case]
    model = make_composite(build(), model_class, tmp_path / "model", new)
    compare_composite(model, tmp_path)


def make_composite(config, model_class, folder, new=False):
    config._attn_implementation = config._experts_implementation = "eager"  # the only one of experts in double precision
    torch.manual_seed(1)
    model = disturb(model_class(config))
    model.save_pretrained(folder)
    if new:
        (folder / "model.safetensors").unlink()
        safetensors.torch.save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return model


def conditioning(model, tokens, wanted):
    """What the logits of a model in double precision move by when its weights are rounded to FP32 at random: as far as any forward in FP32 may."""
    exact = {name: parameter.clone() for name, parameter in model.named_parameters()}
    moved = 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
            parameter.copy_(exact[name] * (1 + noise * 2.0**-24))
        moved = max(moved, numpy.abs(model(tokens).logits.numpy().reshape(wanted.shape) - wanted).max())
    return moved


def compare_composite(model, tmp_path):
    ids = numpy.random.default_rng(7).integers(11, SHAPE["vocab_size"], (SEQUENCES, LENGTH), dtype=numpy.int32)
    tokens = torch.from_numpy(ids.astype(numpy.int64))
    with torch.no_grad():
        wanted = model.double()(tokens).logits.numpy().reshape(-1, SHAPE["vocab_size"])
        # A random model may magnify rounding, by how much depends on torch's random numbers, which depend on the processor.
        rounding = conditioning(model, tokens, wanted)
    found = forward(tmp_path / "model", ids, tmp_path)
    assert numpy.abs(found - wanted).max() < max(TOLERANCE * numpy.abs(wanted).max(), 2 * rounding)


@pytest.mark.parametrize("build, prefix, masks", [
    (gpt2, "transformer.", {"attn.bias": torch.ones(1, 1, 96, 96).tril(), "attn.masked_bias": torch.tensor(-1e4)}),
    (gpt_neox, "", {"attention.bias": torch.ones(1, 1, 96, 96).tril().bool(), "attention.masked_bias": torch.tensor(-1e9)})])
def test_as_published(build, prefix, masks, tmp_path):
    """Names without the prefix of the class, and the causal masks that old exports keep."""
    make(build()).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    layers = "transformer.h.%d." if build is gpt2 else "gpt_neox.layers.%d."
    tensors.update({layers % layer + name: mask.clone() for layer in range(3) for name, mask in masks.items()})
    safetensors.torch.save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    compare(tmp_path / "model", tmp_path)


def rewrite_config(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("scaling", [
    None,
    {"type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
])
def test_rope_as_older_files_word_it(scaling, tmp_path):
    """rope_theta and rope_scaling at the top level, as transformers 4 wrote them."""
    make(llama()).save_pretrained(tmp_path / "model")

    def change(config):
        config.pop("rope_parameters", None)
        config["rope_theta"] = 20000.0
        config["rope_scaling"] = scaling

    rewrite_config(tmp_path / "model", change)
    compare(tmp_path / "model", tmp_path)


@pytest.mark.parametrize("change, code, word", [
    (lambda c: c.update(architectures=["BertLMHeadModel"]), "unsupported_architecture", "BertLMHeadModel"),
    (lambda c: c.update(hidden_act="gelu"), "unsupported_architecture", "gelu"),
    (lambda c: c.update(rope_parameters={"rope_type": "yarn", "factor": 4.0}), "invalid_model", "yarn"),
    (lambda c: c.update(quantization_config={"quant_method": "gptq"}), "already_quantized", "gptq"),
    (lambda c: c.update(num_hidden_layers=2), "invalid_model", "model.layers.2"),
    (lambda c: c.update(intermediate_size=180), "invalid_model", "[180, 64]"),
    (lambda c: c.update(hidden_size=-64), "invalid_model", "hidden_size"),
])
def test_refused(change, code, word, tmp_path):
    make(llama()).save_pretrained(tmp_path / "model")
    rewrite_config(tmp_path / "model", change)
    (tmp_path / "ids").write_bytes(bytes(16))
    run = subprocess.run([tool(), tmp_path / "model", tmp_path / "ids", "1", "4", tmp_path / "out"],
                         capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith(code + ": ") and word in run.stderr
