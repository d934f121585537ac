"""Models whose layers are mostly recurrences load back: of every method, transformers gives for the artifact the logits of the same
request as a dense checkpoint, and for that one those of quantd's own forward pass. Convolutions, decays, and the linears of gates are
the checkpoint's own bits."""

import importlib.metadata
import json

import numpy
import pytest
import torch
from safetensors.torch import load_file

import models
from daemon import Daemon
from test_activations import decode_nf4, modules_of
from test_experts import difference, load, logits_of, some_ids
from test_forward import LENGTH, SHAPE, TOLERANCE, forward, granite_hybrid, make, nemotron_h, qwen3_5

CASES = {"qwen3.5": qwen3_5, "nemotron-h": nemotron_h, "granite-hybrid": granite_hybrid}
FOUR = {"bits": 4, "group_size": 32}
# name: (method, parameters)
REQUESTS = {
    "rtn": ("rtn", FOUR),
    "gptq": ("gptq", FOUR),
    "awq-sym": ("awq", {"group_size": 32, "sym": True}),
    "smoothquant": ("smoothquant", {}),
    "fp8-weights": ("fp8", {"activation_scheme": "none"}),
    "rtn-cache": ("rtn", {**FOUR, "kv_cache": {"dtype": "fp8_e4m3"}}),
}
FLOAT = ("conv1d", "A_log", "dt_bias", ".D", "in_proj_a", "in_proj_b")


class Setting:
    """A checkpoint at a daemon."""

    def __init__(self, quantd, root, name):
        self.quantd, self.root = quantd, root
        make(CASES[name](intermediate_size=128)).save_pretrained(root / "model")
        ids = models.write_tokens(root / "tokens.ndjson", length=LENGTH) % SHAPE["vocab_size"]
        (root / "tokens.ndjson").write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in ids))
        self.model = quantd.register("model")
        self.files = {purpose: quantd.upload(root / "tokens.ndjson", purpose) for purpose in ("calibration", "evaluation")}

    def artifact(self, method, parameters, format, folder):
        job = self.quantd.run({
            "model": self.model, "method": method, "quantization": parameters, "output": {"format": format},
            "calibration": {"file_id": self.files["calibration"], "num_samples": 0, "sequence_length": LENGTH, "packing": False,
                            "shuffle": False},
            "evaluation": {"file_id": self.files["evaluation"], "sequence_length": LENGTH}})
        return self.quantd.download(job, folder), job


@pytest.fixture(scope="module", params=CASES)
def setting(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param)


def check_float(setting, folder):
    """What is never quantized has the checkpoint's bits."""
    source, made = load_file(setting.root / "model" / "model.safetensors"), load_file(folder / "model.safetensors")
    names = [name for name in source if any(word in name for word in FLOAT)]
    assert names
    for name in names:
        assert torch.equal(source[name], made[name].to(source[name].dtype)), name


@pytest.mark.parametrize("request_", REQUESTS)
def test_loads_back(setting, tmp_path, request_):
    method, parameters = REQUESTS[request_]
    artifact, job = setting.artifact(method, parameters, "compressed-tensors", tmp_path / "artifact")
    dense, _ = setting.artifact(method, {key: value for key, value in parameters.items() if key != "kv_cache"}, "dense", tmp_path / "dense")
    ids = some_ids()
    wanted = logits_of(load(dense), ids)
    assert difference(forward(dense, ids, tmp_path), wanted) < TOLERANCE
    if request_ not in ("awq-sym", "smoothquant"):  # they change gates' linears with what those read
        check_float(setting, artifact)
    modules = {row["module"] for row in setting.quantd.report(job)["layers"]}
    assert modules and not [name for name in modules if any(word in name for word in FLOAT)]
    if request_ == "rtn-cache":
        scales = [name for name in load_file(artifact / "model.safetensors") if name.endswith("k_scale")]
        kinds = load(dense).config.layer_types
        assert len(scales) == sum(kind == "full_attention" for kind in kinds)
    if request_ != "smoothquant":  # whose inputs it rounds
        found = logits_of(load(artifact), ids)
        assert difference(found, wanted) < 2e-2


def test_nf4(setting, tmp_path):
    try:
        importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("bitsandbytes could not be installed here")
    artifact, _ = setting.artifact("nf4", {}, "bitsandbytes", tmp_path / "artifact")
    dense, _ = setting.artifact("nf4", {}, "dense", tmp_path / "dense")
    check_float(setting, artifact)
    tensors, wanted = load_file(artifact / "model.safetensors"), load_file(dense / "model.safetensors")
    found = modules_of(tensors, ".weight.absmax")
    assert found
    for module in found:
        assert torch.equal(decode_nf4(tensors, module), wanted[f"{module}.weight"].float()), module
    # The library's kernels for processors with AVX-512 take rows in multiples of 32 with inputs in multiples of 64, which these are not;
    # without them it still takes blocks row by row, so that scores say little.
    model = load(artifact)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    assert numpy.isfinite(logits_of(model, some_ids())).all()
