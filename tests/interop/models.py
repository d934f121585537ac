"""Tiny random checkpoints of every architecture, made with transformers and saved as it saves them."""

import json

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 64, "vocab_size": 320, "max_position_embeddings": 256, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}

# Each row bends what its family can bend: rotary scaling, a window, biases, tied embeddings, q and k norms.
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3}),
    "llama-bias": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True,
                                                   "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True, "head_dim": 32}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}


def make(name, folder, dtype=torch.bfloat16):
    """Saves one with every norm, bias and weight random; returns the folder."""
    config_class, model_class, extra = ARCHITECTURES[name]
    torch.manual_seed(len(name))
    model = model_class(config_class(**{**SHAPE, **extra}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.uniform_(0.5, 1.5)
            elif key.endswith("bias"):
                parameter.normal_(0, 0.2)
    model.to(dtype).save_pretrained(folder)
    return folder


def write_tokens(path, records=32, length=64, seed=1):
    """Random records; returns them as a tensor."""
    ids = torch.randint(0, SHAPE["vocab_size"], (records, length), generator=torch.Generator().manual_seed(seed))
    path.write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in ids))
    return ids
