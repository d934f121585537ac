"""Memory does not grow with the number of blocks: peak resident memory on 24 and on 6 blocks of one shape differs by
less than a tenth. It does not grow with the number of experts: 64 take little more than 8. Nor does it grow with what a small JSON document would be once it is parsed."""

import json
import os
import shutil
import tempfile

from checkpoint import config, write
from harness import (JOBS, NDJSON, SANITIZED, Daemon, NO_MODULES, Failure, Skip, equal, gptq_body, ids_records, main, new_job, post,
                     succeed, true, wait_job)

SHAPE = {"hidden": 512, "mlp": 1536, "heads": 8, "kv_heads": 4, "vocabulary": 1024}
JOB = {
    "method": "gptq",
    "quantization": {"bits": 4, "group_size": 128},
    "calibration": {"stream": True, "num_samples": 8, "sequence_length": 128},
}


def peak(root, layers):
    name = "blocks-%d" % layers
    write(os.path.join(root, name), config(layers=layers, **SHAPE))
    with Daemon(*NO_MODULES, "--threads", "2", roots=[root]) as daemon:
        succeed(daemon, new_job(daemon, ids_records(12, 128, 1024), uri="file:" + name, **JOB))
        return daemon.memory("VmHWM")


def blocks_do_not_add_up():
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    root = tempfile.mkdtemp(prefix="quantd-models-")
    try:
        few, many = peak(root, 6), peak(root, 24)
        print("6 blocks %.1f MiB, 24 blocks %.1f MiB" % (few / 2**20, many / 2**20))
        if many > 1.10 * few or few > 1.10 * many:
            raise Failure("peak memory is %d bytes on 24 blocks and %d on 6" % (many, few))
    finally:
        shutil.rmtree(root)


EXPERTS = {"hidden": 512, "mlp": 512, "heads": 8, "kv_heads": 4, "vocabulary": 1024, "layers": 2,
           "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_experts_per_tok": 2}
EXPERT_BYTES = 3 * EXPERTS["hidden"] * EXPERTS["mlp"] * 4
CALIBRATION = {"stream": True, "num_samples": 8, "sequence_length": 128}
EVALUATION = {"sequence_length": 128, "max_tokens": 1024}
# What each job does with experts: solves them from calibration, rounds them, is evaluated with both sets of weights.
EXPERT_JOBS = {
    "gptq": {"method": "gptq", "quantization": {"bits": 4, "group_size": 128, "target_tokens": 0}, "calibration": CALIBRATION},
    "rtn": {"method": "rtn", "quantization": {"bits": 4, "group_size": 128}},
    "evaluation": {"method": "rtn", "quantization": {"bits": 4, "group_size": 128}, "evaluation": EVALUATION},
}


def expert_peak(root, count, job):
    """What a job takes beyond the idle daemon."""
    body = dict(EXPERT_JOBS[job])
    with Daemon(*NO_MODULES, "--threads", "2", roots=[root]) as daemon:
        if "evaluation" in body:
            body["evaluation"] = dict(body["evaluation"], file_id=post(
                daemon, "/v1/files?purpose=evaluation", headers={"Content-Type": NDJSON}, body=ids_records(8, 128, 1024)))
        idle = daemon.memory("VmHWM")
        uri = "file:experts-%d" % count
        if "calibration" in body:
            job = new_job(daemon, ids_records(12, 128, 1024), uri=uri, **body)
        else:
            job = post(daemon, JOBS, json=dict(body, model=post(daemon, "/v1/models", json={"uri": uri})))
        succeed(daemon, job)
        return daemon.memory("VmHWM") - idle


def experts_do_not_add_up():
    """56 more experts are 56 times EXPERT_BYTES in F32, of which a job takes less than an eighth."""
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    with tempfile.TemporaryDirectory(prefix="quantd-models-") as root:
        for count in (8, 64):
            write(os.path.join(root, "experts-%d" % count), config(num_local_experts=count, **EXPERTS))
        for job in EXPERT_JOBS:
            few, many = expert_peak(root, 8, job), expert_peak(root, 64, job)
            print("%s: 8 experts %.1f MiB, 64 experts %.1f MiB" % (job, few / 2**20, many / 2**20))
            true(many - few < 56 * EXPERT_BYTES / 8, "%s takes %d bytes more for 56 more experts of %d bytes"
                 % (job, many - few, EXPERT_BYTES))


def of_many_objects(size):
    return "[" + "{}," * (size // 3) + "{}]"


def hostile_documents():
    """Megabytes of empty objects, wherever the daemon reads JSON of others."""
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    root = tempfile.mkdtemp(prefix="quantd-models-")
    many = of_many_objects(4 << 20)

    def model(name, file, text):
        with open(os.path.join(write(os.path.join(root, name)), file), "w") as out:
            out.write(text)
        return "file:" + name

    try:
        config_uri = model("config", "config.json", json.dumps(config())[:-1] + ', "extra": ' + many[:-2] + "]}")
        index_uri = model("index", "model.safetensors.index.json", '{"metadata": ' + many + ', "weight_map": {}}')
        tokenizer = '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "extra": %s}'
        tokenizer_uri = model("tokenizer", "tokenizer.json", tokenizer % of_many_objects(64 << 20))
        section_uri = model("section", "tokenizer.json", (tokenizer % "1")[:-1] + ', "normalizer": ' + many[:1 << 20].rstrip(",") + "]}")
        side_uri = model("side", "tokenizer_config.json", '{"x": ' + of_many_objects(15 << 20) + "}")
        with Daemon(*NO_MODULES, "--threads", "1", roots=[root]) as daemon:
            idle = daemon.memory("VmHWM")

            def grown(what):
                more = daemon.memory("VmHWM") - idle
                print("%s: %.1f MiB more" % (what, more / 2**20))
                true(more < 256 << 20, "%s takes %d bytes" % (what, more))

            for uri in (config_uri, index_uri):
                answer = daemon.request("POST", "/v1/models", json={"uri": uri})
                equal(answer.status, 422, "status of %s: %r" % (uri, answer))
                grown(uri)
            answer = daemon.request("POST", JOBS, body=b'{"model": ' + of_many_objects(1 << 19).encode() + b"}",
                                    headers={"Content-Type": "application/json"})
            equal(answer.status, 400, "status of a body: %r" % answer)
            equal(answer.json["code"], "invalid_json", "code of a body")
            true("MiB" in answer.json["detail"], "the reason is named: %r" % answer)
            grown("a body")
            for uri in (section_uri, side_uri, tokenizer_uri):
                answer = daemon.request("POST", "/v1/models", json={"uri": uri})
                equal(answer.status, 201, "status of %s: %r" % (uri, answer))
                answer = daemon.request("POST", JOBS, json={
                    "model": answer.json["id"], "method": "ggml", "quantization": {"type": "q8_0"},
                    "output": {"format": "gguf"}})
                true(answer.status in (201, 422), "status of a job: %r" % answer)
                grown(uri)
                if answer.status == 201:
                    wait_job(daemon, answer.json["id"])
                    grown("a job on " + uri)
    finally:
        shutil.rmtree(root)


main([blocks_do_not_add_up, experts_do_not_add_up, hostile_documents])
