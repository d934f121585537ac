"""Automatic mixed precision over REST: refusals with the reachable range, the estimate, a job whose report, manifest and files say what was
chosen, the same bytes from a worker process and after a kill, and types of GGUF blocks chosen alike."""

import json
import os
import tempfile
import time

import checkpoint
from harness import JOBS, NDJSON, NO_MODULES, Daemon, artifact_digests, equal, ids_records, main, post, succeed, true, wait_job

RECORDS = ids_records(24, 128, 512)
BUDGET = {"bits_per_weight": 3.6}


def body(model, file, mixed=BUDGET, form="compressed-tensors", method="gptq", **quantization):
    grid = {"group_size": 64, "quality": "fast"} if method == "gptq" else {}
    return {"model": model, "method": method, "quantization": {**grid, **quantization, "mixed_precision": mixed},
            "output": {"format": form}, "calibration": {"file_id": file, "num_samples": 16, "sequence_length": 128}}


class Setting:
    """A daemon with a model and calibration records."""

    def __init__(self, root, *options):
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=256, mlp=512, layers=3, vocabulary=512))
        self.daemon = Daemon("--model-root", root, *NO_MODULES, *options)

    def __enter__(self):
        self.daemon.__enter__()
        self.model = post(self.daemon, "/v1/models", json={"uri": "file:model"})
        self.file = post(self.daemon, "/v1/files?purpose=calibration", body=RECORDS, headers={"Content-Type": NDJSON})
        return self

    def __exit__(self, *arguments):
        self.daemon.__exit__(*arguments)

    def submit(self, **more):
        return post(self.daemon, JOBS, json=body(self.model, self.file, **more))

    def refuse(self, pointer, word, **more):
        answer = self.daemon.request("POST", JOBS, json=body(self.model, self.file, **more))
        equal(answer.status, 422, "status (%r)" % answer)
        found = [error for error in answer.json["errors"] if error["param"] == pointer]
        true(found and word in found[0]["detail"], "%s with %r in %r" % (pointer, word, answer.json["errors"]))

    def file_of(self, state, path):
        return json.loads(self.daemon.request("GET", "/v1/artifacts/%s/files/%s" % (state["result"]["artifact_id"], path)).body)


def check_refusals(setting):
    mixed = "/quantization/mixed_precision"
    setting.refuse(mixed + "/bits_per_weight", "reach 2.25", mixed={"bits_per_weight": 2})
    setting.refuse(mixed + "/max_bytes", "bytes", mixed={"max_bytes": 1000})
    setting.refuse(mixed, "nothing to mix", form="awq", sym=False)
    setting.refuse("/output/format", "", form="gptq")


def check_estimate(setting):
    answer = setting.daemon.request("POST", "/v1/quantization/estimates", json=body(setting.model, setting.file))
    equal(answer.json["problems"], [], "problems")
    true(abs(answer.json["output"]["bits_per_weight"] - 3.6) < 0.01, "bits: %r" % answer.json["output"])
    return answer.json["output"]["artifact_bytes"]


def check_choice(setting, state, expected_bytes):
    """Job, report, manifest and config agree about what was chosen; fused linears got the same."""
    result = state["result"]
    mixed = result["mixed_precision"]
    true(3.3 < mixed["bits_per_weight"] <= 3.6 and mixed["exact"] and mixed["predicted_kl"] > 0, "choice: %r" % mixed)
    true(abs(result["bits_per_weight"] - mixed["bits_per_weight"]) < 0.02, "bits: %r" % result)
    report = setting.daemon.get("%s/%s/report" % (JOBS, state["id"]))
    equal(report["mixed_precision"], mixed, "report")
    bits = {row["module"]: row["bits"] for row in report["layers"]}
    counts = {"gptq-w%dg64" % width: sum(value == width for value in bits.values()) for width in (2, 3, 4, 5, 6, 8)}
    equal({row["name"]: row["modules"] for row in mixed["candidates"]}, counts, "candidates")
    true(len(set(bits.values())) > 1, "several widths: %r" % bits)
    for module, width in bits.items():
        for one, other in (("q_proj", "v_proj"), ("k_proj", "v_proj"), ("gate_proj", "up_proj")):
            if module.endswith(one):
                equal(bits[module.replace(one, other)], width, module)
    origin = setting.file_of(state, "quantd_manifest.json")["provenance"]["mixed_precision"]
    for module, (candidate, loss) in origin["modules"].items():
        equal(origin["candidates"][candidate], "gptq-w%dg64" % bits[module], module)
        true(loss >= 0, "loss of %s" % module)
    config = setting.file_of(state, "config.json")["quantization_config"]
    widths = {group["weights"]["num_bits"] for group in config["config_groups"].values()}
    equal(widths, set(bits.values()), "widths of config.json")
    stored = sum(row["bytes"] for row in setting.daemon.get("/v1/artifacts/" + result["artifact_id"])["files"]
                 if row["path"].endswith(".safetensors"))
    true(stored <= 1.03 * expected_bytes, "%d bytes, estimated %d" % (stored, expected_bytes))


def mixtures_are_chosen_and_kept():
    with tempfile.TemporaryDirectory() as root:
        with Setting(root) as setting:
            check_refusals(setting)
            expected_bytes = check_estimate(setting)
            state = succeed(setting.daemon, setting.submit())
            check_choice(setting, state, expected_bytes)
            digests = artifact_digests(setting.daemon, state)
            bytes_ = setting.submit(mixed={"max_bytes": expected_bytes, "candidates": [{"bits": 2}, {"bits": 4}]})
            made = setting.daemon.get("/v1/artifacts/" + succeed(setting.daemon, bytes_)["result"]["artifact_id"])
            true(sum(row["bytes"] for row in made["files"] if row["path"].endswith(".safetensors")) <= 1.03 * expected_bytes, "max_bytes")
            blocks = succeed(setting.daemon, setting.submit(method="ggml", form="gguf", mixed={"bits_per_weight": 6}))
            types = [row for row in blocks["result"]["mixed_precision"]["candidates"] if row["modules"] > 0]
            true(len(types) > 1 and blocks["result"]["bits_per_weight"] <= 6, "types: %r" % types)
        with Setting(root, "--worker", "process") as setting:
            job = setting.submit()
            wait_job(setting.daemon, job, until=("running", "succeeded"))
            time.sleep(0.3)
            setting.daemon.kill()
            setting.daemon.start()
            equal(artifact_digests(setting.daemon, succeed(setting.daemon, job)), digests, "files after a kill, of a process")


main([mixtures_are_chosen_and_kept])
