"""What automatic mixed precision is worth: the perplexity and the KL divergence that it loses, as a share of what uniform widths and a rule of thumb
lose with as many bits. All jobs have one count, the bits of codes and scales of all linears (`result.bits_per_weight`), scales of 16 bits for 128
inputs, and the same parameters of the method.

uniform    the two widths next to the budget, for all linears, interpolated
rule       more bits for v_proj and down_proj, as in llama.cpp's Q4_K_M, and fewer where most weights are; each has exactly the budget

The evaluation set is `evaluation.ndjson` and all windows of `calibration_text.ndjson` that share no 32 tokens in a row with `calibration.ndjson`, by
which jobs calibrate and mixtures choose, with `evaluation.ndjson`, or with an earlier window: 568 windows. Perplexity moves either way by first-order
effects, which over the 128 windows of `evaluation.ndjson` alone are as large as the differences between rule and mixture, so the standard errors over
windows are printed with --full. There all jobs, also the rule's and the uniform ones, have gptq's best setting, `output_moments`.
"""

import functools
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Parameters of gptq, calibration windows, tokens that mixtures are chosen by, and of the evaluation set each how manieth window: what is short, and
# gptq with all that there is.
SHORT = ({"quality": "fast"}, 64, 2048, 8)
COMPLETE = ({"output_moments": True}, 128, 8192, 1)
CASES = (("tiny-llama-outlier", 3.0, SHORT),)
FULL_CASES = tuple((checkpoint, budget, COMPLETE) for checkpoint in ("tiny-llama", "tiny-llama-outlier") for budget in (3.0, 3.5))
# budget: widths next to it, and a rule, a list of overrides that makes exactly so many bits of these checkpoints
WIDTHS = {3.5: (3, 4), 3.0: (2, 3)}
RULES = {
    3.5: (3, [{"match": "re:.*(v|down|o)_proj$", "bits": 4}]),
    3.0: (2, [{"match": "re:.*(v|down|o)_proj$", "bits": 4}, {"match": "re:.*(q|k)_proj$", "bits": 3}]),
}
SHARE = 0.8
LENGTH = 256
COMMON = 32  # tokens in a row that two windows may not share
RESAMPLES = 500


def runs(ids):
    return {tuple(ids[i : i + COMMON]) for i in range(len(ids) - COMMON + 1)}


def records(path, member):
    return [json.loads(line)[member] for line in path.read_text().splitlines()]


def unseen_windows(shared):
    """[windows][LENGTH] token ids that no job calibrates with; those of evaluation.ndjson first."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tiny-llama", model_max_length=10**9)
    windows = records(shared / "evaluation.ndjson", "input_ids")
    seen = set().union(*map(runs, records(shared / "calibration.ndjson", "input_ids") + windows))
    for text in records(shared / "calibration_text.ndjson", "text"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for window in (ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)):
            own = runs(window)
            if seen.isdisjoint(own):
                windows.append(window)
                seen |= own
    return windows


def log_likelihoods(model, windows):
    """[windows]: the mean over a window's tokens but the first."""
    found = []
    with torch.inference_mode():
        for ids in torch.tensor(windows).split(8):
            scores = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
            found.append(scores.double().mean((1, 2)))
    return torch.cat(found).numpy()


def lost_perplexity(before, after, chosen=slice(None)):
    return math.exp(-after[chosen].mean()) - math.exp(-before[chosen].mean())


def standard_error(quotient, windows):
    """Of a quotient of two perplexities lost, quotient(chosen windows), by drawing windows with replacement."""
    random = np.random.default_rng(1)
    return float(np.std([quotient(random.integers(0, windows, windows)) for _ in range(RESAMPLES)]))


@pytest.fixture(scope="module")
def windows(shared):
    return unseen_windows(shared)


@pytest.fixture(scope="module")
def sets(quantd, shared, windows, tmp_path_factory):
    """Of file ids: the calibration set, and the evaluation set of each n-th window by n."""

    @functools.lru_cache
    def evaluation(every):
        path = tmp_path_factory.mktemp("windows") / "evaluation.ndjson"
        path.write_text("".join(json.dumps({"input_ids": window}) + "\n" for window in windows[::every]))
        return quantd.upload(path, "evaluation")

    return quantd.upload(shared / "calibration.ndjson", "calibration"), evaluation


@pytest.fixture(scope="module")
def lost(quantd, sets):
    """(checkpoint, setting, parameters) -> (KL, perplexity lost, bits, job); each job once."""
    found = {}

    def run(checkpoint, setting, parameters, format_="dense"):
        common, samples, _, every = setting
        key = (checkpoint, str(setting), str(parameters), format_)
        if key not in found:
            job = quantd.run({"model": quantd.register(checkpoint), "method": "gptq", "quantization": {"group_size": 128, **common, **parameters},
                              "output": {"format": format_},
                              "calibration": {"file_id": sets[0], "num_samples": samples, "sequence_length": LENGTH},
                              "evaluation": {"file_id": sets[1](every), "sequence_length": LENGTH}})
            result = job["result"]
            found[key] = result["kl_divergence_mean"], result["perplexity_after"] - result["perplexity_before"], result["bits_per_weight"], job
        return found[key]

    return run


@pytest.fixture(scope="module")
def likelihoods(quantd, shared, windows, tmp_path_factory):
    """(checkpoint or job) -> log likelihoods by window, by transformers; each once."""
    found = {}

    def measure(path, key):
        if key not in found:
            found[key] = log_likelihoods(AutoModelForCausalLM.from_pretrained(path(), dtype=torch.float32).eval(), windows)
        return found[key]

    return lambda it: (measure(lambda: shared / it, it) if isinstance(it, str) else
                       measure(lambda: quantd.download(it, tmp_path_factory.mktemp("artifact")), it["id"]))


def check_by_windows(likelihoods, checkpoint, budget, mixed, rule, uniform):
    """What transformers finds is quantd's own; prints the two quotients of perplexities lost with their standard errors."""
    before, own, ruled, *widths = map(likelihoods, (checkpoint, mixed[3], rule[3], *(row[3] for row in uniform)))
    assert lost_perplexity(before, own) == pytest.approx(mixed[1], rel=0.02)
    bits = [row[2] for row in uniform]

    def of_rule(chosen=slice(None)):
        return lost_perplexity(before, own, chosen) / lost_perplexity(before, ruled, chosen)

    def of_uniform(chosen=slice(None)):
        return lost_perplexity(before, own, chosen) / np.interp(budget, bits, [lost_perplexity(before, width, chosen) for width in widths])

    for name, quotient in (("uniform", of_uniform), ("rule", of_rule)):
        error = standard_error(quotient, len(before))
        print(f"{checkpoint} at {budget}, share of the perplexity that {name} loses: {quotient():.3f} +- {error:.3f}")


def mixture(budget, setting):
    return {"mixed_precision": {"bits_per_weight": budget, "kl_tokens": setting[2]}}


@pytest.mark.parametrize("checkpoint, budget, setting", [*CASES, *(pytest.param(*row, marks=pytest.mark.full) for row in FULL_CASES)])
def test_loses_less_than_uniform_widths_and_a_rule(lost, likelihoods, checkpoint, budget, setting):
    mixed = lost(checkpoint, setting, mixture(budget, setting))
    assert mixed[2] <= budget + 1e-3
    assert mixed[3]["result"]["mixed_precision"]["exact"]
    uniform = [lost(checkpoint, setting, {"bits": width}) for width in WIDTHS[budget]]
    width, overrides = RULES[budget]
    rule = lost(checkpoint, setting, {"bits": width, "overrides": overrides})
    assert rule[2] == pytest.approx(budget, abs=1e-3)
    shares = {}
    for what, index in (("KL", 0), ("perplexity", 1)):
        interpolated = float(np.interp(budget, [row[2] for row in uniform], [row[index] for row in uniform]))
        print(f"{checkpoint} at {budget}, {what}: mixed {mixed[index]:.5f}, uniform {interpolated:.5f}, rule {rule[index]:.5f}")
        shares[what, "uniform"], shares[what, "rule"] = mixed[index] / interpolated, mixed[index] / rule[index]
    print(shares)
    if setting is COMPLETE:
        check_by_windows(likelihoods, checkpoint, budget, mixed, rule, uniform)
    assert all(share <= SHARE for share in shares.values()), shares


def test_loads_in_transformers(quantd, windows, lost, tmp_path):
    """The perplexity of the mixed artifact there is quantd's own."""
    *_, job = lost("tiny-llama", SHORT, mixture(3.0, SHORT), "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(quantd.download(job, tmp_path / "mixed"), dtype=torch.float32).eval()
    widths = {group["weights"]["num_bits"] for group in model.config.quantization_config.quantization_config.model_dump()["config_groups"].values()}
    assert len(widths) > 1
    perplexity = math.exp(-log_likelihoods(model, windows[:: SHORT[3]]).mean())
    assert job["result"]["perplexity_after"] == pytest.approx(perplexity, rel=2e-3)
