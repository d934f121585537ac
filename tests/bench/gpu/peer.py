#!/usr/bin/env python3
"""quantd next to GPTQModel and llm-compressor: the same weights and inputs, seconds and the loss of each.

    peer.py --bench-solve BINARY --modules DIR --device cuda:0 [--shapes 4096x4096,4096x11008] [--tokens 16384] [--table FILE]

Takes what this python can import of the two, at 4 bits in groups of 128, symmetric, 1 % damping; their classes are called as their
own loops call them, with inputs that lie on the device in BF16. Weights and inputs are numbers that BF16 holds, correlated and with a
few loud channels, so all start from the same Hessian. The loss is tr(dW H dW^T) / tr(W H W^T) in float64. Each figure is the median
of --repeats runs after one that warms up. quantd takes its turns in a process of its own (bench_solve).

"as quantd" is the peer with what quantd does by default: columns by falling diagonal, groups of neighbours with scales chosen first.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

BITS, GROUP, DAMP, BATCH = 4, 128, 0.01, 2048


class GPTQModel:
    """gptqmodel.quantization.gptq.GPTQ."""

    ways = {"its default": {}, "as quantd": {"desc_act": True, "static_groups": True, "act_group_aware": False}}

    def __init__(self):
        import gptqmodel
        from gptqmodel.quantization.config import QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ
        self.config, self.task = QuantizeConfig, GPTQ
        self.name = f"GPTQModel {getattr(gptqmodel, '__version__', '')}".strip()

    def run(self, synced, weight, batches, way):
        config = self.config(bits=BITS, group_size=GROUP, sym=True, damp_percent=DAMP, offload_to_disk=False, **self.ways[way])
        task = self.task(linear_of(weight), config)
        task.quantizer.configure(perchannel=True)
        start = synced()
        for batch in batches:
            task.add_batch(batch[None], None)
        middle = synced()
        quantized = task.quantize(blocksize=128)[0]
        return middle - start, synced() - middle, quantized


class LLMCompressor:
    """llmcompressor's accumulate_hessian and quantize_weight, min-max scales from compressed-tensors."""

    ways = {"as quantd": {"actorder": "static"}}

    def __init__(self):
        import llmcompressor
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.utils import calculate_qparams
        from llmcompressor.modifiers.gptq import gptq_quantize, helpers
        self.arguments, self.qparams = QuantizationArgs, calculate_qparams
        self.solve, self.helpers = gptq_quantize.quantize_weight, helpers
        self.name = f"llm-compressor {getattr(llmcompressor, '__version__', '')}".strip()

    def run(self, synced, weight, batches, way):
        import torch
        module = linear_of(weight)
        arguments = self.arguments(num_bits=BITS, group_size=GROUP, symmetric=True, strategy="group", **self.ways[way])
        hessian, samples = self.helpers.make_empty_hessian(module), torch.zeros((), device=weight.device)
        start = synced()
        for batch in batches:
            hessian, samples = self.helpers.accumulate_hessian(batch[None], module, hessian, samples)
        middle = synced()
        groups = weight.view(len(weight), -1, GROUP)
        scale, zero = self.qparams(groups.amin(-1), groups.amax(-1), arguments)
        quantized = self.solve(weights=weight.clone()[None], hessians=(hessian / samples)[None], scale=scale[None], zero_point=zero[None],
                               global_scale=None, quant_args=arguments, blocksize=128, percdamp=DAMP)[0][0]
        return middle - start, synced() - middle, quantized


PEERS = {"GPTQModel": GPTQModel, "llm-compressor": LLMCompressor}


def linear_of(weight):
    import torch
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return module


def import_peers(say):
    found = []
    for name, peer in PEERS.items():
        try:
            found.append(peer())
        except Exception as error:  # whatever an import of theirs runs into
            say(f"not run: {name} cannot be imported here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
    return found


def make_operands(torch, rows, n, tokens, device):
    """Weights and inputs in float32 whose every number BF16 holds."""
    generator = torch.Generator(device).manual_seed(1)
    inputs = torch.randn(tokens, n, generator=generator, device=device)
    inputs[:, 1:] += 0.5 * inputs[:, :-1]
    inputs[:, ::n // 8] *= 20
    weight = torch.randn(rows, n, generator=generator, device=device) * (0.7 / n ** 0.5)
    return weight.bfloat16().float(), inputs.bfloat16().float()


def run_quantd(args, torch, folder, weight, inputs):
    """Rows for both ways to choose scales: (name, hessian seconds, solve seconds, weights)."""
    for name, tensor in (("weight", weight), ("inputs", inputs)):
        tensor.cpu().numpy().tofile(folder / name)
    rows, n = weight.shape
    command = [args.bench_solve, args.threads, n, args.repeats + 1, "--device", args.device, "--rows", rows, "--tokens", len(inputs),
               "--weight", folder / "weight", "--inputs", folder / "inputs", "--result", folder / "result", "--roof", 1024]
    command += ["--modules", args.modules] if args.modules else []
    told = json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    for way, key, file in (("min-max scales", "solve", "result.minmax"), ("default", "solve_search", "result.search")):
        found = torch.from_file(str(folder / file), size=rows * n, dtype=torch.float32).view(rows, n).to(weight.device)
        yield f"quantd, {way}", told["hessian"], told[key], found


def run_peer(args, torch, peer, way, weight, inputs):
    batches = list(inputs.to(torch.bfloat16).split(BATCH))

    def synced():
        if weight.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    runs = [peer.run(synced, weight, batches, way) for _ in range(args.repeats + 1)]
    return (f"{peer.name}, {way}", *(statistics.median(run[i] for run in runs[1:]) for i in range(2)), runs[0][2].float())


def loss_of(torch, weight, quantized, inputs):
    hessian = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for batch in inputs.split(BATCH):
        hessian += batch.double().T @ batch.double()
    wide = weight.double()
    lost = wide - quantized.to(weight.device).double()
    return float(((lost @ hessian) * lost).sum() / ((wide @ hessian) * wide).sum())


def compare(args, torch, peers, rows, n, say):
    device = torch.device("cuda", int(args.device.partition(":")[2] or 0)) if args.device.startswith("cuda") else torch.device("cpu")
    weight, inputs = make_operands(torch, rows, n, max(args.tokens, n), device)
    say("", f"#### {rows}x{n}, {len(inputs)} tokens", "", "| | Hessian, s | solve, s | both, s | times quantd's min-max | loss |", "|---|---|---|---|---|---|")
    first = None

    def add(name, hessian, solve, quantized):
        nonlocal first
        both = hessian + solve
        first = first or both
        say(f"| {name} | {hessian:.4f} | {solve:.4f} | {both:.4f} | {both / first:.1f} | {loss_of(torch, weight, quantized, inputs):.6f} |")

    with tempfile.TemporaryDirectory(prefix="quantd-peer-") as folder:
        for row in run_quantd(args, torch, pathlib.Path(folder), weight, inputs):
            add(*row)
    for peer in peers:
        for way in peer.ways:
            try:
                add(*run_peer(args, torch, peer, way, weight, inputs))
            except Exception as error:  # a version whose functions are called otherwise
                say(f"| {peer.name}, {way} | failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} | | | | |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench-solve", type=pathlib.Path, required=True)
    parser.add_argument("--modules")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shapes", default="4096x4096,4096x11008")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    table = open(args.table, "a", encoding="utf-8") if args.table else None

    def say(*lines):
        for line in lines:
            print(line, flush=True)
            if table:
                table.write(line + "\n")
                table.flush()

    say("", f"### Solves of one linear beside peers, on {args.device}", "")
    try:
        import torch
    except ImportError:
        say("not run: there is no torch here")
        sys.exit(0)
    peers = import_peers(say)
    if not peers:
        sys.exit(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        for shape in args.shapes.split(","):
            rows, n = map(int, shape.split("x"))
            compare(args, torch, peers, rows, n, say)


if __name__ == "__main__":
    main()
