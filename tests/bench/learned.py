#!/usr/bin/env python3
"""Loss of quantd's learned methods next to its GPTQ and to PyPI's auto-round: prints a table for each checkpoint.

    learned.py [--models tiny-llama,..] [--shapes w4g128,..] [--rows NAME,..] [--threads 1] [--results FILE] [--cache FOLDER]

Checkpoints, sets, evaluator and the check of quantd's own figures are those of peers.py; every method has its defaults. A cell is the
mean KL(float || quantized), its share of GPTQ's by default in the same table, what perplexity loses, and CPU seconds: of the daemon
from the request to the downloaded artifact, with its evaluation, and of the other program's process. --results adds each cell to a
file of JSON lines as it comes, and takes cells that are there as they are: a run that was cut short continues. --cache keeps
auto-round's artifacts. Called as tests/bench/run --learned.
"""

import argparse
import datetime
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

import peers
import torch
from daemon import Daemon, Failure  # of tests/interop, whose folder peers has put on the path

SHAPES = ("w4g128", "w3g128", "w2g64")
BASE, PEER = "gptq", "auto-round"
# name: (method, parameters in addition to the shape)
ROWS = {
    BASE: ("gptq", {}),
    "moments": ("gptq", {"output_moments": True}),
    "autoround": ("autoround", {}),
    "qat": ("qat", {}),
    "tune": (["gptq", "tune"], {}),
    "end-to-end": (["gptq", "tune"], {"tune_epochs": 0, "end_to_end": True}),
    "moments-end-to-end": (["gptq", "tune"], {"output_moments": True, "tune_epochs": 0, "end_to_end": True}),
}


def cpu_seconds(daemon):
    with open(f"/proc/{daemon.process.pid}/stat", encoding="ascii") as file:
        return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def learning_of(report):
    """What the report's tuning says, in a few numbers: for each block [best step, its loss as a share of the first]."""
    tuning = report["tuning"]
    if tuning is None:
        return None
    model = tuning["end_to_end"]
    return {"seconds": tuning["seconds"], "blocks": [[b["best_step"], b["best_loss"] / b["first_loss"]] for b in tuning["blocks"]],
            "end_to_end": model and [model["best_step"], model["best_loss"] / model["first_loss"]]}


class Bench:
    """One daemon, its uploads, and the cells that are known."""

    def __init__(self, args, daemon, shared, scratch):
        self.args, self.daemon, self.shared, self.scratch = args, daemon, shared, scratch
        self.uploads = [daemon.upload(shared / f"{purpose}.ndjson", purpose) for purpose in ("calibration", "evaluation")]
        self.windows = peers.reference.read_records(shared / "evaluation.ndjson")
        self.cells, self.registered, self.evaluators = {}, {}, {}
        if args.results and args.results.exists():
            for line in args.results.read_text(encoding="utf-8").splitlines():
                cell = json.loads(line)
                self.cells[cell["model"], cell["shape"], cell["row"]] = cell

    def evaluator(self, model):
        if model not in self.evaluators:
            self.evaluators = {model: peers.Evaluator(self.shared / model, self.windows)}  # of one model: the last
        return self.evaluators[model]

    def measure(self, model, shape, row, folder):
        """Returns an object with the cell's figures."""
        if row == PEER:
            artifact, made = peers.run_peer("autoround", ".venv-peers", self.shared / model, self.shared / "calibration.ndjson",
                                            peers.SHAPES[shape], (self.args.cache or self.scratch) / "autoround" / f"{model}-{shape}")
            return {**self.losses(model, artifact), **made}
        if model not in self.registered:
            self.registered[model] = self.daemon.register(model)
        method, parameters = ROWS[row]
        before = cpu_seconds(self.daemon)
        artifact, job = peers.run_quantd(self.daemon, self.uploads, self.registered[model], peers.SHAPES[shape], method, parameters, folder)
        spent = cpu_seconds(self.daemon) - before
        figures = self.losses(model, artifact)
        peers.check(f"{model} {shape} {row}", job, (figures["kl"], figures["perplexity"]))
        return {**figures, "seconds": job["progress"]["elapsed_seconds"], "cpu_seconds": spent,
                "learning": learning_of(self.daemon.report(job))}

    def losses(self, model, artifact):
        evaluator = self.evaluator(model)
        kl, perplexity = evaluator.evaluate(artifact)
        return {"kl": kl, "perplexity": perplexity, "perplexity_float": evaluator.float_perplexity}

    def cell(self, model, shape, row):
        """Returns the cell, known or measured now, or None where that failed, after saying so."""
        key = model, shape, row
        if key not in self.cells:
            try:
                figures = self.measure(*key, self.scratch / "-".join(key))
            except (Failure, OSError, ValueError, RuntimeError, AssertionError, KeyError) as error:
                print(f"{' '.join(key)}: failed: {peers.first_line(error)}", flush=True)
                return None
            self.cells[key] = {"model": model, "shape": shape, "row": row, **figures, "threads": self.args.threads,
                               "load": os.getloadavg()[0], "ended": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")}
            if self.args.results:
                with open(self.args.results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(self.cells[key]) + "\n")
            print(f"{time.strftime('%H:%M:%S')} {' '.join(key)}: {json.dumps(figures)}", flush=True)
        return self.cells[key]


def share_word(share):
    return f"{share:.2f}".lstrip("0") if share < 1 else f"{share:.2f}"


def print_table(model, shapes, rows, cells):
    print(f"\n| {model} | {' | '.join(shapes)} |\n|---{'|---' * len(shapes)}|")
    for row in rows:
        words = []
        for shape in shapes:
            cell, base = cells.get((model, shape, row)), cells.get((model, shape, BASE))
            words.append("" if cell is None or base is None else
                         f"{cell['kl']:.5f}, {share_word(cell['kl'] / base['kl'])}, {cell['perplexity'] - cell['perplexity_float']:.3f}, "
                         f"{cell['cpu_seconds']:.0f}")
        if any(words):
            print(f"| {row} | {' | '.join(words)} |")


def main():
    names = [*ROWS, PEER]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=peers.listed, default=list(peers.MODELS))
    parser.add_argument("--shapes", type=peers.listed, default=list(SHAPES))
    parser.add_argument("--rows", type=peers.listed, default=names)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path)
    args = parser.parse_args()
    for row in args.rows:
        if row not in names:
            raise SystemExit(f"learned: no row {row}; there are {', '.join(names)}")
    shared = peers.shared_models()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the daemon as well
    torch.set_num_threads(args.threads)
    os.environ.update(OMP_NUM_THREADS=str(args.threads))  # of auto-round's process
    args.cache = args.cache and args.cache.resolve()
    with tempfile.TemporaryDirectory(prefix="quantd-learned-") as scratch, Daemon([shared], "--threads", str(args.threads)) as daemon:
        bench = Bench(args, daemon, shared, pathlib.Path(scratch))
        for model in args.models:
            for shape in args.shapes:
                for row in args.rows:
                    bench.cell(model, shape, row)
    print("\nMean KL(float || quantized), share of the first row's, loss of perplexity, CPU seconds.")
    for model in args.models:
        print_table(model, args.shapes, names, bench.cells)
    packages = {cell["package"] for cell in bench.cells.values() if "package" in cell}
    print(f"\nquantd's figures agree with the evaluator's to {peers.AGREE:g}. {args.threads} threads. {', '.join(sorted(packages))}")


if __name__ == "__main__":
    main()
