"""Every method that the daemon lists, with its defaults, on a trained checkpoint (on both with --full): schemas hold, jobs succeed, reports are complete,
perplexity stays near float's, and none loses more on its linears' outputs than rounding at the same width.
"""

import json

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema could not be installed here")

MODELS = ("tiny-llama", "tiny-llama-outlier")
# What a job needs beyond defaults, and the most that its perplexity may be of float's.
JOBS = {
    "rtn": ({"output": {"format": "compressed-tensors"}}, 1.05),
    "gptq": ({"output": {"format": "compressed-tensors"}}, 1.03),
    "awq": ({"output": {"format": "awq"}}, 1.03),
    "smoothquant": ({"output": {"format": "compressed-tensors"}}, 1.01),
    "autoround": ({"output": {"format": "compressed-tensors"}, "quantization": {"iters": 4}}, 1.03),
    "qat": ({"output": {"format": "compressed-tensors"}, "quantization": {"epochs": 1, "batch_size": 8}}, 1.03),
    "tune": ({"method": ["gptq", "tune"], "output": {"format": "compressed-tensors"}, "quantization": {"tune_epochs": 1}}, 1.03),
    "llm_int8": ({"output": {"format": "bitsandbytes"}}, 1.005),
    "nf4": ({"output": {"format": "bitsandbytes"}}, 1.03),
    "fp8": ({"output": {"format": "compressed-tensors"}}, 1.003),
    "kmeans": ({"output": {"format": "dense"}}, 1.05),
    "aqlm": ({"output": {"format": "aqlm"}, "quantization": {"num_codebooks": 2, "nbits_per_codebook": 8}}, 1.15),
    "ggml": ({"output": {"format": "gguf"}}, 1.03),
    "kv_cache": ({"output": {"format": "compressed-tensors"}, "quantization": {"kv_cache": {"dtype": "fp8_e4m3"}}}, 1.01),
    "kv_analysis": ({}, None),
    "sensitivity": ({"quantization": {"max_streams": 32}}, None),
}
# The rounding that a method must not lose to. LLM.int8() is rounding, on a grid of one level less that its library prescribes.
ROUNDING = {
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128, "sym": False},
    "autoround": {"bits": 4, "group_size": 128},
    "qat": {"bits": 4, "group_size": 128},
    "tune": {"bits": 4, "group_size": 128},
    "nf4": {"bits": 4, "group_size": 64},
    "kmeans": {"bits": 4, "group_size": -1},
    "aqlm": {"bits": 2, "group_size": 64},
}


@pytest.fixture(scope="module")
def jobs(quantd, shared):
    """Runs a method on a checkpoint as a job over REST; (job, report)."""
    files = {purpose: quantd.upload(shared / f"{purpose}.ndjson", purpose) for purpose in ("calibration", "evaluation")}
    known = {model: quantd.register(model) for model in MODELS}

    def run(model, method, more):
        job = quantd.run({
            "model": known[model], "method": method, **more,
            "calibration": {"file_id": files["calibration"], "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False},
            **({} if method in ("kv_analysis", "sensitivity") else {"evaluation": {"file_id": files["evaluation"], "max_tokens": 32 * 256}})})
        return job, quantd.report(job)
    return run


def output_error(report):
    return sum(row["output_relative_mse"] for row in report["layers"])


@pytest.fixture(scope="module")
def rounding(jobs):
    """What rounding at a width loses on a checkpoint, measured once."""
    known = {}

    def lost(model, width):
        key = (model, *sorted(width.items()))
        if key not in known:
            known[key] = output_error(jobs(model, "rtn", {"output": {"format": "dense"}, "quantization": {**width, "mse_search": False}})[1])
        return known[key]
    return lost


@pytest.fixture(scope="module")
def methods(quantd):
    return {row["name"]: row for row in quantd.json("GET", "/v1/methods")["data"]}


def test_all_are_known_here(methods):
    assert set(methods) == set(JOBS)


@pytest.mark.parametrize("method", JOBS)
def test_schema(methods, method):
    """A JSON Schema that its own defaults satisfy and an unknown member does not."""
    schema = methods[method]["parameters"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    defaults = {name: row["default"] for name, row in schema["properties"].items() if row.get("default") is not None}
    kind(schema).validate(defaults)
    assert not kind(schema).is_valid({"no_such_parameter": 1})


@pytest.mark.halved("method", "model")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", JOBS)
def test_runs(jobs, rounding, method, model):
    more, most = JOBS[method]
    job, report = jobs(model, method, more)
    if most is None:
        assert report["analysis"]["rows"] and job["result"].get("artifact_id") is None
        return
    before, after = job["result"]["perplexity_before"], job["result"]["perplexity_after"]
    print(f"{model} {method}: {before:.4f} -> {after:.4f} ({100 * (after / before - 1):+.3f} %), {job['result']['bits_per_weight']} bits")
    assert before * 0.999 < after <= before * most
    rows = report["layers"]
    assert all(row["nonfinite"] is False for row in rows), json.dumps(rows[:2])
    assert len({row["module"] for row in rows}) == len(rows)
    if method in ROUNDING:
        lost, plain = output_error(report), rounding(model, ROUNDING[method])
        print(f"  summed output error {lost:.4e}, rounding {plain:.4e}")
        assert lost <= plain
