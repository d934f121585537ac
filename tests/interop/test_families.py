"""Dense families, and composite checkpoints of which the language model is quantized, load back.

Of each the artifact gives in transformers the logits that quantd's forward pass gives for the same request as a dense checkpoint. A composite
loads as its own class, with every tensor next to the language model as it was, and folds alone leave logits as they are.
"""

import json

import numpy
import pytest
import torch
import transformers
from safetensors.torch import load_file

import models
import test_experts
import test_forward
from daemon import Daemon
from test_experts import FOUR, difference, some_ids
from test_forward import LENGTH, SHAPE, forward

TOLERANCE = 1e-4  # largest difference over largest logit
WIDE = {"intermediate_size": 128, "hidden_size": 64}  # groups of 32 and 128 divide them
CASES = {
    "smollm3": (test_forward.smollm3, {}),
    "granite": (test_forward.granite, {}),
    "ministral3": (test_forward.ministral3, {"head_dim": 32, "rope_parameters": test_forward.GROWING}),
    "olmo3": (test_forward.olmo3, {}),
    "exaone4": (test_forward.exaone4, {"head_dim": 32}),
    "gemma2": (test_forward.gemma2, {"head_dim": 32}),
    "gemma3": (test_forward.gemma3, {"head_dim": 32}),
    "gemma4": (test_forward.gemma4, {**test_forward.SHARED, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
                                     "num_kv_shared_layers": 2, "head_dim": 32, "global_head_dim": 64, "attention_k_eq_v": True}),
    "cohere2": (test_forward.cohere2, {}),
}
# Experts of one tensor load from dense checkpoints alone (test_shared_experts.py).
COMPOSITES = {**{name: test_forward.COMPOSITES[name] for name in ("gemma3-images", "gemma4-images", "mistral3", "llava")},
              "llama4-images": (lambda: test_forward.llama4_composite(moe_layers=[]), transformers.Llama4ForConditionalGeneration)}
REQUESTS = {"rtn": ("rtn", FOUR), "gptq": ("gptq", FOUR), "awq": ("awq", {"group_size": 32, "sym": True}),
            "fp8-weights": ("fp8", {"activation_scheme": "none"})}
OPTIONS = {"fp8-weights": {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}}
FOLDS = {"awq": ("awq", {"bits": 8, "group_size": 32}), "smoothquant": ("smoothquant", {})}


class Setting(test_experts.Setting):
    """As there, of these cases and of composites."""

    composites = COMPOSITES

    def __init__(self, quantd, root, name):
        self.quantd, self.root, self.name, self.made = quantd, root, name, {}
        if name in CASES:
            build, bends = CASES[name]
            self.model_class = transformers.AutoModelForCausalLM
            model = test_forward.make(build(**{**WIDE, **bends}))
        else:
            build, self.model_class = self.composites[name]
            torch.manual_seed(3)
            model = self.model_class(build())
        self.save(model)
        self.ids = models.write_tokens(root / "tokens.ndjson", length=LENGTH) % (SHAPE["vocab_size"] - 11) + 11
        (root / "tokens.ndjson").write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in self.ids))
        self.model = quantd.register("model")
        self.files = {purpose: quantd.upload(root / "tokens.ndjson", purpose) for purpose in ("calibration", "evaluation")}

    def logits(self, folder, ids, **options):
        model = self.model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options).eval()
        with torch.no_grad():
            return model(torch.from_numpy(ids.astype(numpy.int64))).logits.float().numpy().reshape(-1, SHAPE["vocab_size"])


@pytest.fixture(scope="module", params=[*CASES, *COMPOSITES])
def setting(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param)


def texts():
    """Without the numbers of tokens that stand for images."""
    return some_ids() % (SHAPE["vocab_size"] - 11) + 11


@pytest.mark.parametrize("name", REQUESTS)
def test_loads_back(setting, name, tmp_path):
    dense, _ = setting.artifact(*REQUESTS[name], "dense")
    folder, _ = setting.artifact(*REQUESTS[name], "compressed-tensors")
    wanted = forward(dense, texts(), tmp_path)
    assert difference(setting.logits(dense, texts()), wanted) < TOLERANCE
    assert difference(setting.logits(folder, texts(), **OPTIONS.get(name, {})), wanted) < TOLERANCE


def test_passes_through(setting):
    """What is not the language model is as it was, byte for byte, in the file and in the model that is loaded."""
    if setting.name in CASES:
        pytest.skip("the checkpoint is the language model alone")
    folder, _ = setting.artifact(*REQUESTS["rtn"], "compressed-tensors")
    before, after = load_file(setting.root / "model" / "model.safetensors"), load_file(folder / "model.safetensors")
    towers = [name for name in before if "language_model." not in name and "lm_head" not in name]
    assert towers and all(torch.equal(before[name], after[name]) for name in towers)
    source = setting.model_class.from_pretrained(setting.root / "model", dtype=torch.float32).state_dict()
    loaded = setting.model_class.from_pretrained(folder, dtype=torch.float32).state_dict()
    towers = [name for name in source if "language_model" not in name and "lm_head" not in name]
    assert towers and all(torch.equal(source[name], loaded[name]) for name in towers)


def perplexity(model, ids):
    with torch.inference_mode():
        scores = model(ids).logits[:, :-1].double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))


def test_perplexities(setting):
    """Values that cross layers reach the evaluation, on both paths: quantd says the perplexities that transformers finds."""
    if not setting.name.startswith("gemma4"):
        pytest.skip("no value but the residual stream crosses layers")
    dense, job = setting.artifact(*REQUESTS["gptq"], "dense")
    for folder, when in ((setting.root / "model", "before"), (dense, "after")):
        model = setting.model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        assert perplexity(model, setting.ids) == pytest.approx(job["result"][f"perplexity_{when}"], rel=1e-4)


@pytest.mark.parametrize("name", FOLDS)
def test_folds(setting, name, tmp_path):
    """Eight bits change logits little, however far factors moved weights."""
    dense, _ = setting.artifact(*FOLDS[name], "dense")
    before, after = forward(setting.root / "model", texts(), tmp_path), forward(dense, texts(), tmp_path)
    assert 0 < difference(after, before) < 0.1
