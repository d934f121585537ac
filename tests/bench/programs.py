#!/usr/bin/env python3
"""Seconds of one GPTQ job in quantd, in plain torch, in llm-compressor and in GPTQModel, taken in turns on one machine; prints a table.

    programs.py [--threads 2] [--repeats 1] [--only NAME,..] [-- shape options of make_checkpoint.py]

The job is that of bench.py: 4 bits, groups of 128, on the 110M shape with 16 x 512 tokens. A program's seconds are those of a user with
everything installed and imported: from the checkpoint on the disk to the artifact on the disk. quantd's go from the request to the artifact.
The loss is mean KL(float || quantized) over the first calibration tokens, by transformers in float32 on the decoded weights: the weights are
random, so it says only that no program left work out. torch writes no artifact of a format, so its loss is that of bench.py alone.
Called as tests/bench/run --programs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import tokenizers
import torch

os.environ.setdefault("QUANTD_CPU_PRODUCTS", "auto")  # as a user has it; tests ask for float32 where this is not set

import bench  # noqa: E402
import peers  # noqa: E402
import reference  # noqa: E402

WINDOWS = 4  # of calibration tokens, for losses
QUANTD = {"quantd": {}, "quantd, quality fast": {"quality": "fast"}}
PEERS = {"llm-compressor": ("llmcompressor", ".venv-peers"), "GPTQModel": ("gptqmodel", ".venv")}


def add_tokenizer(model, vocabulary):
    """The other programs ask for a tokenizer, though they get ids: a word for each id."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "w0", "eos_token": "w0"}')


def run_quantd(folder, out, threads, parameters):
    """Returns (seconds, artifact)."""
    with bench.Daemon([folder], "--threads", str(threads)) as daemon:
        job = daemon.run({
            "model": daemon.register("model"), "method": "gptq", "quantization": {"bits": 4, "group_size": 128, "mse_search": False, **parameters},
            "output": {"format": "compressed-tensors"}, "evaluation": {"hold_back": 0},
            "calibration": {"file_id": daemon.upload(folder / "tokens.ndjson", "calibration"), "num_samples": 0, "sequence_length": 512,
                            "packing": False, "shuffle": False}})
        return job["progress"]["elapsed_seconds"], daemon.download(job, out)


def run_torch(folder, out, threads):
    made = bench.baseline("--model", folder / "model", "--tokens", folder / "tokens.ndjson", "--threads", threads)
    return made["wall_seconds"], None


def run_peer(name, folder, out):
    artifact, made = peers.run_peer(*PEERS[name], folder / "model", folder / "tokens.ndjson", (4, 128, True), out)
    return made["seconds"], artifact


def turns(args, folder):
    """Returns {name: ([seconds], artifact or None)}, each program once in every turn."""
    done, errors = {}, {}
    for turn in range(args.repeats):
        runs = {name: lambda out, parameters=parameters: run_quantd(folder, out, args.threads, parameters) for name, parameters in QUANTD.items()}
        runs["torch"] = lambda out: run_torch(folder, out, args.threads)
        runs.update({name: lambda out, name=name: run_peer(name, folder, out) for name in PEERS})
        for name, run in runs.items():
            if (args.only and name not in args.only) or name in errors:
                continue
            print(f"bench: {name}, turn {turn + 1} of {args.repeats}", file=sys.stderr, flush=True)
            try:
                seconds, artifact = run(folder / f"{name}-{turn}".replace(" ", ""))
            except (OSError, ValueError, RuntimeError, peers.Failure) as error:
                errors[name] = error
                continue
            done.setdefault(name, ([], artifact))[0].append(seconds)
    return done, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", type=peers.listed, default=[])
    parser.add_argument("shape", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory(prefix="quantd-programs-") as scratch:
        folder = pathlib.Path(scratch)
        subprocess.run([sys.executable, bench.here / "make_checkpoint.py", folder, *args.shape], check=True)
        add_tokenizer(folder / "model", json.loads((folder / "model" / "config.json").read_text())["vocab_size"])
        done, errors = turns(args, folder)
        evaluator = peers.Evaluator(folder / "model", reference.read_records(folder / "tokens.ndjson")[:WINDOWS])
        base = statistics.median(done["quantd"][0]) if "quantd" in done else None
        print(f"{args.threads} threads, medians of {args.repeats} turns, load average now {os.getloadavg()[0]:.1f}\n")
        print("| program | s | of quantd's | KL |\n|---|---|---|---|")
        for name, (seconds, artifact) in done.items():
            middle = statistics.median(seconds)
            ratio = f"{middle / base:.1f}" if base else ""
            print(f"| {name} | {middle:.1f} | {ratio} | {f'{evaluator.evaluate(artifact)[0]:.5f}' if artifact else ''} |", flush=True)
        for name, error in errors.items():
            print(f"| {name} | {peers.first_line(error)} | | |")


if __name__ == "__main__":
    main()
