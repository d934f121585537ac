"""Layers that no other end-to-end test has, on checkpoints made from the rows of the architectures: recurrences, an MLP and experts as layers
of their own, latent attention. tests/golden runs every architecture; this is what of it is cheap enough for the sanitizers."""

import json
import os
import tempfile

import rows
import test_experts
from harness import Daemon, equal, main, true
from test_post_norms import artifact, tensors

CACHE = {"dtype": "fp8_e4m3", "granularity": "per_head"}


class Bench(test_experts.Bench):
    """As there, of an architecture by its model_type."""

    def __init__(self, kind):
        self.root = tempfile.TemporaryDirectory()
        self.fixed = rows.write(os.path.join(self.root.name, "model"), rows.rows()[kind])
        self.file = os.path.join(self.root.name, "model", "model.safetensors")
        self.daemon = Daemon(roots=[self.root.name])


def hybrid():
    """Factors go into norms that linears read alone; convolutions, decays and other norms keep the checkpoint's bytes, and the one layer that
    attends has scales for each of its key heads, under its own name for attention."""
    with Bench("nemotron_h") as bench:
        bench.ready()
        with open(bench.file, "rb") as file:
            source = tensors(file.read())
        for job in (("awq", "compressed-tensors", {"bits": 4, "group_size": 32, "n_grid": 4, "refine_tokens": 0}),
                    ("smoothquant", "compressed-tensors", {"kv_cache": CACHE})):
            data = artifact(bench, *job)
            made = tensors(data)
            for name, values in bench.fixed.items():
                true(made.get(name) == values, "%s keeps %s" % (job[0], name))
            changed = [name for name in source if name.endswith("norm.weight") and made[name] != source[name]]
            true(changed, "%s moves factors into norms" % job[0])
        header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
        scales = {name: entry["shape"] for name, entry in header.items() if name.endswith((".k_scale", ".v_scale"))}
        equal(scales, {"backbone.layers.1.mixer.k_scale": [2, 1, 1], "backbone.layers.1.mixer.v_scale": [2, 1, 1]}, "scales of the cache")


def latent_targets():
    """What a linear that adds to the residual stream compensates for is that stream's loss, also where no step since the last pass read it."""
    with Bench("deepseek_v3") as bench:
        bench.ready()
        rounded = {row["module"]: row for row in bench.report("rtn", "dense", {"bits": 4, "group_size": 32})}
        for row in bench.report("gptq", "dense", {"bits": 4, "group_size": 32, "target_tokens": 0}):
            true(row["relative_mse"] < 8 * rounded[row["module"]]["relative_mse"], "%s: %g" % (row["module"], row["relative_mse"]))


def latent_cache():
    """What runtimes keep of latent attention is not what scales would be measured on: refused by the parameter."""
    with Bench("deepseek_v3") as bench:
        bench.ready()
        for method, parameters, param in (("rtn", {"bits": 4, "group_size": 32, "kv_cache": CACHE}, "/quantization/kv_cache"),
                                          ("kv_cache", {}, "/method"), ("kv_analysis", {}, "/method")):
            answer = bench.submit(method, "compressed-tensors", parameters)
            equal(answer.status, 422, "status of %s with a cache (%r)" % (method, answer))
            faults = [(fault["code"], fault["param"]) for fault in answer.json["errors"]]
            equal(faults, [("incompatible_options", param)], "faults of %s" % method)
            true("latent row" in answer.json["errors"][0]["detail"], "the reason: %r" % answer)
        listed = {row["model_type"]: row["methods"] for row in bench.daemon.get("/v1/architectures")["data"]}
        for kind, known in (("deepseek_v3", False), ("glm4_moe_lite", False), ("glm4_moe", True)):
            equal("kv_cache" in listed[kind] and "kv_analysis" in listed[kind], known, "methods of a cache for %s" % kind)
            true("gptq" in listed[kind], "other methods for %s" % kind)


if __name__ == "__main__":
    main([hybrid, latent_targets, latent_cache])
