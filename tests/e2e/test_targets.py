"""output.targets: the table of runtimes, what it refuses and where, what it decides, and what job and manifest say."""

import json

from harness import JOBS, NO_MODULES, Daemon, equal, main, post, succeed, true

ESTIMATES = "/v1/quantization/estimates"


def body(model, method="rtn", quantization=None, output=None, **more):
    return dict({"model": model, "method": method, "quantization": quantization or {}, "output": output or {},
                 "evaluation": {"hold_back": 0}}, **more)


def faults(daemon, request):
    """[(param, detail, hint)] of a refusal."""
    answer = daemon.request("POST", JOBS, json=request)
    equal((answer.status, answer.json["code"]), (422, "incompatible_runtime"), repr(answer))
    return [(error["param"], error["detail"], error["hint"] or "") for error in answer.json["errors"]]


def table(daemon):
    listed = daemon.get("/v1/runtimes")["data"]
    equal([row["name"] for row in listed], ["vllm", "sglang", "transformers", "llama.cpp", "mlx"])
    rows = {row["name"]: row for row in listed}
    gptq, = [row for row in rows["vllm"]["loads"] if row["format"] == "gptq"]
    equal((gptq["bits"], gptq["symmetry"], gptq["group_sizes"], gptq["since"]), ([4, 8], "symmetric", [-1, 32, 64, 128], "0.26"))
    equal((rows["vllm"]["tensor_parallel"], rows["mlx"]["tensor_parallel"]), (True, False))
    named = {row["name"]: row["runtimes"] for row in daemon.get("/v1/system")["formats"]}
    equal((named["gguf"], named["aqlm"]), (["transformers", "llama.cpp"], ["transformers"]), "formats name the same runtimes")
    true("llama.cpp" not in daemon.get("/v1/methods/aqlm")["runtimes"], "and methods")


def refusals(daemon, model):
    """(request, [(param, words of the detail, words of the hint)]): all at once, where they lie, and what would do."""
    overridden = {"bits": 4, "group_size": 64, "overrides": [{"match": "down_proj", "bits": 3}]}
    cases = [
        (body(model, quantization={"bits": 3}, output={"format": "gptq", "targets": ["vllm"]}),
         [("/quantization/bits", "vllm has no kernel for 3-bit gptq", "bits: one of 4, 8; or output.format compressed-tensors")]),
        (body(model, quantization={"bits": 3, "group_size": 64}, output={"format": "gptq", "targets": ["vllm", "mlx"]}),
         [("/quantization/bits", "vllm", "bits: one of 4, 8"), ("/output/format", "mlx", "it loads compressed-tensors, awq, dense")]),
        (body(model, quantization={"bits": 4, "group_size": 64}, output={"format": "compressed-tensors", "targets": ["mlx"]}),
         [("/quantization/group_size", "in groups of 64", "group_size: one of 32; or output.format awq")]),
        (body(model, quantization=overridden, output={"format": "compressed-tensors", "targets": ["sglang"]}),
         [("/quantization/overrides/0", "3-bit", "bits: one of 4, 8")]),
        (body(model, method="gptq", quantization={"group_size": 64, "mixed_precision": {"bits_per_weight": 5, "candidates": [{"bits": 3}, {"bits": 8}]}},
              output={"targets": ["sglang"]}, calibration={"stream": True}),
         [("/quantization/mixed_precision/candidates", "3-bit", "bits: one of 4, 8")]),
        (body(model, quantization={"bits": 3}, output={"format": "compressed-tensors", "targets": ["vllm>=0.28"]}),
         [("/output/targets/0", "from 0.32 on", "vllm>=0.32")]),
        (body(model, quantization={"bits": 4, "sym": False}, output={"format": "gptq_v2", "targets": ["vllm"]}),
         [("/quantization/sym", "asymmetric gptq_v2", "sym true")]),
        (body(model, method="fp8", quantization={"granularity": "block", "activation_scheme": "none"},
              output={"format": "compressed-tensors", "targets": ["transformers", "vllm"]}),
         [("/quantization/activation_scheme", "FP8 blocks without FP8 inputs", "FP8 blocks with FP8 inputs")]),
        (body(model, quantization={"bits": 4, "group_size": 128}, output={"targets": ["vllm"], "tensor_parallel_size": 4}),
         [("/output/tensor_parallel_size", "64 of 256 inputs", "tensor_parallel_size 2, or a smaller group_size"),
          ("/output/tensor_parallel_size", "192 of 768 inputs", "tensor_parallel_size 2, or a smaller group_size")]),
        (body(model, method="nf4", output={"targets": ["llama.cpp"]}), [("/output/format", "does not load bitsandbytes", "")]),
        (body(model, quantization={"kv_cache": {"dtype": "int8"}}, output={"targets": ["vllm"]}, calibration={"stream": True}),
         [("/quantization/kv_cache", "INT8 cache", "without kv_cache")]),
    ]
    for request, wanted in cases:
        found = faults(daemon, request)
        equal([fault[0] for fault in found], [row[0] for row in wanted], repr(found))
        for (_, detail, hint), (_, words, offered) in zip(found, wanted):
            true(words in detail and offered in hint, "%r and %r in %r" % (words, offered, (detail, hint)))
        problems = daemon.request("POST", ESTIMATES, json=request).json["problems"]
        equal([problem["param"] for problem in problems], [row[0] for row in wanted], "an estimate says the same")
    for output, param, words in (({"targets": ["vlm", "vllm>=new"]}, "/output/targets/0", "vlm"), ({"targets": "vllm"}, "/output/targets", "targets"),
                                 ({"tensor_parallel_size": 2}, "/output/tensor_parallel_size", "no target"),
                                 ({"targets": ["mlx"], "tensor_parallel_size": 2}, "/output/tensor_parallel_size", "no target"),
                                 ({"targets": ["vllm"] * 9}, "/output/targets", "at most")):
        answer = daemon.request("POST", JOBS, json=body(model, output=output))
        true(answer.status in (400, 422) and answer.json["param"] == param and words in answer.json["detail"], repr(answer))


def chosen(daemon, model):
    """What a request leaves open follows its targets, and the job says so."""
    for output, form, group in (({"targets": ["llama.cpp"]}, "gguf", 32), ({"targets": ["mlx"]}, "awq", 128),
                                ({"targets": ["vllm", "transformers"]}, "compressed-tensors", 128)):
        answer = daemon.request("POST", JOBS, json=body(model, output=output))
        equal(answer.status, 201, repr(answer))
        job = answer.json
        equal((job["output"]["format"], job["quantization"]["group_size"], job["output"]["targets"]), (form, group, output["targets"]))
        notes = [row["message"] for row in job["warnings"] if row["code"] == "chosen_for_target"]
        equal(len(notes), {"gguf": 2, "awq": 1}.get(form, 0), repr(notes))
        true(all(form in note or "32" in note for note in notes), repr(notes))
    job = daemon.request("POST", JOBS, json=body(model, output={"format": "gguf"})).json
    equal((job["output"]["format"], job["quantization"]["group_size"]), ("gguf", 32), "a format with one group size")
    true("group_size 32 was chosen, the only one of gguf" in [warning["message"] for warning in job["warnings"]], repr(job["warnings"]))
    given = daemon.request("POST", JOBS, json=body(model, quantization={"group_size": 64}, output={"targets": ["llama.cpp"]}))
    equal((given.status, given.json["param"]), (422, "/output/format"), "a group size that is given stays: %r" % given)


def manifest_of(daemon, job):
    state = succeed(daemon, job)
    answer = daemon.request("GET", "/v1/artifacts/%s/files/quantd_manifest.json" % state["result"]["artifact_id"])
    return state, json.loads(answer.body)


def stated(daemon, model):
    request = body(model, quantization={"bits": 4, "group_size": 64},
                   output={"targets": ["vllm>=0.28", "transformers"], "tensor_parallel_size": 2})
    state, manifest = manifest_of(daemon, post(daemon, JOBS, json=request))
    first, second = state["targets"]
    equal((first["runtime"], first["version"], first["tensor_parallel_size"]), ("vllm", ">=0.28", 2))
    equal(first["load"], "vllm serve FOLDER --tensor-parallel-size 2")
    equal((second["version"], second["tensor_parallel_size"]), (None, 1))
    true(first["checked_version"] >= "0.33", repr(first))
    equal([{name: row[name] for name in first} for row in manifest["targets"]], state["targets"], "the manifest says the same")
    true("compressed-tensors" in manifest["targets"][1]["needs"] and "SM75" in manifest["targets"][0]["hardware"], repr(manifest["targets"]))
    plain, other = manifest_of(daemon, post(daemon, JOBS, json=body(model, quantization={"bits": 4, "group_size": 64})))
    equal((plain["targets"], plain["output"]["targets"], "targets" in other), ([], None, False), "without targets")
    equal([row for row in other["files"]], [row for row in manifest["files"]], "the other files are the same")


def targets():
    with Daemon(*NO_MODULES) as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        table(daemon)
        refusals(daemon, model)
        chosen(daemon, model)
        stated(daemon, model)


main([targets])
