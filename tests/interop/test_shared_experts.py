"""Families of shared experts and of latent attention: artifacts load back.

Of every method, the codes of an artifact are those of the dense checkpoint of the same request, as compressed-tensors' own decompression has
them, and transformers gives for the dense checkpoint, and for each artifact that it can load, the logits of quantd's own forward pass.
Parameters that are no linear's, such as the bias of a choice of experts, are the source's. SmoothQuant and AWQ change norms: what reads them,
routers and gates among it, takes up the factors, so that only rounding to eight bits is left of what they change.
"""

import numpy
import pytest
import torch
from safetensors.torch import load_file

from daemon import Daemon
from test_experts import REQUESTS, TOLERANCE, Setting, decompress, difference, load, logits_of, some_ids
from test_forward import deepseek_v2, deepseek_v3, ernie_moe, forward, gemma4, glm4_moe, gpt_oss, granite_hybrid, granite_moe, llama4, olmoe, qwen2_moe

# Widths that groups of 32 divide.
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "intermediate_size": 128,
          "moe_intermediate_size": 64}
CASES = {
    "qwen2-moe": (qwen2_moe, {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96, "intermediate_size": 128}),
    "olmoe": (olmoe, {"intermediate_size": 64}),
    "deepseek-v2": (deepseek_v2, {**LATENT, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    "deepseek-v3": (deepseek_v3, LATENT),
    "glm4-moe": (glm4_moe, {"moe_intermediate_size": 64, "intermediate_size": 128, "use_qk_norm": True}),
    "ernie-moe": (ernie_moe, {"moe_intermediate_size": 64, "intermediate_size": 128}),
}
# Experts of one tensor, which transformers loads from dense checkpoints alone (docs/formats.md).
STACKED = {
    "gpt-oss": (gpt_oss, {"intermediate_size": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "granite-moe": (granite_moe, {"intermediate_size": 64}),
    "granite-hybrid": (granite_hybrid, {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 3}),
    "llama4": (llama4, {"intermediate_size": 64, "intermediate_size_mlp": 128, "head_dim": 32}),
    "gemma4": (gemma4, {"intermediate_size": 128, "head_dim": 32, "global_head_dim": 64, "num_hidden_layers": 3, "enable_moe_block": True,
                        "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64}),
}
NAMES = ("rtn", "gptq", "awq", "awq-sym", "smoothquant", "fp8")
IN_FLOAT = ("embed_tokens.weight", "lm_head.weight", ".gate.weight", "shared_expert_gate.weight", "e_score_correction_bias")


@pytest.fixture(scope="module", params=CASES)
def setting(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param, cases=CASES)


@pytest.mark.parametrize("name", NAMES)
def test_artifact(setting, name, tmp_path):
    method, parameters, options = REQUESTS[name]
    folder, _ = setting.artifact(method, parameters, "compressed-tensors")
    dense, job = setting.artifact(method, parameters, "dense")
    wanted, source = load_file(dense / "model.safetensors"), load_file(setting.root / "model" / "model.safetensors")
    found, count = decompress(folder)
    assert count == len([tensor for tensor in source if source[tensor].ndim == 2 and not tensor.endswith(IN_FLOAT)])
    assert set(found) == set(wanted) == set(source)
    for tensor in wanted:
        assert torch.equal(found[tensor].float(), wanted[tensor].float()), tensor
        assert not tensor.endswith("e_score_correction_bias") or torch.equal(wanted[tensor], source[tensor])
    logits = forward(dense, some_ids(), tmp_path)
    assert difference(logits_of(load(dense), some_ids()), logits) < TOLERANCE
    if options is not None:
        assert difference(logits_of(load(folder, **options), some_ids()), logits) < TOLERANCE
    before, after = (job["result"][f"perplexity_{when}"] for when in ("before", "after"))
    print(f"{setting.name} {name}: perplexity {before:.4f}, then {after:.4f}")


@pytest.fixture(scope="module", params=STACKED)
def stacked(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param, cases=STACKED)


@pytest.mark.parametrize("name", ("rtn", "gptq", "awq-sym", "smoothquant"))
def test_stacked(stacked, name, tmp_path):
    method, parameters, _ = REQUESTS[name]
    dense, _ = stacked.artifact(method, parameters, "dense")
    found, source = load_file(dense / "model.safetensors"), load_file(stacked.root / "model" / "model.safetensors")
    assert {tensor: found[tensor].shape for tensor in found} == {tensor: source[tensor].shape for tensor in source}
    assert difference(logits_of(load(dense), some_ids()), forward(dense, some_ids(), tmp_path)) < TOLERANCE


def test_router_takes_up_factors(setting):
    """A norm that was divided is read by a router that was multiplied: the scores stay."""
    dense, _ = setting.artifact("smoothquant", {}, "dense")
    found, source = load_file(dense / "model.safetensors"), load_file(setting.root / "model" / "model.safetensors")
    layer = "model.layers.2"
    norm, router = f"{layer}.post_attention_layernorm.weight", f"{layer}.mlp.gate.weight"
    changed = not torch.equal(found[norm], source[norm])
    assert changed == (f"{layer}.mlp.shared_experts.up_proj.weight" in source or f"{layer}.mlp.shared_expert.up_proj.weight" in source)
    assert numpy.allclose(found[router] * found[norm], source[router] * source[norm], rtol=1e-5, atol=1e-7)


def test_stacked_experts_take_up_factors(stacked):
    """Likewise where the experts of a tensor read what the shared expert does, and get it multiplied by their scores."""
    if stacked.name != "llama4":
        pytest.skip("no linear that is quantized reads what the experts do")
    dense, _ = stacked.artifact("smoothquant", {}, "dense")
    found, source = load_file(dense / "model.safetensors"), load_file(stacked.root / "model" / "model.safetensors")
    layer = "model.layers.3"
    norm, router = f"{layer}.post_attention_layernorm.weight", f"{layer}.feed_forward.router.weight"
    factors = source[norm] / found[norm]
    assert not torch.equal(found[norm], source[norm])
    assert numpy.allclose(found[router], source[router] * factors, rtol=1e-5, atol=1e-7)
    both = f"{layer}.feed_forward.experts.gate_up_proj"
    gate, made = (tensors[both][:, :, :tensors[both].shape[2] // 2] for tensors in (source, found))  # up takes part in down's factors, too
    wanted = gate * factors[None, :, None]
    rounding = wanted.abs().amax(1, keepdim=True) / 127  # half of a step of each output's grid, and some more for its own scale
    assert ((made - wanted).abs() <= rounding).all()
