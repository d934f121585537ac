"""GGUF files in llama.cpp itself, as the xllamacpp package ships it: every block type, modules in float, overrides and mixtures.

Its server is asked for one token after every prefix of a window, which gives the scores of all positions; it rounds inputs to eight
bits, and so does quantd when it measures a GGUF artifact, so the two perplexities must agree closer than that rounding moves them. Each job
names llama.cpp as its target, so what the table of runtimes says of it agrees with what it does here.
"""

import json
import math
import os
import urllib.request

import pytest
from transformers import AutoTokenizer

import reference
from test_gguf import read

xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp could not be installed here")

TYPES = ("q8_0", "q6_k", "q4_k", "iq4_nl", "q4_0")
WINDOWS, LENGTH = 2, 48
AGREE = 4e-3  # relative, of perplexities
ASKED = 5
MIXTURES = {
    "mixture": {"type": "q4_k", "overrides": [{"match": "*.down_proj", "type": "q6_k"}, {"match": "*.o_proj", "type": "q8_0"}]},
    "skips": {"type": "q4_0", "modules_to_not_convert": ["model.layers.1.mlp.*", "*.v_proj"]},
    "skips-and-mixture": {"type": "q8_0", "overrides": [{"match": "*.gate_proj", "type": "q4_k"}, {"match": "*.layers.0.*", "skip": True}]},
}


class Runtime:
    """A model in llama.cpp's server, on a free port of this machine."""

    def __init__(self, path, length):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = length, 1, False
        # They spin while they wait for each other: more of them than there are cores to spare cost several times the work.
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(os.environ.get("OMP_NUM_THREADS", 2))
        self.server, self.length = xllamacpp.Server(parameters), length

    def post(self, route, body):
        request = urllib.request.Request(f"{self.server.listening_address}{route}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False})["tokens"]

    def scores(self, prompt, vocabulary):
        """Of the token after the prompt. On a busy machine the server now and then answers without any: it is asked again."""
        for _ in range(ASKED):
            answer = self.server.handle_completions({"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": -1.0,
                                                     "samplers": [], "cache_prompt": True, "ignore_eos": True})
            if answer["choices"][0]["logprobs"] is not None:
                return answer["choices"][0]["logprobs"]["content"]
        raise AssertionError(f"no scores in {ASKED} answers, the last {str(answer)[:300]}")

    def perplexity(self, windows, vocabulary):
        total = count = 0
        for window in windows:
            for i in range(1, len(window)):
                (position,) = self.scores(window[:i], vocabulary)
                total -= next(row["logprob"] for row in position["top_logprobs"] if row["id"] == window[i])
                count += 1
        return math.exp(total / count)


@pytest.fixture(scope="module")
def trained(quantd, shared, tmp_path_factory):
    """(calibration id, id of an evaluation set of a few windows, the windows, {name: model id})"""
    windows = [window[:LENGTH] for window in reference.read_records(shared / "evaluation.ndjson")[:WINDOWS]]
    few = tmp_path_factory.mktemp("llama") / "few.ndjson"
    few.write_text("".join(json.dumps({"input_ids": list(map(int, window))}) + "\n" for window in windows))
    return (quantd.upload(shared / "calibration.ndjson", "calibration"), quantd.upload(few, "evaluation"),
            [list(map(int, window)) for window in windows], {name: quantd.register(name) for name in ("tiny-llama", "tiny-llama-outlier")})


def quantize(quantd, trained, model, method="ggml", **quantization):
    calibration, evaluation, _, known = trained
    return quantd.run({
        "model": known[model], "method": method, "quantization": quantization, "output": {"format": "gguf", "targets": ["llama.cpp"]},
        "calibration": {"file_id": calibration, "num_samples": 32, "sequence_length": 256, "packing": False, "shuffle": False},
        "evaluation": {"file_id": evaluation, "sequence_length": LENGTH}})


def check(quantd, trained, folder, job):
    runtime = Runtime(quantd.download(job, folder) / "model.gguf", 256)
    found = runtime.perplexity(trained[2], 2048)
    print(f"quantd {job['result']['perplexity_after']:.4f}, llama.cpp {found:.4f}")
    assert found == pytest.approx(job["result"]["perplexity_after"], rel=AGREE)
    return runtime


@pytest.mark.parametrize("type_", TYPES)
def test_types(quantd, shared, trained, tmp_path, type_):
    """Scores as quantd measured them, and text cut as the source's tokenizer cuts it."""
    runtime = check(quantd, trained, tmp_path, quantize(quantd, trained, "tiny-llama", type=type_))
    theirs = AutoTokenizer.from_pretrained(shared / "tiny-llama")
    for text in ("fn main() { println!(\"hello\"); }", "It's 12345 words.\n\n\tEnd"):
        assert runtime.tokenize(text) == theirs(text)["input_ids"]


def test_inputs_of_very_different_size(quantd, shared, trained, tmp_path):
    """Where a few inputs are large, the runtime's rounding of inputs costs as much as that of weights. What quantd says must be at least
    twice as near to the runtime as the same weights are by exact products; over a few tokens chance decides, hence the longer set."""
    windows = [list(map(int, window[:64])) for window in reference.read_records(shared / "evaluation.ndjson")[:10]]
    path = tmp_path / "longer.ndjson"
    path.write_text("".join(json.dumps({"input_ids": window}) + "\n" for window in windows))
    job = quantd.run({
        "model": trained[3]["tiny-llama-outlier"], "method": "ggml", "quantization": {"type": "q4_k", "importance": False},
        "output": {"format": "gguf", "targets": ["llama.cpp"]}, "evaluation": {"file_id": quantd.upload(path, "evaluation"), "sequence_length": 64}})
    model = quantd.download(job, tmp_path / "artifact") / "model.gguf"
    _, tensors = read(model, shared / "tiny-llama-outlier")
    exact = reference.Model(reference.read_folder(shared / "tiny-llama-outlier")[0], tensors).perplexity(windows)
    said, found = job["result"]["perplexity_after"], Runtime(model, 256).perplexity(windows, 2048)
    print(f"quantd {said:.4f}, llama.cpp {found:.4f}, exact products {exact:.4f}")
    assert abs(found - said) < abs(found - exact) / 2
    assert job["result"]["compression_ratio"] > 1.2


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures(quantd, trained, tmp_path, name):
    check(quantd, trained, tmp_path, quantize(quantd, trained, "tiny-llama", **MIXTURES[name]))


@pytest.mark.parametrize("bits", (4, 8))
def test_integers(quantd, trained, tmp_path, bits):
    check(quantd, trained, tmp_path, quantize(quantd, trained, "tiny-llama", "gptq", bits=bits, group_size=32, sym=True))
