"""POST /v1/quantization/recommendations: the six goals, memory and bottlenecks of known shapes, what is left out and why; and jobs of method
"auto", which become what is recommended."""

import os
import tempfile

import checkpoint
from harness import JOBS, NDJSON, NO_MODULES, Daemon, equal, ids_records, main, post, succeed, true, wait_job

PATH = "/v1/quantization/recommendations"
# goal: the first of the ways, on an accelerator with all types of products and room for all
FIRST = {"larger_model": "gptq-int4", "lowest_bits": "aqlm-2bit", "stable_int8": "smoothquant-int8", "low_risk": "rtn-int8",
         "adapter_training": "nf4"}
# L=32, H_kv=8, d=128: 8 thousand million weights whose keys and values take 131072 bytes a token
SHAPE = checkpoint.config(hidden=4096, mlp=14336, layers=32, heads=32, kv_heads=8, vocabulary=32000, positions=16384)


def ask(daemon, **body):
    answer = daemon.request("POST", PATH, json=dict({"model": {"uri": "file:8b"}, "goal": "low_risk", "accelerator": "h200"}, **body))
    equal(answer.status, 200, "status (%r)" % answer)
    return answer.json


def names(found):
    return [row["name"] for row in found["choices"]]


def near(found, wanted, what, share=1e-3):
    true(abs(found - wanted) <= share * wanted, "%s is %r, not %r" % (what, found, wanted))


def goals_and_loads():
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write_zeros(os.path.join(root, "8b"), SHAPE)
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            for goal, first in FIRST.items():
                found = ask(daemon, goal=goal)
                equal((found["goal"], names(found)[0]), (goal, first))
                for row in found["choices"]:
                    true(len(row["reason"]) > 10 and row["fits"] and row["total_bytes"] > 0, "%s: %r" % (goal, row))
                    equal(row["job"]["model"], {"uri": "file:8b"}, "the model of the job")
            memory_of_known_shapes(daemon)
            bottlenecks(daemon)
            what_is_left_out(daemon)
            what_runtimes_load(daemon)
            mixtures_are_ways(daemon)
            jobs_can_be_submitted(daemon)
            refusals(daemon)
            equal((daemon.get("/v1/models")["data"], daemon.get(JOBS)["data"]), ([], []), "nothing is stored")


def memory_of_known_shapes(daemon):
    """The survey's figures: 2 L B S H d bytes of keys and values, 34.4 GB in 16 bits, half of it in 8; four bits take a quarter."""
    found = ask(daemon, goal="throughput", batch=32, prompt_tokens=8191, output_tokens=1)
    near(found["float"]["kv_cache_bytes"], 2 * 32 * 32 * 8192 * 8 * 128 * 2, "keys and values")
    near(found["float"]["kv_cache_bytes"], 34.4e9, "keys and values", 2e-3)
    rows = {row["name"]: row for row in found["choices"]}
    near(rows["fp8-cache"]["kv_cache_bytes"], 17.2e9, "in eight bits", 2e-3)
    equal(rows["fp8-cache"]["bits_per_weight"], None)
    near(rows["gptq-int4"]["bits_per_weight"], 4 * 1.03125, "bits with scales")
    linears = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    near(rows["gptq-int4"]["weights_bytes"], linears / 2 * 1.03125 + 4 * 32000 * 4096, "bytes in four bits")
    equal(found["float"]["decode_bound"], "kv_cache")
    true("quantized cache" in found["float"]["explanation"], found["float"]["explanation"])
    true(rows["fp8-cache"]["decode_speedup"] > rows["gptq-int4"]["decode_speedup"], "the cache is what counts there")


def bottlenecks(daemon):
    """One short request reads weights; many short ones compute, where fewer bits of weights alone help nothing."""
    one = ask(daemon, goal="throughput", prompt_tokens=16, output_tokens=256)
    equal(one["float"]["decode_bound"], "weights")
    equal(names(one)[0], "gptq-int4", "order for one request")
    rows = {row["name"]: row for row in one["choices"]}
    true(3 < rows["gptq-int4"]["decode_speedup"] < 4 and 1.7 < rows["fp8"]["decode_speedup"] < 2, repr(rows["fp8"]))
    many = ask(daemon, goal="throughput", accelerator="a100-80gb", batch=1024, prompt_tokens=64, output_tokens=1, runtime="vllm")
    rows = {row["name"]: row for row in many["choices"]}
    equal((many["float"]["decode_bound"], many["float"]["prefill_bound"]), ("arithmetic", "weights"))
    equal(rows["gptq-int4"]["decode_speedup"], 1)
    true("fp8" not in rows, "a device without FP8")
    prompts = ask(daemon, goal="larger_model", accelerator="a100-80gb", batch=1, prompt_tokens=8192, output_tokens=0, runtime="vllm")
    equal(prompts["float"]["prefill_bound"], "arithmetic")
    true("hardly" in prompts["speed_note"], "it is said where nothing helps")
    equal(one["speed_note"], None)


def what_is_left_out(daemon):
    found = ask(daemon, goal="stable_int8", runtime="vllm", calibration=False)
    equal(names(found), ["rtn-int8"])
    reasons = {row["name"]: row["reason"] for row in found["left_out"]}
    true("calibration" in reasons["smoothquant-int8"] and "calibration" in reasons["llm-int8"] and "vllm" in reasons["gguf-q8"], repr(reasons))
    tight = ask(daemon, goal="larger_model", accelerator={"memory_bytes": 8e9, "bandwidth_bytes_per_second": 5e11, "bf16_tflops": 50},
                prompt_tokens=512)
    fits = [row["fits"] for row in tight["choices"]]
    equal(fits, sorted(fits, reverse=True), "what fits comes first")
    equal((tight["float"]["fits"], tight["choices"][0]["fits"], tight["choices"][-1]["name"]), (False, True, "rtn-int8"))
    equal(tight["fit_note"], None)
    small = ask(daemon, goal="larger_model", accelerator={"memory_bytes": 2e9, "bandwidth_bytes_per_second": 5e11, "bf16_tflops": 50})
    true("None of these ways fits" in small["fit_note"] and "It fits on a100-40gb, " in small["fit_note"], small["fit_note"])


def what_runtimes_load(daemon):
    """Said by the table of runtimes, whatever the goal."""
    rows = {row["name"]: row for row in ask(daemon, goal="throughput", batch=32)["choices"]}
    equal((rows["gptq-int4"]["runtimes"], rows["gguf-q4"]["runtimes"]), (["vllm", "sglang", "transformers"], ["llama.cpp"]))
    true("Marlin" in rows["gptq-int4"]["kernels"] and "llama.cpp" in rows["gguf-q4"]["kernels"], repr(rows["gguf-q4"]))
    mlx = ask(daemon, goal="larger_model", runtime="mlx")
    equal(names(mlx), ["awq-int4"])
    reasons = {row["name"]: row["reason"] for row in mlx["left_out"]}
    true("DeepseekV3" in reasons["gptq-int4"] or "groups of 128" in reasons["gptq-int4"], repr(reasons))
    served = ask(daemon, goal="larger_model", runtime="transformers")
    true("gguf-q4" not in names(served), "transformers makes float weights of it")


def jobs_can_be_submitted(daemon):
    """Each way's job passes the checks of a submission."""
    for goal in list(FIRST) + ["throughput"]:
        for row in ask(daemon, goal=goal)["choices"]:
            said = daemon.request("POST", "/v1/quantization/estimates", json=row["job"]).json
            codes = {problem["code"] for problem in said["problems"]}
            true(codes <= {"insufficient_memory", "insufficient_storage"}, "%s: %r" % (row["name"], said["problems"]))
            near(said["output"]["artifact_bytes"], row["weights_bytes"], row["name"])


def mixtures_are_ways(daemon):
    """Widths chosen by measurement: types of llama.cpp, four and eight bits for what vLLM runs."""
    found = ask(daemon, goal="lowest_bits", runtime="llama.cpp")
    equal(names(found), ["gguf-q4", "gguf-mixed"])
    kernels = {row["name"]: row["kernels"] for row in ask(daemon, goal="stable_int8")["choices"]}
    true("4-bit" not in kernels["gguf-q8"], repr(kernels))
    equal(names(ask(daemon, goal="lowest_bits")), ["aqlm-2bit", "gptq-int4", "gguf-q4", "gptq-mixed", "gguf-mixed"])
    rows = {row["name"]: row for row in found["choices"]}
    true(4.9 < rows["gguf-mixed"]["bits_per_weight"] <= 5 and rows["gguf-mixed"]["weights_bytes"] > rows["gguf-q4"]["weights_bytes"],
         repr(rows["gguf-mixed"]))
    equal(rows["gguf-mixed"]["job"]["calibration"], {"stream": True}, "it is measured on records")
    found = ask(daemon, goal="larger_model", runtime="vllm")
    rows = {row["name"]: row for row in found["choices"]}
    true(rows["gptq-int4"]["weights_bytes"] < rows["gptq-mixed"]["weights_bytes"] < rows["rtn-int8"]["weights_bytes"], repr(rows["gptq-mixed"]))
    found = ask(daemon, goal="lowest_bits", runtime="llama.cpp", calibration=False)
    equal({row["name"]: row["reason"] for row in found["left_out"]}["gguf-mixed"], "It needs calibration records.")
    goals = daemon.get("/openapi.json")["components"]["schemas"]["RecommendationRequest"]["properties"]["goal"]
    equal(sorted(goals["x-titles"]), sorted(goals["enum"]), "titles of goals")
    equal(goals["x-titles"]["lowest_bits"], found["title"])


def refusals(daemon):
    for body, param in (({"goal": "speed"}, "/goal"), ({"accelerator": "h1000"}, "/accelerator"), ({"batch": 0}, "/batch"),
                        ({"accelerator": {"memory_bytes": 1e9}}, "/accelerator/bandwidth_bytes_per_second"),
                        ({"model": 7}, "/model"), ({"model": {"uri": "file:none"}}, "/model/uri"), ({"gpu": "h200"}, "/gpu")):
        answer = daemon.request("POST", PATH, json=dict({"model": {"uri": "file:8b"}, "goal": "low_risk", "accelerator": "h200"}, **body))
        true(answer.status in (400, 404, 422), repr(answer))
        equal(answer.json["errors"][0]["param"], param, repr(answer.json["errors"]))
        true(not param.startswith("/accelerator/") or "second" in answer.json["errors"][0]["hint"], "the unit of a number: %r" % answer.json)


# --- "method": "auto"

ESTIMATES = "/v1/quantization/estimates"
SMALL = checkpoint.config(hidden=128, mlp=256)


def auto(goal="low_risk", accelerator="h200", uri="file:small", records=True, **more):
    """A job of method auto; members of "recommendation" are those of more["asked"]."""
    body = {"model": {"uri": uri}, "method": "auto", "recommendation": dict({"goal": goal, "accelerator": accelerator}, **more.pop("asked", {}))}
    return dict(body, **({"calibration": {"stream": True}} if records else {}), **more)


def estimated(daemon, body):
    answer = daemon.request("POST", ESTIMATES, json=body)
    equal(answer.status, 200, "status (%r)" % answer)
    return answer.json


def refused(daemon, body, status, *wanted, path=JOBS):
    """wanted: param and a part of what an error about it says."""
    answer = daemon.request("POST", path, json=body)
    equal(answer.status, status, repr(answer))
    said = [(error["param"], "%s %s" % (error["detail"], error["hint"] or "")) for error in answer.json["errors"]]
    for param, part in wanted:
        true(any(found == param and part in text for found, text in said), "%s says %r: %r" % (param, part, said))


def methods_are_chosen():
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write_zeros(os.path.join(root, "8b"), SHAPE)
        checkpoint.write(os.path.join(root, "small"), SMALL)
        checkpoint.write(os.path.join(root, "wider"), checkpoint.config(hidden=256, mlp=512))  # super-blocks have 256 weights
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            for goal, first in FIRST.items():
                found = estimated(daemon, auto(goal, uri="file:8b"))
                way = ask(daemon, goal=goal)["choices"][0]
                equal((found["method"], found["recommendation"]["choice"]), (way["job"]["method"], first))
                equal({name: found["recommendation"][name] for name in ("goal", "reason", "caution", "accelerator", "runtime", "batch")},
                      {"goal": goal, "reason": way["reason"], "caution": way["caution"], "accelerator": "h200", "runtime": "any", "batch": 1})
                near(found["output"]["artifact_bytes"], way["weights_bytes"], goal)
            stated_members_win(daemon)
            targets_decide(daemon)
            jobs_of_what_was_chosen(daemon)
            nothing_to_choose(daemon)


def stated_members_win(daemon):
    found = estimated(daemon, auto("larger_model", quantization={"q_group_size": 64}))
    near(found["output"]["bits_per_weight"], 4 + 16 / 64, "bits of smaller groups", 0.01)
    found = estimated(daemon, auto("larger_model", output={"format": "gptq"}))
    equal((found["method"], found["output"]["format"]), ("gptq", "gptq"))
    found = estimated(daemon, auto("larger_model", output={"format": "bitsandbytes"}))  # of the ways, those that can be so
    equal((found["method"], found["recommendation"]["choice"]), ("nf4", "nf4"))
    found = estimated(daemon, auto("larger_model", records=False))
    equal(found["method"], "nf4", "without records")
    tight = {"memory_bytes": 7e9, "bandwidth_bytes_per_second": 5e11, "bf16_tflops": 50}
    found = estimated(daemon, auto("low_risk", tight, uri="file:8b"))
    equal(found["recommendation"]["choice"], "gptq-int4", "the first that fits")


def targets_decide(daemon):
    """Without a runtime, the first target's; a way that a target does not load is no way."""
    found = estimated(daemon, auto("larger_model", uri="file:wider", output={"targets": ["llama.cpp"]}))
    equal((found["recommendation"]["choice"], found["recommendation"]["runtime"], found["output"]["format"]), ("gguf-q4", "llama.cpp", "gguf"))
    found = estimated(daemon, auto("larger_model", output={"targets": ["vllm", "transformers"]}))
    equal((found["recommendation"]["choice"], found["recommendation"]["runtime"]), ("gptq-int4", "vllm"))
    refused(daemon, auto("larger_model", output={"targets": ["lama.cpp"]}), 422, ("/recommendation", "lama.cpp"))
    way = ask(daemon, goal="larger_model", runtime="llama.cpp", model={"uri": "file:wider"})["choices"][1]
    equal((way["name"], way["fits"]), ("gguf-mixed", True))
    file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(8, 64, 256), headers={"Content-Type": NDJSON})
    done = succeed(daemon, post(daemon, JOBS, json=dict(way["job"], calibration={"file_id": file, "num_samples": 8, "sequence_length": 64})))
    true(4.5 < done["result"]["bits_per_weight"] <= 5, "a way is a job as it is: %r" % done["result"])


def jobs_of_what_was_chosen(daemon):
    body = auto(records=False, asked={"runtime": "vllm", "batch": 8}, quantization={"group_size": 32}, name="chosen")
    answers = [daemon.request("POST", JOBS, json=body, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    equal([answer.status for answer in answers], [201, 201], repr(answers))
    equal(answers[0].json["id"], answers[1].json["id"], "a repeated request")
    done = succeed(daemon, answers[0].json["id"])
    equal((done["method"], done["quantization"]["bits"], done["quantization"]["group_size"]), ("rtn", 8, 32))
    kept = done["recommendation"]
    equal({name: kept[name] for name in ("goal", "accelerator", "runtime", "batch", "prompt_tokens", "output_tokens", "choice")},
          {"goal": "low_risk", "accelerator": "h200", "runtime": "vllm", "batch": 8, "prompt_tokens": 2048, "output_tokens": 256, "choice": "rtn-int8"})
    plain = post(daemon, JOBS, json={"model": done["model"], "method": "rtn", "quantization": {"bits": 8, "group_size": 32},
                                     "output": {"format": "compressed-tensors"}})
    plain = succeed(daemon, plain)
    equal(plain["recommendation"], None)
    files = [daemon.get("/v1/artifacts/" + job["result"]["artifact_id"])["files"] for job in (done, plain)]
    equal(*[{file["path"]: file["sha256"] for file in each} for each in files], "the artifact is that of the plain job")
    short = post(daemon, "/v1/files?purpose=calibration", body=ids_records(1, 8, 256), headers={"Content-Type": NDJSON})
    failed = wait_job(daemon, post(daemon, JOBS, json=auto("larger_model", records=False, calibration={"file_id": short})))
    equal((failed["status"], failed["method"], failed["quantization"]["group_size"]), ("failed", "gptq", 128))
    again = daemon.request("POST", "%s/%s/retry" % (JOBS, failed["id"]), json={"quantization": {"group_size": 64}})
    equal(again.status, 202, repr(again))
    equal((again.json["method"], again.json["quantization"]["group_size"], again.json["recommendation"]), ("gptq", 64, failed["recommendation"]))
    wait_job(daemon, failed["id"])


def nothing_to_choose(daemon):
    for path in (JOBS, ESTIMATES):
        body = auto()
        del body["recommendation"]
        refused(daemon, body, 400, ("/recommendation", "larger_model (Run a larger model on one machine)"), path=path)
    body = auto()
    for member, part in (("goal", "low_risk (A rollout with little risk)"), ("accelerator", "rtx-4090")):
        less = {name: value for name, value in body["recommendation"].items() if name != member}
        refused(daemon, dict(body, recommendation=less), 400, ("/recommendation/" + member, part))
        refused(daemon, dict(body, recommendation=dict(body["recommendation"], **{member: "x"})), 400, ("/recommendation/" + member, part))
    refused(daemon, dict(body, recommendation=dict(body["recommendation"], model=body["model"])), 400, ("/recommendation/model", "member of the job"))
    refused(daemon, dict(body, recommendation=7), 400, ("/recommendation", "must be an object"))
    refused(daemon, dict(body, quantization=7), 400, ("/quantization", "must be an object"))
    refused(daemon, dict(body, mode="model_free"), 422, ("/mode", "architecture"))
    refused(daemon, dict(body, method="rtn"), 422, ("/recommendation", "auto"))
    refused(daemon, {name: value for name, value in body.items() if name != "model"}, 400, ("/model", "required"))
    small = {"memory_bytes": 1e9, "bandwidth_bytes_per_second": 5e11, "bf16_tflops": 50}
    refused(daemon, auto("stable_int8", small, uri="file:8b", asked={"runtime": "vllm"}), 422, ("/recommendation/accelerator", "rtn-int8: weights of"),
            ("/recommendation", "smoothquant-int8: The accelerator has no arithmetic in INT8"), ("/recommendation", "gguf-q8: vllm"))
    equal(len(daemon.get(JOBS)["data"]), 4, "refused jobs are not stored")


main([goals_and_loads, methods_are_chosen])
