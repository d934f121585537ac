#!/usr/bin/env python3
"""GPTQ the plain way in torch: the yardstick of tests/bench, written for it from the paper's equations.

It does what the usual Python quantizers do. Block by block: a first pass gathers a full float32 Hessian for each linear by
itself, each linear is factored (Cholesky, inverse, Cholesky) and its columns are rounded one at a time in a Python loop with the
updates of later columns held back by blocks of 128, and a second pass carries the quantized block's outputs on. The grid,
damping, order of columns and tokens are those that quantd uses, so the two results can be compared by their loss. On a CPU everything
is float32; on CUDA the forward pass is BF16, as those who load a checkpoint there have it, Hessians and solves are float32 without
TF32, and codes are packed on the device.

    baseline_torch.py --model FOLDER --tokens FILE.ndjson [--bits 4] [--group-size 128] [--threads 2] [--device cuda]
                      [--layers-timed N] [--table FILE]
    baseline_torch.py --solve N [--rows N] [--repeats 3]

--layers-timed stops after N blocks and says what all of them would take at that rate. Prints one JSON object: seconds a phase,
versions, and of every linear the loss tr(dW H dW^T) / tr(W H W^T); --table adds the same in words and rows to a file.
"""

import argparse
import json
import pathlib
import struct
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F


def on_cuda():
    return torch.get_default_device().type == "cuda"


def synced():
    """The time, when a device has done what it was told."""
    if on_cuda():
        torch.cuda.synchronize()
    return time.perf_counter()


class Inner:
    """Seconds of stretches inside a phase. On a device they are told by events, so that the host need not wait at each."""

    def __init__(self):
        self.seconds, self.events = 0.0, []

    def run(self, call):
        if on_cuda():
            self.events.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            self.events[-1][0].record()
            call()
            self.events[-1][1].record()
        else:
            start = time.perf_counter()
            call()
            self.seconds += time.perf_counter() - start

    def total(self):
        synced()
        return self.seconds + sum(start.elapsed_time(end) for start, end in self.events) / 1000


class Clock:
    """Adds up seconds under the names of phases."""

    def __init__(self):
        self.seconds = {}

    def run(self, phase, call, *arguments):
        start = synced()
        result = call(*arguments)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + synced() - start
        return result


# ---- the solve ------------------------------------------------------------------------------------------------------

def find_scales(weight, bits, group_size):
    """Symmetric min-max scales [N, K/group], rounded to what an artifact stores."""
    groups = weight.view(weight.shape[0], -1, group_size)
    scale = groups.abs().amax(-1) * (2 / (2 ** bits - 1))
    return torch.where(scale == 0, torch.ones_like(scale), scale).to(torch.bfloat16).float()


def factor(hessian, order, damp_percent):
    """The upper factor U of the inverse, (H + damp)^-1 = U^T U, columns in the given order."""
    h = hessian[order][:, order]
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp_percent * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def sweep(weight, upper, order, scale, bits, group_size, block_size=128):
    """Rounds column after column; returns the codes in the weight's own column order."""
    n, k = weight.shape
    w, column_scale = weight[:, order].clone(), scale.repeat_interleave(group_size, 1)[:, order]
    codes = torch.empty(n, k, dtype=torch.uint8)
    half, top = 2 ** (bits - 1), 2 ** bits - 1
    for start in range(0, k, block_size):
        end = min(start + block_size, k)
        block, error, u = w[:, start:end].clone(), torch.zeros(n, end - start), upper[start:end, start:end]
        for i in range(end - start):
            column, s = block[:, i], column_scale[:, start + i]
            q = torch.clamp(torch.round(column / s) + half, 0, top)
            codes[:, start + i] = q.to(torch.uint8)
            e = (column - s * (q - half)) / u[i, i]
            block[:, i:] -= e.unsqueeze(1) * u[i, i:].unsqueeze(0)
            error[:, i] = e
        w[:, end:] -= error @ upper[start:end, end:]
    return codes[:, torch.argsort(order)]


def dequantize(codes, scale, bits, group_size):
    return (codes.float() - 2 ** (bits - 1)) * scale.repeat_interleave(group_size, 1)


def solve(clock, weight, hessian, args):
    """Returns (codes, scale)."""
    group_size = weight.shape[1] if args.group_size == -1 else args.group_size
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    scale = clock.run("grid", find_scales, weight, args.bits, group_size)
    upper = clock.run("factor", factor, hessian, order, args.damp_percent)
    codes = clock.run("sweep", sweep, weight, upper, order, scale, args.bits, group_size)
    return codes, scale


def pack(codes, bits):
    """Codes into int32 words along the inputs, as an artifact holds them."""
    if 32 % bits == 0 and codes.shape[1] % (32 // bits) == 0:
        words = codes.view(len(codes), -1, 32 // bits).to(torch.int32) << torch.arange(0, 32, bits, dtype=torch.int32)
        return words.sum(-1, dtype=torch.int32).cpu()
    stream = np.unpackbits(codes.cpu().numpy()[:, :, None], axis=2, bitorder="little")[:, :, :bits]
    return torch.from_numpy(np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").view(np.int32))


# ---- the model ------------------------------------------------------------------------------------------------------

def read_tensors(folder):
    """Opens the safetensors files of a folder; returns a function from name to float32 tensor."""
    places = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = np.memmap(path, np.uint8, "r")
        (size,) = struct.unpack("<Q", data[:8].tobytes())
        for name, entry in json.loads(data[8:8 + size].tobytes()).items():
            if name != "__metadata__":
                places[name] = (data, 8 + size, entry)

    def read(name):
        data, base, entry = places[name]
        begin, end = entry["data_offsets"]
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[entry["dtype"]]
        return torch.from_numpy(data[base + begin:base + end].copy()).to(torch.get_default_device()).view(dtype).float().reshape(entry["shape"])

    return read


LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def forward_dtype():
    return torch.bfloat16 if on_cuda() else torch.float32


class Block:
    """One decoder block; watch(name, input) sees what each linear reads."""

    def __init__(self, config, read, index):
        prefix = f"model.layers.{index}."
        self.weights = {name: read(f"{prefix}{name}.weight").to(forward_dtype()) for name in (*LINEARS, "input_layernorm", "post_attention_layernorm")}
        self.config, self.watch = config, None
        self.dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]

    def linear(self, name, x):
        if self.watch is not None:
            self.watch(name, x)
        return F.linear(x, self.weights[name])

    def norm(self, name, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])).to(x.dtype) * self.weights[name]

    def rotate(self, x):
        half = self.dim // 2
        frequency = self.config["rope_theta"] ** -(torch.arange(0, half) / half)
        angle = torch.outer(torch.arange(x.shape[1]).float(), frequency)
        cos, sin, a, b = angle.cos(), angle.sin(), x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)

    def forward(self, x):
        """x is [positions, hidden]: one sample at a time, as peers do."""
        y = self.norm("input_layernorm", x)
        q, k, v = (self.linear(f"self_attn.{name}_proj", y).view(len(x), -1, self.dim).transpose(0, 1) for name in "qkv")
        share = len(q) // len(k)
        k, v = self.rotate(k).repeat_interleave(share, 0), v.repeat_interleave(share, 0)
        y = F.scaled_dot_product_attention(self.rotate(q)[None], k[None], v[None], is_causal=True)[0]
        x = x + self.linear("self_attn.o_proj", y.transpose(0, 1).reshape(len(x), -1))
        y = self.norm("post_attention_layernorm", x)
        y = F.silu(self.linear("mlp.gate_proj", y)) * self.linear("mlp.up_proj", y)
        return x + self.linear("mlp.down_proj", y)


def gather(clock, block, states):
    """The first pass: a full Hessian for each linear, (2/T) sum x x^T."""
    hessians = {name: torch.zeros(block.weights[name].shape[1], block.weights[name].shape[1]) for name in LINEARS}
    inside = Inner()

    def add(name, x):
        x = x.float()
        hessians[name] += x.T @ x

    def watch(name, x):
        inside.run(lambda: add(name, x))

    block.watch = watch
    start = synced()
    for state in states:
        block.forward(state)
    whole, hessian_seconds = synced() - start, inside.total()
    block.watch = None
    clock.seconds["hessian"] = clock.seconds.get("hessian", 0.0) + hessian_seconds
    clock.seconds["forward"] = clock.seconds.get("forward", 0.0) + whole - hessian_seconds
    tokens = sum(len(state) for state in states)
    for hessian in hessians.values():
        hessian *= 2 / tokens
    return hessians


def energy(weight, hessian):
    return float((weight @ hessian * weight).sum(dtype=torch.float64))


def quantize_block(clock, block, states, args, losses, out):
    hessians = gather(clock, block, states)
    for name in LINEARS:
        weight = block.weights[name].float()
        codes, scale = solve(clock, weight, hessians[name], args)
        group_size = weight.shape[1] // scale.shape[1]
        quantized = clock.run("grid", dequantize, codes, scale, args.bits, group_size)
        block.weights[name] = quantized.to(block.weights[name].dtype)
        packed = clock.run("pack", pack, codes, args.bits)
        clock.run("write", lambda: (out.write(packed.numpy().tobytes()), out.write(scale.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())))
        losses.append(energy(weight - quantized, hessians[name]) / energy(weight, hessians[name]))
    return clock.run("forward", lambda: [block.forward(state) for state in states])


def run_job(args):
    clock, losses = Clock(), []
    config = json.loads((args.model / "config.json").read_text())
    read = read_tensors(args.model)
    with open(args.tokens, encoding="ascii") as lines:
        samples = [torch.tensor(json.loads(line)["input_ids"]) for line in lines]
    layers = config["num_hidden_layers"]
    timed = min(args.layers_timed or layers, layers)
    warm_up()
    start = time.perf_counter()
    embedding = clock.run("load", read, "model.embed_tokens.weight").to(forward_dtype())
    states = [embedding[sample] for sample in samples]
    del embedding
    before = sum(clock.seconds.values())
    with tempfile.TemporaryFile() as out:
        for i in range(timed):
            block = clock.run("load", Block, config, read, i)
            states = quantize_block(clock, block, states, args, losses, out)
            print(f"block {i}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    wall = sum(clock.seconds.values())
    return {"seconds": clock.seconds, "wall_seconds": wall, "losses": losses, "tokens": sum(map(len, samples)), "layers": layers,
            "layers_timed": timed, "extrapolated_wall_seconds": before + (wall - before) * layers / timed}


def warm_up():
    """What libraries do at their first call is not a block's doing."""
    if on_cuda():
        x = torch.randn(512, 256)
        solve_order = torch.arange(256)
        sweep(x, factor(x.T @ x, solve_order, 0.01), solve_order, find_scales(x, 4, 128), 4, 128)
        torch.mm(x.bfloat16(), x.bfloat16().T)
        synced()


def run_solve(args):
    """One linear of random weights on correlated inputs with a few loud channels; the Hessian is not timed."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    n, rows = args.solve, args.rows or args.solve
    x = torch.randn(2 * n, n, generator=generator)
    x[:, 1:] += 0.5 * x[:, :-1]
    x[:, ::n // 8] *= 20
    hessian = (x.T @ x) * (2 / len(x))
    weight = torch.randn(rows, n, generator=generator) / n ** 0.5
    runs = []
    for _ in range(args.repeats):
        clock, start = Clock(), synced()
        solve(clock, weight, hessian, args)
        runs.append({**clock.seconds, "wall": synced() - start})
    runs.sort(key=lambda run: run["wall"])
    return {"seconds": runs[len(runs) // 2], "runs": [run["wall"] for run in runs], "n": n, "rows": rows}


def roof(n, dtype):
    """A product, best of three, GFLOP/s: what this torch can do here."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    best = min(timed(torch.mm, a, b) for _ in range(3))
    return 2 * n ** 3 / best * 1e-9


def timed(call, *arguments):
    start = synced()
    call(*arguments)
    return synced() - start


def table_lines(result):
    yield ""
    yield f"### Plain torch {result['torch']} on {result['device']}, {result['layers_timed']} of {result['layers']} blocks"
    yield ""
    yield "| " + " | ".join(result["seconds"]) + " | all, s | mean loss |"
    yield "|---" * (len(result["seconds"]) + 2) + "|"
    yield "| " + " | ".join(f"{seconds:.2f}" for seconds in result["seconds"].values()) + (
        f" | {result['wall_seconds']:.2f} | {sum(result['losses']) / len(result['losses']):.6f} |")
    yield ""
    if result["layers_timed"] < result["layers"]:
        yield (f"Extrapolated, not run: all {result['layers']} blocks would take {result['extrapolated_wall_seconds']:.1f} s at the rate "
               f"of these {result['layers_timed']}.")
    rates = f"float32 {result['roof_gflops'] / 1000:.1f}"
    if result.get("roof_bf16_gflops"):
        rates += f", BF16 {result['roof_bf16_gflops'] / 1000:.1f}"
    yield f"Its own products reach, in TFLOP/s: {rates}."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--tokens", type=pathlib.Path)
    parser.add_argument("--solve", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--damp-percent", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers-timed", type=int)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        result = {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads(),
                  "device": torch.cuda.get_device_name() if on_cuda() else "CPU",
                  "cpu_capability": torch.backends.cpu.get_cpu_capability(), "mkl": torch.backends.mkl.is_available(),
                  "roof_gflops": roof(4096, torch.float32), "roof_bf16_gflops": roof(8192, torch.bfloat16) if on_cuda() else None,
                  **(run_solve(args) if args.solve else run_job(args))}
    if args.table and not args.solve:
        with open(args.table, "a", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in table_lines(result))
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
