#!/usr/bin/env python3
"""Seconds, memory and loss of every method on one checkpoint; prints a table.

    methods.py [--threads 2] [--only NAME,..] [-- shape options of make_checkpoint.py]

One job a method through a daemon of its own, defaults but for what the table names. CPU s: user and system seconds of the daemon from the
request to the artifact, which say more than wall seconds where others load the machine. bitsandbytes is compared with NF4 where it is
installed: the same weights, quantized in memory. Called as tests/bench/run --methods.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "interop"))
import reference  # noqa: E402
from daemon import Daemon  # noqa: E402

JOBS = [
    ("rtn", "rtn", {"bits": 4, "group_size": 128}, "compressed-tensors"),
    ("gptq", "gptq", {"bits": 4, "group_size": 128}, "compressed-tensors"),
    ("awq", "awq", {"bits": 4, "group_size": 128}, "awq"),
    ("smoothquant", "smoothquant", {}, "compressed-tensors"),
    ("smoothquant+gptq", ["smoothquant", "gptq"], {"bits": 8, "group_size": -1}, "compressed-tensors"),
    ("llm_int8", "llm_int8", {}, "bitsandbytes"),
    ("fp8", "fp8", {}, "compressed-tensors"),
    ("nf4", "nf4", {}, "bitsandbytes"),
    ("kmeans, 3 bit", "kmeans", {"bits": 3}, "dense"),
    ("aqlm, 2x8", "aqlm", {"num_codebooks": 2, "nbits_per_codebook": 8, "max_epochs": 4}, "aqlm"),
    ("ggml, q4_k", "ggml", {"type": "q4_k"}, "gguf"),
    ("kv_cache", "kv_cache", {"kv_cache": {"dtype": "fp8_e4m3"}}, "compressed-tensors"),
]


def cpu_seconds(pid):
    """User and system seconds of a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_job(folder, threads, method, quantization, output):
    """The job, its report and the processor seconds that it took."""
    with Daemon([folder], "--threads", str(threads)) as daemon:
        begun = cpu_seconds(daemon.process.pid)
        job = daemon.run({
            "model": daemon.register("model"), "method": method, "quantization": quantization, "output": {"format": output},
            "calibration": {"file_id": daemon.upload(folder / "tokens.ndjson", "calibration"), "num_samples": 0,
                            "sequence_length": 512, "packing": False, "shuffle": False},
            "evaluation": {"hold_back": 0}})
        return job, daemon.report(job), cpu_seconds(daemon.process.pid) - begun


def print_method(name, job, report, cpu):
    losses = [row["output_relative_mse"] for row in report["layers"] if row["output_relative_mse"] is not None]
    phases = report["totals"]["phases"]
    solving = sum(phases[phase]["seconds"] for phase in ("solve", "hessian"))
    bits = job["result"]["bits_per_weight"]
    print(f"{name:18} {job['progress']['elapsed_seconds']:8.1f} {cpu:8.1f} {solving:8.1f} {job['memory']['host_peak_bytes'] / 2 ** 20:8.0f} "
          f"{bits if bits else 16:6.2f} {statistics.mean(losses) if losses else 0:10.2e}", flush=True)


def print_bitsandbytes(folder):
    try:
        import bitsandbytes.functional as library
        import torch
    except ImportError:
        print("bitsandbytes is not installed: no peer for nf4")
        return
    tensors = reference.read_folder(folder / "model")[1]
    weights = [torch.from_numpy(array.copy()).bfloat16() for name, array in tensors.items() if name.endswith("_proj.weight")]
    begun = time.monotonic()
    for weight in weights:
        library.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    print(f"bitsandbytes quantize_4bit of the same weights, in memory: {time.monotonic() - begun:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("shape", nargs="*")
    args = parser.parse_args()
    wanted = set(filter(None, args.only.split(",")))
    with tempfile.TemporaryDirectory(prefix="quantd-bench-") as scratch:
        folder = pathlib.Path(scratch)
        subprocess.run([sys.executable, here / "make_checkpoint.py", folder, *args.shape], check=True)
        print(f"{args.threads} threads, load average {os.getloadavg()[0]:.1f}")
        print(f"{'method':18} {'wall s':>8} {'CPU s':>8} {'solve s':>8} {'peak MiB':>8} {'bits':>6} {'mean loss':>10}")
        for name, method, quantization, output in JOBS:
            if not wanted or name.split(",")[0] in wanted:
                print_method(name, *run_job(folder, args.threads, method, quantization, output))
        if not wanted or "nf4" in wanted:
            print_bitsandbytes(folder)


if __name__ == "__main__":
    main()
