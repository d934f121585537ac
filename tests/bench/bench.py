#!/usr/bin/env python3
"""Times a job through the daemon and single solves, against the roof of this machine and against plain torch; prints tables.

    bench.py [--threads 2] [--repeats 3] [--quality fast|default|best] [--json FILE] [-- shape options of make_checkpoint.py]

Called by tests/bench/run. quantd and torch take turns and each figure is a median, so that a machine that slows down slows
both. The roof is the best float32 product of 4096 cubed that quantd's own backend reached in this run. Speed counts only if
the result is no worse, so the mean loss on the inputs, tr(dW H dW^T) / tr(W H W^T), of both is printed too. The baseline
is GPTQ as published, which is what --quality fast does; by default quantd refines the codes after that, and loses less.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "interop"))
from daemon import Daemon  # noqa: E402

# quantd's phases and what the baseline calls the same work.
PHASES = {"load": ("load",), "forward": ("forward",), "hessian": ("hessian",), "solve": ("grid", "factor", "sweep"), "measure": (),
          "evaluate": (), "checkpoint": (), "export": ("pack", "write")}


def run_json(*command):
    """The JSON object on the last line of a command's output."""
    return json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def baseline(*arguments):
    return run_json(sys.executable, here / "baseline_torch.py", *arguments)


def run_job(folder, threads, quality):
    """One job through a daemon of its own; returns what its report says of time, loss and memory."""
    with Daemon([folder], "--threads", str(threads)) as daemon:
        job = daemon.run({
            "model": daemon.register("model"), "method": "gptq",
            "quantization": {"bits": 4, "group_size": 128, "mse_search": False, "quality": quality},
            "calibration": {"file_id": daemon.upload(folder / "tokens.ndjson", "calibration"), "num_samples": 0,
                            "sequence_length": 512, "packing": False, "shuffle": False},
            "evaluation": {"hold_back": 0}})
        report = daemon.report(job)
    return {"phases": report["totals"]["phases"], "wall_seconds": job["progress"]["elapsed_seconds"],
            "losses": [row["output_relative_mse"] for row in report["layers"]], "peak_bytes": job["memory"]["host_peak_bytes"]}


def median(runs, *path):
    def at(run):
        for key in path:
            run = run[key]
        return run
    return statistics.median(map(at, runs))


def print_job(jobs, torches, roof):
    print(f"\n{'phase':12} {'quantd s':>9} {'GFLOP/s':>9} {'% of roof':>9} {'torch s':>9} {'ratio':>7}")
    total, peer_total, flops = 0.0, 0.0, 0.0
    for phase, names in PHASES.items():
        seconds = median(jobs, "phases", phase, "seconds")
        work = seconds * 1e9 * statistics.median(job["phases"][phase]["gflops_per_second"] or 0 for job in jobs)
        peer = sum(median(torches, "seconds", name) for name in names)
        total, peer_total, flops = total + seconds, peer_total + peer, flops + work
        print_row(phase, seconds, work, peer, roof)
    print_row("all phases", total, flops, peer_total, roof)
    print_row("wall", median(jobs, "wall_seconds"), flops, median(torches, "wall_seconds"), roof)


def print_row(name, seconds, flops, peer, roof):
    rate = flops / seconds * 1e-9 if seconds > 0 else 0.0
    speed = f"{rate:9.1f} {100 * rate / roof:9.1f}" if flops > 0 else f"{'':9} {'':9}"
    ratio = f"{peer:9.2f} {peer / seconds:6.1f}x" if peer > 0 and seconds > 0 else ""
    print(f"{name:12} {seconds:9.3f} {speed} {ratio}")


def print_solve(ours, torches, roof):
    n = ours[0]["n"]
    factor, sweep = 2 / 3 * n ** 3, float(n) ** 3
    print(f"\nsolve {n}x{n}")
    print_row("factor", median(ours, "factor"), factor, median(torches, "seconds", "factor"), roof)
    print_row("sweep", median(ours, "sweep"), sweep, median(torches, "seconds", "sweep"), roof)
    print_row("whole solve", median(ours, "solve"), factor + sweep, median(torches, "seconds", "wall"), roof)
    print_row("with search", median(ours, "solve_search"), factor + sweep, 0, roof)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quality", default="default")
    parser.add_argument("--solve", type=int, default=4096)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("shape", nargs="*")
    args = parser.parse_args()
    bench_solve = pathlib.Path(os.environ["QUANTD_BUILD_DIR"], "tests", "bench", "bench_solve")
    jobs, torches, solves, torch_solves = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="quantd-bench-") as scratch:
        folder = pathlib.Path(scratch)
        subprocess.run([sys.executable, here / "make_checkpoint.py", folder, *args.shape], check=True)
        for i in range(args.repeats):
            print(f"bench: run {i + 1} of {args.repeats}", file=sys.stderr)
            solves.append(run_json(bench_solve, args.threads, args.solve, 3))
            torch_solves.append(baseline("--solve", args.solve, "--repeats", 1, "--threads", args.threads))
            jobs.append(run_job(folder, args.threads, args.quality))
            torches.append(baseline("--model", folder / "model", "--tokens", folder / "tokens.ndjson", "--threads", args.threads))
    roof = max(solve["roof_gflops"] for solve in solves)
    peer_roof = max(run["roof_gflops"] for run in torches + torch_solves)
    peer = torches[0]
    print(f"{datetime.date.today()}, {solves[0]['device']}, {args.threads} threads, quality {args.quality}, medians of {args.repeats} runs")
    print(f"quantd: {solves[0]['kernels']}; roof {roof:.0f} GFLOP/s float32")
    print(f"torch {peer['torch']}, {peer['cpu_capability']}, MKL {peer['mkl']}, numpy {peer['numpy']}; its own roof {peer_roof:.0f} GFLOP/s")
    print(f"load average now {os.getloadavg()[0]:.1f}; quantd's peak {jobs[0]['peak_bytes'] / 2 ** 20:.0f} MiB resident")
    print_job(jobs, torches, roof)
    print(f"mean loss on the inputs: quantd {statistics.mean(jobs[0]['losses']):.6f}, torch {statistics.mean(peer['losses']):.6f}")
    print_solve(solves, torch_solves, roof)
    if args.json:
        args.json.write_text(json.dumps({"jobs": jobs, "torch": torches, "solves": solves, "torch_solves": torch_solves}, indent=1))


if __name__ == "__main__":
    main()
