"""What a refusal says: the code, the place, the member with its value and what is allowed, and what to change."""

import json
import os
import shutil
import tempfile

from checkpoint import config, write
from harness import JOBS, NDJSON, Daemon, Failure, equal, main, true

STREAM = {"stream": True}


def refused(answer, what, status, code, param, words, hint):
    if answer.status != status:
        raise Failure("%s: status is not %d: %r" % (what, status, answer))
    problem = answer.json
    for part in [problem] + problem["errors"]:
        detail = part["detail"]
        true(not detail.startswith("/"), "%s: no pointer in the detail %r" % (what, detail))
        true("hint" in part, "%s: there is a member hint: %r" % (what, part))
    equal((problem["code"], problem["param"]), (code, param), "%s: code and param (%r)" % (what, answer))
    true(all(word in problem["detail"] for word in words), "%s: the detail %r says %r" % (what, problem["detail"], words))
    true(hint in (problem["hint"] or ""), "%s: the hint %r says %r" % (what, problem["hint"], hint))
    if problem["errors"]:
        first = problem["errors"][0]
        equal([first[name] for name in ("code", "param", "detail", "hint")],
              [problem[name] for name in ("code", "param", "detail", "hint")], "%s: the first fault" % what)


def jobs():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]

        def job(method="gptq", **more):
            return dict({"model": model, "method": method, "calibration": STREAM}, **more)

        def with_(method="gptq", **values):
            return job(method, quantization=values)

        def override(**values):
            return with_("rtn", overrides=[values])

        cases = [
            ({"method": "rtn"}, 400, "missing_parameter", "/model", ["\"model\" is required"], "registered model"),
            ({"model": model, "method": "gptq"}, 400, "missing_parameter", "/calibration", ["gptq learns"], "file_id"),
            (job("gpqt"), 400, "invalid_parameter", "/method", ["\"gpqt\"", "kv_analysis"], "did you mean \"gptq\""),
            (job("bitsandbytes"), 400, "invalid_parameter", "/method", ["not a method"], "nf4"),
            (job(["gptq", "rtn"]), 422, "incompatible_options", "/method/0", ["gptq", "last"], "smoothquant"),
            (job(7), 400, "invalid_parameter", "/method", ["\"method\" is 7"], ""),
            (job(model="x"), 400, "invalid_parameter", "/model", ["\"model\" is \"x\"", "mdl_"], "POST /v1/models"),
            (job(colour=1), 400, "unknown_parameter", "/colour", ["\"colour\""], "model, method"),
            (job(calibratoin={}), 400, "unknown_parameter", "/calibratoin", ["not a member"], "did you mean \"calibration\""),
            (with_(bits=7), 400, "invalid_parameter", "/quantization/bits", ["\"bits\" is 7", "2, 3, 4, 5, 6, 8"], ""),
            (with_(num_bits=7), 400, "invalid_parameter", "/quantization/num_bits", ["\"num_bits\" is 7"], ""),
            (with_(bits=4, w_bit=4), 400, "invalid_parameter", "/quantization/w_bit", ["another name of"], "one of them"),
            (with_(group_sze=64), 400, "unknown_parameter", "/quantization/group_sze", ["parameter of gptq"], "group_size"),
            (with_(load_in_4bit=True), 400, "unknown_parameter", "/quantization/load_in_4bit", ["load_in_4bit"], "nf4"),
            (with_("rtn", damp_percent=.1), 400, "unknown_parameter", "/quantization/damp_percent", ["of rtn"], "gptq"),
            (with_(damp_percent=1), 400, "invalid_parameter", "/quantization/damp_percent", ["below 1"], ""),
            (with_("fp8", fmt="e4m2"), 400, "invalid_parameter", "/quantization/fmt", ["e4m3, e5m2"], "e4m3"),
            (with_("rtn", modules_to_not_convert=["re:(("]), 400, "invalid_parameter",
             "/quantization/modules_to_not_convert/0", ["re:(("], ""),
            (override(match="lm_head", bits=8), 422, "incompatible_options", "/quantization/overrides/0/match",
             ["lm_head", "never quantized"], ""),
            (override(match="down_porj", bits=8), 400, "invalid_parameter", "/quantization/overrides/0/match",
             ["\"down_porj\" matches no module"], ""),
            (override(match="down_proj", skip=1), 400, "invalid_parameter", "/quantization/overrides/0/skip",
             ["\"skip\" is 1"], ""),
            (override(match="down_proj", kv_cache={}), 400, "unknown_parameter", "/quantization/overrides/0/kv_cache",
             ["entire model"], "quantization"),
            (with_("aqlm", in_group_size=8, kv_cache={"dtype": "fp8"}), 400, "invalid_parameter",
             "/quantization/kv_cache/dtype", ["fp8_e4m3, int8"], "fp8_e4m3"),
            (with_("rtn", overrides=[{"match": "q_proj", "bits": 8}]), 422, "incompatible_options", "/quantization",
             ["q, k and v of block 0 are not quantized alike"], "runtimes load them as one"),
            (job("nf4", output={"format": "gptq"}), 422, "incompatible_options", "/output/format", ["nf4"],
             "formats that carry it: bitsandbytes, dense"),
            (job(output={"format": "ggfu"}), 400, "invalid_parameter", "/output/format", ["\"ggfu\"", "gguf"], "\"gguf\""),
            (job(output={"format": "safetensors"}), 400, "invalid_parameter", "/output/format", ["not a format"],
             "compressed-tensors"),
            (job(calibration={"stream": True, "sequence_length": 4096}), 422, "incompatible_options",
             "/calibration/sequence_length", ["4096", "256 positions"], "256 or less"),
            (job(calibration={"file_id": "x"}), 400, "invalid_parameter", "/calibration/file_id", ["\"x\""], "/v1/files"),
            (job(calibration={"file_id": "file_01ARZ3NDEKTSV4RRFFQ69G5FAV"}), 400, "invalid_parameter",
             "/calibration/file_id", ["there is no file"], "/v1/files"),
            ([], 400, "invalid_json", None, ["must be a JSON object"], ""),
        ]
        for body, status, code, param, words, hint in cases:
            answer = daemon.request("POST", JOBS, json=body)
            refused(answer, json.dumps(body)[:200], status, code, param, words, hint)


def taken():
    """Names of other programs, and defaults alone."""
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        answer = daemon.request("POST", JOBS, json={
            "model": model, "method": "GPTQ", "calibration": {"stream": True, "nsamples": 3},
            "quantization_config": {"num_bits": 3, "q_group_size": 64, "percdamp": 0.05, "zero_point": False},
            "output": {"format": "GPTQ"}})
        equal(answer.status, 201, "status (%r)" % answer)
        got = answer.json
        equal((got["method"], got["output"]["format"], got["calibration"]["num_samples"]), ("gptq", "gptq", 3), "names")
        equal([got["quantization"][name] for name in ("bits", "group_size", "damp_percent", "sym")],
              [3, 64, 0.05, True], "parameters")
        methods = [["gptq", method["name"]] if method["follows"] else method["name"] for method in daemon.get("/v1/methods")["data"]] + [["smoothquant", "gptq"]]
        true(["gptq", "tune"] in methods, "methods that follow: %r" % methods)
        for method in methods:
            body = {"model": model, "method": method}
            answer = daemon.request("POST", JOBS, json=body)
            if answer.status == 400:
                equal(answer.json["param"], "/calibration", "what %s lacks (%r)" % (method, answer))
                answer = daemon.request("POST", JOBS, json=dict(body, calibration=STREAM))
            equal(answer.status, 201, "status of %s on defaults (%r)" % (method, answer))
            true(answer.json["output"]["format"], "the format is shown: %r" % answer)
            equal(answer.json["calibration"]["sequence_length"], 256, "sequence length of %s" % method)
            equal(answer.json["evaluation"]["sequence_length"], 256, "evaluation length of %s" % method)


def models():
    root = tempfile.mkdtemp(prefix="quantd-models-")

    def folder(name, weights=True):
        path = write(os.path.join(root, name))
        if not weights:
            os.remove(os.path.join(root, name, "model.safetensors"))
        return os.path.join(root, name)

    def put(path, name, data):
        with open(os.path.join(path, name), "wb") as file:
            file.write(data)

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4976698672\n" % (b"4d" * 32)
    try:
        put(folder("lfs"), "model.safetensors", pointer)
        put(folder("lfs-config"), "config.json", pointer)
        put(folder("pickle", False), "pytorch_model.bin", b"PK\x03\x04")
        put(folder("adapter", False), "adapter_model.safetensors", b"\x00" * 16)
        put(folder("llamacpp", False), "model-q4_0.gguf", b"GGUF")
        folder("bare", False)
        put(folder("gelu"), "config.json", json.dumps(dict(config(), hidden_act="gelu_fast")).encode())
        os.makedirs(os.path.join(root, "no-config"))
        cases = [
            ({"uri": "file:lfs"}, 422, "invalid_model", ["model.safetensors", "git-lfs"], "git lfs pull"),
            ({"uri": "file:lfs-config"}, 422, "invalid_model", ["config.json", "git-lfs"], "git lfs pull"),
            ({"uri": "file:pickle"}, 422, "invalid_model", ["pytorch_model.bin", "pickle"], "safe_serialization"),
            ({"uri": "file:adapter"}, 422, "invalid_model", ["adapter_model.safetensors"], "merge"),
            ({"uri": "file:llamacpp"}, 422, "invalid_model", ["model-q4_0.gguf"], "convert"),
            ({"uri": "file:bare"}, 422, "invalid_model", ["no weights", "model.safetensors"], ""),
            ({"uri": "file:no-config"}, 422, "invalid_model", ["no config.json"], ""),
            ({"uri": "file:gelu"}, 422, "unsupported_architecture",
             ["gelu_fast"], "GET /v1/architectures lists"),
            ({"uri": "file:/etc"}, 400, "invalid_parameter", ["\"/etc\"", "below a model root"], root),
            ({"uri": "file:absent"}, 400, "invalid_parameter", ["no folder \"absent\""], root),
            ({"uri": "http://x/y"}, 400, "invalid_parameter", ["\"uri\" must be file:PATH"], ""),
            ({"uri": "file:../x"}, 400, "invalid_parameter", ["\"uri\"", "\"..\""], ""),
            ({"uri": 7}, 400, "invalid_parameter", ["\"uri\" is 7"], ""),
        ]
        with Daemon(roots=[root]) as daemon:
            for body, status, code, words, hint in cases:
                refused(daemon.request("POST", "/v1/models", json=body), json.dumps(body), status, code, "/uri", words, hint)
    finally:
        shutil.rmtree(root)


def queries():
    with Daemon() as daemon:
        cases = [
            ("GET", "/v1/models?limt=3", 400, "unknown_parameter", "?limt", ["\"limt\""], "did you mean \"limit\""),
            ("GET", "/v1/models?limit=1000", 400, "invalid_parameter", "?limit", ["1000", "1 to 100"], ""),
            ("GET", "/v1/models?order=up", 400, "invalid_parameter", "?order", ["\"up\"", "desc, asc"], ""),
            ("GET", JOBS + "?status=runing", 400, "invalid_parameter", "?status", ["runing"], "\"running\""),
            ("GET", "/v1/system?x=1", 400, "unknown_parameter", "?x", ["\"x\""], "no query parameters"),
            ("GET", "/v1/methods/gpqt", 404, "not_found", None, ["gpqt"], 'did you mean "gptq"?'),
        ]
        for method, path, status, code, param, words, hint in cases:
            refused(daemon.request(method, path), path, status, code, param, words, hint)
        answer = daemon.request("POST", "/v1/files?purpose=calibration", body=b"{}", headers={"Content-Type": "text/csv"})
        refused(answer, "text/csv", 415, "unsupported_media_type", None, ["text/csv", NDJSON, "application/jsonl"],
                "Content-Type")
        answer = daemon.request("POST", "/v1/files", body=b"{}", headers={"Content-Type": NDJSON})
        refused(answer, "no purpose", 400, "missing_parameter", "?purpose", ["purpose", "calibration, evaluation, or model"], "")


main([jobs, taken, models, queries])
