"""Where a report says that errors come from, and that each of its suggestions is a valid job whose modules lose less."""

import copy
import os
import tempfile

import checkpoint
from harness import JOBS, NDJSON, NO_MODULES, Daemon, equal, ids_records, main, post, succeed, true

OUTLIERS, CHANNEL = "model.layers.0.mlp.down_proj", 7
# method: (quantization, format, part of the patches that are to be there)
JOB_ROWS = {
    "gptq": ({"bits": 4, "group_size": 128}, "compressed-tensors", ("group_size", "overrides")),
    "rtn": ({"bits": 3, "group_size": 64, "mse_search": False}, "dense", ("gptq", "awq", "refine_rounds")),
    "awq": ({"bits": 4, "group_size": 128}, "awq", ("group_size",)),
    "nf4": ({}, "bitsandbytes", ()),  # no grid to refine, and its worst module is too large to stay in float
}


def changed(name, data):
    """One weight in 97 of a module is far larger than the others, and one input channel of what reads block 1's norms."""
    data = bytearray(data)
    if name == OUTLIERS + ".weight":
        for i in range(0, len(data), 2 * 97):
            data[i:i + 2] = b"\x80\x3e"  # 0.25
    if name in ("model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"):
        data[2 * CHANNEL:2 * CHANNEL + 2] = b"\x20\x42"  # 40
    return bytes(data)


def merged(target, patch):
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def loss_of(report, modules):
    """The modules' error, by parameters; one that stays in float has none."""
    metric = report["anatomy"]["metric"]
    return sum(row[metric] * row["parameters"] for row in report["layers"] if row["module"] in modules)


def suggestions_lower_the_error():
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=128, mlp=256, layers=2, vocabulary=512), change=changed)
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(24, 128, 512), headers={"Content-Type": NDJSON})
            for method, (quantization, form, parts) in JOB_ROWS.items():
                calibration = {"calibration": {"file_id": file, "num_samples": 24, "sequence_length": 128}} if method != "nf4" else {}
                job = post(daemon, JOBS, json={"model": model, "method": method, "quantization": quantization,
                                               "output": {"format": form}, **calibration})
                succeed(daemon, job)
                report = daemon.get("%s/%s/report" % (JOBS, job))
                told(report, method)
                patches = [one["patch"] for one in report["suggestions"]]
                for part in parts:
                    true(any(part in repr(patch) for patch in patches), "%s: no %s in %r" % (method, part, patches))
                for one in report["suggestions"]:
                    followed(daemon, report, one, method)


def told(report, method):
    anatomy = report["anatomy"]
    equal(report["suggestions"] == [], "No change of the request is suggested" in anatomy["summary"], "what the summary says")
    print("  %s: %s" % (method, anatomy["summary"]))
    for row in anatomy["worst"]:
        print("    %-34s %s" % (row["module"], row["sentence"]))
    true((method == "nf4") == (report["suggestions"] == []) and len(report["suggestions"]) <= 8, "%s: %r" % (method, report["suggestions"]))
    equal(abs(sum(kind["error_share"] for kind in anatomy["kinds"]) - 1) < 1e-9, True, "shares of kinds")
    worst = {row["module"]: row for row in anatomy["worst"]}
    true(worst[OUTLIERS]["cause"] == "outlier_weights", "%s: %r" % (method, anatomy["worst"]))
    true("beyond 6 times the median" in worst[OUTLIERS]["sentence"], worst[OUTLIERS]["sentence"])
    rows = {row["module"]: row for row in report["layers"]}
    true(abs(rows[OUTLIERS]["weight_outlier_fraction"] - 1 / 97) < 2e-3, repr(rows[OUTLIERS]))
    if method == "rtn":  # AWQ scales such channels down, and GPTQ moves their error to others
        true(rows["model.layers.1.self_attn.q_proj"]["input_channel_max_to_median"] > 20, "the large channel")
        equal(int(rows["model.layers.1.self_attn.q_proj"]["top_channels"].split(":")[0]), CHANNEL, "the channel's number")


def followed(daemon, report, suggestion, method):
    """The job with the patch is accepted as it is, and its report has less error for the modules that were named."""
    equal(suggestion["module_count"], len(suggestion["modules"]), "all modules are named")
    body = merged(copy.deepcopy(report["request"]), suggestion["patch"])
    job = post(daemon, JOBS, json=body)
    succeed(daemon, job)
    after = daemon.get("%s/%s/report" % (JOBS, job))
    before, now = loss_of(report, suggestion["modules"]), loss_of(after, suggestion["modules"])
    print("  %-5s %-80s left %.3f, expected %s" % (method, repr(suggestion["patch"])[:80], now / before, suggestion["error_ratio"]))
    true(now < before, "%s: %r leaves %g of %g" % (method, suggestion["patch"], now, before))
    if "group_size" in repr(suggestion["patch"]):  # whose effect is measured
        true(0.75 < now / before / suggestion["error_ratio"] < 1.33, "%s: %r: expected %g" % (method, suggestion["patch"], suggestion["error_ratio"]))


main([suggestions_lower_the_error])
