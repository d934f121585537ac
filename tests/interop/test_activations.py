"""Artifacts whose runtimes quantize inputs too, and bitsandbytes', as their libraries load them, on tiny random models.

Weights must come out bit for bit as the formats define them: decoded here by the letter, from the stored tensors. Logits must be
those of the decoded weights where inputs stay as they are. Where the loader quantizes inputs, its perplexity must be what quantd said
of the artifact; the two differ in how a token's scale is rounded (127.5 against 127 steps), hence the bound.

What no loader does on a CPU: FP8 products (transformers multiplies what it has rounded to FP8 in float, which is what is tested), NF4
blocks longer than a row (bitsandbytes repacks rows for its CPU kernel), and weights of a mixed-precision artifact made dense while they
load (transformers looks for one kind of tensor in all modules; run compressed, as here, it loads).
"""

import importlib.metadata
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import models
import reference

LOSS = 1e-2  # relative, of perplexities and logits

# name: (method, parameters, format in the config, symbols of config_groups: weights' strategy, inputs' strategy or None)
COMPRESSED = {
    "int8-dynamic": ("smoothquant", {}, "int-quantized", ("channel", "token")),
    "int8-static": ("smoothquant", {"activation_dynamic": False}, "int-quantized", ("channel", "tensor")),
    "int8-gptq": (["smoothquant", "gptq"], {"bits": 8, "group_size": -1}, "int-quantized", ("channel", "token")),
    "int8-float-down": ("smoothquant", {"float_inputs": ["down_proj"]}, "mixed-precision", None),
    "fp8-dynamic": ("fp8", {}, "float-quantized", ("channel", "token")),
    "fp8-static": ("fp8", {"granularity": "per_tensor", "activation_scheme": "static"}, "float-quantized", ("tensor", "tensor")),
    "fp8-block": ("fp8", {"granularity": "block"}, "float-quantized", ("block", "group")),
    "fp8-weights": ("fp8", {"activation_scheme": "none"}, "naive-quantized", ("channel", None)),
}
BITSANDBYTES = {
    "nf4": ("nf4", {}),
    "nf4-double": ("nf4", {"bnb_4bit_use_double_quant": True}),
    "nf4-long-blocks": ("nf4", {"bnb_4bit_blocksize": 128, "bnb_4bit_use_double_quant": True}),
    "int8": ("llm_int8", {"llm_int8_threshold": 2.0}),
    "int8-plain": ("llm_int8", {"llm_int8_threshold": 0.0}),
}


@pytest.fixture(scope="module")
def tokens(quantd, checkpoints):
    """(ids, file id for calibration, file id for evaluation)"""
    path = checkpoints / "activation-tokens.ndjson"
    ids = models.write_tokens(path)
    return ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


@pytest.fixture(scope="module", params=("llama", "qwen2"))
def checkpoint(request, quantd, checkpoints):
    """(name, registered model id): plain, and with biases and tied embeddings."""
    models.make(request.param, checkpoints / f"activation-{request.param}")
    return request.param, quantd.register(f"activation-{request.param}")


def quantize(quantd, tokens, model, folder, method, parameters, format_):
    _, calibration, evaluation = tokens
    job = quantd.run({
        "model": model, "method": method, "quantization": parameters, "output": {"format": format_, "targets": ["transformers"]},
        "calibration": {"file_id": calibration, "num_samples": 0, "sequence_length": 64, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})
    return job, quantd.download(job, folder)


def raw_tensors(folder):
    """Tensors as torch reads them: numpy knows no FP8."""
    from safetensors.torch import load_file
    return load_file(folder / "model.safetensors")


def modules_of(tensors, suffix):
    return sorted(name.removesuffix(suffix) for name in tensors if name.endswith(suffix))


def decode(tensors, module):
    """One module of int-, float-, naive- or pack-quantized, rounded to the scales' type as the loader does it."""
    dtype = tensors[f"{module}.weight_scale"].dtype
    scale = tensors[f"{module}.weight_scale"].float()
    if f"{module}.weight_packed" in tensors:
        codes = tensors[f"{module}.weight_packed"].view(torch.uint8).float() - 128
        return (codes * scale).to(dtype).float()
    codes = tensors[f"{module}.weight"].float()
    if scale.ndim == 2 and scale.shape[0] < codes.shape[0]:  # square blocks
        side = 128
        scale = scale.repeat_interleave(side, 0)[:codes.shape[0]].repeat_interleave(side, 1)[:, :codes.shape[1]]
    return (codes * scale).to(dtype).float()


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def perplexity(model, ids):
    with torch.inference_mode():
        scores = model(ids).logits[:, :-1].double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))


def check_groups(config, strategies):
    """The config says what was asked for, to a reader who knows the schema."""
    (group,) = config["config_groups"].values()
    inputs = group["input_activations"]
    assert (group["weights"]["strategy"], inputs and inputs["strategy"]) == strategies
    assert group["targets"] == ["Linear"] and "format" not in group
    assert config["quantization_status"] == "compressed" and "lm_head" in config["ignore"]


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors(quantd, tokens, checkpoint, tmp_path, name):
    method, parameters, form, strategies = COMPRESSED[name]
    if name == "fp8-block" and checkpoint[0] == "qwen2":
        pytest.skip("blocks of 128 do not tile the 64 rows of its keys")
    job, folder = quantize(quantd, tokens, checkpoint[1], tmp_path / "artifact", method, parameters, "compressed-tensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == form
    if strategies is not None:
        check_groups(config, strategies)
    tensors = raw_tensors(folder)
    model = load(folder)
    assert perplexity(model, tokens[0]) == pytest.approx(job["result"]["perplexity_after"], rel=LOSS)
    if form == "mixed-precision":
        return
    dense = load(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    found = modules_of(tensors, ".weight_scale")
    assert len(found) == 14
    for module in found:
        assert torch.equal(dense.get_submodule(module).weight.float(), decode(tensors, module)), module


def decode_nf4(tensors, module):
    """The weight of a module as bitsandbytes on a device takes it, in the values of its type: blocks follow each other across rows."""
    state = json.loads(bytes(tensors[f"{module}.weight.quant_state.bitsandbytes__nf4"].numpy()))
    packed = tensors[f"{module}.weight"].flatten()
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten().long()
    absmax = tensors[f"{module}.weight.absmax"]
    if "nested_offset" in state:
        nested = tensors[f"{module}.weight.nested_absmax"].repeat_interleave(256)[:len(absmax)]
        absmax = tensors[f"{module}.weight.nested_quant_map"][absmax.long()] * nested + np.float32(state["nested_offset"])
    weight = tensors[f"{module}.weight.quant_map"][codes] * absmax.repeat_interleave(state["blocksize"])
    return weight.reshape(state["shape"]).to(getattr(torch, state["dtype"])).float()


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bitsandbytes(quantd, tokens, checkpoint, tmp_path, name):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes could not be installed here")
    method, parameters = BITSANDBYTES[name]
    job, folder = quantize(quantd, tokens, checkpoint[1], tmp_path / "artifact", method, parameters, "bitsandbytes")
    tensors = raw_tensors(folder)
    model = load(folder)
    assert perplexity(model, tokens[0]) == pytest.approx(job["result"]["perplexity_after"], rel=LOSS)
    if method == "llm_int8":
        for module in modules_of(tensors, ".SCB"):
            codes, scb = tensors[f"{module}.weight"], tensors[f"{module}.SCB"]
            state = model.get_submodule(module).state  # where the first forward pass put them
            assert torch.equal(state.CB, codes) and torch.equal(state.SCB, scb), module
            assert codes.abs().max() <= 127 and tensors[f"{module}.weight_format"].item() == 0
        return
    for module in modules_of(tensors, ".weight.absmax"):
        parts = {name: t for name, t in tensors.items() if name.startswith(f"{module}.weight.")}
        read = bnb.functional.QuantState.from_dict(parts, "cpu")  # the loaded model's is repacked for the CPU's kernel
        found = bnb.functional.dequantize_4bit(tensors[f"{module}.weight"], read).float()
        assert torch.equal(found, decode_nf4(tensors, module)), module


@pytest.mark.parametrize("double", (False, True))
def test_nf4_bytes(quantd, tokens, checkpoints, tmp_path, double):
    """The bytes are the library's own; with double quantization its scales, and codes that answer those as they are decoded."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes could not be installed here")
    source = models.make("llama", checkpoints / "activation-bytes")
    _, folder = quantize(quantd, tokens, quantd.register("activation-bytes"), tmp_path, "nf4", {"bnb_4bit_use_double_quant": double},
                         "bitsandbytes")
    tensors, weights = raw_tensors(folder), raw_tensors(source)
    for module in modules_of(tensors, ".weight.absmax"):
        weight = weights[f"{module}.weight"]
        packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        wanted = state.as_dict(packed=True)
        text = {key: json.loads(bytes(t.numpy())) for key, t in wanted.items() if key.startswith("quant_state")}
        for key, value in wanted.items():
            ours = tensors[f"{module}.weight.{key}"]
            if key in text:
                offset = text[key].pop("nested_offset", None)
                found = json.loads(bytes(ours.numpy()))
                assert not double or found.pop("nested_offset") == pytest.approx(offset, rel=1e-6)
                assert found == text[key]
                assert double or torch.equal(ours, value)
            elif key in ("nested_absmax", "nested_quant_map"):  # the library's map is off by its vectors' rounding
                assert torch.allclose(ours, value, rtol=1e-6)
            elif key == "absmax" and double:
                off = (ours.int() - value.int()).abs()  # neighbours of a middle, by the last bit of the mean
                assert off.max() <= 1 and off.float().mean() < 1e-2
            else:
                assert torch.equal(ours, value), key
        if not double:
            assert torch.equal(tensors[f"{module}.weight"], packed)


# Checkpoint, method, parameters, format, windows of the evaluation set, the most perplexity may be of float's (or, below 2: the ratio).
STATIC = {"activation_dynamic": False}
TARGETS = [
    ("tiny-llama-outlier", "smoothquant", {**STATIC, "float_inputs": ["down_proj"]}, "compressed-tensors", 64, 8.78),
    ("tiny-llama-outlier", ["smoothquant", "gptq"], STATIC, "compressed-tensors", 64, 1.01),
    ("tiny-llama-outlier", "nf4", {"bnb_4bit_use_double_quant": True}, "bitsandbytes", 128, 8.4209),
    ("tiny-llama", "fp8", {"granularity": "per_tensor", "activation_scheme": "static"}, "compressed-tensors", 128, 1.003),
]
# Methods' defaults, which test_methods.py holds to the same bounds, the other checkpoint, and what differs in one parameter.
MORE_TARGETS = [
    ("tiny-llama-outlier", "smoothquant", STATIC, "compressed-tensors", 64, 1.01),
    ("tiny-llama-outlier", "smoothquant", {**STATIC, "smooth_down": False, "smoothing_strength": 0.5}, "compressed-tensors", 64, 1.01),
    ("tiny-llama-outlier", ["smoothquant", "gptq"], {"bits": 8, "group_size": -1}, "compressed-tensors", 64, 1.01),
    ("tiny-llama", "nf4", {}, "bitsandbytes", 128, 8.3606),
    ("tiny-llama", "fp8", {"granularity": "block"}, "compressed-tensors", 128, 1.003),
    ("tiny-llama-outlier", "smoothquant", {}, "compressed-tensors", 64, 1.01),
    ("tiny-llama", "smoothquant", {}, "compressed-tensors", 64, 1.01),
    ("tiny-llama-outlier", "llm_int8", {}, "bitsandbytes", 64, 1.005),
    ("tiny-llama", "llm_int8", {}, "bitsandbytes", 64, 1.005),
    ("tiny-llama-outlier", "nf4", {}, "bitsandbytes", 128, 8.4209),
    ("tiny-llama", "nf4", {"bnb_4bit_use_double_quant": True}, "bitsandbytes", 128, 8.3606),
    ("tiny-llama", "fp8", {}, "compressed-tensors", 128, 1.003),
    ("tiny-llama-outlier", "fp8", {}, "compressed-tensors", 128, 1.003),
]


@pytest.fixture(scope="module")
def trained(quantd, shared):
    """(calibration file, evaluation file, model ids)"""
    return (quantd.upload(shared / "calibration.ndjson", "calibration"), quantd.upload(shared / "evaluation.ndjson", "evaluation"),
            {name: quantd.register(name) for name in ("tiny-llama", "tiny-llama-outlier")})


@pytest.mark.parametrize("name, method, parameters, format_, windows, most",
                         TARGETS + [pytest.param(*row, marks=pytest.mark.full) for row in MORE_TARGETS])
def test_targets(quantd, trained, name, method, parameters, format_, windows, most):
    """Perplexity on the trained checkpoints, as quantd measures it with weights and inputs quantized."""
    calibration, evaluation, known = trained
    job = quantd.run({
        "model": known[name], "method": method, "quantization": parameters, "output": {"format": format_, "targets": ["transformers"]},
        "calibration": {"file_id": calibration, "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation, "max_tokens": windows * 256}})
    before, after = job["result"]["perplexity_before"], job["result"]["perplexity_after"]
    print(f"{name} {method} {json.dumps(parameters)}: {before:.4f} -> {after:.4f} ({100 * (after / before - 1):+.3f} %)")
    assert after <= (most if most > 2 else most * before)


def test_version_of_bitsandbytes():
    """The serialization that is tested is the pinned library's."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes could not be installed here")
    assert importlib.metadata.version("bitsandbytes").startswith("0.50")
