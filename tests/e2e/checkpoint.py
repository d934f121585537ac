"""Checkpoints made from a seed, and damaged ones. Standard library only.

Weights are random BF16 numbers of magnitude 2^-7 to 2^-5, made from random bytes without looking at single elements, so
that hundreds of megabytes take a second.
"""

import json
import os
import random
import struct

SIGNS = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))


def bf16_random(source, count):
    raw = bytearray(2 * count)
    raw[0::2] = source.randbytes(count)
    raw[1::2] = source.randbytes(count).translate(SIGNS)
    return bytes(raw)


def bf16_ones(count):
    return b"\x80\x3f" * count


def config(hidden=64, mlp=128, layers=2, heads=4, kv_heads=2, vocabulary=256, positions=256, **more):
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    values.update(more)
    return values


def shapes(values):
    """(name, shape) of every tensor, in checkpoint order."""
    hidden, mlp = values["hidden_size"], values["intermediate_size"]
    size = hidden // values["num_attention_heads"]
    kv = size * values["num_key_value_heads"]
    yield "model.embed_tokens.weight", (values["vocab_size"], hidden)
    for layer in range(values["num_hidden_layers"]):
        prefix = "model.layers.%d." % layer
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (hidden, hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        experts = values.get("num_local_experts", 0)
        if experts:
            yield prefix + "block_sparse_moe.gate.weight", (experts, hidden)
        for expert in range(experts):
            owner = prefix + "block_sparse_moe.experts.%d." % expert
            yield owner + "w1.weight", (mlp, hidden)
            yield owner + "w2.weight", (hidden, mlp)
            yield owner + "w3.weight", (mlp, hidden)
        if not experts:
            yield prefix + "mlp.gate_proj.weight", (mlp, hidden)
            yield prefix + "mlp.up_proj.weight", (mlp, hidden)
            yield prefix + "mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (values["vocab_size"], hidden)


def count(shape):
    product = 1
    for dimension in shape:
        product *= dimension
    return product


def write_safetensors(path, tensors):
    """tensors: (name, dtype, shape, bytes or a function that makes them, size) in file order."""
    header, offset = {}, 0
    for name, dtype, shape, _, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, data, _ in tensors:
            file.write(data() if callable(data) else data)


def write(folder, values=None, seed=1, change=None):
    """A complete checkpoint. change(name, data) may replace a tensor's bytes, or drop it by returning None."""
    values = values or config()
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(values, file)
    source = random.Random(seed)
    tensors = []
    for name, shape in shapes(values):
        size = 2 * count(shape)
        if change is None:
            tensors.append((name, "BF16", shape, lambda shape=shape: bf16_random(source, count(shape))
                            if len(shape) > 1 else bf16_ones(count(shape)), size))
            continue
        data = bf16_random(source, count(shape)) if len(shape) > 1 else bf16_ones(count(shape))
        data = change(name, data)
        if data is not None:
            tensors.append((name, "BF16", shape, data, size))
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
    return folder


def write_zeros(folder, values):
    """The same of zeros, as a file without blocks on disk: gigabytes take neither space nor time."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(values, file)
    path = os.path.join(folder, "model.safetensors")
    sizes = [(name, shape, 2 * count(shape)) for name, shape in shapes(values)]
    write_safetensors(path, [(name, "BF16", shape, b"", size) for name, shape, size in sizes])
    os.truncate(path, os.path.getsize(path) + sum(size for _, _, size in sizes))


def read_header(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size)), 8 + size


def rewrite_header(path, change):
    """Let change(header) edit the header's dict in place; the data stays."""
    header, start = read_header(path)
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read()
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
