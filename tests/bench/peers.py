#!/usr/bin/env python3
"""Loss of quantd's GPTQ next to that of other programs: same checkpoint, calibration set, bits and evaluator; prints a table for each.

    peers.py [--models tiny-llama,..] [--shapes w4g128,..] [--only NAME,..] [--parts] [--threads 2] [--cache FOLDER]

Every artifact is decoded to float32 weights from its tensors (tests/interop/reference.py) and run by transformers in float32 over the
evaluation set: mean KL(float || quantized) and perplexity over all predicted positions, the definition of quantd's own figures. What
quantd says of its artifacts is held to that evaluator first. What a program cannot do is a row with its error. --cache keeps the other
programs' artifacts, which take most of the time, for a later call. Called as tests/bench/run --peers.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers

here = pathlib.Path(__file__).resolve().parent
root = here.parents[1]
sys.path.insert(0, str(here.parent / "interop"))
import reference  # noqa: E402
from daemon import Daemon, Failure  # noqa: E402

AGREE = 1e-3  # relative, of quantd's figures and this evaluator's
MODELS = ("tiny-llama", "tiny-llama-outlier")
# name: (bits, group size, symmetric)
SHAPES = {"w4g128": (4, 128, True), "w3g128": (3, 128, True), "w2g64": (2, 64, True), "w4g128-asym": (4, 128, False)}

# quantd's rows: (method, parameters in addition to the shape). The first is what ratios refer to. Asymmetric grids go without signed_scales.
QUANTD = [
    ("gptq", {"quality": "fast"}),
    ("gptq", {"quality": "default"}),
    ("gptq", {"quality": "best"}),
    (["awq", "gptq"], {"quality": "fast"}),
    (["awq", "gptq"], {"quality": "default"}),
]
# With --parts: what each part of the presets is worth by itself.
PARTS = [
    ("gptq", {"quality": "fast", "signed_scales": True}),
    ("gptq", {"quality": "fast", "float_targets": True, "residual_correction": 0}),
    ("gptq", {"quality": "fast", "float_targets": True, "residual_correction": 0.5}),
    ("gptq", {"quality": "fast", "refine_rounds": 2}),
    ("gptq", {"quality": "fast", "refine_rounds": 2, "resweep": 1}),
]
# (name in peers_quantize.py, environment)
PEERS = [("llmcompressor", ".venv-peers"), ("llmcompressor-imatrix", ".venv-peers"), ("gptqmodel", ".venv"), ("autoround", ".venv-peers")]


class Evaluator:
    """Losses of an artifact against the float model, over one evaluation set."""

    def __init__(self, checkpoint, windows):
        self.windows = torch.tensor(windows)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.float_logs, self.float_perplexity = None, None
        logs, nll, _ = self.losses()
        self.float_logs, self.float_perplexity = logs, float(np.exp(nll))

    def losses(self):
        """Returns (log probabilities, mean negative log likelihood, mean KL) of the model as it is."""
        logs, nll, kl, count = [], 0.0, 0.0, 0
        with torch.inference_mode():
            for i, ids in enumerate(self.windows.split(8)):
                log = self.model(ids).logits[:, :-1].double().log_softmax(-1)
                nll -= log.gather(-1, ids[:, 1:, None]).sum().item()
                count += ids[:, 1:].numel()
                if self.float_logs is None:
                    logs.append(log.float())
                else:
                    known = self.float_logs[i].double()
                    kl += (known.exp() * (known - log)).sum().item()
        return logs, nll / count, kl / count

    def evaluate(self, artifact):
        """Returns (mean KL, perplexity) of an artifact's decoded weights."""
        _, tensors = reference.decode_artifact(artifact)
        weights = {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for name, array in tensors.items()}
        if self.model.config.tie_word_embeddings:
            weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        self.model.load_state_dict(weights, strict=True)
        _, nll, kl = self.losses()
        return kl, float(np.exp(nll))


def rows_of(shape, parts):
    """quantd's rows for a shape, without those that are one there."""
    rows = []
    for method, parameters in QUANTD + (PARTS if parts else []):
        row = (method, {name: value for name, value in parameters.items() if shape[2] or name != "signed_scales"})
        if row not in rows:
            rows.append(row)
    return rows


def name_of(method, parameters):
    words = [method if isinstance(method, str) else ", then ".join(method)]
    return ", ".join(words + [name if value is True else f"{name} {value}" for name, value in parameters.items()])


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def run_quantd(daemon, uploads, model, shape, method, parameters, folder):
    """Returns (artifact, job)."""
    bits, group, sym = shape
    job = daemon.run({
        "model": model, "method": method, "quantization": {"bits": bits, "group_size": group, "sym": sym, **parameters},
        "output": {"format": "compressed-tensors"},
        "calibration": {"file_id": uploads[0], "num_samples": 0, "sequence_length": 256, "packing": False, "shuffle": False},
        "evaluation": {"file_id": uploads[1]}})
    return daemon.download(job, folder), job


def run_peer(peer, environment, checkpoint, calibration, shape, folder):
    """Returns (artifact, what peers_quantize.py says of it); an artifact made before is taken as it is."""
    bits, group, sym = shape
    known = folder / "made.json"
    if not known.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [root / environment / "bin" / "python", here / "peers_quantize.py", peer, checkpoint, calibration, str(bits), str(group),
             "sym" if sym else "asym", folder / "artifact"], capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"ended with {done.returncode}")
        known.write_text(done.stdout.splitlines()[-1])
    (config,) = (folder / "artifact").rglob("config.json")
    return complete(config.parent), json.loads(known.read_text())


def complete(artifact):
    """Adds what a config leaves to its reader's knowledge: without checkpoint_format zero points are stored less one."""
    path = artifact / "config.json"
    config = json.loads(path.read_text())
    if config["quantization_config"]["quant_method"] == "gptq":
        config["quantization_config"].setdefault("checkpoint_format", "gptq")
        path.write_text(json.dumps(config))
    return artifact


class Table:
    """Rows of one checkpoint and shape, printed as they come, in the form of RESULTS.md."""

    def __init__(self, title, perplexity):
        self.base, self.float = None, perplexity
        print(f"\n{title}, float perplexity {perplexity:.4f}\n")
        print("| | s | KL | of the first row | perplexity loss |\n|---|---|---|---|---|", flush=True)

    def row(self, name, seconds, kl, perplexity):
        self.base = self.base or kl
        print(f"| {name} | {seconds:.1f} | {kl:.5f} | {kl / self.base:.3f} | {perplexity - self.float:.4f} |", flush=True)

    def failed(self, name, error):
        print(f"| {name} | {first_line(error)} | | | |", flush=True)


def check(name, job, found):
    said = job["result"]
    for what, a, b in zip(("KL", "perplexity"), (said["kl_divergence_mean"], said["perplexity_after"]), found):
        if abs(a - b) > AGREE * abs(b):
            raise SystemExit(f"peers: quantd says {what} {a:.6g} of {name}, the evaluator {b:.6g}")


def tables(args, daemon, shared, scratch):
    uploads = [daemon.upload(shared / f"{purpose}.ndjson", purpose) for purpose in ("calibration", "evaluation")]
    windows, packages = reference.read_records(shared / "evaluation.ndjson"), set()
    for model in args.models:
        registered, evaluator = daemon.register(model), Evaluator(shared / model, windows)
        for shape_name in args.shapes:
            shape = SHAPES[shape_name]
            table = Table(f"{model} {shape_name}", evaluator.float_perplexity)
            for i, (method, parameters) in enumerate(rows_of(shape, args.parts)):
                if args.only and i > 0 and "quantd" not in args.only:
                    break
                name = name_of(method, parameters)
                try:
                    artifact, job = run_quantd(daemon, uploads, registered, shape, method, parameters,
                                               scratch / f"{model}-{shape_name}-{i}")
                except Failure as failure:
                    table.failed(f"quantd {name}", failure)
                    continue
                found = evaluator.evaluate(artifact)
                check(f"{model} {shape_name} {name}", job, found)
                table.row(f"quantd {name}", job["progress"]["elapsed_seconds"], *found)
            for peer, environment in PEERS:
                if args.only and peer not in args.only:
                    continue
                try:
                    artifact, made = run_peer(peer, environment, shared / model, shared / "calibration.ndjson", shape,
                                              (args.cache or scratch) / peer / f"{model}-{shape_name}")
                    packages.add(made["package"])
                    table.row(peer, made["seconds"], *evaluator.evaluate(artifact))
                except (OSError, ValueError, RuntimeError, AssertionError, KeyError) as error:
                    table.failed(peer, error)
    return packages


def listed(text):
    return list(filter(None, text.split(",")))


def shared_models():
    shared = pathlib.Path(os.environ.get("QUANTD_SHARED", root.parent / "shared"), "models").resolve()
    if not (shared / "evaluation.ndjson").is_file():
        raise SystemExit(f"bench: no trained checkpoints and token sets in {shared}: set QUANTD_SHARED")
    return shared


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=listed, default=list(MODELS))
    parser.add_argument("--shapes", type=listed, default=list(SHAPES))
    parser.add_argument("--only", type=listed, default=[])
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=pathlib.Path)
    args = parser.parse_args()
    shared = shared_models()
    torch.set_num_threads(args.threads)
    args.cache = args.cache and args.cache.resolve()
    with tempfile.TemporaryDirectory(prefix="quantd-peers-") as scratch, Daemon([shared], "--threads", str(args.threads)) as daemon:
        print(f"{args.threads} threads, load average {os.getloadavg()[0]:.1f}; evaluated by transformers {transformers.__version__}, torch "
              f"{torch.__version__}")
        packages = tables(args, daemon, shared, pathlib.Path(scratch))
    print(f"\nquantd's figures agree with the evaluator's to {AGREE:g}. Packages: {', '.join(sorted(packages)) or 'none'}")


if __name__ == "__main__":
    main()
