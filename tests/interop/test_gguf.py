"""GGUF files as the gguf package and transformers read them; llama.cpp itself is in test_llama_cpp.py."""

import json
import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import models
import reference

TYPES = ("q8_0", "q6_k", "q4_k", "iq4_nl", "q4_0")
BLOCK_OF_32 = ("q8_0", "iq4_nl", "q4_0")
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
# How far a type may move the perplexity of tiny-llama, calibrated, as a fraction of it.
LOSS_ALLOWED = {"q8_0": 0.0005, "q6_k": 0.001, "q4_k": 0.006, "iq4_nl": 0.008, "q4_0": 0.008}


@pytest.fixture(scope="module")
def trained(quantd, shared):
    """(calibration id, evaluation id, evaluation windows, {name: model id}): a quarter of each set"""
    files = []
    for purpose in ("calibration", "evaluation"):
        records = (shared / f"{purpose}.ndjson").read_text().splitlines(keepends=True)[:32]
        files.append(quantd.json("POST", f"/v1/files?purpose={purpose}", "".join(records), "application/x-ndjson")["id"])
    return (*files, reference.read_records(shared / "evaluation.ndjson")[:32],
            {name: quantd.register(name) for name in ("tiny-llama", "tiny-llama-outlier")})


@pytest.fixture(scope="module")
def tokens(quantd, checkpoints):
    path = checkpoints / "gguf-tokens.ndjson"
    ids = models.write_tokens(path)
    return ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


def quantize(quantd, model, calibration, evaluation, length, method="ggml", format_="gguf", **quantization):
    return quantd.run({
        "model": model, "method": method, "quantization": quantization, "output": {"format": format_},
        "calibration": {"file_id": calibration, "num_samples": 0, "sequence_length": length, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})


def unpermute(array, heads):
    """Rows of a head from neighbours that rotate together to halves that do."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def read(path, source):
    """Returns (reader, {Hugging Face name: float32 array}), each block type dequantized by the gguf package."""
    reader, (config, _) = gguf.GGUFReader(path), reference.read_folder(source)
    arch = reader.get_field("general.architecture").contents()
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], config["num_hidden_layers"])
    back = {}
    for i in range(config["num_hidden_layers"]):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm",
                       "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
                       "post_attention_layernorm"):
            name = f"model.layers.{i}.{module}"
            back[names.get_name(name)] = name
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        back[names.get_name(name)] = name
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        module, member = tensor.name.rsplit(".", 1)
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(module.rsplit(".", 1)[-1])
        if arch == "llama" and heads:
            array = unpermute(array, heads)
        tensors[f"{back[module]}.{member}"] = array
        assert tensor.data_offset % 32 == 0
    return reader, tensors


def check_decoder(reader):
    """quantd's decoder and the package's give the same bits."""
    tool = pathlib.Path(os.environ["QUANTD_BUILD_DIR"], "tests", "tools", "quantd-blocks")
    seen = set()
    for tensor in reader.tensors:
        if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
            continue
        done = subprocess.run([tool, str(int(tensor.tensor_type)), str(tensor.shape[0])], input=tensor.data.tobytes(),
                              capture_output=True, check=True)
        ours = np.frombuffer(done.stdout, "<f4")
        assert np.array_equal(ours, gguf.dequantize(tensor.data, tensor.tensor_type).ravel()), tensor.name
        seen.add(tensor.tensor_type.name)
    return seen


class Rounding(reference.Model):
    """The forward pass as llama.cpp computes it: the inputs of a quantized module are rounded to eight bits, with a scale for each 256 of
    them before K-quants and each 32 before the others."""

    def __init__(self, config, tensors, reader):
        super().__init__(config, tensors)
        known = {}
        for tensor in reader.tensors:
            kind = tensor.tensor_type.name
            if kind not in ("F32", "F16", "BF16"):
                known[tensor.name.removesuffix(".weight")] = 256 if kind.endswith("_K") else 32
        names = gguf.get_tensor_name_map(ARCHITECTURES[reader.get_field("general.architecture").contents()], config["num_hidden_layers"])
        self.runs = {name.removesuffix(".weight"): known.get(names.get_name(name.removesuffix(".weight"))) for name in tensors}

    def linear(self, name, x):
        run = self.runs.get(name)
        if run is None:
            return super().linear(name, x)
        width = x.shape[-1]
        pad = np.zeros((*x.shape[:-1], -width % run), x.dtype)
        blocks = np.concatenate([x, pad], -1).reshape(*x.shape[:-1], -1, run)
        scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
        stored = scale.astype(np.float16).astype(np.float32) if run == 32 else scale  # in half precision, but codes answer the exact one
        blocks = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)) * stored
        return super().linear(name, blocks.reshape(*x.shape[:-1], -1)[..., :width])


def check_floats(tensors, source):
    """What was not quantized is the source's, to the bit."""
    _, floats = reference.read_folder(source)
    for name, array in tensors.items():
        if "_proj.weight" not in name:
            assert np.array_equal(array, floats[name].astype(np.float32)), name
    assert set(tensors) == {name for name in floats if name != "lm_head.weight" or "lm_head.weight" in tensors}


@pytest.mark.parametrize("type_", TYPES)
def test_reader(quantd, shared, trained, tmp_path, type_):
    """Names, shapes, keys and weights; its perplexity is what quantd said, and near the float model's, on the complete set."""
    calibration, _, _, ids = trained
    evaluation, windows = quantd.upload(shared / "evaluation.ndjson", "evaluation"), reference.read_records(shared / "evaluation.ndjson")
    job = quantize(quantd, ids["tiny-llama"], calibration, evaluation, 256, type=type_)
    path = quantd.download(job, tmp_path) / "model.gguf"
    reader, tensors = read(path, shared / "tiny-llama")
    config, _ = reference.read_folder(shared / "tiny-llama")
    assert check_decoder(reader) == {type_.upper()}
    check_floats(tensors, shared / "tiny-llama")
    for key, value in {"general.architecture": "llama", "general.quantization_version": 2, "llama.block_count": 4,
                       "llama.context_length": 256, "llama.embedding_length": 256, "llama.feed_forward_length": 768,
                       "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 64,
                       "llama.rope.freq_base": 10000.0, "llama.vocab_size": 2048, "tokenizer.ggml.model": "gpt2",
                       "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
                       "tokenizer.ggml.padding_token_id": 1, "tokenizer.ggml.add_bos_token": False}.items():
        assert reader.get_field(key).contents() == value, key
    tokenizer = json.loads((shared / "tiny-llama" / "tokenizer.json").read_text())
    texts = reader.get_field("tokenizer.ggml.tokens").contents()
    assert texts == sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    assert reader.get_field("tokenizer.ggml.merges").contents() == tokenizer["model"]["merges"]
    assert reader.get_field("tokenizer.ggml.token_type").contents() == [3, 3] + [1] * 2046
    found = Rounding(config, tensors, reader).perplexity(windows)
    assert job["result"]["perplexity_after"] == pytest.approx(found, rel=1e-4)
    assert found <= job["result"]["perplexity_before"] * (1 + LOSS_ALLOWED[type_])


def test_importance_where_inputs_differ(quantd, shared, trained, tmp_path):
    """With inputs of very different size the calibrated search wins back most of what rounding loses, apart from that of inputs."""
    calibration, evaluation, windows, ids = trained
    config, _ = reference.read_folder(shared / "tiny-llama-outlier")
    found = {}
    for importance in (False, True):
        job = quantize(quantd, ids["tiny-llama-outlier"], calibration, evaluation, 256, type="q4_k", importance=importance)
        path = quantd.download(job, tmp_path / str(importance)) / "model.gguf"
        _, tensors = read(path, shared / "tiny-llama-outlier")
        found[importance] = reference.Model(config, tensors).perplexity(windows) / job["result"]["perplexity_before"] - 1
    assert found[True] < 0.2 * found[False]


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_architectures(quantd, checkpoints, tokens, tmp_path, name):
    """Every family: tensors and biases in their places, in the runtime's order of rows, tied heads left out."""
    folder = models.make(name, checkpoints / f"gguf-{name}")
    job = quantize(quantd, quantd.register(folder.name), *tokens[1:], 64, type="q8_0",
                   overrides=[{"match": "*.down_proj", "type": "q4_k"}], modules_to_not_convert=["model.layers.1.self_attn.k_proj"])
    reader, tensors = read(quantd.download(job, tmp_path) / "model.gguf", folder)
    assert check_decoder(reader) == {"Q8_0", "Q4_K"}
    check_floats(tensors, folder)
    config, floats = reference.read_folder(folder)
    assert np.array_equal(tensors["model.layers.1.self_attn.k_proj.weight"], floats["model.layers.1.self_attn.k_proj.weight"])
    assert ("lm_head.weight" in tensors) == (not config.get("tie_word_embeddings"))
    found = Rounding(config, tensors, reader).perplexity(tokens[0].tolist())
    # an input that lies between two codes may fall either way, which counts on a model of random weights
    assert job["result"]["perplexity_after"] == pytest.approx(found, rel=5e-4)
    if name == "llama":  # its rotary frequencies are scaled
        (factors,) = (tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
        plain = 10000.0 ** -(np.arange(0, 64, 2) / 64)
        np.testing.assert_allclose(plain / factors, reference.rope_frequencies(config, 64), rtol=1e-6)
    if name == "llama-bias":
        assert reader.get_field("llama.rope.scaling.type").contents() == "linear"
        assert reader.get_field("llama.rope.scaling.factor").contents() == 2.0
    if name == "mistral":  # what lies beyond the window is out of the context
        assert reader.get_field("llama.context_length").contents() == 24


@pytest.mark.parametrize("bits, block", [(4, "Q4_0"), (8, "Q8_0")])
@pytest.mark.parametrize("method, signed", (("rtn", False), ("gptq", False), ("gptq", True)))
def test_integers(quantd, shared, trained, tmp_path, method, signed, bits, block):
    """Integers of other methods: the weights are those of the same job in another format, to the bit."""
    calibration, evaluation, _, ids = trained
    weights = {}
    for format_ in ("gguf", "gptq_v2"):
        job = quantize(quantd, ids["tiny-llama"], calibration, evaluation, 256, method, format_, bits=bits, group_size=32, sym=True,
                       **({"signed_scales": True} if signed else {}))
        weights[format_] = quantd.download(job, tmp_path / format_)
    reader, tensors = read(weights["gguf"] / "model.gguf", shared / "tiny-llama")
    assert check_decoder(reader) == {block}
    _, expected = reference.decode_artifact(weights["gptq_v2"])
    for name, array in tensors.items():
        if "_proj.weight" in name:
            assert np.array_equal(array, expected[name]), name


def transformers_logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(ids).logits.float().numpy()


@pytest.mark.parametrize("type_", TYPES)
def test_transformers(quantd, shared, trained, tmp_path, type_):
    """transformers dequantizes while it loads: the same logits, and the tokenizer cuts text as the source's does."""
    calibration, evaluation, windows, ids = trained
    folder = quantd.download(quantize(quantd, ids["tiny-llama"], calibration, evaluation, 256, type=type_), tmp_path)
    config, _ = reference.read_folder(shared / "tiny-llama")
    _, tensors = read(folder / "model.gguf", shared / "tiny-llama")
    sample = np.asarray(windows[:4])
    expected = reference.Model(config, tensors).logits(sample)
    found = transformers_logits(folder, torch.from_numpy(sample))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
    ours = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    theirs = AutoTokenizer.from_pretrained(shared / "tiny-llama")
    for text in ("fn main() { println!(\"hello\"); }", "It's  12345 naïve words.\n\n\tEnd"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.parametrize("name", ("qwen2", "qwen3"))
def test_transformers_qwen(quantd, checkpoints, tokens, tmp_path, monkeypatch, name):
    """Of qwen3 transformers 5.24 does not read the head's size and takes 128."""
    *classes, extra = models.ARCHITECTURES[name]
    monkeypatch.setitem(models.ARCHITECTURES, name, (*classes, {**extra, "head_dim": {"qwen2": 32, "qwen3": 128}[name]}))
    folder = models.make(name, checkpoints / f"gguf-loaded-{name}")
    job = quantize(quantd, quantd.register(folder.name), *tokens[1:], 64, type="q4_0")
    artifact = quantd.download(job, tmp_path)
    config, _ = reference.read_folder(folder)
    _, tensors = read(artifact / "model.gguf", folder)
    expected = reference.Model(config, tensors).logits(tokens[0][:4].numpy())
    found = transformers_logits(artifact, tokens[0][:4])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
