"""The gate's figures against transformers: greedy continuations of the same prompts by the checkpoint and by the artifact, how far they
agree, how much they repeat, and how often both find the same token most likely."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import reference

PROMPTS, PROMPT, TOKENS = 6, 24, 12
METHODS = {"rtn-2": ("rtn", {"bits": 2, "group_size": 64}, "compressed-tensors"),
           "rtn-4": ("rtn", {"bits": 4, "group_size": 64}, "compressed-tensors"),
           "awq-4": ("awq", {"group_size": 64, "sym": True}, "compressed-tensors")}  # rewrites norms


@pytest.fixture(scope="module")
def trained(quantd, shared):
    """(model id, calibration id, evaluation id, windows): small parts of the sets"""
    files = []
    for purpose in ("calibration", "evaluation"):
        records = (shared / f"{purpose}.ndjson").read_text().splitlines(keepends=True)[:16]
        files.append(quantd.json("POST", f"/v1/files?purpose={purpose}", "".join(records), "application/x-ndjson")["id"])
    return quantd.register("tiny-llama"), *files, torch.tensor(reference.read_records(shared / "evaluation.ndjson")[:16])


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def continuations(model, windows):
    prompts = windows[:PROMPTS, :PROMPT]
    with torch.inference_mode():
        made = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, num_beams=1, min_new_tokens=TOKENS,
                              max_new_tokens=TOKENS, repetition_penalty=1.0)
    return made[:, PROMPT:].tolist()


def most_likely(model, windows):
    with torch.inference_mode():
        return model(windows).logits[:, :-1].argmax(-1)


def agreeing(a, b):
    return next((i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), len(a)) / len(a)


def repetition(ids):
    pairs = list(zip(ids, ids[1:]))
    return sum(pair in pairs[:i] for i, pair in enumerate(pairs)) / len(pairs)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("name", METHODS)
def test_generation(quantd, shared, trained, tmp_path, name):
    model, calibration, evaluation, windows = trained
    method, quantization, format_ = METHODS[name]
    job = quantd.run({
        "model": model, "method": method, "quantization": quantization, "output": {"format": format_},
        "calibration": {"file_id": calibration, "num_samples": 0, "sequence_length": 256, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation,
                       "gate": {"generation": {"prompts": PROMPTS, "prompt_tokens": PROMPT, "tokens": TOKENS, "min_agreement": 0}}}})
    said = job["gate"]["rungs"][0]
    whole, artifact = load(shared / "tiny-llama"), load(quantd.download(job, tmp_path / "artifact"))
    wanted, found = continuations(whole, windows), continuations(artifact, windows)
    generation = said["generation"]
    assert (generation["prompts"], generation["prompt_tokens"], generation["tokens"]) == (PROMPTS, PROMPT, TOKENS)
    assert generation["agreement"] == pytest.approx(mean(map(agreeing, wanted, found)), abs=1e-9)
    assert generation["repetition_before"] == pytest.approx(mean(map(repetition, wanted)), abs=1e-9)
    assert generation["repetition_after"] == pytest.approx(mean(map(repetition, found)), abs=1e-9)
    same = (most_likely(whole, windows) == most_likely(artifact, windows)).double().mean().item()
    assert said["top1_agreement"] == pytest.approx(same, abs=0.002)
