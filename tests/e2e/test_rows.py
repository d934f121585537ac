"""Layers that no other end-to-end test has, on checkpoints made from the rows of the architectures: recurrences, an MLP and experts as layers
of their own, experts of a narrower row, latent attention. tests/golden runs every architecture; this is what of it is cheap enough for the
sanitizers."""

import copy
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
        self.row = rows.rows()[kind]
        self.fixed = rows.write(os.path.join(self.root.name, "model"), self.row)
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


PROJECTED = {"overrides": [{"match": "*_latent_proj"}]}


def latent_experts():
    """Experts between two linears: each has the tokens that were routed to it, or all; the linears have all, and take part where they are
    asked for."""
    narrow = {"bits": 4, "group_size": 32}
    with Bench("nemotron_h-latent") as bench:
        bench.ready()
        rounded = {row["module"]: row for row in bench.report("rtn", "compressed-tensors", narrow)}
        equal([name for name in rounded if name.endswith("latent_proj")], [], "linears around experts that are quantized unasked")
        rounded = {row["module"]: row for row in bench.report("rtn", "dense", {**narrow, **PROJECTED})}
        solved = bench.report("gptq", "dense", {**narrow, **PROJECTED, "target_tokens": 0, "expert_min_tokens": 1000})
        equal({row["module"] for row in solved}, set(rounded), "modules that both quantize")
        around = [row for row in solved if row["module"].endswith("latent_proj")]
        equal(len(around), 2, "linears around experts")
        experts = [row for row in solved if row["module"].endswith("up_proj") and ".experts." in row["module"]]
        tokens, = (row["tokens"] for row in solved if row["module"].endswith("in_proj"))
        equal([row["tokens"] for row in around], [tokens] * 2, "tokens of the linears around experts")
        equal(sum(row["tokens"] for row in experts), 2 * tokens, "tokens of all experts")
        for row in experts:
            equal("starved" in (row["note"] or ""), row["tokens"] > 0, "note of %r" % row)
            equal("no calibration token" in (row["fallback"] or ""), row["tokens"] == 0, "fallback of %r" % row)
        for row in solved:  # weights move where they make up for what experts lack
            true(row["relative_mse"] < 16 * rounded[row["module"]]["relative_mse"], "%s: %g" % (row["module"], row["relative_mse"]))
        everywhere = bench.report("smoothquant", "compressed-tensors", {**PROJECTED, "calibrate_all_experts": True})
        true(all(row["tokens"] == tokens for row in everywhere), "every linear sees every token")
        equal(len(everywhere), len(solved), "modules")


def latent_refused():
    """Tensors that contradict the width of experts, and widths that cannot be."""
    fc1, fc2 = ("backbone.layers.3.mixer.%s_latent_proj" % name for name in ("fc1", "fc2"))
    def turn(row):
        row["tensors"][fc1 + ".weight"]["shape"].reverse()
    def drop(row):
        del row["tensors"][fc2 + ".weight"]
    def bias(row):
        row["tensors"][fc2 + ".bias"] = {"shape": [row["config"]["hidden_size"]], "what": "vector", "fixed": False}
    def config(size):
        return lambda row: row["config"].update(moe_latent_size=size)
    with Bench("nemotron_h-latent") as bench:
        hidden = bench.row["config"]["hidden_size"]
        for number, (change, words) in enumerate((
                (turn, "tensor %s.weight has shape [%d, 32]; config.json asks for [32, %d]" % (fc1, hidden, hidden)),
                (drop, "tensor %s.weight is missing" % fc2), (bias, "tensor %s.bias is not part of" % fc2),
                (config(0), "moe_latent_size = 0"), (config(1 << 40), "moe_latent_size = %d" % (1 << 40)), (config("wide"), "moe_latent_size"),
                (config(48), "config.json asks for [48, %d]" % hidden), (config(None), "config.json asks for"))):
            row = copy.deepcopy(bench.row)
            change(row)
            rows.write(os.path.join(bench.root.name, str(number)), row)
            answer = bench.daemon.request("POST", "/v1/models", json={"uri": "file:%d" % number})
            equal(answer.status, 422, "status of a model that contradicts itself (%r)" % answer)
            true(words in repr(answer.json), "%r has %r" % (answer.json, words))


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
    main([hybrid, latent_experts, latent_refused, latent_targets, latent_cache])
