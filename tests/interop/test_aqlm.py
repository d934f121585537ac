"""Codebooks and tables: AQLM artifacts through the aqlm package and transformers on the CPU, the dense export of any result, and
the side file of tables.

What cannot be loaded on a CPU: aqlm's look-up kernel takes 8-bit codebooks only, and the package falls back on plain
dequantization for the others (slower, same weights); its CUDA kernels (1x16, 2x8, 1x8) need a GPU and are not run here. The
look-up kernel adds from several threads without guarding its sums, so it runs in one.
"""

import os

os.environ["NUMBA_NUM_THREADS"] = "1"

import importlib.metadata

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import models
import reference

# method, parameters: codebooks, bits, group
ARTIFACTS = {
    "aqlm-2x8g8": ("aqlm", {"num_codebooks": 2, "nbits_per_codebook": 8, "in_group_size": 8}, (2, 8, 8)),
    "aqlm-4x8g8": ("aqlm", {"num_codebooks": 4, "nbits_per_codebook": 8, "in_group_size": 8, "beam_size": 4}, (4, 8, 8)),
    "aqlm-1x12g8": ("aqlm", {"num_codebooks": 1, "nbits_per_codebook": 12, "in_group_size": 8}, (1, 12, 8)),
    "kmeans-1x8g4": ("kmeans", {"bits": 2, "in_group_size": 4}, (1, 8, 4)),
}


def decode_aqlm(tensors, module, config):
    """One module to its float32 weight [N, K]: codes are stored signed and wrap at 2^bits."""
    codes = tensors[f"{module}.codes"].astype(np.int64) % (1 << config["nbits_per_codebook"])
    books, scales = tensors[f"{module}.codebooks"].astype(np.float32), tensors[f"{module}.scales"].astype(np.float32)
    outputs, inputs, count = codes.shape
    _, size, height, width = books.shape
    assert (count, size, width, height) == (config["num_codebooks"], 1 << config["nbits_per_codebook"], config["in_group_size"],
                                            config["out_group_size"])
    assert scales.shape == (outputs, 1, 1, 1)
    total = sum(books[m][codes[:, :, m]] for m in range(count))
    return (total * scales).transpose(0, 2, 1, 3).reshape(outputs * height, inputs * width)


def load_aqlm(folder):
    """The artifact as a plain model."""
    config, tensors = reference.read_folder(folder)
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "aqlm"
    left = quantization["linear_weights_not_to_quantize"]
    assert {"lm_head", "lm_head.weight"} <= set(left)
    plain = {name: array for name, array in tensors.items() if not name.endswith((".codes", ".codebooks", ".scales"))}
    for name in tensors:
        if name.endswith(".codes"):
            module = name.removesuffix(".codes")
            assert f"{module}.weight" not in plain and module not in left
            plain[f"{module}.weight"] = decode_aqlm(tensors, module, quantization)
    return reference.Model(config, plain)


@pytest.fixture(scope="module")
def tokens(quantd, checkpoints):
    path = checkpoints / "aqlm-tokens.ndjson"
    ids = models.write_tokens(path)
    return ids, quantd.upload(path, "calibration"), quantd.upload(path, "evaluation")


@pytest.fixture(scope="module")
def model(quantd, checkpoints):
    models.make("llama", checkpoints / "for-aqlm")
    return quantd.register("for-aqlm")


@pytest.fixture(scope="module")
def trained(quantd, shared):
    """(calibration id, evaluation id, evaluation windows, model id)"""
    return (quantd.upload(shared / "calibration.ndjson", "calibration"), quantd.upload(shared / "evaluation.ndjson", "evaluation"),
            reference.read_records(shared / "evaluation.ndjson"), quantd.register("tiny-llama"))


def quantize(quantd, model, calibration, evaluation, length, method, format_, quantization, samples=0):
    """samples: of the calibration set, 0 for all of it"""
    return quantd.run({
        "model": model, "method": method, "quantization": quantization, "output": {"format": format_},
        "calibration": {"file_id": calibration, "num_samples": samples, "sequence_length": length, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation}})


def logits_of(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(ids).logits.float().numpy()


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_aqlm_loads(quantd, tokens, model, tmp_path, artifact):
    """Logits of the package's kernel are those of the decoded weights, and the perplexity is what quantd said."""
    for package in ("aqlm", "numba"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} could not be installed here")
    method, parameters, shape = ARTIFACTS[artifact]
    ids, calibration, evaluation = tokens
    job = quantize(quantd, model, calibration, evaluation, 64, method, "aqlm", parameters)
    folder = quantd.download(job, tmp_path / "artifact")
    quantization = reference.read_folder(folder)[0]["quantization_config"]
    assert tuple(quantization[key] for key in ("num_codebooks", "nbits_per_codebook", "in_group_size")) == shape
    decoded = load_aqlm(folder)
    few = ids[:4]
    assert relative(logits_of(folder, few), decoded.logits(few.numpy())) < 1e-4
    assert job["result"]["perplexity_after"] == pytest.approx(decoded.perplexity(ids.numpy()), rel=1e-3)


def test_aqlm_beats_gptq_at_two_bits(quantd, trained, tmp_path):
    """2x8 g8, with a quarter of the calibration set, against the reference's GPTQ at 2 bits in groups of 64; losses fall from epoch to epoch."""
    calibration, evaluation, windows, model = trained
    job = quantize(quantd, model, calibration, evaluation, 256, "aqlm", "aqlm", {"num_codebooks": 2, "nbits_per_codebook": 8}, 32)
    found = load_aqlm(quantd.download(job, tmp_path)).perplexity(windows)
    assert job["result"]["perplexity_after"] == pytest.approx(found, rel=1e-3)
    assert found < 9.2261
    for row in quantd.json("GET", f"/v1/quantization/jobs/{job['id']}/layers")["data"]:
        first, last = (float(word) for word in row["note"].removeprefix("loss ").split(" in ")[0].split(" -> "))
        assert last < first


def test_fine_tuning_pays(quantd, trained):
    """The recipe of docs/methods.md against aqlm alone, on an eighth of the calibration set with one epoch of the solver and two of the model:
    the evaluation's KL is what counts, and rows say what output moments gained. With all of the set it is below .6 (tests/bench/RESULTS.md)."""
    calibration, evaluation, _, model = trained

    def run(method, more):
        return quantd.report(quantd.run({
            "model": model, "method": method, "output": {"format": "aqlm"},
            "quantization": {"num_codebooks": 2, "nbits_per_codebook": 8, "max_epochs": 1, **more},
            "calibration": {"file_id": calibration, "num_samples": 16, "sequence_length": 256, "packing": False, "shuffle": False},
            "evaluation": {"file_id": evaluation, "max_tokens": 16 * 256}}))
    alone = run("aqlm", {})
    tuned = run(["aqlm", "tune"], {"output_moments": True, "end_to_end": True, "e2e_epochs": 2, "tune_epochs": 0})
    assert all(row["two_sided_loss"] < row["two_sided_start"] for row in tuned["layers"])
    assert tuned["tuning"]["end_to_end"]["best_loss"] < tuned["tuning"]["end_to_end"]["first_loss"]
    share = tuned["evaluation"]["kl_divergence_mean"] / alone["evaluation"]["kl_divergence_mean"]
    print(f"share {share:.3f}")
    assert share < 0.8


def test_tables_beat_rounding_at_three_bits(quantd, trained, tmp_path):
    """Exact tables, with and without outlier weights stored separately; dense weights and the side file say the same."""
    calibration, evaluation, windows, model = trained
    rounded = quantize(quantd, model, calibration, evaluation, 256, "rtn", "compressed-tensors", {"bits": 3, "group_size": -1}, 32)
    job = quantize(quantd, model, calibration, evaluation, 256, "kmeans", "dense", {"bits": 3, "outlier_fraction": 0.0045}, 32)
    plain = quantize(quantd, model, calibration, evaluation, 256, "kmeans", "dense", {"bits": 3}, 32)
    assert plain["result"]["perplexity_after"] < rounded["result"]["perplexity_after"]
    assert job["result"]["perplexity_after"] < plain["result"]["perplexity_after"]
    folder = quantd.download(job, tmp_path)
    config, tensors = reference.read_folder(folder)
    assert "quantization_config" not in config
    found = reference.Model(config, tensors).perplexity(windows)
    assert job["result"]["perplexity_after"] == pytest.approx(found, rel=1e-3)
    tables = reference.read_safetensors(folder / "quantd-tables.bin")
    modules = [name.removesuffix(".qweight") for name in tables if name.endswith(".qweight")]
    assert len(modules) == 7 * config["num_hidden_layers"]
    for module in modules:
        lookup, words = tables[f"{module}.lookup_table"], tables[f"{module}.qweight"]
        n, k = tensors[f"{module}.weight"].shape
        codes = reference.unpack_bits(words.T, 3, k)
        weight = np.take_along_axis(lookup, codes, 1)
        starts, columns, values = (tables[f"{module}.{part}"] for part in ("rows", "cols", "vals"))
        assert starts[0] == 0 and starts[-1] == len(columns) == len(values) == int(0.0045 * n * k)
        weight[np.repeat(np.arange(n), np.diff(starts)), columns] += values
        np.testing.assert_allclose(weight, tensors[f"{module}.weight"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method, quantization", [("gptq", {"bits": 4, "group_size": 32}), ("rtn", {"bits": 8, "group_size": -1, "sym": False}),
                                                  ("nf4", {}), ("aqlm", ARTIFACTS["aqlm-2x8g8"][1]), ("kmeans", {"bits": 4})])
def test_dense_loads(quantd, tokens, model, tmp_path, method, quantization):
    """Any result as an ordinary checkpoint; BF16 weights lose a little compared with single precision."""
    ids, calibration, evaluation = tokens
    job = quantize(quantd, model, calibration, evaluation, 64, method, "dense", quantization)
    folder = quantd.download(job, tmp_path)
    oracle = reference.Model.load(folder)
    assert relative(logits_of(folder, ids[:4]), oracle.logits(ids[:4].numpy())) < 1e-4
    assert job["result"]["perplexity_after"] == pytest.approx(oracle.perplexity(ids.numpy()), rel=5e-3)
