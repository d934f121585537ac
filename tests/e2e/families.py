"""Small checkpoints of some architectures (rows.py has all), made from a seed with integer arithmetic alone, so that each machine writes the same bytes.

Each one bends what its family can bend: rotary scaling, biases, a window, tied embeddings, norms of q and k, shards, the source's type.
Weights are sums of random bytes, about normal; a few channels of the norms are large, so that inputs have outliers.
"""

import array
import json
import os
import random
import struct

from checkpoint import count, write_safetensors

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 320, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
VOCABULARY = SHAPE["vocab_size"]

# name: (type of the source, files, what config.json has in addition to the shape)
FAMILIES = {
    "llama": ("bfloat16", 1, {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000.0, "rope_scaling": LLAMA3}),
    "llama-bias": ("float16", 1, {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000.0,
                                  "attention_bias": True, "mlp_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("bfloat16", 2, {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "rope_theta": 10000.0,
                                "sliding_window": 24}),
    "qwen2": ("bfloat16", 1, {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0,
                              "tie_word_embeddings": True}),
    "qwen3": ("float32", 1, {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 1000000.0, "head_dim": 64}),
}
# Layers of experts: in every layer, and in all but the layers that the config leaves out.
EXPERTS = {
    "mixtral": ("bfloat16", 1, {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_theta": 1000000.0,
                                "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": ("float32", 1, {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "rope_theta": 1000000.0,
                                 "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
                                 "norm_topk_prob": True, "mlp_only_layers": [0]}),
}
# Norms after attention and MLP, none before.
POST_NORMS = {
    "olmo2": ("bfloat16", 1, {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "rope_theta": 500000.0,
                              "num_key_value_heads": 4}),
}
# Layer norms with biases, an MLP without a gate; every linear with a bias, or norms whose factor is 1 + weight. Digests are kept of smaller ones (rows.py).
LAYER_NORMS = {
    "opt": ("float16", 1, {"architectures": ["OPTForCausalLM"], "model_type": "opt", "ffn_dim": 256, "activation_function": "relu",
                           "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "nemotron": ("bfloat16", 1, {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "hidden_act": "relu2",
                                 "norm_eps": 1e-5, "partial_rotary_factor": 0.5}),
}
ALL = {**FAMILIES, **EXPERTS, **POST_NORMS}
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def tensors(config):
    """(name, shape) of every tensor, in checkpoint order."""
    kind = config["model_type"]
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    experts = config.get("num_experts", config.get("num_local_experts", 0))
    linears = [("self_attn.q_proj", q, hidden, kind == "qwen2" or config.get("attention_bias")),
               ("self_attn.k_proj", kv, hidden, kind == "qwen2" or config.get("attention_bias")),
               ("self_attn.v_proj", kv, hidden, kind == "qwen2" or config.get("attention_bias")),
               ("self_attn.o_proj", hidden, q, config.get("attention_bias"))]
    dense = [("mlp.gate_proj", mlp, hidden, config.get("mlp_bias")),
             ("mlp.up_proj", mlp, hidden, config.get("mlp_bias")),
             ("mlp.down_proj", hidden, mlp, config.get("mlp_bias"))]
    owner, size = ("block_sparse_moe", mlp) if kind == "mixtral" else ("mlp", config.get("moe_intermediate_size"))
    names = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    sparse = [(owner + ".gate", experts, hidden, False)]
    for expert in range(experts):
        prefix = "%s.experts.%d." % (owner, expert)
        sparse += [(prefix + names[0], size, hidden, False), (prefix + names[1], size, hidden, False),
                   (prefix + names[2], hidden, size, False)]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = "model.layers.%d." % layer
        if kind != "olmo2":
            yield prefix + "input_layernorm.weight", (hidden,)
        for name, rows, cols, bias in linears + (sparse if experts and layer not in config.get("mlp_only_layers", ()) else dense):
            yield prefix + name + ".weight", (rows, cols)
            if bias:
                yield prefix + name + ".bias", (rows,)
        if kind.startswith("qwen3"):
            yield prefix + "self_attn.q_norm.weight", (head,)
            yield prefix + "self_attn.k_norm.weight", (head,)
        if kind == "olmo2":
            yield prefix + "self_attn.q_norm.weight", (q,)
            yield prefix + "self_attn.k_norm.weight", (kv,)
            yield prefix + "post_feedforward_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (config["vocab_size"], hidden)


def layer_norm_tensors(config):
    """The same of those with layer norms: (paths, prefix, norms of a layer, last norm, MLP)."""
    hidden, mlp, biased = config["hidden_size"], config["intermediate_size"], config["model_type"] == "opt"
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    prefix = "model.decoder." if biased else "model."
    norms = ("self_attn_layer_norm", "final_layer_norm") if biased else ("input_layernorm", "post_attention_layernorm")
    up, down = ("fc1", "fc2") if biased else ("mlp.up_proj", "mlp.down_proj")
    linears = [("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", kv, hidden), ("self_attn.v_proj", kv, hidden),
               ("self_attn.out_proj" if biased else "self_attn.o_proj", hidden, hidden), (up, mlp, hidden), (down, hidden, mlp)]
    yield prefix + "embed_tokens.weight", (config["vocab_size"], hidden)
    if biased:
        yield prefix + "embed_positions.weight", (config["max_position_embeddings"] + 2, hidden)
    for layer in range(config["num_hidden_layers"]):
        for norm in norms:
            yield "%slayers.%d.%s.weight" % (prefix, layer, norm), (hidden,)
            yield "%slayers.%d.%s.bias" % (prefix, layer, norm), (hidden,)
        for name, rows, cols in linears:
            yield "%slayers.%d.%s.weight" % (prefix, layer, name), (rows, cols)
            if biased:
                yield "%slayers.%d.%s.bias" % (prefix, layer, name), (rows,)
    last = prefix + ("final_layer_norm" if biased else "norm")
    yield last + ".weight", (hidden,)
    yield last + ".bias", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (config["vocab_size"], hidden)


def values(source, name, shape):
    """Multiples of 2^-13, exact in F32."""
    size = count(shape)
    if name.endswith("norm.weight"):
        scales = [0.5 + byte / 256 for byte in source.randbytes(size)]
        if "layernorm" in name or "attn_layer_norm" in name:
            for channel in source.sample(range(size), 3):
                scales[channel] *= 16
        return scales
    bytes_ = source.randbytes(4 * size)
    sums = map(sum, zip(bytes_[0::4], bytes_[1::4], bytes_[2::4], bytes_[3::4]))
    scale = 2.0 ** -9 if "embed" in name else 2.0 ** -11
    return [(total - 510) * scale for total in sums]


def encode(numbers, dtype):
    if dtype == "float16":
        return struct.pack("<%de" % len(numbers), *numbers)
    raw = array.array("f", numbers).tobytes()
    if dtype == "float32":
        return raw
    half = bytearray(len(raw) // 2)
    half[0::2], half[1::2] = raw[2::4], raw[3::4]
    return bytes(half)


def write(folder, family, **more):
    """The complete checkpoint of a family; `more` goes into its config."""
    dtype, files, extra = {**ALL, **LAYER_NORMS}[family]
    config = {**SHAPE, "tie_word_embeddings": False, "torch_dtype": dtype, **extra, **more}
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    source = random.Random("%s of %d layers" % (family, config["num_hidden_layers"]))
    made = []
    for name, shape in (layer_norm_tensors if family in LAYER_NORMS else tensors)(config):
        data = encode(values(source, name, shape), dtype)
        made.append((name, DTYPES[dtype], shape, data, len(data)))
    if files == 1:
        write_safetensors(os.path.join(folder, "model.safetensors"), made)
        return
    index, each = {}, -(-len(made) // files)
    for number in range(files):
        name = "model-%05d-of-%05d.safetensors" % (number + 1, files)
        part = made[number * each:(number + 1) * each]
        write_safetensors(os.path.join(folder, name), part)
        index.update((tensor[0], name) for tensor in part)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": sum(tensor[4] for tensor in made)}, "weight_map": index}, file, indent=1)
