"""GGUF files in llama.cpp itself, as the xllamacpp package ships it: every block type, modules in float, overrides and mixtures.

Its server is asked for one token after every prefix of a window, which gives the scores of all positions; it rounds inputs to eight
bits, and so does quantd when it measures a GGUF artifact. How it rounds differs between its kernels, and so between processors; over a few
tokens the two perplexities agree to what that rounding does to a token by chance, which the same weights with exact products show. Each job
names llama.cpp as its target, so what the table of runtimes says of it agrees with what it does here.
"""

import json
import math
import os
import urllib.request

import numpy as np
import pytest
from transformers import AutoTokenizer

import reference
from test_gguf import read

xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp could not be installed here")

TYPES = ("q8_0", "q6_k", "q4_k", "iq4_nl", "q4_0")
WINDOWS, LENGTH = 2, 48
ERRORS = 5  # standard errors of the mean loss, for the difference of two ways to round
LARGEST = 0.005  # nats, of such an error
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

    def losses(self, windows, vocabulary):
        """[windows, length - 1]: the negative log likelihood of positions 1.. of every window, in nats."""
        losses = np.empty((len(windows), len(windows[0]) - 1))
        for w, window in enumerate(windows):
            for i in range(1, len(window)):
                (position,) = self.scores(window[:i], vocabulary)
                losses[w, i - 1] = -next(row["logprob"] for row in position["top_logprobs"] if row["id"] == window[i])
        return losses


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


def exact_losses(model, source, windows):
    """Of the file's weights with exact products; source is the folder of the checkpoint that it was made from."""
    _, tensors = read(model, source)
    return reference.Model(reference.read_folder(source)[0], tensors).losses(windows)


def check(quantd, shared, trained, folder, job):
    model = quantd.download(job, folder) / "model.gguf"
    runtime = Runtime(model, 256)
    said, found = math.log(job["result"]["perplexity_after"]), runtime.losses(trained[2], 2048)
    exact = exact_losses(model, shared / "tiny-llama", trained[2])
    error = (found - exact).std() / math.sqrt(found.size)
    print(f"mean loss: quantd {said:.5f}, llama.cpp {found.mean():.5f}, exact products {exact.mean():.5f}; standard error {error:.5f}")
    assert error < LARGEST
    assert found.mean() == pytest.approx(said, abs=ERRORS * error)
    return runtime


@pytest.mark.parametrize("type_", TYPES)
def test_types(quantd, shared, trained, tmp_path, type_):
    """Scores as quantd measured them, and text cut as the source's tokenizer cuts it."""
    runtime = check(quantd, shared, trained, tmp_path, quantize(quantd, trained, "tiny-llama", type=type_))
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
    exact = exact_losses(model, shared / "tiny-llama-outlier", windows).mean()
    said, found = math.log(job["result"]["perplexity_after"]), Runtime(model, 256).losses(windows, 2048).mean()
    print(f"mean loss: quantd {said:.5f}, llama.cpp {found:.5f}, exact products {exact:.5f}")
    assert abs(found - said) < abs(found - exact) / 2
    assert job["result"]["compression_ratio"] > 1.2


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures(quantd, shared, trained, tmp_path, name):
    check(quantd, shared, trained, tmp_path, quantize(quantd, trained, "tiny-llama", **MIXTURES[name]))


@pytest.mark.parametrize("bits", (4, 8))
def test_integers(quantd, shared, trained, tmp_path, bits):
    check(quantd, shared, trained, tmp_path, quantize(quantd, trained, "tiny-llama", "gptq", bits=bits, group_size=32, sym=True))
