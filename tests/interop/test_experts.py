"""Models with experts, and one whose norms follow attention and MLP, load back: transformers gives for an artifact what quantd's own
forward pass gives for the same codes, dense."""

import json

import numpy
import pytest
import torch
import transformers

from daemon import Daemon
from test_forward import LENGTH, SEQUENCES, SHAPE, forward, make, mixtral, olmo2, qwen3_moe

TOLERANCE = 1e-4  # largest difference over largest logit
CASES = {"mixtral": (mixtral, {"intermediate_size": 128}),
         "qwen3-moe": (qwen3_moe, {"moe_intermediate_size": 64, "norm_topk_prob": True, "mlp_only_layers": [1],
                                   "intermediate_size": 128, "head_dim": 32}),
         "olmo2": (olmo2, {"intermediate_size": 128})}


@pytest.fixture(scope="module", params=CASES)
def artifacts(request, tmp_path_factory):
    """format -> folder, of one checkpoint rounded alike."""
    build, more = CASES[request.param]
    root, made = tmp_path_factory.mktemp(request.param), {}
    make(build(**more)).save_pretrained(root / "model")
    with Daemon([root]) as quantd:
        model = quantd.json("POST", "/v1/models", {"uri": "file:model"})["id"]
        for format in ("dense", "compressed-tensors"):
            job = quantd.run({"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 32},
                              "output": {"format": format}})
            assert not [row for row in quantd.report(job)["layers"] if row["module"].endswith(".gate")]
            made[format] = quantd.download(job, tmp_path_factory.mktemp(format))
    return made


@pytest.mark.parametrize("format", ["dense", "compressed-tensors"])
def test_loads_back(artifacts, format, tmp_path):
    ids = numpy.random.default_rng(7).integers(0, SHAPE["vocab_size"], (SEQUENCES, LENGTH), dtype=numpy.int32)
    wanted = forward(artifacts["dense"], ids, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(artifacts[format], dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(ids.astype(numpy.int64))).logits.float().numpy().reshape(-1, SHAPE["vocab_size"])
    config = json.loads((artifacts[format] / "config.json").read_text())
    assert ("quantization_config" in config) == (format != "dense")
    assert numpy.abs(found - wanted).max() / numpy.abs(wanted).max() < TOLERANCE
