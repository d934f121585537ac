"""POST /v1/quantization/recommendations: the six goals, memory and bottlenecks of known shapes, and what is left out and why."""

import os
import tempfile

import checkpoint
from harness import JOBS, NO_MODULES, Daemon, equal, main, post, true

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
    true("calibration" in reasons["smoothquant-int8"] and "vllm" in reasons["llm-int8"] and "vllm" in reasons["gguf-q8"], repr(reasons))
    tight = ask(daemon, goal="larger_model", accelerator={"memory_bytes": 8e9, "bandwidth_bytes_per_second": 5e11, "bf16_tflops": 50},
                prompt_tokens=512)
    fits = [row["fits"] for row in tight["choices"]]
    equal(fits, sorted(fits, reverse=True), "what fits comes first")
    equal((tight["float"]["fits"], tight["choices"][0]["fits"], tight["choices"][-1]["name"]), (False, True, "rtn-int8"))


def jobs_can_be_submitted(daemon):
    """Each way's job passes the checks of a submission."""
    for goal in list(FIRST) + ["throughput"]:
        for row in ask(daemon, goal=goal)["choices"]:
            said = daemon.request("POST", "/v1/quantization/estimates", json=row["job"]).json
            codes = {problem["code"] for problem in said["problems"]}
            true(codes <= {"insufficient_memory", "insufficient_storage"}, "%s: %r" % (row["name"], said["problems"]))
            near(said["output"]["artifact_bytes"], row["weights_bytes"], row["name"])


def refusals(daemon):
    for body, param in (({"goal": "speed"}, "/goal"), ({"accelerator": "h1000"}, "/accelerator"), ({"batch": 0}, "/batch"),
                        ({"accelerator": {"memory_bytes": 1e9}}, "/accelerator/bandwidth_bytes_per_second"),
                        ({"model": 7}, "/model"), ({"model": {"uri": "file:none"}}, "/model/uri"), ({"gpu": "h200"}, "/gpu")):
        answer = daemon.request("POST", PATH, json=dict({"model": {"uri": "file:8b"}, "goal": "low_risk", "accelerator": "h200"}, **body))
        true(answer.status in (400, 404, 422), repr(answer))
        equal(answer.json["errors"][0]["param"], param, repr(answer.json["errors"]))


main([goals_and_loads])
