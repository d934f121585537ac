"""What the analysis of sensitivity says of each linear, from calibration data, against what the plain model loses on the evaluation set when that
linear alone has the weights of a quantized artifact.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODELS = ("tiny-llama", "tiny-llama-outlier")
WINDOWS = 32


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
    return {"file_id": files["calibration"], "num_samples": 0, "sequence_length": 256, "packing": False, "shuffle": False}


def losses(model, windows, artifact, modules):
    """{module: mean KL(float || with the artifact's weight in this module alone)}."""
    with torch.inference_mode():
        before = torch.log_softmax(model(windows).logits[:, :-1].float(), -1)
        found = {}
        for name in modules:
            weight = model.get_submodule(name).weight
            kept = weight.data
            weight.data = artifact[name + ".weight"].to(kept.dtype)
            after = torch.log_softmax(model(windows).logits[:, :-1].float(), -1)
            weight.data = kept
            found[name] = (before.exp() * (before - after)).sum(-1).mean().item()
        return found


@pytest.mark.parametrize("model", MODELS)
def test_predicted_loss_is_the_measured_one(quantd, shared, files, windows, model, tmp_path):
    known = quantd.register(model)
    reports = {}
    for name, streams in (("measured", 256), ("predicted", 32)):
        job = quantd.run({"model": known, "method": "sensitivity", "calibration": calibration(files),
                          "quantization": {"group_size": 64, "max_streams": streams}})
        reports[name] = quantd.report(job)["analysis"]["rows"]
    plain = AutoModelForCausalLM.from_pretrained(shared / model, dtype=torch.float32).eval()
    for bits in (2, 3, 4):
        job = quantd.run({"model": known, "method": "gptq", "calibration": calibration(files), "evaluation": {"hold_back": 0},
                          "quantization": {"bits": bits, "group_size": 64, "float_targets": False}, "output": {"format": "dense"}})
        folder = tmp_path / str(bits)
        quantd.download(job, folder)
        artifact = load_file(folder / "model.safetensors")
        for name, rows in reports.items():
            kl = {row["module"]: row["kl"] for row in rows if row["bits"] == bits}
            assert len(kl) == 28
            loss = losses(plain, windows, artifact, kl) if name == "measured" else loss
            found = spearman([kl[module] for module in kl], [loss[module] for module in kl])
            ratio = sorted(kl[module] / loss[module] for module in kl)
            print(f"{model}, {bits} bits, {name}: Spearman {found:.3f}, predicted / measured loss {ratio[0]:.2f} to {ratio[-1]:.2f}, median {ratio[14]:.2f}; "
                  f"sums {sum(kl.values()):.4f} {sum(loss.values()):.4f}")
            assert found >= 0.9
