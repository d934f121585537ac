"""Memory does not grow with the number of blocks: peak resident memory on 24 and on 6 blocks of one shape differs by
less than a tenth. Nor does it grow with what a small JSON document would be once it is parsed."""

import json
import os
import shutil
import tempfile

from checkpoint import config, write
from harness import (JOBS, SANITIZED, Daemon, Failure, Skip, equal, gptq_body, ids_records, main, new_job, succeed, true,
                     wait_job)

SHAPE = {"hidden": 512, "mlp": 1536, "heads": 8, "kv_heads": 4, "vocabulary": 1024}
JOB = {
    "method": "gptq",
    "quantization": {"bits": 4, "group_size": 128},
    "calibration": {"stream": True, "num_samples": 8, "sequence_length": 128},
}


def peak(root, layers):
    name = "blocks-%d" % layers
    write(os.path.join(root, name), config(layers=layers, **SHAPE))
    with Daemon("--threads", "2", roots=[root]) as daemon:
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
        with Daemon("--threads", "1", roots=[root]) as daemon:
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


main([blocks_do_not_add_up, hostile_documents])
