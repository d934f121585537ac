#!/usr/bin/env python3
"""Writes a Llama-shaped checkpoint and token sets from a seed, to time quantd on; the weights mean nothing.

    make_checkpoint.py FOLDER [--hidden 768] [--mlp 2048] [--layers 12] [--heads 12] [--kv-heads 12] [--vocab 32000] ...

FOLDER gets model/ (config.json and safetensors in BF16, sharded by --shard-bytes) and tokens.ndjson (--samples records of
--length token ids). A few channels of every norm are made large, as they are in trained models, so that activations have outliers
and Hessians are far from round. The default is the 110M shape. Needs numpy.

Each tensor has a generator of its own, seeded by --seed and its name, so the bytes do not depend on --processes. Sixteen random
bits pick one of 65536 quantiles of the normal distribution: five times as fast as drawing floats, and BF16 could not tell more of
them apart.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import statistics
import struct
import sys
import time

import numpy as np

CHUNK = 1 << 16  # weights at once: what a core keeps in its cache


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    for name, value in (("hidden", 768), ("mlp", 2048), ("layers", 12), ("heads", 12), ("kv-heads", 12), ("vocab", 32000),
                        ("positions", 2048), ("samples", 16), ("length", 512), ("seed", 1), ("outliers", 6),
                        ("shard-bytes", 1 << 30)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rope-theta", type=float, default=10000.0)
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


def generator(seed, name):
    """The bits of one tensor, whoever draws them."""
    words = struct.unpack("<4I", hashlib.sha256(name.encode()).digest()[:16])
    return np.random.SFC64(np.random.SeedSequence([seed, *words]))


@functools.cache
def quantiles():
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])


def norm_weight(args, name, shape):
    weight = np.ones(shape, np.float32)
    random = np.random.Generator(generator(args.seed, name))
    weight[random.choice(shape[0], min(args.outliers, shape[0]), replace=False)] = args.outlier_scale
    return to_bf16(weight)


def matrix_chunks(args, name, shape):
    """Yields the weights of a matrix as uint16, CHUNK at a time."""
    table = to_bf16(quantiles() * (0.02 if "embed" in name else 0.7 / np.sqrt(shape[1])))
    bits, count = generator(args.seed, name), int(np.prod(shape))
    for first in range(0, count, CHUNK):
        wanted = min(CHUNK, count - first)
        drawn = bits.random_raw((wanted + 3) // 4).astype("<u8", copy=False).view("<u2")[:wanted]
        yield np.take(table, drawn, mode="clip")


def write_tensor(task):
    """Puts one tensor into its place of a file that has its size already."""
    args, path, offset, name, shape = task
    with open(path, "r+b", buffering=0) as out:
        out.seek(offset)
        for part in [norm_weight(args, name, shape)] if len(shape) == 1 else matrix_chunks(args, name, shape):
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[out.write(rest):]


def start_shard(path, tensors):
    """Writes the header and sets the size; returns the offset of each (name, shape) in the file."""
    header, offsets = {"__metadata__": {"format": "pt"}}, [0]
    for name, shape in tensors:
        offsets.append(offsets[-1] + 2 * int(np.prod(shape)))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets[-2:]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + offsets[-1])
    return [8 + len(text) + offset for offset in offsets[:-1]]


def split(args):
    """The tensors of each shard, in file order."""
    plan, size = [[]], 0
    for name, shape in shapes(args):
        bytes_ = 2 * int(np.prod(shape))
        if plan[-1] and size + bytes_ > args.shard_bytes:
            plan.append([])
            size = 0
        plan[-1].append((name, shape))
        size += bytes_
    return plan


def write_weights(folder, args):
    """Returns how many bytes the weights take."""
    plan, tasks = split(args), []
    names = ["model.safetensors"] if len(plan) == 1 else [f"model-{i + 1:05}-of-{len(plan):05}.safetensors" for i in range(len(plan))]
    for file, part in zip(names, plan):
        places = start_shard(folder / file, part)
        tasks += [(args, folder / file, offset, name, shape) for offset, (name, shape) in zip(places, part)]
    tasks.sort(key=lambda task: -int(np.prod(task[4])))  # the largest first, so that none is left alone at the end
    with multiprocessing.Pool(max(1, min(args.processes, len(tasks)))) as pool:
        for _ in pool.imap_unordered(write_tensor, tasks):
            pass
    total = sum(2 * int(np.prod(task[4])) for task in tasks)
    if len(plan) > 1:
        weight_map = {name: file for file, part in zip(names, plan) for name, _ in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total


def write_config(folder, args):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": args.hidden,
              "intermediate_size": args.mlp, "num_hidden_layers": args.layers, "num_attention_heads": args.heads,
              "num_key_value_heads": args.kv_heads, "head_dim": args.hidden // args.heads, "vocab_size": args.vocab,
              "max_position_embeddings": args.positions, "rms_norm_eps": 1e-5, "rope_theta": args.rope_theta, "hidden_act": "silu",
              "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": not args.untied, "bos_token_id": 1,
              "eos_token_id": 2, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main():
    args = parse()
    assert args.hidden % args.heads == 0 and args.heads % args.kv_heads == 0
    model = args.folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_config(model, args)
    begun = time.perf_counter()
    total, seconds = write_weights(model, args), time.perf_counter() - begun
    print(f"{total * 1e-9:.2f} GB of weights in {seconds:.1f} s, {total * 1e-9 / seconds:.2f} GB/s by {args.processes} processes",
          file=sys.stderr)
    random = np.random.Generator(generator(args.seed, "tokens"))
    with open(args.folder / "tokens.ndjson", "w", encoding="ascii") as out:
        for _ in range(args.samples):
            out.write(json.dumps({"input_ids": random.integers(0, args.vocab, args.length).tolist()}) + "\n")


if __name__ == "__main__":
    main()
