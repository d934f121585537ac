#!/usr/bin/env python3
"""A GPTQ job on a device, through the daemon: either its phases against their floors, or its perplexity against the CPU's.

    job.py --quantd BINARY --modules DIR --device cuda:0 --model FOLDER --length N [--layers 8 --of 32] [--table FILE]
    job.py --quantd BINARY --modules DIR --device cuda:0 --compare tests/data [--table FILE]

FOLDER is what make_checkpoint.py writes. The first job warms the page cache and the device's libraries; the second counts.
Standard library only.
"""

import argparse
import os
import pathlib
import sys

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent.parent / "interop"))

# Rates that a phase's operations could reach on an H100 or H200, in TFLOP/s: long BF16 products, and F32 ones.
ROOFS = {"forward": 700.0, "hessian": 700.0, "solve": 45.0}
PERPLEXITY_BOUND = 0.002


def run(daemon, model, **more):
    return daemon.run({"model": model, "method": "gptq", "quantization": {"bits": 4, "group_size": 128}, **more})


def phase_rows(phases, wall):
    yield "| phase | seconds | TFLOP/s | floor, s | times its floor |"
    yield "|---|---|---|---|---|"
    for name, phase in phases.items():
        seconds, rate = phase["seconds"], (phase["gflops_per_second"] or 0) / 1000
        floor = seconds * rate / ROOFS[name] if name in ROOFS and rate > 0 else None
        more = f"{rate:.1f} | {floor:.2f} | {seconds / floor:.1f}" if floor else " | | "
        yield f"| {name} | {seconds:.2f} | {more} |"
    yield f"| wall | {wall:.2f} | | | |"


def time_job(args, daemon_class, options):
    lines = []
    with daemon_class([args.model], *options, "--device", args.device) as daemon:
        model = daemon.register("model")
        tokens = daemon.upload(args.model / "tokens.ndjson", "calibration")
        digests = []
        for name in ("cold", "warm"):
            job = run(daemon, model, calibration={"file_id": tokens, "num_samples": 0, "sequence_length": args.length,
                                                  "packing": False, "shuffle": False}, evaluation={"hold_back": 0})
            report = daemon.report(job)
            wall = job["progress"]["elapsed_seconds"]
            artifact = daemon.json("GET", f"/v1/artifacts/{job['result']['artifact_id']}")
            digests.append({file["path"]: file["sha256"] for file in artifact["files"]})
            lines += ["", f"### 7B shape, {args.layers} of {args.of} blocks, {name}", "", *phase_rows(report["totals"]["phases"], wall)]
            if args.layers < args.of:
                lines += ["", f"All {args.of} blocks would take {wall * args.of / args.layers:.1f} s at this rate (extrapolated)."]
        lines += ["", "Two runs gave " + ("the same bytes." if digests[0] == digests[1] else "DIFFERENT bytes.")]
    return lines, digests[0] == digests[1]


def compare(args, daemon_class, options):
    results = {}
    records = args.compare.parent.parent / "deploy" / "calibration.ndjson"
    for device in ("cpu", args.device):
        with daemon_class([args.compare], *options, "--device", device) as daemon:
            tokens = daemon.upload(records, "calibration")
            job = run(daemon, daemon.register("tiny-llama"), calibration={"file_id": tokens, "num_samples": 64, "sequence_length": 128})
            results[device] = daemon.report(job)["evaluation"]
    lines = ["", "### Bundled model, GPTQ 4 bits", "", "| device | before | after | KL |", "|---|---|---|---|"]
    for device, found in results.items():
        lines.append(f"| {device} | {found['perplexity_before']:.4f} | {found['perplexity_after']:.4f} | {found['kl_mean']:.5f} |"
                     if "kl_mean" in found else f"| {device} | {found['perplexity_before']:.4f} | {found['perplexity_after']:.4f} | |")
    change = abs(results[args.device]["perplexity_after"] / results["cpu"]["perplexity_after"] - 1)
    lines += ["", f"Apart by {100 * change:.3f} %, at most {100 * PERPLEXITY_BOUND} % is allowed."]
    return lines, change <= PERPLEXITY_BOUND


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantd", type=pathlib.Path, required=True)
    parser.add_argument("--modules", required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--compare", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--of", type=int, default=32)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    os.environ["QUANTD_BUILD_DIR"] = str(args.quantd.resolve().parent.parent)
    from daemon import Daemon
    lines, good = (compare if args.compare else time_job)(args, Daemon, ("--module-dir", args.modules))
    text = "\n".join(lines)
    print(text)
    if args.table:
        with open(args.table, "a", encoding="utf-8") as table:
            table.write(text + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
