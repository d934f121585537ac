"""Artifacts of families whose linears are fused, side by side or stored by inputs, or whose norms have biases, loaded by
transformers.

A dense artifact of a job is what the daemon computed with, as float weights. The same job's result in another format must
give its logits."""

import importlib.metadata

import numpy
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTQConfig

import models
from daemon import Failure

SHAPE = {"vocab_size": models.SHAPE["vocab_size"], "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 0}
LLAMA_LIKE = {"num_key_value_heads": 2, "intermediate_size": 256}

FAMILIES = {
    "phi3": lambda: transformers.Phi3Config(**SHAPE, **LLAMA_LIKE, pad_token_id=0),
    "phi3-heads": lambda: transformers.Phi3Config(**SHAPE, intermediate_size=256, num_key_value_heads=4, pad_token_id=0,
                                                  sliding_window=24),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE, intermediate_size=256),
    "falcon": lambda: transformers.FalconConfig(**SHAPE, new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=SHAPE["vocab_size"], n_embd=128, n_layer=2, n_head=4, n_positions=256,
                                            bos_token_id=0, eos_token_id=0, initializer_range=0.08),
    "opt": lambda: transformers.OPTConfig(**{key: value for key, value in SHAPE.items() if key != "initializer_range"},
                                          ffn_dim=256, init_std=0.08),
    "starcoder2": lambda: transformers.Starcoder2Config(**SHAPE, **LLAMA_LIKE, sliding_window=24),
    "phi": lambda: transformers.PhiConfig(**SHAPE, **LLAMA_LIKE),
    "nemotron": lambda: transformers.NemotronConfig(**SHAPE, **LLAMA_LIKE),
}
# What each family's linears are called, for the check that an artifact has them quantized.
LINEARS = {"phi3": "self_attn.qkv_proj", "phi3-heads": "mlp.gate_up_proj", "gpt_neox": "attention.query_key_value",
           "falcon": "self_attention.query_key_value", "gpt2": "attn.c_attn",
           "opt": "fc1", "starcoder2": "mlp.c_fc", "phi": "self_attn.dense", "nemotron": "mlp.down_proj"}

NOT_IN_GPTQMODEL = {"falcon": "transformers has a class of its own for Falcon's linears, which GPTQModel does not replace",
                    "gpt2": "transformers 5.24 fails to initialize a GPT-2 whose linears GPTQModel has replaced"}

INTEGERS = {"bits": 4, "group_size": 32, "sym": True}
METHODS = {
    "rtn": INTEGERS,
    "gptq": INTEGERS,
    "awq": INTEGERS,
    "smoothquant": {},
}


@pytest.fixture(scope="module")
def tokens(quantd, checkpoints):
    """(ids, file id for calibration, file id for evaluation)"""
    path = checkpoints / "families.ndjson"
    ids = models.write_tokens(path)
    return ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, quantd, checkpoints):
    """(name, folder, model id)"""
    torch.manual_seed(len(request.param))
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param](), dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = checkpoints / request.param
    model.to(torch.bfloat16).save_pretrained(folder)
    return request.param, folder, quantd.register(request.param)


def logits_of(folder, ids, **options):
    options = {"dtype": torch.float32, "attn_implementation": "eager", **options}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.inference_mode():
        return model(ids).logits.float().numpy()


def relative(found, expected):
    return float(numpy.linalg.norm(found - expected) / numpy.linalg.norm(expected))


def perplexity(logits, ids):
    scores = torch.from_numpy(logits[:, :-1]).double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))


def run(quantd, tokens, model, method, format_, quantization):
    return quantd.run({
        "model": model, "method": method, "quantization": quantization, "output": {"format": format_},
        "calibration": {"file_id": tokens[1], "num_samples": 0, "sequence_length": 64, "packing": False, "shuffle": False},
        "evaluation": {"file_id": tokens[2]}})


def need_gptqmodel():
    for package in ("gptqmodel", "optimum"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} could not be installed here")


def shards(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.halved("family", "method")
@pytest.mark.parametrize("method", METHODS)
def test_dense(quantd, tokens, family, tmp_path, method):
    """Written back as found: the source's tensors with its shapes, and the perplexity that the daemon measured."""
    name, folder, model = family
    job = run(quantd, tokens, model, method, "dense", METHODS[method])
    artifact = quantd.download(job, tmp_path / "dense")
    before, after = shards(folder), shards(artifact)
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    assert any((before[key] != after[key]).any() for key in before if LINEARS[name] in key)
    assert job["result"]["perplexity_before"] == pytest.approx(perplexity(logits_of(folder, tokens[0]), tokens[0]), rel=1e-4)
    if method != "smoothquant":  # whose inputs are quantized, too
        assert job["result"]["perplexity_after"] == pytest.approx(perplexity(logits_of(artifact, tokens[0]), tokens[0]), rel=5e-3)


@pytest.mark.halved("family", "method")
@pytest.mark.parametrize("method", METHODS)
def test_compressed_tensors(quantd, tokens, family, tmp_path, method):
    name, _, model = family
    if name == "gpt2":
        pytest.skip("refused: see test_stored_by_inputs")
    if name == "falcon":
        pytest.skip("transformers has a class of its own for Falcon's linears; the daemon warns")
    job = run(quantd, tokens, model, method, "compressed-tensors", METHODS[method])
    artifact = quantd.download(job, tmp_path / "artifact")
    assert any(LINEARS[name] + ".weight_scale" in key for key in shards(artifact))
    found = logits_of(artifact, tokens[0])
    assert job["result"]["perplexity_after"] == pytest.approx(perplexity(found, tokens[0]), rel=2e-2)
    if method != "smoothquant":
        dense = run(quantd, tokens, model, method, "dense", METHODS[method])
        assert relative(found, logits_of(quantd.download(dense, tmp_path / "dense"), tokens[0])) < 1e-2


@pytest.mark.parametrize("method, quantization", [("awq", {"bits": 8, "group_size": 32, "sym": True}), ("smoothquant", {})])
def test_folds(quantd, tokens, family, tmp_path, method, quantization):
    """With eight bits nothing is left but their rounding, whatever factors were moved."""
    _, folder, model = family
    job = run(quantd, tokens, model, method, "dense", quantization)
    artifact = quantd.download(job, tmp_path / "dense")
    assert relative(logits_of(artifact, tokens[0]), logits_of(folder, tokens[0])) < 3e-2


def test_gptq(quantd, tokens, family, tmp_path):
    """Fused linears as GPTQModel loads them."""
    need_gptqmodel()
    name, _, model = family
    if name in NOT_IN_GPTQMODEL:
        pytest.skip(NOT_IN_GPTQMODEL[name])
    job = run(quantd, tokens, model, "gptq", "gptq", INTEGERS)
    found = logits_of(quantd.download(job, tmp_path / "artifact"), tokens[0], quantization_config=GPTQConfig(bits=4, backend="torch"))
    assert job["result"]["perplexity_after"] == pytest.approx(perplexity(found, tokens[0]), rel=2e-2)


def test_stored_by_inputs(quantd, tokens, family):
    """Conv1D: no loader of compressed-tensors replaces it, and the daemon says so."""
    name, _, model = family
    if name != "gpt2":
        pytest.skip("not stored by inputs")
    with pytest.raises(Failure, match="Conv1D"):
        run(quantd, tokens, model, "rtn", "compressed-tensors", INTEGERS)


def test_bitsandbytes(quantd, tokens, family, tmp_path):
    """What replaces a Conv1D has the tensors of a linear."""
    name, _, model = family
    if name != "gpt2":
        pytest.skip("not stored by inputs")
    job = run(quantd, tokens, model, "nf4", "bitsandbytes", {})
    found = logits_of(quantd.download(job, tmp_path / "artifact"), tokens[0], dtype=torch.bfloat16)
    assert job["result"]["perplexity_after"] == pytest.approx(perplexity(found, tokens[0]), rel=3e-2)
