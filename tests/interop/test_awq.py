"""The awq format through transformers and gptqmodel, whose plain torch kernel runs on a CPU, and AWQ on the trained checkpoints.

The loader computes in the type of its activations and keeps scales in F16, so logits agree to 1e-2; the weights that its own unpacking
gives are those of the independent decoder bit for bit. Its other kernels (gemm, gemv, marlin, exllama) need CUDA. autoawq itself, the
format's first home, is archived and asks for an older transformers, so it is not run.
"""

import importlib.metadata
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AwqConfig

import models
import reference

SCHEMES = {"g32-asym": (32, {"sym": False}), "g128-sym": (128, {"sym": True}), "channel-asym": (-1, {"sym": False}),
           "g128-signed": (128, {"sym": True, "scale_search": "mse", "signed_scales": True})}


@pytest.fixture(scope="module")
def tokens(quantd, checkpoints):
    """(ids, file id for calibration, file id for evaluation)"""
    path = checkpoints / "tokens-awq.ndjson"
    ids = models.write_tokens(path)
    return ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


def quantize(quantd, tokens, model, method, format_, **parameters):
    _, calibration, evaluation = tokens
    return quantd.run({
        "model": model, "method": method, "quantization": parameters, "output": {"format": format_},
        "calibration": {"file_id": calibration, "num_samples": 0, "sequence_length": 64, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})


def load(folder):
    for package in ("gptqmodel", "optimum"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} could not be installed here, and transformers loads awq with it alone")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = {name: value for name, value in config.items() if name != "quant_method"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16,
                                                quantization_config=AwqConfig(backend="torch_awq", **config)).eval()


def check_weights(model, folder):
    """Every packed module of the loader unpacks to the decoder's weight exactly; returns how many there are."""
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq
    _, plain = reference.decode_artifact(folder)
    count = 0
    for name, module in model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        words, zeros = reverse_awq_order(*unpack_awq(module.qweight, module.qzeros, 4), 4)
        span = len(words) // len(zeros)
        codes, zeros = (words & 15).float(), (zeros & 15).float().repeat_interleave(span, 0)
        weight = ((codes - zeros) * module.scales.float().repeat_interleave(span, 0)).T
        assert np.array_equal(weight.numpy(), plain[f"{name}.weight"]), name
        count += 1
    return count


def logits_of(model, ids):
    with torch.inference_mode():
        return model(ids).logits.float().numpy()


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", ("llama-bias", "qwen3"))
def test_loads(quantd, tokens, checkpoints, tmp_path, architecture, scheme):
    group, grid = SCHEMES[scheme]
    name = f"awq-{architecture}"
    models.make(architecture, checkpoints / name, torch.float16)
    job = quantize(quantd, tokens, quantd.register(name), "awq", "awq", group_size=group, **grid)
    folder = quantd.download(job, tmp_path / "artifact")
    model = load(folder)
    assert check_weights(model, folder) == 14
    assert relative(logits_of(model, tokens[0]), reference.Model.load(folder).logits(tokens[0].numpy())) < 1e-2


def test_modules_in_float(quantd, tokens, checkpoints, tmp_path):
    """A list of all that stays in float, by complete paths."""
    models.make("llama", checkpoints / "awq-partly", torch.float16)
    job = quantize(quantd, tokens, quantd.register("awq-partly"), "awq", "awq", group_size=64,
                   overrides=[{"match": "model.layers.1.mlp.*", "skip": True}])
    folder = quantd.download(job, tmp_path / "artifact")
    model = load(folder)
    assert check_weights(model, folder) == 11
    assert relative(logits_of(model, tokens[0]), reference.Model.load(folder).logits(tokens[0].numpy())) < 1e-2


@pytest.mark.parametrize("sym, signed", ((True, False), (True, True), (False, False)))
def test_one_result_in_every_format(quantd, tokens, checkpoints, tmp_path, sym, signed):
    """gptq, gptq_v2, awq and compressed-tensors of one 4-bit result hold the same weights. From an F16 checkpoint, whose scales all of
    them store as F16; version 1 of gptq takes symmetric ones only."""
    models.make("llama", checkpoints / "awq-formats", torch.float16)
    model, found = quantd.register("awq-formats"), {}
    for format_ in ("gptq_v2", "awq", "compressed-tensors") + (("gptq",) if sym else ()):
        job = quantize(quantd, tokens, model, "gptq", format_, group_size=32, sym=sym, signed_scales=signed)
        _, found[format_] = reference.decode_artifact(quantd.download(job, tmp_path / format_))
    expected = found.pop("gptq_v2")
    for format_, tensors in found.items():
        assert set(tensors) == set(expected)
        for name, array in expected.items():
            assert np.array_equal(tensors[name], array), (format_, name)


# ---- the trained checkpoints ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", ("tiny-llama", "tiny-llama-outlier"))
def test_perplexity(quantd, shared, tmp_path, model):
    """At 4 bits and groups of 128, AWQ and GPTQ each win back at least half of what rounding to nearest loses where inputs have
    outliers, and AWQ nowhere loses to it. What quantd says of itself is what the decoded artifact gives."""
    known = json.loads((shared / "reference.json").read_text())[model]
    before, rounded = known["float"]["evaluation"], known["rtn-w4g128"]["evaluation"]
    files = {name: quantd.upload(shared / f"{name}.ndjson", name) for name in ("calibration", "evaluation")}
    registered, perplexity = quantd.register(model), {}
    for method in ("awq", "gptq"):
        job = quantd.run({
            "model": registered, "method": method, "output": {"format": "awq"},
            "calibration": {"file_id": files["calibration"], "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False},
            "evaluation": {"file_id": files["evaluation"]}})
        perplexity[method] = job["result"]["perplexity_after"]
        if method == "awq":
            artifact = reference.Model.load(quantd.download(job, tmp_path / method))
            windows = reference.read_records(shared / "evaluation.ndjson")
            assert artifact.perplexity(windows) == pytest.approx(perplexity[method], rel=1e-3)
    assert max(perplexity.values()) < rounded
    if model == "tiny-llama-outlier":
        assert max(perplexity.values()) <= before + (rounded - before) / 2
