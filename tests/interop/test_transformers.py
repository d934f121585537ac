"""Artifacts as the rest of the world loads them, and quantd's forward pass against transformers', on tiny random models.

Each job names transformers as its target, so what the table of runtimes says of it agrees with what it does here."""

import importlib.metadata
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GPTQConfig

import models
import reference

# name: (bits, group size, sym, mse_search)
SCHEMES = {"w4g32-sym": (4, 32, True, False), "w4g128-asym": (4, 128, False, True), "w8ch-sym": (8, -1, True, False),
           "w4g32-signed": (4, 32, True, True)}

# compressed-tensors 0.20 sizes packed zero points wrongly when it lays out an empty model, so transformers refuses any asymmetric
# artifact, its own too, unless it dequantizes while it loads. That is an option of the loader: the artifact stays as it is.
ASYMMETRIC = {"quantization_config": CompressedTensorsConfig(dequantize=True)}


@pytest.fixture(scope="module")
def tokens(quantd, checkpoints):
    """(ids, file id for calibration, file id for evaluation)"""
    path = checkpoints / "tokens.ndjson"
    ids = models.write_tokens(path)
    return ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


@pytest.fixture(scope="module", params=models.ARCHITECTURES)
def checkpoint(request, quantd, checkpoints):
    """(folder, model id)"""
    folder = models.make(request.param, checkpoints / request.param)
    return folder, quantd.register(request.param)


def logits_of(folder, ids, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return model(ids).logits.float().numpy()


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def perplexity(logits, ids):
    scores = torch.from_numpy(logits[:, :-1]).double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))


def quantize(quantd, tokens, model, method, format_, bits, group, sym, search=False, **more):
    _, calibration, evaluation = tokens
    return quantd.run({
        "model": model, "method": method,
        "quantization": {"bits": bits, "group_size": group, "sym": sym, "mse_search": search, **more},
        "output": {"format": format_, "targets": ["transformers"]},
        "calibration": {"file_id": calibration, "num_samples": 0, "sequence_length": 64, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})


def test_forward(quantd, tokens, checkpoint):
    """The oracle agrees with transformers to 1e-4, and quantd's float perplexity with both."""
    folder, model = checkpoint
    ids = tokens[0]
    expected = logits_of(folder, ids)
    assert relative(reference.Model.load(folder).logits(ids.numpy()), expected) < 1e-4
    job = quantize(quantd, tokens, model, "rtn", "compressed-tensors", 8, -1, True)
    assert job["result"]["perplexity_before"] == pytest.approx(perplexity(expected, ids), rel=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ("rtn", "gptq"))
def test_compressed_tensors(quantd, tokens, checkpoint, tmp_path, method, scheme):
    """Loads in transformers unmodified; its logits are those of the decoded weights, and its perplexity what quantd said."""
    bits, group, sym, search = SCHEMES[scheme]
    job = quantize(quantd, tokens, checkpoint[1], method, "compressed-tensors", bits, group, sym, search,
                   **({"signed_scales": True} if scheme.endswith("signed") else {}))
    folder = quantd.download(job, tmp_path / "artifact")
    found = logits_of(folder, tokens[0], **({} if sym else ASYMMETRIC))
    assert relative(found, reference.Model.load(folder).logits(tokens[0].numpy())) < 1e-2
    assert job["result"]["perplexity_after"] == pytest.approx(perplexity(found, tokens[0]), rel=1e-2)


def need_gptqmodel():
    for package in ("gptqmodel", "optimum"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} could not be installed here")


@pytest.mark.parametrize("format_, bits, signed", [("gptq", 4, False), ("gptq", 4, True), ("gptq_v2", 8, False)])
def test_gptq(quantd, tokens, checkpoints, tmp_path, format_, bits, signed):
    """The gptq formats through gptqmodel, which transformers wants for them; its plain kernel needs no compiler."""
    need_gptqmodel()
    models.make("llama", checkpoints / "for-gptq")
    job = quantize(quantd, tokens, quantd.register("for-gptq"), "gptq", format_, bits, 32, True, True, signed_scales=signed)
    folder = quantd.download(job, tmp_path / "artifact")
    found = logits_of(folder, tokens[0], quantization_config=GPTQConfig(bits=bits, backend="torch"))
    assert relative(found, reference.Model.load(folder).logits(tokens[0].numpy())) < 1e-2


# ---- a trained checkpoint -------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(quantd, shared):
    """(model id, evaluation windows, file id for calibration, file id for evaluation)"""
    windows = torch.tensor(reference.read_records(shared / "evaluation.ndjson")[:32])
    few = "".join(json.dumps({"input_ids": window.tolist()}) + "\n" for window in windows)
    evaluation = quantd.json("POST", "/v1/files?purpose=evaluation", few.encode(), "application/x-ndjson")["id"]
    return quantd.register("tiny-llama"), windows, quantd.upload(shared / "calibration.ndjson", "calibration"), evaluation


@pytest.mark.parametrize("format_, bits, group", [("compressed-tensors", 4, 128), ("compressed-tensors", 3, 128), ("compressed-tensors", 2, 64),
                                                  ("gptq", 4, 128), ("gptq", 2, 64)])
def test_trained(quantd, trained, tmp_path, format_, bits, group):
    """By default scales have both signs; transformers' perplexity is quantd's own to 0.3 %."""
    model, windows, calibration, evaluation = trained
    if format_ == "gptq":
        need_gptqmodel()
    job = quantd.run({
        "model": model, "method": "gptq", "quantization": {"bits": bits, "group_size": group, "sym": True},
        "output": {"format": format_, "targets": ["transformers"]},
        "calibration": {"file_id": calibration, "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})
    folder = quantd.download(job, tmp_path / "artifact")
    scales = [array for name, array in reference.read_folder(folder)[1].items() if name.endswith(("weight_scale", ".scales"))]
    assert min(array.min() for array in scales) < 0 < max(array.max() for array in scales)
    options = {"quantization_config": GPTQConfig(bits=bits, backend="torch")} if format_ == "gptq" else {}
    found = perplexity(logits_of(folder, windows, **options), windows)
    print(f"{format_} {bits} bits: quantd {job['result']['perplexity_after']:.4f}, transformers {found:.4f}")
    assert found == pytest.approx(job["result"]["perplexity_after"], rel=3e-3)
