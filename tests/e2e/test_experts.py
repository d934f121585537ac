"""Models with experts: every method runs on both families, each expert sees the tokens that are routed to it, one that too few reach says
so, and checkpoints that hold other experts than config.json says are refused by the tensor's name."""

import os
import tempfile

import families
from checkpoint import rewrite_header
from harness import JOBS, NDJSON, SANITIZED, Daemon, equal, ids_records, main, true, wait_job

METHODS = [
    ("rtn", "compressed-tensors", {"bits": 4, "group_size": 64}),
    ("gptq", "compressed-tensors", {"bits": 4, "group_size": 64, "target_tokens": 0}),
    ("gptq", "gptq", {"bits": 4, "group_size": 128}),
    ("awq", "awq", {"bits": 4, "group_size": 64, "n_grid": 4}),
    ("smoothquant", "compressed-tensors", {}),
    ("smoothquant", "compressed-tensors", {"activation_dynamic": False}),
    ("llm_int8", "bitsandbytes", {}),
    ("nf4", "bitsandbytes", {}),
    ("fp8", "compressed-tensors", {"activation_scheme": "static", "granularity": "per_tensor"}),
    ("kmeans", "dense", {"bits": 3}),
    ("aqlm", "aqlm", {"num_codebooks": 1, "nbits_per_codebook": 5, "max_epochs": 1}),
    ("kv_cache", "compressed-tensors", {"kv_cache": {"dtype": "fp8_e4m3", "granularity": "per_tensor"}}),
]


class Bench:
    """A daemon with one checkpoint; `more` goes into its config."""

    def __init__(self, family, **more):
        self.root = tempfile.TemporaryDirectory()
        families.write(os.path.join(self.root.name, "model"), family, **more)
        self.file = os.path.join(self.root.name, "model", "model.safetensors")
        self.daemon = Daemon(roots=[self.root.name])

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *what):
        self.daemon.__exit__(*what)
        self.root.cleanup()

    def register(self):
        return self.daemon.request("POST", "/v1/models", json={"uri": "file:model"})

    def ready(self, records=8):
        answer = self.register()
        equal(answer.status, 201, "status of the model (%r)" % answer)
        self.model = answer.json["id"]
        answer = self.daemon.request("POST", "/v1/files?purpose=calibration", headers={"Content-Type": NDJSON},
                                     body=ids_records(records, 40, families.VOCABULARY, 1))
        self.tokens = answer.json["id"]

    def submit(self, method, format, parameters, samples=8):
        return self.daemon.request("POST", JOBS, json={
            "model": self.model, "method": method, "quantization": parameters, "output": {"format": format},
            "calibration": {"file_id": self.tokens, "num_samples": samples, "sequence_length": 32}})

    def report(self, *job, **more):
        answer = self.submit(*job, **more)
        equal(answer.status, 201, "status of %r (%r)" % (job, answer))
        state = wait_job(self.daemon, answer.json["id"])
        equal(state["status"], "succeeded", "status of %r (error %r)" % (job, state["error"]))
        return self.daemon.get("%s/%s/report" % (JOBS, answer.json["id"]))["layers"]


def every_method(family):
    """Under a sanitizer every method on one of the two families, in turns."""
    methods = METHODS[("mixtral", "qwen3_moe").index(family)::2] if SANITIZED else METHODS
    with Bench(family) as bench:
        bench.ready()
        for job in methods:
            rows = bench.report(*job)
            experts = [row for row in rows if ".experts." in row["module"]]
            equal(any(row["module"].endswith(".gate") for row in rows), False, "%r quantizes a router" % (job,))
            true(job[0] == "kv_cache" or len(experts) in (24, 48), "%r has %d rows of experts" % (job, len(experts)))
        answer = bench.submit("ggml", "gguf", {})
        equal(answer.status, 422, "status of a GGUF file")
        true(bench_family(family) in repr(answer.json), "the refusal %r names the family" % answer.json)


def bench_family(family):
    return families.EXPERTS[family][2]["architectures"][0]


def mixtral():
    every_method("mixtral")


def qwen3_moe():
    every_method("qwen3_moe")


def starved_experts():
    """64 experts and 32 tokens: each has what was routed to it and no more, and half of them at least have nothing."""
    with Bench("qwen3_moe", num_experts=64, num_experts_per_tok=1, mlp_only_layers=[]) as bench:
        bench.ready()
        for method in ("gptq", "rtn"):
            rows = bench.report(method, "compressed-tensors", {"bits": 4, "group_size": 64, "expert_min_tokens": 3}, samples=1)
            first = [row for row in rows if row["layer"] == 0 and row["module"].endswith(".gate_proj")]
            equal(len(first), 64, "experts of a layer")
            equal(sum(row["tokens"] for row in first), 32, "tokens of all experts")
            true(sum(row["tokens"] == 0 for row in first) >= 32, "experts without tokens")
            learns = method == "gptq"  # statistics of the other serve the report alone, which says what was routed to an expert
            for row in first:
                equal("no calibration token" in (row["fallback"] or ""), learns and row["tokens"] == 0, "fallback of %r" % row)
                equal("starved" in (row["note"] or ""), learns and 0 < row["tokens"] < 3, "note of %r" % row)
                equal(row["output_relative_mse"] is None, row["tokens"] == 0, "output error of %r" % row)
        rows = bench.report("gptq", "compressed-tensors", {"group_size": 64, "calibrate_all_experts": True, "expert_min_tokens": 3}, samples=1)
        true(all(row["tokens"] == 32 for row in rows if ".experts." in row["module"]), "every expert sees every token")


def float_stream():
    """Looking at all tokens for starved experts leaves the float model's activations alone: what the next layer's attention aims at is the
    same as without, where experts are rounded to nearest and so come out the same."""
    experts = [{"match": "*.experts.*", "method": "rtn"}]
    with Bench("mixtral") as bench:
        bench.ready(records=64)
        rows = [bench.report("gptq", "compressed-tensors", {"group_size": 64, "target_tokens": 0, "overrides": experts,
                                                            "expert_min_tokens": min_tokens}, samples=64)
                for min_tokens in (0, 1000000)]
    starved = [row for row in rows[1] if "starved" in (row["note"] or "")]
    true(any(".experts.7.w2" in row["module"] for row in starved), "the last expert is starved")
    attention = [[(row["module"], row["output_relative_mse"]) for row in part if ".self_attn." in row["module"]] for part in rows]
    equal(attention[1], attention[0], "output errors of attention")


def rewritten_experts():
    """Methods that rewrite look at an expert's own tokens or at all of them as the solving ones do."""
    with Bench("mixtral") as bench:
        bench.ready()
        own, starved, asked = ([row["relative_mse"] for row in bench.report("smoothquant", "compressed-tensors", parameters)
                                if row["module"].endswith(".w2")]
                               for parameters in ({"expert_min_tokens": 0}, {"expert_min_tokens": 1000000}, {"calibrate_all_experts": True}))
        equal(asked, starved, "weight errors with all tokens")
        true(own != starved, "an expert's own tokens give other factors")


def no_experts():
    with Bench("llama") as bench:
        bench.ready()
        answer = bench.submit("rtn", "compressed-tensors", {"calibrate_all_experts": True})
        equal(answer.status, 422, "status of a switch for experts that there are not")
        true("/quantization/calibrate_all_experts" in repr(answer.json), "%r names the member" % answer.json)


def refuse(family, change, words, **more):
    with Bench(family, **more) as bench:
        if change is not None:
            rewrite_header(bench.file, change)
        answer = bench.register()
        equal(answer.status, 422, "status of a damaged model (%r)" % answer)
        true(words in repr(answer.json), "%r has %r" % (answer.json, words))


def drop(name):
    def change(header):
        header["unused." + name] = header.pop(name)
    return change


def transpose(name):
    def change(header):
        header[name]["shape"].reverse()
    return change


def bad_checkpoints():
    expert = "model.layers.1.mlp.experts.5.up_proj.weight"
    refuse("qwen3_moe", drop(expert), "tensor %s is missing" % expert)
    refuse("qwen3_moe", transpose(expert), "tensor %s has shape" % expert, moe_intermediate_size=64)
    refuse("qwen3_moe", transpose("model.layers.1.mlp.gate.weight"), "tensor model.layers.1.mlp.gate.weight has shape")
    refuse("mixtral", drop("model.layers.0.block_sparse_moe.experts.7.w2.weight"), "experts.7.w2.weight is missing")


def bad_configs():
    refuse("mixtral", None, "num_experts_per_tok", num_experts_per_tok=9)
    refuse("mixtral", None, "num_local_experts", num_experts=6)
    refuse("qwen3_moe", None, "mlp_only_layers[1]", mlp_only_layers=[0, 2])
    refuse("qwen3_moe", None, "shared_expert_intermediate_size", shared_expert_intermediate_size=64)
    refuse("qwen3_moe", None, "scoring_func", scoring_func="sigmoid")


if __name__ == "__main__":
    main([mixtral, qwen3_moe, starved_experts, float_stream, rewritten_experts, no_experts, bad_checkpoints, bad_configs])
