"""Gradients of tiny random models: quantd's backward pass against torch's autograd, through transformers in double precision."""

import json
import os
import pathlib
import subprocess

import numpy
import pytest
import safetensors.torch
import torch
import transformers
from test_forward import CASES, SHAPE, make

SEQUENCES = 2
LENGTH = 24
TOLERANCE = 1e-4  # largest difference over the largest number of a gradient
FLOOR = 1e-6  # of the model's largest gradient: a bias of keys has none, but for rounding

# Biases, norms of heads, rows and after the MLP, windows, caps, shared experts, sigmoid scores with groups, sinks, tokens times scores,
# latent attention, fused linears, parallel and serial layers, values that cross layers and what a layer gets of its tokens.
NAMES = ["llama-biases", "llama-tied", "qwen3-window", "gemma2", "gemma3", "gemma4-shared", "gemma4-moe", "mixtral", "qwen3-moe", "qwen2-moe",
         "deepseek-v3", "gpt-oss", "granite-moe", "llama4", "olmo2", "phi3", "gpt-neox", "falcon-groups", "gpt2", "opt", "nemotron",
         "cohere2"]


def gradients(directory, ids, targets, folder):
    """quantd's, by names of the checkpoint."""
    tool = pathlib.Path(os.environ.get("QUANTD_BUILD_DIR", "build")) / "tests" / "tools" / "quantd-gradients"
    ids.astype("<i4").tofile(folder / "ids.bin")
    targets.tofile(folder / "targets.bin")
    subprocess.run([tool, directory, folder / "ids.bin", str(ids.shape[0]), str(ids.shape[1]), folder / "targets.bin",
                    folder / "gradients.safetensors"], check=True)
    return safetensors.torch.load_file(folder / "gradients.safetensors")


def first_layer(model):
    return next(module for name, module in model.named_modules() if name.endswith((".layers.0", ".h.0")))


def loss_of(logits, targets):
    """Sums over tokens: of the cross-entropy for labels, of the divergence for a teacher's logits."""
    if targets.ndim == 1:
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets.astype(numpy.int64)), ignore_index=-1, reduction="sum")
    teacher = torch.log_softmax(torch.from_numpy(targets).to(logits.dtype), -1)
    return torch.nn.functional.kl_div(torch.log_softmax(logits, -1), teacher, reduction="sum", log_target=True)


def autograd(directory, ids, targets, folder):
    """torch's, by names of the checkpoint: gradients in the place of parameters are saved as those are."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    model.config._experts_implementation = "eager"  # the only one of experts in double precision
    model = model.double()
    entered = []

    def enter(_, arguments, named):
        """A leaf in the hidden state's place, of which what else is made of the embeddings is no part."""
        entered.append((arguments[0] if arguments else named["hidden_states"]).detach().requires_grad_())
        return ((entered[0], *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": entered[0]})

    first_layer(model).register_forward_pre_hook(enter, with_kwargs=True)
    logits = model(torch.from_numpy(ids.astype(numpy.int64)), use_cache=False).logits.reshape(-1, SHAPE["vocab_size"])
    loss = loss_of(logits, targets)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    model.save_pretrained(folder)
    found = {}
    for path in folder.glob("*.safetensors"):
        found.update(safetensors.torch.load_file(path))
    found["hidden"] = entered[0].grad.reshape(-1, entered[0].shape[-1])
    found["loss"] = loss.detach()
    return found


def compare(directory, targets, folder):
    ids = numpy.random.default_rng(7).integers(0, SHAPE["vocab_size"], (SEQUENCES, LENGTH), dtype=numpy.int32)
    found = gradients(directory, ids, targets, folder)
    wanted = autograd(directory, ids, targets, folder / "gradients")
    floor = FLOOR * max(float(wanted[name].abs().max()) for name in found if name != "loss")
    for name, gradient in found.items():
        want = wanted[name].reshape(gradient.shape)
        difference, largest = float((gradient - want).abs().max()), float(want.abs().max())
        assert torch.isfinite(gradient).all(), name
        assert difference <= max(TOLERANCE * largest, floor), f"{name}: off by {difference:.3g} of {largest:.3g}"
    return set(found), wanted


def labels():
    random = numpy.random.default_rng(3)
    targets = random.integers(0, SHAPE["vocab_size"], SEQUENCES * LENGTH).astype("<i4")
    targets[random.random(targets.size) < 0.2] = -1
    return targets


@pytest.mark.parametrize("case", NAMES)
def test_family(case, tmp_path):
    build, more = CASES[case]
    model = make(build(**more))
    model.save_pretrained(tmp_path / "model")
    names, wanted = compare(tmp_path / "model", labels(), tmp_path)
    # Every tensor of the layers but constants, and the head's, were looked at.
    constants = ("e_score_correction_bias", "layer_scalar", "router.scale", "per_expert_scale")
    layers = {name for name in wanted if (".layers." in name or ".h." in name) and not name.endswith(constants)}
    assert layers and layers <= names
    tied = json.loads((tmp_path / "model" / "config.json").read_text()).get("tie_word_embeddings")
    assert tied or "lm_head.weight" in names or "embed_out.weight" in names


@pytest.mark.parametrize("case", ["llama", "gemma2", "mixtral"])
def test_teacher(case, tmp_path):
    """The divergence from logits of another model."""
    build, more = CASES[case]
    make(build(**more)).save_pretrained(tmp_path / "model")
    teacher = numpy.random.default_rng(5).normal(0, 2, (SEQUENCES * LENGTH, SHAPE["vocab_size"])).astype("<f4")
    compare(tmp_path / "model", teacher, tmp_path)
