#!/usr/bin/env python3
"""What learning on blocks has to compute, counted from shapes, and the seconds of that at a device's rates; with a device, real jobs too.

    learn.py [--shape 7b|8b|70b]
    learn.py --quantd BINARY --modules DIR --device cuda:0 --model FOLDER --length N [--of 32] [--iters N] [--roofs FILE] [--table FILE]

The first form prints a reckoning and nothing that was measured. The second runs autoround and one epoch of qat on FOLDER, what
make_checkpoint.py writes, which may have fewer blocks than the model (--of), and prints seconds over those of the reckoning. FILE of
--roofs is what bench_roofs measured. Exit 77 where the device is not there. Standard library only.

Counted for a step on a block of T tokens and W weights: products 2 T W forward, 2 T W for the gradient of weights, 2 T W for that of
inputs, but not of the inputs of q, k and v, before which nothing learns; attention two products forward and five backward, causal,
none of it written; in memory only what is not a product: activations in BF16 by norms, rotary, gates, sums and losses, each weight's
latent, gradient and moving averages in F32 and its rounded value in BF16. Nothing overlaps, since each part is as fast as one rate lets it.
"""

import argparse
import os
import pathlib
import sys

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here))
sys.path.insert(0, str(here.parent.parent / "interop"))
import job as gpu_job  # noqa: E402

# hidden, MLP, width of q, width of k and of v, blocks
SHAPES = {"7b": (4096, 11008, 4096, 4096, 32), "8b": (4096, 14336, 4096, 1024, 32), "70b": (8192, 28672, 8192, 1024, 80)}
# TFLOP/s and GB/s. What single operations reached on an H200: RESULTS.md, 2026-11-27; attention: of a fused kernel, which is not there yet.
SHEET = {"product": 989.0, "attention": 989.0, "copy": 4800.0}
REACHED = {"product": 758.0, "attention": 350.0, "copy": 2983.0}
# What quantizers/autoround.c and quantizers/qat.c do by default: steps or epochs, sequences of a step, a share held out, measured losses.
AUTOROUND = {"iters": 200, "batch": 8, "held": 8, "checks": 10}
QAT = {"epochs": 1, "batch": 4, "held": 16, "checks": 4}
BITS, GROUP = 4, 128
SIGN_BYTES, ADAM_BYTES = 30, 38  # of a weight in a step: rounding 6, gradient written and read 8; the step's latent and averages


class Block:
    """Work of one block; counts are of one block, one step."""

    def __init__(self, hidden, mlp, width, cache):
        self.hidden, self.mlp, self.width, self.cache = hidden, mlp, width, cache
        self.first = hidden * (width + 2 * cache)
        self.weights = self.first + hidden * width + 3 * hidden * mlp

    def forward(self, tokens, length):
        values = 13 * self.hidden + 2 * (self.width + self.cache) + 3 * self.mlp  # two norms, two sums, rotary, gate, loss
        return Work(2 * tokens * self.weights, 2 * tokens * length * self.width, 2 * values * tokens)

    def backward(self, tokens, length):
        values = 12 * self.hidden + 2 * (self.width + self.cache) + 5 * self.mlp
        return Work(tokens * (4 * self.weights - 2 * self.first), 5 * tokens * length * self.width, 2 * values * tokens)

    def learning(self, plan, samples, length, bytes_of_weight):
        """Returns (steps, Work of steps, Work of measured losses)."""
        held = samples // plan["held"]
        steps = plan["iters"] if "iters" in plan else plan["epochs"] * ((samples - held) // plan["batch"])
        tokens = plan["batch"] * length
        step = self.forward(tokens, length) + self.backward(tokens, length) + Work(0, 0, bytes_of_weight * self.weights)
        measured = (1 + plan["checks"] * plan.get("epochs", 1)) * held * length
        return steps, step * steps, self.forward(measured, length)


class Work:
    """Operations of products and of attention, and bytes of memory."""

    def __init__(self, products, attention, moved):
        self.parts = products, attention, moved

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self.parts, other.parts)))

    def __mul__(self, factor):
        return Work(*(part * factor for part in self.parts))

    def seconds(self, rates):
        products, attention, moved = self.parts
        return products / rates["product"] / 1e12 + attention / rates["attention"] / 1e12 + moved / rates["copy"] / 1e9


def reckoned(shape):
    """Yields the lines of the table of a complete model."""
    *sizes, blocks = SHAPES[shape]
    block = Block(*sizes)
    rows = [("AutoRound by default, 128 x 2048", AUTOROUND, 128, SIGN_BYTES),
            ("the same, recipe `light`", {**AUTOROUND, "iters": 50}, 128, SIGN_BYTES),
            ("an epoch of `qat`, 128 x 2048, batch 4", QAT, 128, ADAM_BYTES),
            ("an epoch of EfficientQAT's Block-AP, 4096 x 2048, batch 2", {**QAT, "batch": 2, "held": 64}, 4096, ADAM_BYTES)]
    yield f"| {shape} shape, {blocks} blocks | steps a block | products, PFLOP | attention, PFLOP | memory, TB | s, data sheet | s, reached rates |"
    yield "|---|---|---|---|---|---|---|"
    for name, plan, samples, state in rows:
        steps, learned, measured = block.learning(plan, samples, 2048, state)
        work = (learned + measured) * blocks
        products, attention, moved = work.parts
        yield (f"| {name} | {steps} | {products / 1e15:.1f} | {attention / 1e15:.1f} | {moved / 1e12:.1f} | {work.seconds(SHEET):.0f} | "
               f"{work.seconds(REACHED):.0f} |")
    yield ""
    yield (f"Reckoned from shapes, not measured. Data sheet: {SHEET['product']:.0f} TFLOP/s BF16, {SHEET['copy'] / 1000:.1f} TB/s. Reached by "
           f"single operations on an H200: {REACHED['product']:.0f} TFLOP/s, {REACHED['copy'] / 1000:.1f} TB/s; attention "
           f"{REACHED['attention']:.0f} TFLOP/s, assumed.")


def learn_row(args, daemon, model, file, method, parameters, floor, steps, layers):
    """Runs one job; returns its row."""
    with gpu_job.Watch(args.device) as watch:
        job = daemon.run({"model": model, "method": method, "quantization": {"bits": BITS, "group_size": GROUP, **parameters},
                          "calibration": {"file_id": file, "num_samples": 0, "sequence_length": args.length, "packing": False,
                                          "shuffle": False}, "evaluation": {"hold_back": 0}})
    tuning = daemon.report(job)["tuning"]
    made = [block["steps"] for block in tuning["blocks"]]
    early = "" if set(made) == {steps} else f" ({min(made)} to {max(made)} made)"
    return (f"| {method} | {steps}{early} | {tuning['seconds']:.2f} | {floor:.3g} | {tuning['seconds'] / floor:.3g} | "
            f"{tuning['seconds'] * args.of / layers:.0f} | {job['progress']['elapsed_seconds']:.1f} | {watch.words()} |")


def measure(args, daemon_class, table):
    shape, roofs = gpu_job.Shape(args.model / "model"), gpu_job.Roofs(args.roofs)
    block = Block(shape.groups[1][0][0], shape.groups[3][0][1], shape.width, shape.groups[0][1][0])
    rates = {"product": roofs["product"], "attention": min(REACHED["attention"], roofs["product"]),
             "copy": roofs.measured.get("copy") or REACHED["copy"]}
    samples = sum(1 for _ in open(args.model / "tokens.ndjson", encoding="ascii"))
    plan = {**AUTOROUND, **({"iters": args.iters} if args.iters else {})}
    jobs = [("autoround", {"iters": plan["iters"], "batch_size": plan["batch"]}, plan, SIGN_BYTES),
            ("qat", {"epochs": QAT["epochs"], "batch_size": QAT["batch"]}, QAT, ADAM_BYTES)]
    with daemon_class([args.model], "--module-dir", args.modules, "--device", args.device) as daemon:
        model = daemon.register("model")
        file = daemon.upload(args.model / "tokens.ndjson", "calibration")
        table.add("", f"### Learning, {args.name}, {shape.layers} of {args.of} blocks, {samples} x {args.length} tokens, on {args.device}", "",
                  f"Rates, TFLOP/s and GB/s: product {rates['product']:.4g}, attention {rates['attention']:.4g} (assumed), copy "
                  f"{rates['copy']:.4g}.", "",
                  f"| method | steps a block | seconds of learning | reckoned | times that | all {args.of} blocks, extrapolated | job, s | "
                  "memory |", "|---|---|---|---|---|---|---|---|")
        for method, parameters, plan, state in jobs:
            steps, learned, measured = block.learning(plan, samples, args.length, state)
            floor = ((learned + measured) * shape.layers).seconds(rates)
            table.add(learn_row(args, daemon, model, file, method, parameters, floor, steps, shape.layers))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--quantd", type=pathlib.Path)
    parser.add_argument("--modules")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--of", type=int, default=32)
    parser.add_argument("--iters", type=int, default=0)
    parser.add_argument("--name", default="7b shape")
    parser.add_argument("--roofs", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    table = gpu_job.Table(args.table)
    if args.quantd is None:
        table.add(*reckoned(args.shape))
        print("\nNothing was measured: that needs --quantd, --modules and --model, and a device.")
        return
    os.environ["QUANTD_BUILD_DIR"] = str(args.quantd.resolve().parent.parent)
    from daemon import Daemon, Failure
    try:
        measure(args, Daemon, table)
    except Failure as failure:
        if f"there is no device '{args.device}'" not in str(failure):
            raise
        print(f"learn: skipped, nothing was measured: there is no device {args.device} here", file=sys.stderr)
        sys.exit(77)


if __name__ == "__main__":
    main()
