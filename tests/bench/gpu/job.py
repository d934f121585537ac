#!/usr/bin/env python3
"""Jobs on a device, through the daemon: GPTQ's phases against their floors, every method's seconds, or perplexity against the CPU's.

    job.py --quantd BINARY --modules DIR --device cuda:0 --model FOLDER --length N [--of 32] [--roofs FILE] [--table FILE]
    job.py --quantd BINARY --modules DIR --device cuda:0 --model FOLDER --length N --methods [--of 32] [--table FILE]
    job.py --quantd BINARY --modules DIR --device cuda:0 --compare tests/data [--table FILE]

FOLDER is what make_checkpoint.py writes; --of says how many blocks the complete model has, where FOLDER has fewer. The first job finds
a checkpoint that is not in the page cache and libraries that are not loaded; the second, which counts, does. FILE of --roofs is
what bench_roofs and disk.py measured; a rate that it does not have is assumed, and the table says so. Rows are written as they
come; told to end by SIGTERM, it still prints the phases so far. Standard library only.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent.parent / "interop"))

# TFLOP/s and GB/s of an H100 or H200 and a fast disk, where nothing was measured.
ASSUMED = {"product": 700.0, "product_f32": 45.0, "h2d": 50.0, "disk_read": 3.0, "cache_read": 10.0, "disk_write": 2.0}
PERPLEXITY_BOUND = 0.002
BITS, GROUP = 4, 128
# (name, method, parameters, format, seconds that a complete 7B model should take at most on an H200, or None), the most used first.
METHODS = [
    ("awq", "awq", {"bits": BITS, "group_size": GROUP}, "awq", 30),
    ("fp8", "fp8", {}, "compressed-tensors", 6),
    ("nf4", "nf4", {}, "bitsandbytes", 6),
    ("rtn", "rtn", {"bits": BITS, "group_size": GROUP}, "compressed-tensors", None),
    ("ggml q4_k", "ggml", {"type": "q4_k"}, "gguf", 16),
    ("smoothquant", "smoothquant", {}, "compressed-tensors", 18),
    ("llm_int8", "llm_int8", {}, "bitsandbytes", None),
    ("kv_analysis", "kv_analysis", {}, None, 20),
    ("kmeans", "kmeans", {"bits": 3}, "dense", 30),
    ("aqlm 2x8, 1 epoch", "aqlm", {"num_codebooks": 2, "nbits_per_codebook": 8, "max_epochs": 1}, "aqlm", None),
]


class Roofs:
    """Rates by name, and where they come from."""

    def __init__(self, path):
        self.measured = {}
        if path is not None and path.exists():
            lines = (line.split() for line in path.read_text().splitlines() if line)
            self.measured = {line[0]: float(line[1]) for line in lines if len(line) == 2}

    def __getitem__(self, name):
        return self.measured.get(name) or ASSUMED[name]

    def words(self):
        def some(names):
            return ", ".join(f"{name} {self[name]:.4g}" for name in names) or "none"
        return (f"Roofs, TFLOP/s and GB/s. Measured: {some(name for name in ASSUMED if self.measured.get(name))}. "
                f"Assumed: {some(name for name in ASSUMED if not self.measured.get(name))}.")


class Shape:
    """What a block of a Llama has to do, counted from its configuration."""

    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.layers, hidden, mlp = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
        self.width = config["num_attention_heads"] * config["head_dim"]
        cache = config["num_key_value_heads"] * config["head_dim"]
        # (rows, columns) of the linears that share an input
        self.groups = [[(self.width, hidden), (cache, hidden), (cache, hidden)], [(hidden, self.width)], [(mlp, hidden)] * 2,
                       [(hidden, mlp)]]
        self.weights = sum(rows * columns for group in self.groups for rows, columns in group)
        self.bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def floors(self, tokens, length, artifact_bytes, cold, roofs):
        """The minimum seconds that each phase of all blocks takes at those rates: one pass, half of each Gram matrix, no inverse."""
        squares = [group[0][1] ** 2 for group in self.groups]
        cubes = [group[0][1] ** 3 for group in self.groups]
        updates = sum(rows * columns ** 2 for group in self.groups for rows, columns in group)
        packed = self.layers * self.weights * (BITS / 8 + 2 / GROUP)
        flops, flops_f32 = 1e-12 * self.layers / roofs["product"], 1e-12 * self.layers / roofs["product_f32"]
        return {"load": 1e-9 * self.bytes / min(roofs["disk_read" if cold else "cache_read"], roofs["h2d"]),
                "forward": flops * 2 * tokens * (self.weights + length * self.width),
                "hessian": flops * tokens * sum(squares),
                "solve": flops_f32 * (sum(cubes) / 3 + updates),
                "measure": flops * 6 * updates,  # two quadratic forms, half of each, three products of BF16 for one of F32
                "checkpoint": 1e-9 * packed / roofs["disk_write"],
                "export": 1e-9 * artifact_bytes / roofs["disk_write"]}


COMPUTING = ("forward", "hessian", "solve", "measure")


def phase_rows(phases, floors, wall):
    yield "| phase | seconds | TFLOP/s | floor, s | times its floor |"
    yield "|---|---|---|---|---|"
    for name, phase in phases.items():
        seconds, rate = phase["seconds"], (phase["gflops_per_second"] or 0) / 1000
        ratio = f"{floors[name]:.3f} | {seconds / floors[name]:.1f}" if name in floors else "|"
        yield f"| {name} | {seconds:.2f} | {f'{rate:.3g}' if rate else ''} | {ratio} |"
    yield f"| wall | {wall:.2f} | | {whole_floor(floors):.3f} | {wall / whole_floor(floors):.1f} |"


def whole_floor(floors):
    """Reading and writing can overlap with computing."""
    computing = sum(floors[name] for name in COMPUTING)
    return max(computing, sum(floors.values()) - computing)


class Watch:
    """Samples a device's memory and how busy it is, where there is nvidia-smi. Use as a context manager."""

    def __init__(self, device):
        self.used, self.busy, self.process = [], [], None
        self.index = device.partition(":")[2] or "0"
        self.cuda = device.startswith("cuda")

    def __enter__(self):
        if self.cuda:
            command = ["nvidia-smi", f"--id={self.index}", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits",
                       "--loop-ms=500"]
            try:
                self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            except OSError:
                return self
            self.thread = threading.Thread(target=self.read)
            self.thread.start()
        return self

    def read(self):
        for line in self.process.stdout:
            try:
                used, busy = map(float, line.split(","))
            except ValueError:
                continue
            self.used.append(used)
            self.busy.append(busy)

    def __exit__(self, *_):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.thread.join()

    def words(self):
        if not self.used:
            return "device memory not sampled"
        return f"{max(self.used) / 1024:.1f} GiB of the device, which was busy {statistics.mean(self.busy):.0f} % of the time"


def evict(folder):
    """Drops files from the page cache, as far as the system lets go of them."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Table:
    """Prints lines, and adds them to a file at once."""

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8") if path else None

    def add(self, *lines):
        for line in lines:
            print(line, flush=True)
            if self.file:
                self.file.write(line + "\n")
                self.file.flush()


def run(daemon, model, **more):
    return daemon.run({"model": model, "method": "gptq", "quantization": {"bits": BITS, "group_size": GROUP}, **more})


def summary(shape, of, tokens, wall, floors, job, watch):
    """The closing lines of one job."""
    yield ""
    yield (f"{tokens / wall:.0f} tokens/s, {shape.layers / wall:.2f} layers/s, wall {wall / whole_floor(floors):.1f} times its floor; peak "
           f"{job['memory']['host_peak_bytes'] / 2 ** 30:.2f} GiB resident, {watch.words()}.")
    if shape.layers < of:
        yield f"Extrapolated, not run: all {of} blocks would take {wall * of / shape.layers:.1f} s at this rate."


class Stopped(Exception):
    """There is no more time."""


def stop(*_):
    raise Stopped


def unfinished(daemon, shape, seconds, watch):
    """What a job that runs still has told of itself."""
    job = daemon.json("GET", "/v1/quantization/jobs?limit=1&order=desc")["data"][0]
    done = job["progress"]["layers_done"]
    yield "| phase | seconds |"
    yield "|---|---|"
    for name, phase in daemon.report(job)["totals"]["phases"].items():
        yield f"| {name} | {phase['seconds']:.2f} |"
    yield ""
    yield f"{done} of {shape.layers} blocks and more were done after {seconds:.1f} s; {watch.words()}."


def time_job(args, daemon_class, options, table):
    shape, roofs, digests = Shape(args.model / "model"), Roofs(args.roofs), []
    tokens = sum(len(json.loads(line)["input_ids"]) for line in open(args.model / "tokens.ndjson", encoding="ascii"))
    table.add("", f"### GPTQ {BITS} bits g{GROUP}, {args.name}, {shape.layers} of {args.of} blocks, {tokens} tokens, on {args.device}", "",
              roofs.words())
    evict(args.model / "model")
    with daemon_class([args.model], *options, "--device", args.device) as daemon:
        model = daemon.register("model")
        file = daemon.upload(args.model / "tokens.ndjson", "calibration")
        for name in ("cold", "warm"):
            begun = time.monotonic()
            try:
                with Watch(args.device) as watch:
                    job = run(daemon, model, calibration={"file_id": file, "num_samples": 0, "sequence_length": args.length,
                                                          "packing": False, "shuffle": False}, evaluation={"hold_back": 0})
            except Stopped:
                table.add("", f"#### {name}, stopped", "", *unfinished(daemon, shape, time.monotonic() - begun, watch))
                raise
            seen = time.monotonic() - begun
            wall, phases = job["progress"]["elapsed_seconds"], daemon.report(job)["totals"]["phases"]
            artifact = daemon.json("GET", f"/v1/artifacts/{job['result']['artifact_id']}")
            digests.append({file["path"]: file["sha256"] for file in artifact["files"]})
            floors = shape.floors(tokens, args.length, job["memory"]["artifact_bytes"], name == "cold", roofs)
            table.add("", f"#### {name}, {seen:.1f} s as its client sees it", "", *phase_rows(phases, floors, wall),
                      *summary(shape, args.of, tokens, wall, floors, job, watch))
    same = digests[0] == digests[1]
    table.add("", "Two runs gave " + ("the same bytes." if same else "DIFFERENT bytes."))
    return same


def time_methods(args, daemon_class, options, table):
    """A row as each job ends; what a complete model takes is extrapolated from its blocks, load and export included."""
    from daemon import Failure
    shape, good = Shape(args.model / "model"), True
    table.add("", f"### Methods, {args.name}, {shape.layers} of {args.of} blocks, on {args.device}", "",
              f"| method | seconds | of {args.of} blocks, extrapolated | goal | slowest phases |", "|---|---|---|---|---|")
    with daemon_class([args.model], *options, "--device", args.device) as daemon:
        model = daemon.register("model")
        file = daemon.upload(args.model / "tokens.ndjson", "calibration")
        for name, method, quantization, output, goal in METHODS:
            body = {"model": model, "method": method, "quantization": quantization,
                    "calibration": {"file_id": file, "num_samples": 0, "sequence_length": args.length, "packing": False, "shuffle": False}}
            if output is not None:
                body.update(output={"format": output}, evaluation={"hold_back": 0})
            try:
                job = daemon.run(body)
            except Failure as error:
                table.add(f"| {name} | FAILED | | {goal or ''} | {str(error).splitlines()[0][:120]} |")
                good = False
                continue
            wall, phases = job["progress"]["elapsed_seconds"], daemon.report(job)["totals"]["phases"]
            slowest = sorted(((at["seconds"], phase) for phase, at in phases.items()), reverse=True)[:3]
            words = ", ".join(f"{phase} {seconds:.2f}" for seconds, phase in slowest)
            table.add(f"| {name} | {wall:.2f} | {wall * args.of / shape.layers:.1f} | {goal or ''} | {words} |")
    return good


def evaluate(args, daemon_class, options, device, model, texts, calibration):
    with daemon_class([args.compare], *options, "--device", device) as daemon:
        files = {purpose: daemon.upload(path, purpose) for purpose, path in texts.items()}
        job = run(daemon, daemon.register(model), calibration={"file_id": files["calibration"], **calibration},
                  evaluation={"file_id": files["evaluation"]})
        return daemon.report(job)["evaluation"]


def compare(args, daemon_class, options, table):
    """Every model of a folder that has its own calibration.ndjson and evaluation.ndjson, else the bundled one on its own text."""
    if (args.compare / "evaluation.ndjson").exists():
        models = sorted(path.parent.name for path in args.compare.glob("*/config.json"))
        texts = {purpose: args.compare / f"{purpose}.ndjson" for purpose in ("calibration", "evaluation")}
        calibration = {"num_samples": 0, "sequence_length": 256, "packing": False, "shuffle": False}
    else:
        models = ["tiny-llama"]
        texts = dict.fromkeys(("calibration", "evaluation"), args.compare.parent.parent / "deploy" / "calibration.ndjson")
        calibration = {"num_samples": 64, "sequence_length": 128}
    table.add("", f"### GPTQ {BITS} bits g{GROUP} of trained models", "", "| model | device | before | after | KL |", "|---|---|---|---|---|")
    worst = 0
    for model in models:
        after = {}
        for device in ("cpu", args.device):
            found = evaluate(args, daemon_class, options, device, model, texts, calibration)
            after[device] = found["perplexity_after"]
            table.add(f"| {model} | {device} | {found['perplexity_before']:.4f} | {after[device]:.4f} | {found['kl_divergence_mean']:.5f} |")
        worst = max(worst, abs(after[args.device] / after["cpu"] - 1))
    table.add("", f"Apart by {100 * worst:.3f} %, at most {100 * PERPLEXITY_BOUND} % is allowed.")
    return worst <= PERPLEXITY_BOUND


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantd", type=pathlib.Path, required=True)
    parser.add_argument("--modules", required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--compare", type=pathlib.Path)
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--of", type=int, default=32)
    parser.add_argument("--name", default="7b")
    parser.add_argument("--roofs", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    os.environ["QUANTD_BUILD_DIR"] = str(args.quantd.resolve().parent.parent)
    from daemon import Daemon
    signal.signal(signal.SIGTERM, stop)
    try:
        good = (compare if args.compare else time_methods if args.methods else time_job)(args, Daemon, ("--module-dir", args.modules), Table(args.table))
    except Stopped:
        sys.exit(124)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
