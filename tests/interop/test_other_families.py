"""Families that no other file of artifacts has load back: what GPTQ makes gives in transformers the logits of the same request as a dense
checkpoint, and that one those of quantd's forward pass."""

import pytest

import test_forward
from daemon import Daemon
from test_experts import FOUR, TOLERANCE, Setting, difference, load, logits_of, some_ids
from test_shared_experts import LATENT

EXPERTS = {"intermediate_size": 128, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
CASES = {
    "ministral": (test_forward.ministral, {"intermediate_size": 128, "num_hidden_layers": 4, "layer_types": test_forward.WINDOWS}),
    "glm4": (test_forward.glm4, {"intermediate_size": 128, "head_dim": 32}),
    "dots1": (test_forward.dots1, {"intermediate_size": 128, "moe_intermediate_size": 64}),
    "flex-olmo": (test_forward.flex_olmo, {"intermediate_size": 64}),
    "glm4-moe-lite": (test_forward.glm4_moe_lite, LATENT),
    "qwen3-next": (test_forward.qwen3_next, EXPERTS),
    "qwen3.5-moe": (test_forward.qwen3_5_moe, EXPERTS),
}


@pytest.mark.parametrize("name", CASES)
def test_loads_back(name, tmp_path):
    with Daemon([tmp_path]) as quantd:
        setting = Setting(quantd, tmp_path, name, cases=CASES)
        dense, _ = setting.artifact("gptq", FOUR, "dense")
        folder, _ = setting.artifact("gptq", FOUR, "compressed-tensors")
        wanted = test_forward.forward(dense, some_ids(), tmp_path)
        assert difference(logits_of(load(dense), some_ids()), wanted) < TOLERANCE
        assert difference(logits_of(load(folder), some_ids()), wanted) < TOLERANCE
