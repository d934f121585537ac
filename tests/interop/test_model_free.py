"""A checkpoint of an architecture that no program knows, quantized model-free: the artifact's weights are what decoders of others make of
them, and what is not quantized is the source's own."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

import reference

PREFIX = "backbone.layers."
LINEARS = ("mixer.in_proj", "mixer.out_proj", "mlp.experts.0.up", "mlp.experts.1.up", "mlp.down")
# name, quantization, bits and group of a decoded integer grid
SCHEMES = {
    "int4": ("rtn", {"bits": 4, "group_size": 32}),
    "int8": ("rtn", {"bits": 8, "group_size": -1}),
    "int4-hqq": ("rtn", {"bits": 4, "group_size": 32, "sym": False, "scale_search": "hqq"}),
    "fp8": ("fp8", {"granularity": "per_channel"}),
    "fp8-block": ("fp8", {"granularity": "block", "activation_scheme": "dynamic"}),
}


def write(folder, dtype=torch.bfloat16):
    torch.manual_seed(5)
    tensors = {"backbone.embed_tokens.weight": torch.randn(64, 128), "lm_head.weight": torch.randn(64, 128),
               "vision_tower.layers.0.proj.weight": torch.randn(128, 128), "vision_tower.patch.weight": torch.randn(32, 3, 2, 2)}
    for layer in range(2):
        tensors |= {f"{PREFIX}{layer}.{name}.weight": torch.randn(256 if name == "mixer.in_proj" else 128, 256 if name == "mixer.out_proj" else 128)
                    for name in LINEARS}
        tensors |= {f"{PREFIX}{layer}.norm.weight": torch.rand(128), f"{PREFIX}{layer}.mlp.router.weight": torch.randn(2, 128),
                    f"{PREFIX}{layer}.mlp.fused.down_proj": torch.randn(2, 16, 128), f"{PREFIX}{layer}.mixer.A_log": torch.rand(8)}
    folder.mkdir()
    names = sorted(tensors)
    shards = {f"model-{i + 1:05d}-of-00002.safetensors": {name: tensors[name].to(dtype).contiguous() for name in names[i::2]} for i in range(2)}
    for file, part in shards.items():
        safetensors.torch.save_file(part, folder / file, {"format": "pt"})
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LumenForCausalLM"], "model_type": "lumen", "torch_dtype": "bfloat16"}))
    return {name: tensors[name].to(dtype) for name in names}


@pytest.fixture(scope="module")
def source(checkpoints):
    return write(checkpoints / "lumen")


def modules():
    return [f"{PREFIX}{layer}.{name}" for layer in range(2) for name in LINEARS]


def artifact(quantd, tmp_path, method, quantization, format_="compressed-tensors"):
    job = quantd.run({"model": quantd.register("lumen"), "method": method, "quantization": quantization, "output": {"format": format_},
                      "calibration": None})
    return job, quantd.download(job, tmp_path)


def load(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(file)
    return json.loads((folder / "config.json").read_text()), tensors


def decompress(config, tensors, module):
    """By the compressed-tensors package, with the scheme that the config's group has."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    (scheme,) = parsed.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(parsed.format)
    parts = {name.removeprefix(module + "."): value for name, value in tensors.items() if name.startswith(module + ".")}
    return compressor.decompress(parts, scheme)["weight"]


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors(quantd, source, tmp_path, name):
    method, quantization = SCHEMES[name]
    job, folder = artifact(quantd, tmp_path, method, quantization)
    config, tensors = load(folder)
    assert job["mode"] == "model_free" and config["architectures"] == ["LumenForCausalLM"]
    for module in modules():
        weight, float_weight = decompress(config, tensors, module).float(), source[f"{module}.weight"].float()
        error = ((weight - float_weight).square().sum() / float_weight.square().sum()).item()
        row = next(row for row in quantd.report(job)["layers"] if row["module"] == module)
        assert error == pytest.approx(row["relative_mse"], rel=2e-2, abs=1e-5)  # the package rounds the product to BF16
        assert error < 0.02
    for key, value in source.items():
        if key.removesuffix(".weight") not in modules():
            assert torch.equal(tensors[key], value), key


@pytest.mark.parametrize("bits, group", [(4, 32), (8, -1)])
def test_round_to_nearest(quantd, source, tmp_path, bits, group):
    """Equal to numpy's own rounding, read by numpy's own decoder."""
    _, folder = artifact(quantd, tmp_path, "rtn", {"bits": bits, "group_size": group, "scale_search": "minmax"})
    _, plain = reference.decode_artifact(folder)
    for module in modules():
        expected = reference.round_to_nearest(source[f"{module}.weight"].float().numpy(), bits, group, "BF16")
        np.testing.assert_array_equal(plain[f"{module}.weight"], expected)


def test_fp8_by_hand(quantd, source, tmp_path):
    """Codes times scale, where codes are what torch rounds to E4M3."""
    _, folder = artifact(quantd, tmp_path, "fp8", {"granularity": "per_channel"})
    _, tensors = load(folder)
    for module in modules():
        codes, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"].float()
        assert codes.dtype == torch.float8_e4m3fn
        weight = source[f"{module}.weight"].float()
        assert torch.equal(codes.float(), (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()), module


def test_ignore_names_what_is_left(quantd, source, tmp_path):
    _, folder = artifact(quantd, tmp_path, "fp8", {})
    config, _ = load(folder)
    left = {re.sub(r"\.[^.]*$", "", name) for name, value in source.items() if value.dim() >= 2} - set(modules())
    assert sorted(config["quantization_config"]["ignore"]) == sorted(left)


def test_nf4(quantd, source, tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    _, folder = artifact(quantd, tmp_path, "nf4", {"bnb_4bit_use_double_quant": False}, "bitsandbytes")
    _, tensors = load(folder)
    for module in modules():
        parts = {name.removeprefix(f"{module}."): value for name, value in tensors.items() if name.startswith(module + ".weight.")}
        parts = {name.removeprefix("weight."): value for name, value in parts.items()}
        state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
        weight = functional.dequantize_4bit(tensors[f"{module}.weight"], state).float()
        float_weight = source[f"{module}.weight"].float()
        assert ((weight - float_weight).square().sum() / float_weight.square().sum()).item() < 0.02
