#!/usr/bin/env python3
"""Writes a Llama-shaped checkpoint and token sets from a seed, to time quantd on; the weights mean nothing.

    make_checkpoint.py FOLDER [--hidden 768] [--mlp 2048] [--layers 12] [--heads 12] [--kv-heads 12] [--vocab 32000] ...

FOLDER gets model/ (config.json and safetensors in BF16, sharded by --shard-bytes) and tokens.ndjson (--samples records of
--length token ids). A few channels of every norm are made large, as they are in trained models, so that activations have outliers
and Hessians are far from round. The default is the 110M shape. Needs numpy.
"""

import argparse
import json
import pathlib
import struct

import numpy as np


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    for name, value in (("hidden", 768), ("mlp", 2048), ("layers", 12), ("heads", 12), ("kv-heads", 12), ("vocab", 32000),
                        ("positions", 2048), ("samples", 16), ("length", 512), ("seed", 1), ("outliers", 6),
                        ("shard-bytes", 1 << 30)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--outlier-scale", type=float, default=20.0)
    parser.add_argument("--untied", action="store_true", help="give lm_head weights of its own")
    return parser.parse_args()


def shapes(args):
    """Yields (name, shape) of every tensor in file order."""
    dim = args.hidden // args.heads
    yield "model.embed_tokens.weight", (args.vocab, args.hidden)
    for i in range(args.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (args.hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (args.heads * dim, args.hidden)
        yield f"{layer}.self_attn.k_proj.weight", (args.kv_heads * dim, args.hidden)
        yield f"{layer}.self_attn.v_proj.weight", (args.kv_heads * dim, args.hidden)
        yield f"{layer}.self_attn.o_proj.weight", (args.hidden, args.heads * dim)
        yield f"{layer}.post_attention_layernorm.weight", (args.hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (args.mlp, args.hidden)
        yield f"{layer}.mlp.up_proj.weight", (args.mlp, args.hidden)
        yield f"{layer}.mlp.down_proj.weight", (args.hidden, args.mlp)
    yield "model.norm.weight", (args.hidden,)
    if args.untied:
        yield "lm_head.weight", (args.vocab, args.hidden)


def to_bf16(values):
    """Round to nearest even, as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def make_tensor(random, name, shape, args):
    if len(shape) == 1:
        weight = np.ones(shape, np.float32)
        weight[random.choice(shape[0], min(args.outliers, shape[0]), replace=False)] = args.outlier_scale
        return weight
    weight = random.standard_normal(shape, np.float32)
    return weight * np.float32(0.02 if "embed" in name else 0.7 / np.sqrt(shape[1]))


def write_shard(path, tensors):
    """tensors is a list of (name, uint16 array)."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors:
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors:
            array.tofile(out)


def write_weights(folder, args, random):
    """Splits into shards as the tensors come; never holds more than one."""
    plan, size = [[]], 0
    for name, shape in shapes(args):
        bytes_ = 2 * int(np.prod(shape))
        if plan[-1] and size + bytes_ > args.shard_bytes:
            plan.append([])
            size = 0
        plan[-1].append((name, shape))
        size += bytes_
    names = ["model.safetensors"] if len(plan) == 1 else [f"model-{i + 1:05}-of-{len(plan):05}.safetensors" for i in range(len(plan))]
    for name, part in zip(names, plan):
        write_shard(folder / name, [(tensor, to_bf16(make_tensor(random, tensor, shape, args))) for tensor, shape in part])
    if len(plan) > 1:
        total = sum(2 * int(np.prod(shape)) for part in plan for _, shape in part)
        weight_map = {tensor: name for name, part in zip(names, plan) for tensor, _ in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_config(folder, args):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": args.hidden,
              "intermediate_size": args.mlp, "num_hidden_layers": args.layers, "num_attention_heads": args.heads,
              "num_key_value_heads": args.kv_heads, "head_dim": args.hidden // args.heads, "vocab_size": args.vocab,
              "max_position_embeddings": args.positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
              "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": not args.untied, "bos_token_id": 1,
              "eos_token_id": 2, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main():
    args = parse()
    assert args.hidden % args.heads == 0 and args.heads % args.kv_heads == 0
    model = args.folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(args.seed)
    write_config(model, args)
    write_weights(model, args, random)
    with open(args.folder / "tokens.ndjson", "w", encoding="ascii") as out:
        for _ in range(args.samples):
            out.write(json.dumps({"input_ids": random.integers(0, args.vocab, args.length).tolist()}) + "\n")


if __name__ == "__main__":
    main()
