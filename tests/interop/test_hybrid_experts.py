"""Hybrid models with experts load back.

As in test_shared_experts.py: the codes of an artifact are those of the dense checkpoint of the same request, and transformers gives for
both the logits of quantd's own forward pass. Among the requests is one of several schemes, whose modules an artifact names: Nemotron-H's
names are not those that transformers gives them. Qwen3.5 MoE comes with experts in tensors of their own, as transformers saves it, and
with a layer's in two, as it is published; Qwen3-Next as transformers saves both. The linears around Nemotron 3's experts are quantized by
the requests that ask for it.
"""

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from daemon import Daemon
from test_experts import FOUR, TOLERANCE, Setting, decompress, difference, load, logits_of, some_ids
from test_forward import forward, nemotron_h, qwen3_5_moe, qwen3_next

# Widths that groups of 32 divide.
WIDE = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "linear_value_head_dim": 16, "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"]}
NEMOTRON = {"layers_block_type": ["linear_attention", "moe", "full_attention"], "mamba_head_dim": 16, "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 64, "num_experts_per_tok": 3}
CASES = {
    "qwen3-next": (qwen3_next, {**WIDE, "intermediate_size": 128}),
    "qwen3-next-stacked": (qwen3_next, {**WIDE, "intermediate_size": 128}),
    "qwen3.5-moe": (qwen3_5_moe, WIDE),
    "qwen3.5-moe-stacked": (qwen3_5_moe, WIDE),
    "nemotron-h": (nemotron_h, NEMOTRON),
    "nemotron-h-latent": (nemotron_h, {**NEMOTRON, "moe_latent_size": 32}),
}
REQUESTS = {
    "rtn": ("rtn", FOUR),
    "awq-sym": ("awq", {"group_size": 32, "sym": True}),
    "mixture": ("gptq", {**FOUR, "overrides": [{"match": "*.experts.*", "bits": 8}, {"match": "*.o_proj", "skip": True}]}),
    "smoothquant": ("smoothquant", {"overrides": [{"match": "*_latent_proj"}]}),
    "gptq": ("gptq", {**FOUR, "target_tokens": 0, "overrides": [{"match": "*_latent_proj", "bits": 8}]}),
}
# Of these cases; of others the first three. The factors of Qwen3.5's DeltaNet are those of test_hybrids.py.
ASKED = {"qwen3-next-stacked": ("rtn",), "qwen3.5-moe": ("rtn", "mixture"), "qwen3.5-moe-stacked": ("rtn", "mixture"),
         "nemotron-h-latent": ("rtn", "awq-sym", "smoothquant", "gptq")}
RUNS = [(case, name) for case in CASES for name in ASKED.get(case, ("rtn", "awq-sym", "mixture"))]
IN_FLOAT = ("embed_tokens.weight", "embeddings.weight", "lm_head.weight", ".gate.weight", "shared_expert_gate.weight", "in_proj_a.weight",
            "in_proj_b.weight", "in_proj_ba.weight")


class Stacked(Setting):
    """With the tensors of the module tree."""

    def save(self, model):
        super().save(model)
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert any(name.endswith("mlp.experts.gate_up_proj") for name in tensors)
        save_file(tensors, self.root / "model" / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def setting(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield (Stacked if request.param.endswith("stacked") else Setting)(quantd, root, request.param, cases=CASES)


def apart(tensors):
    """With each expert's linears as tensors of their own."""
    found = {}
    for name, tensor in tensors.items():
        owner, _, member = name.rpartition(".")
        for expert in range(len(tensor) if owner.endswith(".experts") else 0):
            parts = {"up_proj": tensor[expert].chunk(2)[1], "gate_proj": tensor[expert].chunk(2)[0]} if member == "gate_up_proj" else {
                member: tensor[expert]}
            found.update({f"{owner}.{expert}.{part}.weight": value for part, value in parts.items()})
        if not owner.endswith(".experts"):
            found[name] = tensor
    return found


@pytest.mark.parametrize("setting, name", RUNS, indirect=["setting"])
def test_artifact(setting, name, tmp_path):
    method, parameters = REQUESTS[name]
    folder, job = setting.artifact(method, parameters, "compressed-tensors")
    dense, _ = setting.artifact(method, parameters, "dense")
    written = load_file(dense / "model.safetensors")
    wanted, source = apart(written), apart(load_file(setting.root / "model" / "model.safetensors"))
    assert (len(wanted) != len(written)) == setting.name.endswith("stacked")
    found, count = decompress(folder)
    skipped = ("o_proj.weight",) if name == "mixture" else ()
    skipped += () if "latent_proj" in str(parameters) else ("latent_proj.weight",)
    assert count == len([tensor for tensor in source if source[tensor].ndim == 2 and not tensor.endswith(IN_FLOAT + skipped)])
    assert set(found) == set(wanted) == set(source)
    for tensor in wanted:
        assert torch.equal(found[tensor].float(), wanted[tensor].float()), tensor
    logits = forward(dense, some_ids(), tmp_path)
    assert numpy.isfinite(logits).all()
    assert difference(logits_of(load(dense), some_ids()), logits) < TOLERANCE
    if name == "smoothquant":  # transformers does not load experts of whole bytes
        return
    assert difference(logits_of(load(folder), some_ids()), logits) < TOLERANCE
    assert not [warning for warning in job["warnings"] if warning["code"] == "not_in_transformers"]
