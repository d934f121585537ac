"""What the analysis of sensitivity says of each linear, from calibration data, against what the plain model loses on the evaluation set when that
linear alone has the weights of a quantized artifact.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# The widths that are held against what the model loses, and measurements: of all rows, or of one of each linear and four more.
MODELS = {"tiny-llama": ((3, 4), 56), "tiny-llama-outlier": ((2, 3), 32)}
WINDOWS = 6


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0] * len(values)
    for rank, index in enumerate(order):
        found[index] = rank
    return found


def spearman(x, y):
    a, b, n = ranks(x), ranks(y), len(x)
    return 1 - 6 * sum((i - k) ** 2 for i, k in zip(a, b)) / (n * (n * n - 1))


def test_spearman():
    assert spearman([1, 2, 3, 9], [2, 4, 5, 6]) == 1 and spearman([1, 2, 3], [3, 2, 1]) == -1


@pytest.fixture(scope="module")
def files(quantd, shared):
    return {purpose: quantd.upload(shared / f"{purpose}.ndjson", purpose) for purpose in ("calibration", "evaluation")}


@pytest.fixture(scope="module")
def windows(shared):
    lines = (shared / "evaluation.ndjson").read_text().splitlines()[:WINDOWS]
    return torch.tensor([json.loads(line)["input_ids"][:256] for line in lines])


def calibration(files):
    return {"file_id": files["calibration"], "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False}


def logits(model, windows):
    return torch.log_softmax(model(windows).logits[:, :-1].float(), -1)


def losses(model, windows, before, artifact, modules):
    """[mean KL(float || with the artifact's weight in this module alone)]."""
    found = []
    for name in modules:
        weight = model.get_submodule(name).weight
        kept = weight.data
        weight.data = artifact[name + ".weight"].to(kept.dtype)
        found.append((before.exp() * (before - logits(model, windows))).sum(-1).mean().item())
        weight.data = kept
    return found


@pytest.mark.parametrize("model", [pytest.param("tiny-llama", marks=pytest.mark.full), "tiny-llama-outlier"])
def test_predicted_loss_is_the_measured_one(quantd, shared, files, windows, model, tmp_path):
    """The job of each width solves with inputs that the quantized modules before it made, so that its weights are not quite those of the analysis."""
    known = quantd.register(model)
    widths, streams = MODELS[model]
    job = quantd.run({"model": known, "method": "sensitivity", "calibration": calibration(files),
                      "quantization": {"group_size": 64, "candidates": [{"bits": bits} for bits in widths], "max_streams": streams, "kl_tokens": 2048}})
    rows = quantd.report(job)["analysis"]["rows"]
    assert len(rows) == 56 and sum(row["measured"] for row in rows) == streams
    plain = AutoModelForCausalLM.from_pretrained(shared / model, dtype=torch.float32).eval()
    with torch.inference_mode():
        before = logits(plain, windows)
        for bits in widths:
            job = quantd.run({"model": known, "method": "gptq", "calibration": calibration(files), "evaluation": {"hold_back": 0},
                              "quantization": {"bits": bits, "group_size": 64, "float_targets": False}, "output": {"format": "dense"}})
            folder = tmp_path / str(bits)
            quantd.download(job, folder)
            own = [row for row in rows if row["bits"] == bits]
            loss = losses(plain, windows, before, load_file(folder / "model.safetensors"), [row["module"] for row in own])
            kl = [row["kl"] for row in own]
            found, ratio = spearman(kl, loss), sorted(a / b for a, b in zip(kl, loss))
            print(f"{model}, {bits} bits: Spearman {found:.3f}, predicted / measured loss {ratio[0]:.2f} to {ratio[-1]:.2f}, median {ratio[14]:.2f}; "
                  f"sums {sum(kl):.4f} {sum(loss):.4f}")
            assert found >= 0.9
