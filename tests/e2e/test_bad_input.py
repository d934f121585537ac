"""Bad input: each is a 4xx with code and place, or a failed job with a hint, and the daemon serves on."""

import json
import os
import shutil
import struct
import tempfile
import threading
import time

from checkpoint import config, read_header, rewrite_header, shapes, write, write_zeros
from harness import (JOBS, NDJSON, Call, Daemon, Failure, equal, gptq_body, ids_records, main, new_job, succeed, true,
                     wait_job)

NDJSON_HEADERS = {"Content-Type": NDJSON}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def alive(daemon):
    equal(daemon.request("GET", "/livez").status, 200, "status of /livez")
    equal(daemon.request("GET", "/readyz").status, 200, "status of /readyz")


def refused_model(root, name, words="", codes=("invalid_model", "source_corrupt"), statuses=(400, 422), daemon=None):
    answer = daemon.request("POST", "/v1/models", json={"uri": "file:" + name})
    if answer.status not in statuses or answer.json["code"] not in codes:
        raise Failure("%s: %r" % (name, answer))
    if words and words not in answer.body.decode():
        raise Failure("%s: %r does not say %r" % (name, answer, words))
    alive(daemon)


def damaged_safetensors():
    root = tempfile.mkdtemp(prefix="quantd-models-")

    def damaged(name, change):
        write(os.path.join(root, name))
        path = os.path.join(root, name, "model.safetensors")
        change(path)

    def cut(path, size):
        with open(path, "r+b") as file:
            file.truncate(size)

    def patch(path, offset, data):
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def header(change):
        return lambda path: rewrite_header(path, change)

    def offsets(name, begin, end):
        def change(table):
            table[name]["data_offsets"] = [table[name]["data_offsets"][0] + begin, table[name]["data_offsets"][1] + end]
        return header(change)

    def shape(value):
        return header(lambda table: table[Q_PROJ].update(shape=value))

    def no_json(path):
        _, start = read_header(path)
        patch(path, 8, b"{" * (start - 8))

    def twice(path):
        table, start = read_header(path)
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
        text = json.dumps(table)[:-1] + "," + json.dumps({Q_PROJ: table[Q_PROJ]})[1:]
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text.encode() + data)

    cases = {
        "empty": lambda path: cut(path, 0),
        "eight": lambda path: cut(path, 8),
        "half-header": lambda path: cut(path, 100),
        "half-data": lambda path: cut(path, os.path.getsize(path) // 2),
        "one-short": lambda path: cut(path, os.path.getsize(path) - 1),
        "one-long": lambda path: cut(path, os.path.getsize(path) + 1),
        "huge-header": lambda path: patch(path, 0, b"\xff" * 8),
        "big-header": lambda path: patch(path, 0, struct.pack("<Q", 1 << 40)),
        "no-json": no_json,
        "array": lambda path: patch(path, 8, b"["),
        "twice": twice,
        "overlap": offsets(Q_PROJ, -2, 0),
        "hole": offsets(Q_PROJ, 2, 0),
        "backwards": header(lambda table: table[Q_PROJ].update(data_offsets=[100, 50])),
        "negative": header(lambda table: table[Q_PROJ].update(data_offsets=[-1, 8191])),
        "fraction": header(lambda table: table[Q_PROJ].update(data_offsets=[0.5, 8192])),
        "far": header(lambda table: table[Q_PROJ].update(data_offsets=[0, 1 << 62])),
        "absurd-shape": shape([1 << 40, 1 << 40]),
        "wrapping-shape": shape([1 << 32, 1 << 32]),
        "negative-shape": shape([-64, -64]),
        "many-dimensions": shape([64] + [1] * 40),
        "other-shape": shape([32, 128]),
        "no-shape": header(lambda table: table[Q_PROJ].pop("shape")),
        "unknown-dtype": header(lambda table: table[Q_PROJ].update(dtype="F5")),
        "integer-dtype": header(lambda table: table[Q_PROJ].update(dtype="I16")),
        "dtype-number": header(lambda table: table[Q_PROJ].update(dtype=7)),
        "extra-tensor": header(lambda table: table.update({Q_PROJ + "x": table.pop(Q_PROJ)})),
    }
    try:
        for name, change in cases.items():
            damaged(name, change)
        with Daemon(roots=[root]) as daemon:
            for name in cases:
                refused_model(root, name, daemon=daemon)
    finally:
        shutil.rmtree(root)


def contradictory_configs():
    root = tempfile.mkdtemp(prefix="quantd-models-")
    good = config()
    cases = {
        "mlp": dict(good, intermediate_size=256),
        "vocabulary": dict(good, vocab_size=512),
        "heads": dict(good, num_attention_heads=3),
        "kv": dict(good, num_key_value_heads=3),
        "more-layers": dict(good, num_hidden_layers=3),
        "fewer-layers": dict(good, num_hidden_layers=1),
        "no-layers": dict(good, num_hidden_layers=0),
        "absurd-layers": dict(good, num_hidden_layers=1 << 40),
        "negative": dict(good, hidden_size=-64),
        "text": dict(good, hidden_size="64"),
        "fraction": dict(good, hidden_size=64.5),
        "eps": dict(good, rms_norm_eps=-1),
        "activation": dict(good, hidden_act="swish9"),
        "rope": dict(good, rope_scaling={"rope_type": "longrope"}),
        "tied": dict(good, tie_word_embeddings="yes"),
    }
    try:
        for name, values in cases.items():
            write(os.path.join(root, name))
            with open(os.path.join(root, name, "config.json"), "w") as file:
                json.dump(values, file)
        for name, text in (("no-config", None), ("broken-config", "{"), ("array-config", "[]"), ("deep", "[" * 100000)):
            write(os.path.join(root, name))
            path = os.path.join(root, name, "config.json")
            os.remove(path)
            if text is not None:
                with open(path, "w") as file:
                    file.write(text)
        write(os.path.join(root, "other"), dict(good))
        with open(os.path.join(root, "other", "config.json"), "w") as file:
            json.dump(dict(good, hidden_act="gelu_fast"), file)
        with open(os.path.join(write(os.path.join(root, "done")), "config.json"), "w") as file:
            json.dump(dict(good, quantization_config={"quant_method": "gptq", "bits": 4}), file)
        codes = ("invalid_model", "incompatible_options", "unsupported_architecture", "source_corrupt")
        with Daemon(roots=[root]) as daemon:
            for name in list(cases) + ["broken-config", "array-config", "deep"]:
                refused_model(root, name, codes=codes, daemon=daemon)
            refused_model(root, "no-config", codes=codes + ("not_found",), statuses=(404, 422), daemon=daemon)
            refused_model(root, "other", "gelu_fast", ("unsupported_architecture",), daemon=daemon)
            refused_model(root, "done", "", ("already_quantized",), daemon=daemon)
    finally:
        shutil.rmtree(root)


def missing_and_non_finite_weights():
    root = tempfile.mkdtemp(prefix="quantd-models-")
    records = ids_records(20, 64, 256)
    small = {"calibration": {"stream": True, "num_samples": 8, "sequence_length": 32}}

    def with_value(bits, at):
        def change(name, data):
            if name == Q_PROJ:
                return data[:2 * at] + struct.pack("<H", bits) + data[2 * at + 2:]
            return data
        return change

    try:
        write(os.path.join(root, "missing"), change=lambda name, data: None if name == Q_PROJ else data)
        write(os.path.join(root, "nan"), change=with_value(0x7FC0, 77))
        write(os.path.join(root, "inf"), change=with_value(0xFF80, 78))
        write(os.path.join(root, "good"))
        with Daemon(roots=[root]) as daemon:
            refused_model(root, "missing", Q_PROJ, daemon=daemon)
            for name, index in (("nan", "77"), ("inf", "78")):
                job = new_job(daemon, records, uri="file:" + name, **small)
                state = wait_job(daemon, job)
                equal(state["status"], "failed", "status of the job on " + name)
                error = state["error"]
                equal(error["code"], "non_finite_value", "code")
                told = json.dumps(error)
                true("layers.1.self_attn.q_proj" in told and index in told, "the error names the place: " + told)
                true(error["hint"], "there is a hint: " + told)
                alive(daemon)
            succeed(daemon, new_job(daemon, records, uri="file:good", **small))
    finally:
        shutil.rmtree(root)


def non_finite_copies():
    """What a job without calibration only copies, in formats of both containers."""
    root = tempfile.mkdtemp(prefix="quantd-models-")
    tensors = ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
               "model.layers.1.post_attention_layernorm.weight")

    def with_nan(tensor):
        return lambda name, data: data[:-2] + b"\xc0\x7f" if name == tensor else data

    formats = (("compressed-tensors", "rtn", {"bits": 4, "group_size": 64}), ("gguf", "ggml", {"type": "q8_0"}),
               ("dense", "rtn", {"bits": 4, "group_size": 64}))
    try:
        for tensor in tensors:
            write(os.path.join(root, tensor), change=with_nan(tensor))
        with Daemon(roots=[root]) as daemon:
            for tensor in tensors:
                model = daemon.request("POST", "/v1/models", json={"uri": "file:" + tensor}).json["id"]
                for name, method, quantization in formats:
                    answer = daemon.request("POST", JOBS, json={
                        "model": model, "method": method, "quantization": quantization, "output": {"format": name}})
                    equal(answer.status, 201, "status of the job: %r" % answer)
                    state = wait_job(daemon, answer.json["id"])
                    equal(state["status"], "failed", "status of %s with a NaN in %s" % (name, tensor))
                    equal(state["error"]["code"], "non_finite_value", "code")
                    true(tensor in state["error"]["message"], "%s is named: %r" % (tensor, state["error"]))
            alive(daemon)
    finally:
        shutil.rmtree(root)


def evaluation_that_overflows():
    """Finite weights whose logits are not: no perplexity is null as if nobody had asked for one."""
    root = tempfile.mkdtemp(prefix="quantd-models-")
    try:
        write(os.path.join(root, "huge"), change=lambda name, data: b"\x7f\x7f" * (len(data) // 2)
              if name == "model.norm.weight" else data)
        with Daemon(roots=[root]) as daemon:
            model = daemon.request("POST", "/v1/models", json={"uri": "file:huge"}).json["id"]
            file = daemon.request("POST", "/v1/files?purpose=evaluation", body=ids_records(20, 64, 256),
                                  headers=NDJSON_HEADERS)
            equal(file.status, 201, "status of the file: %r" % file)
            job = daemon.request("POST", JOBS, json={
                "model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 32},
                "evaluation": {"file_id": file.json["id"], "sequence_length": 32}})
            equal(job.status, 201, "status of the job: %r" % job)
            state = wait_job(daemon, job.json["id"])
            equal(state["status"], "failed", "status")
            equal(state["error"]["code"], "non_finite_value", "code")
            true("evaluation set" in state["error"]["message"], "the evaluation is named: %r" % state["error"])
    finally:
        shutil.rmtree(root)


def checkpoints_that_take_long_to_judge():
    """A separate head is compared with the embedding at registration: however large they are, no other request waits."""
    root, at_once = tempfile.mkdtemp(prefix="quantd-models-"), 6
    try:
        for number in range(at_once):
            write_zeros(os.path.join(root, "m%d" % number), config(hidden=4096, mlp=64, layers=1, heads=32, kv_heads=1,
                                                                   vocabulary=30000, tie_word_embeddings=True))
        with Daemon(roots=[root]) as daemon:
            statuses, slowest = [], 0.0

            def register(number):
                statuses.append(daemon.request("POST", "/v1/models", json={"uri": "file:m%d" % number}).status)

            threads = [threading.Thread(target=register, args=(number,)) for number in range(at_once)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                begun = time.monotonic()
                equal(daemon.request("GET", "/v1/models?limit=1").status, 200, "status of a list")
                slowest = max(slowest, time.monotonic() - begun)
            equal(statuses, [201] * at_once, "statuses of the registrations")
            true(slowest < 1, "others were answered within a second: %.2f s" % slowest)
    finally:
        shutil.rmtree(root)


def paths_that_leave_the_root():
    outer = tempfile.mkdtemp(prefix="quantd-models-")
    root = os.path.join(outer, "root")
    try:
        write(os.path.join(outer, "secret"))
        write(os.path.join(root, "good"))
        os.symlink(os.path.join(outer, "secret"), os.path.join(root, "absolute-link"))
        os.symlink("../secret", os.path.join(root, "relative-link"))
        write(os.path.join(root, "file-link"))
        os.remove(os.path.join(root, "file-link", "model.safetensors"))
        os.symlink("../../secret/model.safetensors", os.path.join(root, "file-link", "model.safetensors"))
        write(os.path.join(root, "inner-link"))
        os.remove(os.path.join(root, "inner-link", "model.safetensors"))
        os.symlink("../good/model.safetensors", os.path.join(root, "inner-link", "model.safetensors"))
        bad = ["../secret", "good/../../secret", "/etc", outer + "/secret", root + "/../secret", "absolute-link",
               "relative-link", "file-link", "absent", "", ".", "good/config.json", "good\u0000", "x" * 5000]
        with Daemon(roots=[root]) as daemon:
            for path in bad:
                answer = daemon.request("POST", "/v1/models", json={"uri": "file:" + path})
                true(400 <= answer.status < 500, "%r is refused: %r" % (path, answer))
                true("secret/model" not in answer.body.decode(), "nothing is told of the outside")
            for uri in ("http://127.0.0.1/", "s3://bucket/x", "good", "file://elsewhere/good", "file:go%6fd%", "file:%2e%2e/secret",
                        "file:good%2Fconfig.json", "file:good%00"):
                answer = daemon.request("POST", "/v1/models", json={"uri": uri})
                true(answer.status in (400, 404, 422), "%r is refused: %r" % (uri, answer))
            for path in ("good", "inner-link", root + "/good", "//" + root + "/good"):
                answer = daemon.request("POST", "/v1/models", json={"uri": "file:" + path})
                equal(answer.status, 201, "status of %r (%r)" % (path, answer))
            os.rename(os.path.join(root, "good"), os.path.join(root, "a good 100%"))
            for uri in ("file:a%20good%20100%25", "FILE:a good 100%25", "file://localhost" + root + "/a%20good%20100%25"):
                answer = daemon.request("POST", "/v1/models", json={"uri": uri})
                equal(answer.status, 201, "status of %r (%r)" % (uri, answer))
            alive(daemon)
    finally:
        shutil.rmtree(outer)


def broken_records():
    lines = [
        b'{"input_ids":[1,2,3,4,5,6,7,8]}',
        b'{"input_ids":[1,2',
        b'not json',
        b'{"input_ids":[1,2,2048]}',
        b'{"input_ids":[-1]}',
        b'{"input_ids":[1.5]}',
        b'{"input_ids":"1"}',
        b'{"input_ids":[99999999999999999999]}',
        b'{"other":1}',
        b'[1]',
        b'{"text":7}',
        b'{"text":"caf\xe9 \xff"}',
        b'{"text":"a lone surrogate \\ud800"}',
        b'"x"',
        b'null',
        b'{"input_ids":' + b"[" * 5000 + b']}',
        b'',
        b'{"text":"a good line at the end"}',
    ]
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        job = daemon.request("POST", JOBS, json=gptq_body(model)).json["id"]
        path = "%s/%s/calibration" % (JOBS, job)
        answer = daemon.request("POST", path + "?offset=0", body=b"\n".join(lines) + b"\n", headers=NDJSON_HEADERS)
        equal(answer.status, 200, "status (%r)" % answer)
        equal(answer.json["accepted"], 2, "records accepted (%r)" % answer)
        told = [error["line"] for error in answer.json["errors"]]
        equal(told, list(range(2, 17)), "lines named")
        equal(answer.json["rejected"], 15, "records rejected")
        equal(answer.json["next_offset"], 2, "next offset")
        daemon.run([
            Call("POST", path + "?offset=2&complete=1", body=b"", headers=NDJSON_HEADERS, status=422,
                 code="insufficient_calibration",
                 check=lambda answer, saved: equal(answer.json["next_offset"], 2)),
            Call("POST", path + "?offset=7", body=lines[0], headers=NDJSON_HEADERS, status=409, code="offset_mismatch"),
            Call("POST", path + "?offset=-1", body=lines[0], headers=NDJSON_HEADERS, status=400, param="?offset"),
            Call("POST", path + "?offset=2", body=lines[0], headers={"Content-Type": "text/plain"}, status=415),
            Call("POST", path + "?offset=2", body=b"\xff" * 5_000_000, headers=NDJSON_HEADERS,
                 check=lambda answer, saved: equal(answer.json["accepted"], 0)),
            Call("POST", path + "?offset=2&complete=1", body=ids_records(40, 160, 2048), headers=NDJSON_HEADERS),
        ])
        succeed(daemon, job)


def bad_job_bodies():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]

        def body(**more):
            return gptq_body(model, **more)

        def quantization(**values):
            return body(quantization=dict({"bits": 4, "group_size": 64}, **values))

        cases = [
            ({}, 400, "missing_parameter", "/model"),
            ({}, 400, "missing_parameter", "/method"),
            ({"model": model}, 400, "missing_parameter", "/method"),
            (body(model=7), 400, "invalid_parameter", "/model"),
            (body(model="mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV"), 400, None, "/model"),
            (body(method="magic"), 400, "invalid_parameter", "/method"),
            (body(method=["rtn", "gptq"]), 422, "incompatible_options", "/method/0"),
            (body(colour="red"), 400, "unknown_parameter", "/colour"),
            (quantization(groupsize=64), 400, "unknown_parameter", "/quantization/groupsize"),
            (quantization(bits=7), 400, "invalid_parameter", "/quantization/bits"),
            (quantization(bits="4"), 400, "invalid_parameter", "/quantization/bits"),
            (quantization(bits=4.5), 400, "invalid_parameter", "/quantization/bits"),
            (quantization(bits=None), 400, "invalid_parameter", "/quantization/bits"),
            (quantization(bits=10 ** 18), 400, "invalid_parameter", "/quantization/bits"),
            (quantization(sym="yes"), 400, "invalid_parameter", "/quantization/sym"),
            (quantization(damp_percent=-1), 400, "invalid_parameter", "/quantization/damp_percent"),
            (quantization(group_size=48), 400, None, "/quantization/group_size"),
            (quantization(group_size=0), 400, None, "/quantization/group_size"),
            (body(quantization=[]), 400, "invalid_parameter", "/quantization"),
            (body(output={"format": "tarball"}), 400, "invalid_parameter", "/output/format"),
            (body(calibration={"stream": True, "sequence_length": 1}), 400, "invalid_parameter",
             "/calibration/sequence_length"),
            (body(calibration={"stream": True, "num_samples": -1}), 400, "invalid_parameter",
             "/calibration/num_samples"),
            (body(calibration={"stream": True, "report_tokens": -1}), 400, "invalid_parameter",
             "/calibration/report_tokens"),
            (body(calibration={"stream": True, "report_tokens": "few"}), 400, "invalid_parameter",
             "/calibration/report_tokens"),
            (body(calibration={}), 400, "missing_parameter", "/calibration"),
            (body(calibration={"file_id": "file_01ARZ3NDEKTSV4RRFFQ69G5FAV"}), 400, None, "/calibration/file_id"),
            (body(calibration={"file_id": "file_01ARZ3NDEKTSV4RRFFQ69G5FAV", "stream": True}), 422,
             "incompatible_options", "/calibration/stream"),
            (body(calibration={"stream": True, "sequence_length": 100000}), 422, None, "/calibration/sequence_length"),
            (body(evaluation={"hold_back": 2}), 400, "invalid_parameter", "/evaluation/hold_back"),
            (body(metadata={"a": 1}), 400, "invalid_parameter", "/metadata"),
            (body(seed=-1), 400, "invalid_parameter", "/seed"),
            (body(resources={"device": "abacus:0"}), 400, None, "/resources/device"),
        ]
        for json_body, status, code, param in cases:
            answer = daemon.request("POST", JOBS, json=json_body)
            if answer.status not in (status, 422 if code is None else status, 404 if code is None else status):
                raise Failure("%r: status is not %d: %r" % (json_body, status, answer))
            faults = [answer.json] + answer.json["errors"]
            if not any(fault["param"] == param and (code is None or fault["code"] == code) for fault in faults):
                raise Failure("%r: no fault %s at %s: %r" % (json_body, code, param, answer))
        several = daemon.request("POST", JOBS, json=body(colour=1, method="magic", output={"format": "x"}, seed="s"))
        true(len(several.json["errors"]) >= 4, "every fault is named: %r" % several)
        alive(daemon)


def bad_json():
    texts = {
        b"": (400, 411), b"{": (400,), b"[]": (400,), b"null": (400,), b'{"a":1,"a":2}': (400,),
        b"{" * 100000: (400,), b"[" * 100: (400,), b'{"name":"\xff"}': (400,), b'{"name":"a\\u0000b"}': (400,),
        b'{"name": NaN}': (400,), b'{"seed": 1e999}': (400,), b"\xef\xbb\xbf{}": (400,), b'{} {}': (400,),
        b'{"x":"' + b"y" * (2 << 20) + b'"}': (413,),
    }
    with Daemon() as daemon:
        for path in ("/v1/models", JOBS):
            for text, statuses in texts.items():
                answer = daemon.request("POST", path, body=text, headers={"Content-Type": "application/json"})
                if answer.status not in statuses:
                    raise Failure("%s with %r: %r" % (path, text[:40], answer))
            answer = daemon.request("POST", path, body=b"{}", headers={"Content-Type": "text/plain"})
            equal(answer.status, 415, "status of %s with text/plain" % path)
        alive(daemon)


def source_changes_under_a_job():
    root = tempfile.mkdtemp(prefix="quantd-models-")
    try:
        write(os.path.join(root, "m"))
        with Daemon(roots=[root]) as daemon:
            model = daemon.request("POST", "/v1/models", json={"uri": "file:m"}).json["id"]
            job = daemon.request("POST", JOBS, json=gptq_body(
                model, calibration={"stream": True, "num_samples": 8, "sequence_length": 32})).json["id"]
            write(os.path.join(root, "m"), config(layers=3), seed=9)
            answer = daemon.request("POST", "%s/%s/calibration?complete=1" % (JOBS, job),
                                    body=ids_records(20, 64, 256), headers=NDJSON_HEADERS)
            if answer.status == 200:
                state = wait_job(daemon, job)
                equal((state["status"], state["error"]["code"]), ("failed", "source_changed"), "end of the job")
            else:
                equal(answer.json["code"], "source_changed", "code (%r)" % answer)
            alive(daemon)
    finally:
        shutil.rmtree(root)


true(len(list(shapes(config()))) == 21, "a checkpoint of two blocks has 21 tensors")
main([damaged_safetensors, contradictory_configs, missing_and_non_finite_weights, non_finite_copies,
      evaluation_that_overflows, checkpoints_that_take_long_to_judge, paths_that_leave_the_root,
      broken_records, bad_job_bodies, bad_json, source_changes_under_a_job])
