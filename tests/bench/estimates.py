#!/usr/bin/env python3
"""Estimates beside what jobs then take: memory, disk, artifact and seconds of every method on three families; prints a table.

    QUANTD=build-release/daemon/quantd QUANTD_TEST_DATA=tests/data python3 tests/bench/estimates.py [--only METHOD,..] [--shapes bench,..]

Every job runs in a daemon of its own, whose process has run nothing else, but with the rates (machine.json) of the jobs of the same method
before: the first shape begins with a profile, each later one with the rates of another shape. Where other programs compete for the cores,
seconds say little. The last column is independent of them: rates are seconds of a machine that gave the jobs before so many CPU seconds for
each second, so the estimate times that is what the job should take in CPU seconds.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import threading

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "e2e"))
import families  # noqa: E402
from checkpoint import bf16_ones, bf16_random, count, write_safetensors  # noqa: E402
from harness import JOBS, NDJSON, NO_MODULES, Daemon, ids_records, post, succeed  # noqa: E402

METHODS = {
    "rtn": ("rtn", {"bits": 4, "group_size": 128}, "compressed-tensors"),
    "gptq": ("gptq", {"bits": 4, "group_size": 128}, "compressed-tensors"),
    "awq": ("awq", {"group_size": 128}, "awq"),
    "smoothquant": ("smoothquant", {}, "compressed-tensors"),
    "smoothquant+gptq": (["smoothquant", "gptq"], {"bits": 8, "group_size": -1}, "compressed-tensors"),
    "llm_int8": ("llm_int8", {}, "bitsandbytes"),
    "fp8": ("fp8", {}, "compressed-tensors"),
    "nf4": ("nf4", {}, "bitsandbytes"),
    "kmeans": ("kmeans", {"bits": 3}, "dense"),
    "aqlm": ("aqlm", {"num_codebooks": 1, "nbits_per_codebook": 8, "max_epochs": 2}, "aqlm"),
    "ggml": ("ggml", {"type": "q4_k"}, "gguf"),
    "kv_cache": ("kv_cache", {"kv_cache": {"dtype": "fp8_e4m3"}}, "compressed-tensors"),
    "kv_analysis": ("kv_analysis", {}, None),
    "autoround": ("autoround", {"iters": 6, "batch_size": 2}, "compressed-tensors"),
    "qat": ("qat", {"bits": 3, "group_size": 64, "epochs": 1}, "compressed-tensors"),
    "tune": (["gptq", "tune"], {"bits": 3, "group_size": 64, "tune_epochs": 1}, "compressed-tensors"),
    "end_to_end": ("qat", {"bits": 3, "group_size": 64, "epochs": 1, "end_to_end": True}, "compressed-tensors"),
    "output_moments": ("gptq", {"bits": 3, "group_size": 64, "output_moments": True}, "compressed-tensors"),
    "sensitivity": ("sensitivity", {"group_size": 64}, None),
    "mixture": ("gptq", {"group_size": 64, "mixed_precision": {"bits_per_weight": 3.5}}, "compressed-tensors"),
}
LENGTH, VOCABULARY = 512, 8000
BASE = {"num_hidden_layers": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
# name: (config, calibration sequences). bench: the default of make_checkpoint.py, 110M parameters.
SHAPES = {
    "bench": (dict(BASE, **families.FAMILIES["llama"][2], hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                   num_attention_heads=12, num_key_value_heads=12, vocab_size=32000, tie_word_embeddings=True), 16),
    "qwen3": (dict(BASE, **families.FAMILIES["qwen3"][2], hidden_size=512, intermediate_size=1536, num_attention_heads=8,
                   num_key_value_heads=4), 24),
    "mixtral": (dict(BASE, **families.EXPERTS["mixtral"][2], hidden_size=512, intermediate_size=768, num_hidden_layers=2,
                     num_attention_heads=8, num_key_value_heads=4), 24),
    "wide": (dict(BASE, **families.FAMILIES["llama"][2], hidden_size=1536, intermediate_size=4096, num_hidden_layers=2,
                  num_attention_heads=12, num_key_value_heads=12), 16),
}
for config, _ in SHAPES.values():
    config.pop("rope_scaling", None)


def write_model(folder, config):
    os.makedirs(folder)
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
    source = random.Random(1)
    tensors = [(name, "BF16", shape, lambda shape=shape: bf16_random(source, count(shape)) if len(shape) > 1 else bf16_ones(count(shape)),
                2 * count(shape)) for name, shape in families.tensors(config)]
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)


def used(folder):
    """Bytes of each file in a folder as they are on the disk, but for the database, some of which come and go, or have two names, meanwhile."""
    sizes, paths = {}, {}
    for path, _, names in os.walk(folder):
        for name in names:
            if name.startswith("quantd.db"):
                continue  # its log has some megabytes whatever the job
            try:
                found = os.lstat(os.path.join(path, name))
                sizes[found.st_ino] = found.st_blocks * 512
                paths[found.st_ino] = os.path.join(path, name)
            except FileNotFoundError:
                pass
    return {paths[inode]: sizes[inode] for inode in sizes}


class Watch(threading.Thread):
    """The most that a folder has on the disk while it runs."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.most, self.files, self.ended = folder, 0, {}, threading.Event()

    def run(self):
        while not self.ended.wait(0.002):  # the peak of a job of a second is as short as that
            found = used(self.folder)
            if sum(found.values()) > self.most:
                self.most, self.files = sum(found.values()), found


def cpu_seconds(pid):
    fields = open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(root, shape, method, args, rates):
    """Runs one job; what was said of it, what it took, and {"cpu", "disk"}; None where the method and the family do not go together."""
    config, sequences = SHAPES[shape]
    sequences = args.sequences or sequences
    name, quantization, form = METHODS[method]
    with tempfile.TemporaryDirectory(prefix="quantd-estimates-") as data:
        if rates.exists():
            shutil.copy(rates, os.path.join(data, "machine.json"))
        with Daemon("--threads", str(args.threads), *NO_MODULES, roots=[root], data=data) as daemon:
            daemon.contract_checked = False
            body = {"model": post(daemon, "/v1/models", json={"uri": "file:" + shape}), "method": name, "quantization": quantization,
                    "calibration": {"num_samples": sequences, "sequence_length": args.length, "packing": False, "shuffle": False,
                                    "file_id": post(daemon, "/v1/files?purpose=calibration", headers={"Content-Type": NDJSON},
                                                    body=ids_records(sequences, args.length, VOCABULARY))}}
            if form is not None:
                body.update(output={"format": form}, evaluation={"hold_back": args.hold_back})
            if args.host_memory:
                body["resources"] = {"host_memory_bytes": args.host_memory}
            said = daemon.request("POST", "/v1/quantization/estimates", json=body).json
            if not said["possible"]:
                print("| %-8s | %-16s | %s |" % (shape, method, said["problems"][0]["detail"]), flush=True)
                return None
            before, watch, cpu = sum(used(data).values()), Watch(data), cpu_seconds(daemon.process.pid)
            watch.start()
            job = post(daemon, JOBS, json=body)
            state = succeed(daemon, job, 1800)
            cpu = cpu_seconds(daemon.process.pid) - cpu
            watch.ended.set()
            watch.join()
            report = daemon.get("%s/%s/report" % (JOBS, job))
            shutil.copy(os.path.join(data, "machine.json"), rates)
            return said, state, report, {"cpu": cpu, "disk": watch.most - before, "files": watch.files}


def ratio(said, took):
    return "%5.2f" % (said / took) if took else "    –"


class Share:
    """CPU seconds for each second of the jobs that rates come from, earlier ones counting half as much (jobs/machine.c)."""

    def __init__(self):
        self.cpu = self.seconds = 0

    def add(self, cpu, seconds):
        self.cpu, self.seconds = self.cpu / 2 + cpu, self.seconds / 2 + seconds

    def expect(self, seconds):
        return seconds * self.cpu / self.seconds if self.seconds else 0


def show(shape, method, said, state, report, more, share, verbose):
    memory, disk, seconds = said["memory"], said["disk"], said["time"]["seconds"]
    took = state["progress"]["elapsed_seconds"]
    artifact = said["output"] and said["output"]["artifact_bytes"]
    expected = share.expect(seconds)
    share.add(more["cpu"], took)
    print("| %-8s | %-16s | %s | %s | %s | %7.1f %7.1f %s | %s | %7.1f %7.1f %7.1f | %s | %s |" % (
        shape, method, ratio(memory["expected_bytes"], state["memory"]["gpu_peak_bytes"]),
        ratio(memory["host_expected_bytes"], state["memory"]["host_peak_bytes"]), ratio(artifact or 0, state["memory"]["artifact_bytes"]),
        disk["needed_bytes"] / 1e6, more["disk"] / 1e6, ratio(disk["needed_bytes"], more["disk"]), said["time"]["basis"].ljust(7), seconds,
        took, more["cpu"], ratio(seconds, took), ratio(expected, more["cpu"] if expected else 0)), flush=True)
    if verbose:
        phases = report["totals"]["phases"]
        print("    " + ", ".join("%s %.2f/%.2f" % (name, said["time"]["phases"][name], phases[name]["seconds"]) for name in phases)
              + ", other %.2f/%.2f" % (said["time"]["phases"]["other"], took - sum(one["seconds"] for one in phases.values())))
        print("    " + ", ".join("%s %.1f" % (one["phase"], one["device_bytes"] / 1e6) for one in memory["phases"])
              + "; device peak %.1f MB, process %.1f MB; " % (state["memory"]["gpu_peak_bytes"] / 1e6, state["memory"]["host_peak_bytes"] / 1e6)
              + ", ".join("%s %.1f" % (name, disk[name] / 1e6) for name in disk if name not in ("free_bytes",)), flush=True)
        print("    at the peak " + ", ".join("%s %.1f" % (os.path.basename(path), size / 1e6) for path, size in sorted(more["files"].items())
                                              if size > 1e5), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--shapes", default="bench,qwen3,mixtral")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=0, help="at most so many of each shape")
    parser.add_argument("--sequences", type=int, default=0, help="of each job, where the shape's own number takes too long")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--hold-back", type=float, default=0.25)
    parser.add_argument("--host-memory", type=int, default=0, help="bytes of activations; 1: all of them go to the disk")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    shapes = args.shapes.split(",")
    with tempfile.TemporaryDirectory(prefix="quantd-bench-") as root:
        for shape in set(shapes):
            SHAPES[shape][0]["num_hidden_layers"] = min(args.layers or 1000, SHAPES[shape][0]["num_hidden_layers"])
            write_model(os.path.join(root, shape), SHAPES[shape][0])
        print("%d threads, load average %.1f" % (args.threads, os.getloadavg()[0]))
        print("| shape | method | device | process | artifact | disk MB: said, took, ratio | basis | seconds: said, took, CPU | ratio | by CPU |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for method in args.only.split(",") if args.only else METHODS:
            rates, share = pathlib.Path(root) / (method + ".json"), Share()
            for shape in shapes:
                found = measure(root, shape, method, args, rates)
                if found is not None:
                    show(shape, method, *found, share, args.verbose)


if __name__ == "__main__":
    main()
