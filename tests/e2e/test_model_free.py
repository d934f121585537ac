"""Model-free jobs: a checkpoint whose architecture no row describes is quantized from names and shapes alone. What is left in float passes
through byte for byte, kills leave no trace, memory stays below two shards, and what needs a forward pass is refused."""

import contextlib
import http.client
import json
import os
import random
import shutil
import struct
import tempfile
import threading
import time

from checkpoint import bf16_ones, bf16_random, count, config, read_header, write, write_safetensors
from harness import JOBS, NDJSON, NO_MODULES, SANITIZED, Daemon, Failure, Skip, artifact_digests, equal, ids_records, main, post, succeed, true, wait_job

ARCHITECTURE = "LumenForConditionalGeneration"
RTN = {"method": "rtn", "quantization": {"bits": 4, "group_size": 32}}
FP8 = {"method": "fp8"}
# What of a layer is quantized unless the request says otherwise.
LINEARS = ("mixer.in_proj", "mixer.out_proj", "mlp.experts.0.up", "mlp.experts.1.up", "mlp.down")
PREFIX = "language_model.model.layers."


def layer_tensors(prefix, hidden):
    yield prefix + "mixer.in_proj.weight", (2 * hidden, hidden), "BF16"
    yield prefix + "mixer.conv1d.weight", (hidden, 1, 4), "BF16"
    yield prefix + "mixer.A_log", (hidden,), "F32"
    yield prefix + "mixer.out_proj.weight", (hidden, 2 * hidden), "BF16"
    yield prefix + "mlp.gate.weight", (2, hidden), "F32"
    yield prefix + "mlp.gate.e_score_correction_bias", (2,), "F32"
    yield prefix + "mlp.experts.0.up.weight", (hidden, hidden), "BF16"
    yield prefix + "mlp.experts.1.up.weight", (hidden, hidden), "BF16"
    yield prefix + "mlp.fused.gate_up_proj", (2, hidden, 32), "BF16"
    yield prefix + "mlp.down.weight", (hidden, hidden), "BF16"
    yield prefix + "mlp.down.bias", (hidden,), "BF16"
    yield prefix + "norm.weight", (hidden,), "BF16"


def lumen_tensors(hidden, layers):
    """(name, shape, type) in checkpoint order."""
    yield "language_model.model.embed_tokens.weight", (64, hidden), "BF16"
    yield "vision_tower.blocks.0.attn.proj.weight", (hidden, hidden), "F16"
    yield "vision_tower.position_ids", (1, 16), "I64"
    yield "vision_tower.patch_embed.proj.weight", (8, 3, 2, 4, 4), "BF16"
    yield "multi_modal_projector.linear_1.weight", (hidden, hidden), "BF16"
    for layer in range(layers):
        yield from layer_tensors("%s%d." % (PREFIX, layer), hidden)
    yield "language_model.model.norm.weight", (hidden,), "BF16"
    yield "language_model.lm_head.weight", (64, hidden), "BF16"


SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "I8": 1, "F64": 8}


def values_of(source, shape, dtype):
    """Bytes of a tensor; F16 and F32 of small positive values."""
    n = count(shape)
    if dtype == "BF16":
        return bf16_random(source, n) if len(shape) > 1 else bf16_ones(n)
    if dtype == "F16":
        return b"".join(struct.pack("<e", (i % 7) / 8) for i in range(n))
    if dtype == "F32":
        return struct.pack("<%df" % n, *((i % 5) / 4 for i in range(n)))
    return bytes(n * SIZES[dtype])


def write_lumen(folder, hidden=64, layers=3, shards=2, change=None, **members):
    """A checkpoint of an architecture that nobody knows, in shards. change(tensors) may edit the list of (name, shape, type)."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"architectures": [ARCHITECTURE], "model_type": "lumen", "lumen_depth": layers, "tie_word_embeddings": True, **members}, file)
    tensors = list(lumen_tensors(hidden, layers))
    tensors = change(tensors) if change else tensors
    source, index, each = random.Random(7), {}, -(-len(tensors) // shards)
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else "model-%05d-of-%05d.safetensors" % (shard + 1, shards)
        part = tensors[shard * each:(shard + 1) * each]
        index.update({tensor: name for tensor, _, _ in part})
        write_safetensors(os.path.join(folder, name), [
            (tensor, dtype, shape, lambda shape=shape, dtype=dtype: values_of(source, shape, dtype), count(shape) * SIZES[dtype])
            for tensor, shape, dtype in part])
    if shards > 1:
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {}, "weight_map": index}, file)
    return folder


def tensors_of(data):
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]] for name, entry in header.items()}


def source_tensors(folder):
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as file:
                tensors.update(tensors_of(file.read()))
    return tensors


class Bench:
    def __init__(self, *options, **lumen):
        self.options, self.lumen = options, lumen

    def __enter__(self):
        self.root = tempfile.mkdtemp(prefix="quantd-models-")
        self.folder = write_lumen(os.path.join(self.root, "lumen"), **self.lumen)
        self.stack = contextlib.ExitStack()
        self.daemon = self.stack.enter_context(Daemon(*NO_MODULES, "--threads", "2", *self.options, roots=[self.root]))
        self.model = self.register("lumen")
        return self

    def __exit__(self, *error):
        try:
            return self.stack.__exit__(*error)
        finally:
            shutil.rmtree(self.root)

    def register(self, name):
        answer = self.daemon.request("POST", "/v1/models", json={"uri": "file:" + name})
        equal(answer.status, 201, "status of the registration (%r)" % answer)
        return answer.json

    def submit(self, **body):
        return self.daemon.request("POST", JOBS, json={"model": self.model["id"], **body})

    def run(self, **body):
        answer = self.submit(**body)
        equal(answer.status, 201, "status of %r (%r)" % (body, answer))
        return succeed(self.daemon, answer.json["id"])

    def file(self, state, path):
        answer = self.daemon.request("GET", "/v1/artifacts/%s/files/%s" % (state["result"]["artifact_id"], path))
        equal(answer.status, 200, "status of %s" % path)
        return answer.body

    def artifact(self, state):
        """(config, tensors) of an artifact of one shard."""
        return json.loads(self.file(state, "config.json")), tensors_of(self.file(state, "model.safetensors"))


def what_is_known():
    with Bench() as bench:
        model = bench.model
        equal(model["architecture"], ARCHITECTURE, "architecture")
        equal(model["supported"], False, "supported")
        true(ARCHITECTURE in model["reasons"][0], "the reason names it: %r" % model["reasons"])
        for member in ("num_layers", "hidden_size", "vocab_size", "max_position", "tied"):
            equal(model[member], None, member)
        equal(model["layers"], [], "layers")
        source = source_tensors(bench.folder)
        equal(model["tensors"], len(source), "tensors")
        equal(model["bytes"], sum(map(len, source.values())), "bytes")
        equal(model["dtype"], "BF16", "type")
        equal(bench.register("lumen")["digest"], model["digest"], "digest")


def quantized_names(layers=3):
    return ["%s%d.%s" % (PREFIX, layer, name) for layer in range(layers) for name in LINEARS]


def is_part(name, quantized):
    return any(name.startswith(module + ".weight") or name in (module + ".input_scale", module + ".SCB") for module in quantized)


def check_artifact(bench, state, quantized):
    """What is not quantized is the source's own; returns (config, tensors)."""
    source, (made_config, made) = source_tensors(bench.folder), bench.artifact(state)
    kept = {name for name in source if name[:-len(".weight")] not in quantized or not name.endswith(".weight")}
    for name in kept:
        true(made.get(name) == source[name], "%s is the source's own" % name)
    for name in set(made) - kept:
        true(is_part(name, quantized), "%s belongs to a quantized module" % name)
    equal(made_config["architectures"], [ARCHITECTURE], "architectures of the artifact")
    equal(made_config["tie_word_embeddings"], True, "tie_word_embeddings of the artifact")
    return made_config, made


JOBS_THAT_FIT = (
    (RTN, "compressed-tensors"),
    ({"method": "rtn", "quantization": {"bits": 8, "group_size": -1}}, "compressed-tensors"),
    ({"method": "rtn", "quantization": {"bits": 4, "group_size": 32, "sym": False, "scale_search": "hqq"}}, "compressed-tensors"),
    (FP8, "compressed-tensors"),
    ({"method": "nf4"}, "bitsandbytes"),
    ({"method": "nf4"}, "dense"),
    ({"method": "ggml", "quantization": {"type": "q8_0"}}, "dense"),
    ({"method": "kmeans", "quantization": {"bits": 3}}, "dense"),
)


def methods_and_formats():
    with Bench() as bench:
        for body, format in JOBS_THAT_FIT:
            state = bench.run(**body, output={"format": format})
            check_artifact(bench, state, quantized_names())
            report = bench.daemon.get("%s/%s/report" % (JOBS, state["id"]))
            equal(sorted(row["module"] for row in report["layers"]), sorted(quantized_names()), "rows of %r" % body)
            true(all(row["relative_mse"] > 0 and row["output_relative_mse"] is None for row in report["layers"]), "errors of weights alone")
            equal(report["mode"], "model_free", "mode of the report")
            equal(report["evaluation"], None, "evaluation")
            equal(report["calibration"]["tokens"], 0, "tokens of calibration")
            warning = [entry["message"] for entry in report["warnings"] if entry["code"] == "model_free"]
            true(len(warning) == 1 and "no calibration" in warning[0], "the report says so: %r" % report["warnings"])
            equal(state["mode"], "model_free", "mode of the job")
            manifest = json.loads(bench.file(state, "quantd_manifest.json"))
            equal(manifest["provenance"]["mode"], "model_free", "mode of the manifest")
            equal(manifest["provenance"]["architecture"], None, "architecture of the manifest")


def names_that_loaders_see():
    with Bench() as bench:
        made, _ = check_artifact(bench, bench.run(**RTN), quantized_names())
        quantization = made["quantization_config"]
        equal(quantization["quant_method"], "compressed-tensors", "method of the config")
        expected = ["language_model.model.embed_tokens", "vision_tower.blocks.0.attn.proj", "vision_tower",
                    "vision_tower.patch_embed.proj", "multi_modal_projector.linear_1", "language_model.lm_head"]
        expected += ["%s%d.%s" % (PREFIX, layer, name) for layer in range(3) for name in ("mixer.conv1d", "mlp.gate", "mlp.fused")]
        equal(sorted(quantization["ignore"]), sorted(expected), "ignore")


def overrides_decide():
    with Bench() as bench:
        quantization = {"bits": 4, "group_size": 32, "modules_to_not_convert": ["mlp.down"],
                        "overrides": [{"match": "lm_head", "bits": 8}, {"match": "*layers.0.*", "skip": True}]}
        state = bench.run(method="rtn", quantization=quantization)
        names = [name for name in quantized_names() if not name.endswith("mlp.down") and ".layers.0." not in name]
        made, _ = check_artifact(bench, state, names + ["language_model.lm_head"])
        true("language_model.lm_head" not in made["quantization_config"]["ignore"], "the head is not in ignore")
        report = bench.daemon.get("%s/%s/report" % (JOBS, state["id"]))
        equal({row["bits"] for row in report["layers"] if row["module"].endswith("lm_head")}, {8}, "bits of the head")


def refused(bench, code, param, needle, status=422, **body):
    answer = bench.submit(**body)
    equal(answer.status, status, "status of %r (%r)" % (body, answer))
    faults = answer.json["errors"]
    true(any(fault["code"] == code and fault["param"] == param and needle in fault["detail"] for fault in faults),
         "%r is refused with %s at %s for %r: %r" % (body, code, param, needle, faults))
    return " ".join(str(fault.get("hint")) for fault in faults)


def what_needs_more_is_refused():
    with Bench() as bench:
        calibration = {"stream": True}
        hint = refused(bench, "unsupported_architecture", "/method", ARCHITECTURE, method="gptq", calibration=calibration)
        true("rtn" in hint and "null" in hint, "the hint says what would do: %r" % hint)
        refused(bench, "unsupported_architecture", "/method", ARCHITECTURE, method="awq", calibration=calibration)
        refused(bench, "unsupported_architecture", "/method", ARCHITECTURE, method="kv_cache", calibration=calibration)
        refused(bench, "unsupported_architecture", "/calibration", ARCHITECTURE, calibration=calibration, **RTN)
        refused(bench, "unsupported_architecture", "/calibration", ARCHITECTURE, calibration=calibration, mode="model_free", **RTN)
        file = post(bench.daemon, "/v1/files?purpose=evaluation", headers={"Content-Type": NDJSON}, body=ids_records(8, 128, 64))
        refused(bench, "unsupported_architecture", "/evaluation/file_id", ARCHITECTURE, evaluation={"file_id": file}, **RTN)
        refused(bench, "unsupported_architecture", "/model", ARCHITECTURE, mode="architecture", **RTN)
        refused(bench, "invalid_parameter", "/mode", "guess", 400, mode="guess", **RTN)
        for format in ("gptq", "gptq_v2", "awq"):
            refused(bench, "incompatible_options", "/output/format", ARCHITECTURE, output={"format": format}, **RTN)
        refused(bench, "incompatible_options", "/output/format", ARCHITECTURE, method="ggml", quantization={"type": "q8_0"},
                output={"format": "gguf"})
        refused(bench, "invalid_parameter", "/quantization/overrides/0/match", "matches no module", 400, method="rtn",
                quantization={"overrides": [{"match": "no_such_module", "bits": 8}]})
        refused(bench, "incompatible_options", "/quantization/modules_to_not_convert", "leave no module", method="rtn",
                quantization={"modules_to_not_convert": ["*"]})
        refused(bench, "incompatible_options", "/quantization/group_size", "group", method="rtn", quantization={"bits": 4, "group_size": 128})


def replaced(name, shape=None, dtype=None):
    def change(tensors):
        return [(other, shape or had, dtype or was) if other == name else (other, had, was) for other, had, was in tensors]
    return change


def bad_checkpoints():
    """What is quantized already, or holds nothing to quantize, is refused when it is registered."""
    name = PREFIX + "0.mlp.down.weight"
    bad = {
        "codes": ({"change": replaced(name, dtype="I8")}, "already_quantized", name),
        "said": ({"quantization_config": {"quant_method": "gptq"}}, "already_quantized", "gptq"),
        "wide": ({"change": replaced(name, dtype="F64")}, "invalid_model", name),
        "vectors": ({"change": lambda tensors: [entry for entry in tensors if len(entry[1]) == 1]}, "unsupported_architecture", "two dimensions"),
    }
    root = tempfile.mkdtemp(prefix="quantd-models-")
    try:
        for folder, (how, _, _) in bad.items():
            write_lumen(os.path.join(root, folder), shards=1, **how)
        with Daemon(roots=[root]) as daemon:
            for folder, (_, code, needle) in bad.items():
                answer = daemon.request("POST", "/v1/models", json={"uri": "file:" + folder})
                equal(answer.status, 422, "status of %s (%r)" % (folder, answer))
                equal(answer.json["errors"][0]["code"], code, "code of %s" % folder)
                true(needle in answer.json["errors"][0]["detail"], "%s is explained: %r" % (folder, answer))
    finally:
        shutil.rmtree(root)


def damaged_weights():
    """A NaN ends the job with the tensor's name."""
    with Bench(shards=1) as bench:
        path = os.path.join(bench.folder, "model.safetensors")
        header, start = read_header(path)
        name = PREFIX + "1.mlp.down.weight"
        with open(path, "r+b") as file:
            file.seek(start + header[name]["data_offsets"][0] + 10)
            file.write(b"\xc0\x7f")
        state = wait_job(bench.daemon, bench.submit(**FP8).json["id"])
        equal(state["status"], "failed", "status of the job")
        equal(state["error"]["code"], "non_finite_value", "code of the error")
        true(name in json.dumps(state["error"]), "the tensor is named: %r" % state["error"])


def damaged_copies():
    """So does one in what is only copied, before anything is quantized."""
    with Bench(shards=1) as bench:
        path = os.path.join(bench.folder, "model.safetensors")
        header, start = read_header(path)
        name = "vision_tower.blocks.0.attn.proj.weight"
        with open(path, "r+b") as file:
            file.seek(start + header[name]["data_offsets"][0] + 10)
            file.write(b"\x00\x7e")
        state = wait_job(bench.daemon, bench.submit(**FP8).json["id"])
        equal(state["status"], "failed", "status of the job")
        true(name in json.dumps(state["error"]), "the tensor is named: %r" % state["error"])
        equal(state["progress"]["modules_done"], 0, "modules that were done before")


def listed():
    """GET /v1/architectures says which methods and formats are possible without an architecture."""
    with Bench() as bench:
        answer = bench.daemon.get("/v1/architectures")
        rows = {row["name"]: row for row in answer["data"]}
        true(ARCHITECTURE not in rows and "LlamaForCausalLM" in rows, "rows are of known architectures")
        llama, mixtral = rows["LlamaForCausalLM"], rows["MixtralForCausalLM"]
        true("rope" in llama["parts"] and "biases" in llama["parts"] and "experts" not in llama["parts"], "parts of Llama: %r" % llama)
        true("gguf" in llama["formats"] and llama["gguf"] == "llama", "Llama has a name in GGUF")
        true("experts" in mixtral["parts"] and "gguf" not in mixtral["formats"], "Mixtral's experts: %r" % mixtral)
        equal(sorted(answer["model_free"]["formats"]), ["bitsandbytes", "compressed-tensors", "dense"], "formats")
        true({"rtn", "fp8", "nf4"} <= set(answer["model_free"]["methods"]) and "gptq" not in answer["model_free"]["methods"], "methods")
        true(any("norm" in rule["words"] for rule in answer["model_free"]["left_in_float"]), "names that stay in float")


def known_architectures():
    """The usual path is the default where the architecture is known; model_free is another way to the same codes."""
    with Bench() as bench:
        write(os.path.join(bench.root, "llama"), config())
        bench.model = bench.register("llama")
        usual = bench.run(**RTN)
        equal(usual["mode"], "architecture", "mode of a known architecture")
        free = bench.run(mode="model_free", **RTN)
        equal(free["mode"], "model_free", "mode that was asked for")
        digests = artifact_digests(bench.daemon, usual), artifact_digests(bench.daemon, free)
        equal(digests[0]["model.safetensors"], digests[1]["model.safetensors"], "weights of both ways")
        equal(artifact_digests(bench.daemon, bench.run(mode="architecture", **RTN)), digests[0], "files of the mode architecture")
        refused(bench, "unsupported_architecture", "/method", "model_free", mode="model_free", method="gptq", calibration={"stream": True})


def refused_values():
    """A known architecture with a value that is not supported: refused, unless the request asks for the mode."""
    with Bench() as bench:
        write(os.path.join(bench.root, "gelu"), config(hidden_act="gelu_fast"))
        answer = bench.daemon.request("POST", "/v1/models", json={"uri": "file:gelu"})
        equal(answer.status, 422, "status without the mode (%r)" % answer)
        true("model_free" in answer.json["errors"][0]["hint"], "the hint names the mode: %r" % answer)
        body = {"model": {"uri": "file:gelu"}, **RTN}
        equal(bench.daemon.request("POST", JOBS, json=body).status, 422, "status of a job without the mode")
        answer = bench.daemon.request("POST", "/v1/models", json={"uri": "file:gelu", "mode": "model_free"})
        equal(answer.status, 201, "status with the mode (%r)" % answer)
        bench.model = answer.json
        equal(bench.model["supported"], False, "supported")
        true("gelu_fast" in bench.model["reasons"][0], "the reason: %r" % bench.model["reasons"])
        hint = refused(bench, "unsupported_architecture", "/model", "gelu_fast", **RTN)
        true("model_free" in hint, "the hint names the mode: %r" % hint)
        refused(bench, "unsupported_architecture", "/method", "LlamaForCausalLM", mode="model_free", method="gptq", calibration={"stream": True})
        made = artifact_digests(bench.daemon, bench.run(mode="model_free", **RTN))
        answer = bench.daemon.request("POST", JOBS, json={**body, "mode": "model_free"})
        equal(answer.status, 201, "status of a job with the mode that describes its model (%r)" % answer)
        equal(artifact_digests(bench.daemon, succeed(bench.daemon, answer.json["id"])), made, "files of both ways")
        write(os.path.join(bench.root, "llama"), config())
        usual = bench.register("llama")
        model = bench.daemon.request("POST", "/v1/models", json={"uri": "file:llama", "mode": "model_free"}).json
        equal((model["supported"], model["digest"]), (True, usual["digest"]), "a supported one with the mode")
        equal(made["model.safetensors"], artifact_digests(bench.daemon, bench.run(model=usual["id"], **RTN))["model.safetensors"],
              "the weights, which do not depend on the activation")


def finish_after(bench, job, moments):
    """The daemon is killed at each of the moments, counted from each start."""
    for moment in moments:
        timer = threading.Timer(moment, bench.daemon.process.kill)
        timer.start()
        try:
            wait_job(bench.daemon, job)
        except (OSError, http.client.HTTPException):
            pass
        finally:
            timer.cancel()
            timer.join()
        if bench.daemon.process.poll() is None:
            bench.daemon.kill()
        else:
            bench.daemon.wait()
        bench.daemon.start()
    return succeed(bench.daemon, job)


def kills_leave_no_trace():
    big = {"hidden": 256 if SANITIZED else 512, "layers": 6, "shards": 3}
    body = {"method": "rtn", "quantization": {"bits": 4, "group_size": 32, "scale_search": "hqq", "sym": False}}
    with Bench(**big) as bench:
        started = time.monotonic()
        expected = artifact_digests(bench.daemon, bench.run(**body))
        seconds = time.monotonic() - started
        source = random.Random(3)
        for _ in range(2 if SANITIZED else 4):
            job = bench.submit(**body).json["id"]
            moments = [source.uniform(0.1, 1) * seconds, source.uniform(0.1, 0.7) * seconds]
            state = finish_after(bench, job, moments)
            equal(artifact_digests(bench.daemon, state), expected, "files after kills at %s" % moments)
            rows = bench.daemon.get("%s/%s/layers" % (JOBS, job))["data"]
            equal(sorted(row["module"] for row in rows), sorted(quantized_names(6)), "rows after kills at %s" % moments)


def finished_runs_stay():
    """A run of modules that was committed is not solved again."""
    body = {"method": "kmeans", "quantization": {"bits": 4}, "output": {"format": "dense"}}
    with Bench(hidden=512, layers=6, shards=3) as bench:
        job = bench.submit(**body).json["id"]
        deadline = time.monotonic() + 120
        while True:
            state = bench.daemon.get("%s/%s" % (JOBS, job))
            if state["progress"] and state["progress"]["layers_done"] >= 2:
                break
            true(time.monotonic() < deadline and state["status"] in ("queued", "running"), "two runs are done: %r" % state["progress"])
            time.sleep(0.01)
        done = state["progress"]["layers_done"]
        bench.daemon.kill()
        bench.daemon.start()
        true(bench.daemon.get("%s/%s" % (JOBS, job))["progress"]["layers_done"] >= done, "finished runs are there after a kill")
        succeed(bench.daemon, job)


def cancelled_soon():
    with Bench(hidden=512, layers=8, shards=1) as bench:
        job = bench.submit(method="kmeans", quantization={"bits": 4}, output={"format": "dense"}).json["id"]
        wait_job(bench.daemon, job, until=("running",))
        time.sleep(0.3)
        started = time.monotonic()
        answer = bench.daemon.request("POST", "%s/%s/cancel" % (JOBS, job))
        true(answer.status in (200, 202), "status of the cancellation (%r)" % answer)
        equal(wait_job(bench.daemon, job)["status"], "cancelled", "status of the job")
        true(time.monotonic() - started < 20, "it was cancelled soon: %.1f s" % (time.monotonic() - started))


def a_process_of_its_own():
    with Bench("--worker", "process") as bench:
        with_process = artifact_digests(bench.daemon, bench.run(**RTN))
    with Bench() as bench:
        equal(artifact_digests(bench.daemon, bench.run(**RTN)), with_process, "files with a worker process")


def memory_below_two_shards():
    """Peak resident memory beyond the idle daemon's, on shards of many tensors."""
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    with Bench(hidden=768, layers=18, shards=3) as bench:
        shard = max(os.path.getsize(os.path.join(bench.folder, name)) for name in os.listdir(bench.folder) if name.endswith(".safetensors"))
        for body in (FP8, RTN):
            idle = bench.daemon.memory("VmHWM")
            bench.run(**body)
            more = bench.daemon.memory("VmHWM") - idle
            print("%s: %.1f MiB more, shards of %.1f MiB" % (body["method"], more / 2**20, shard / 2**20))
            if more > 2 * shard:
                raise Failure("%s takes %d bytes, and a shard has %d" % (body["method"], more, shard))
            bench.daemon.stop()
            bench.daemon.start()


main([what_is_known, methods_and_formats, names_that_loaders_see, overrides_decide, what_needs_more_is_refused, bad_checkpoints,
      damaged_weights, damaged_copies, listed, known_architectures, refused_values, kills_leave_no_trace, finished_runs_stay, cancelled_soon, a_process_of_its_own,
      memory_below_two_shards])
