"""Modules left in float and modules with parameters of their own, of each format that transformers loads: the perplexity is what
quantd said, and where weights can be the same, the logits are those of the request as a dense checkpoint. vLLM's and llama.cpp's
are in test_vllm.py and test_llama_cpp.py, awq's in test_awq.py."""

import os

os.environ["NUMBA_NUM_THREADS"] = "1"  # aqlm's kernel adds from several threads without guarding its sums

import importlib.metadata

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTQConfig

import models

SKIPS = [{"match": "*.down_proj", "skip": True}, {"match": "model.layers.1.self_attn.*", "skip": True}]
EVERYWHERE = [{"match": "*.down_proj", "skip": True}, {"match": "*.o_proj", "skip": True}]  # gptq names modules for all blocks alike
# name: (method, parameters, format, packages of the loader)
CASES = {
    "compressed-tensors-skips": ("gptq", {"bits": 4, "group_size": 32, "overrides": SKIPS}, "compressed-tensors", ()),
    "int8-inputs-skips": ("smoothquant", {"overrides": SKIPS}, "compressed-tensors", ()),
    "fp8-skips": ("fp8", {"overrides": SKIPS}, "compressed-tensors", ()),
    "gptq-skips": ("gptq", {"bits": 4, "group_size": 32, "overrides": EVERYWHERE}, "gptq", ("gptqmodel", "optimum")),
    "nf4-skips": ("nf4", {"overrides": SKIPS}, "bitsandbytes", ("bitsandbytes",)),
    "llm-int8-skips": ("llm_int8", {"overrides": SKIPS}, "bitsandbytes", ("bitsandbytes",)),
    "aqlm-skips": ("aqlm", {"num_codebooks": 2, "nbits_per_codebook": 8, "overrides": SKIPS}, "aqlm", ("aqlm",)),
    "compressed-tensors-mixture": ("rtn", {"bits": 4, "group_size": 32, "overrides": [{"match": "*.down_proj", "bits": 8}]},
                                   "compressed-tensors", ()),
}
# Those whose weights a dense checkpoint has to the bit: inputs are as they are, scales are stored alike.
TWINS = ("compressed-tensors-skips", "nf4-skips", "compressed-tensors-mixture")


@pytest.fixture(scope="module")
def setting(quantd, checkpoints):
    """(model id, ids, file id for calibration, file id for evaluation)"""
    models.make("llama", checkpoints / "mixtures")
    path = checkpoints / "mixtures.ndjson"
    ids = models.write_tokens(path)
    return quantd.register("mixtures"), ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


def quantize(quantd, setting, method, parameters, format_):
    model, _, calibration, evaluation = setting
    return quantd.run({
        "model": model, "method": method, "quantization": parameters, "output": {"format": format_},
        "calibration": {"file_id": calibration, "num_samples": 0, "sequence_length": 64, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})


def logits_of(folder, ids, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return model(ids).logits.float().numpy()


@pytest.mark.parametrize("name", CASES)
def test_mixture(quantd, setting, tmp_path, name):
    method, parameters, format_, packages = CASES[name]
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} could not be installed here")
    ids = setting[1]
    job = quantize(quantd, setting, method, parameters, format_)
    options = {"quantization_config": GPTQConfig(bits=4, backend="torch")} if format_ == "gptq" else {}
    found = logits_of(quantd.download(job, tmp_path / "artifact"), ids, **options)
    scores = torch.from_numpy(found[:, :-1]).double().log_softmax(-1)
    perplexity = float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))
    assert job["result"]["perplexity_after"] == pytest.approx(perplexity, rel=1e-2)
    if name not in TWINS:
        return
    dense = quantize(quantd, setting, method, parameters, "dense")
    expected = logits_of(quantd.download(dense, tmp_path / "dense"), ids)
    assert float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) < 2e-2
