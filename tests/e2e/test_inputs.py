"""Static inputs of a model in which one input of each down_proj reaches 256 times farther than it would: by default the
perplexity stays, whatever range smoothing alone would leave; where a range is that of a few inputs, rows, the job and one event say
so, and ranges that reach the largest input lose as they always did."""

import array
import json
import os
import shutil
import struct
import sys
import tempfile

from harness import DATA, JOBS, NDJSON, Daemon, equal, main, succeed, true

LOUD, OCTAVES = 77, 8  # of the MLP's inner channels, and by how much
RECORDS = os.path.join(DATA, "..", "..", "deploy", "calibration.ndjson")


def exponent_added(value, octaves):
    """A BF16 number times 2^octaves."""
    exponent = (value >> 7 & 0xFF) + octaves
    return 0 if value & 0x7F80 == 0 or exponent <= 0 else (value & 0x807F) | exponent << 7


def write_model(folder):
    """tiny-llama with a loud channel between up_proj and down_proj of each layer; what it computes is the same."""
    shutil.copytree(os.path.join(DATA, "tiny-llama"), folder)
    path = os.path.join(folder, "model.safetensors")
    with open(path, "rb") as file:
        data = bytearray(file.read())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    for name, entry in header.items():
        octaves = {"up_proj": OCTAVES, "down_proj": -OCTAVES}.get(name.split(".")[-2] if "." in name else "")
        if octaves is None:
            continue
        equal((entry["dtype"], sys.byteorder), ("BF16", "little"), "what this test can write")
        first, end = (start + offset for offset in entry["data_offsets"])
        values, cols = array.array("H", data[first:end]), entry["shape"][1]
        places = range(LOUD * cols, (LOUD + 1) * cols) if octaves > 0 else range(LOUD, len(values), cols)
        for place in places:
            values[place] = exponent_added(values[place], octaves)
        data[first:end] = values.tobytes()
    with open(path, "wb") as file:
        file.write(data)


def quantized(daemon, model, files, method, parameters):
    """(state, rows of down_proj, rows of other linears)"""
    answer = daemon.request("POST", JOBS, json={
        "model": model, "method": method, "quantization": parameters,
        "calibration": {"file_id": files[0], "num_samples": 32, "sequence_length": 64},
        "evaluation": {"file_id": files[1], "max_tokens": 2048, "sequence_length": 64}})
    equal(answer.status, 201, "status of the job (%r)" % answer)
    state = succeed(daemon, answer.json["id"])
    rows = daemon.get("%s/%s/layers" % (JOBS, state["id"]))["data"]
    down = [row for row in rows if row["module"].endswith("down_proj")]
    return state, down, [row for row in rows if row not in down]


def loss(state):
    return state["result"]["perplexity_after"] / state["result"]["perplexity_before"] - 1


def warned(daemon, state):
    """How often the job warns of ranges, having told as many events."""
    count = sum(warning["code"] == "input_outliers" for warning in state["warnings"])
    events = daemon.get("%s/%s/events?limit=100" % (JOBS, state["id"]))["data"]
    equal(sum(event["type"] == "warning" and event["data"]["code"] == "input_outliers" for event in events), count, "events")
    return count


def static_inputs():
    root = tempfile.mkdtemp(prefix="quantd-models-")
    try:
        write_model(os.path.join(root, "loud"))
        with Daemon(roots=[root]) as daemon:
            with open(RECORDS, "rb") as file:
                records = file.read()
            files = [daemon.request("POST", "/v1/files?purpose=%s" % purpose, body=records,
                                    headers={"Content-Type": NDJSON}).json["id"] for purpose in ("calibration", "evaluation")]
            model = daemon.request("POST", "/v1/models", json={"uri": "file:loud"}).json["id"]
            static = {"activation_dynamic": False}
            plain = dict(static, smoothing_strength=0.5, smooth_down=False)

            safe, down, others = quantized(daemon, model, files, "smoothquant", static)
            true(loss(safe) < 0.01, "static inputs lose %g by default" % loss(safe))
            equal(warned(daemon, safe), 0, "warnings of the default")
            for row in down + others:
                true(row["input_scale"] > 0 and row["input_outlier"] is False, "no outlier: %r" % row)
                true(row["input_error"] <= row["input_error_absmax"], "the range gains: %r" % row)

            widest, down, others = quantized(daemon, model, files, "smoothquant", dict(plain, input_range="absmax"))
            equal(warned(daemon, widest), 1, "warnings of the largest inputs' ranges")
            for row in down:
                true(row["input_outlier"] and row["input_range"] == 1 and row["input_error"] is None, "absmax: %r" % row)

            searched, down, others = quantized(daemon, model, files, "smoothquant", plain)
            true(loss(searched) < 0.2 * loss(widest), "%g, not %g" % (loss(searched), loss(widest)))
            equal(warned(daemon, searched), 1, "warnings of the ranges found")
            for row in down:
                true(row["input_outlier"] and row["input_range"] < 0.25, "a range cut: %r" % row)
                true(4 * row["input_error"] < row["input_error_absmax"], "what it gained: %r" % row)
            for row in others:
                equal(row["input_outlier"], False, "outlier of %s" % row["module"])
            for shared in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
                scales = [{row["input_scale"] for row in others
                           if row["layer"] == layer and row["module"].split(".")[-1] in shared} for layer in range(4)]
                equal([len(values) for values in scales], [1] * 4, "scales that %r have in a layer" % (shared,))

            listed, down, others = quantized(daemon, model, files, "smoothquant", dict(plain, float_inputs=["down_proj"]))
            equal([row["input_scale"] for row in down], [None] * 4, "scales of float inputs")
            equal(warned(daemon, listed), 0, "warnings where these inputs stay in float")
    finally:
        shutil.rmtree(root, ignore_errors=True)


main([static_inputs])
