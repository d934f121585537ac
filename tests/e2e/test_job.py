"""The main job: a checkpoint in, a loadable artifact and a report out, over REST alone."""

import json
import os
import shutil
import struct
import tempfile

from checkpoint import config, write
from harness import (DATA, JOBS, NDJSON, Call, Daemon, Do, Failure, artifact_digests, equal, gptq_body, ids_records,
                     main, new_job, sha256, succeed, true, wait_job)

with open(os.path.join(DATA, "..", "..", "deploy", "calibration.ndjson"), "rb") as text:
    RECORDS = text.read()
SIXTY_FOUR = {"calibration": {"stream": True, "num_samples": 64, "sequence_length": 128}}
FORMATS = ("compressed-tensors", "gptq", "gptq_v2")


def split(data, parts):
    lines = data.splitlines(keepends=True)
    size = -(-len(lines) // parts)
    return [(start, b"".join(lines[start:start + size])) for start in range(0, len(lines), size)]


def stream(data, step=700):
    for at in range(0, len(data), step):
        yield data[at:at + step]


def check_report(answer, saved):
    report = answer.json
    rows = report["layers"]
    equal(len(rows), 28, "rows in the report")
    for row in rows:
        # Codes that aim at the float model's output stand for another weight.
        limit = {"weight": 0.05, "float_model": 0.15}[row["target"]]
        true(0 < row["relative_mse"] < limit, "relative error of %s: %r" % (row["module"], row["relative_mse"]))
        true(0 < row["output_relative_mse"] < 0.05, "output error of %s" % row["module"])
        equal(row["bits"], 4, "bits")
        true(abs(row["rounding_mse"] + row["clipping_mse"] - row["mse"]) <= 1e-6 * row["mse"] + 1e-15,
             "rounding and clipping add up")


def check_artifact(daemon, saved):
    """Download every file, compare its digest, read the tensors' header."""
    artifact = saved["artifact"]
    names = {file["path"] for file in artifact["files"]}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        true(name in names, "the artifact has %s" % name)
    for file in artifact["files"]:
        path = "/v1/artifacts/%s/files/%s" % (artifact["id"], file["path"])
        answer = daemon.request("GET", path)
        equal(answer.status, 200, "status of " + path)
        equal(sha256(answer.body), file["sha256"], "digest of " + path)
        part = daemon.request("GET", path, headers={"Range": "bytes=3-10"})
        equal((part.status, part.body), (206, answer.body[3:11]), "range of " + path)
        again = daemon.request("GET", path, headers={"If-None-Match": answer.headers["etag"]})
        equal(again.status, 304, "status of " + path + " with its ETag")
        if file["path"] == "config.json":
            true("quantization_config" in json.loads(answer.body), "config.json tells of the quantization")
        if file["path"] == "model.safetensors":
            size = struct.unpack("<Q", answer.body[:8])[0]
            header = json.loads(answer.body[8:8 + size])
            true(any("layers.0.self_attn.q_proj" in name for name in header), "the first linear is there")
    with open(os.path.join(DATA, "tiny-llama", "tokenizer.json"), "rb") as file:
        answer = daemon.request("GET", "/v1/artifacts/%s/files/tokenizer.json" % artifact["id"])
        equal(answer.body, file.read(), "tokenizer.json")


def check_events(daemon, saved):
    job = saved["job"]["id"]
    events = []
    while True:
        page = daemon.get("%s/%s/events?limit=100&after=%d" % (JOBS, job, len(events)))
        events += page["data"]
        if not page["has_more"]:
            break
    equal([event["seq"] for event in events], list(range(1, len(events) + 1)), "sequence numbers")
    equal(events[-1]["type"], "status", "the last event")
    equal(events[-1]["data"]["status"], "succeeded", "the last status")
    equal(len([event for event in events if event["type"] == "layer"]), 4, "layer events")
    sse = daemon.request("GET", "%s/%s/events" % (JOBS, job),
                         headers={"Accept": "text/event-stream", "Last-Event-ID": "2"})
    equal(sse.headers["content-type"].split(";")[0], "text/event-stream", "Content-Type")
    ids = [int(line[3:]) for line in sse.body.decode().splitlines() if line.startswith("id:")]
    equal(ids, list(range(3, len(events) + 1)), "ids after Last-Event-ID")


def main_job():
    with Daemon() as daemon:
        first, second, third = split(RECORDS, 3)
        calibration = JOBS + "/{job[id]}/calibration"
        ndjson = {"Content-Type": NDJSON}
        saved = daemon.run([
            Call("GET", "/livez"),
            Call("GET", "/readyz"),
            Call("POST", "/v1/models", json={"name": "tiny", "uri": "file:tiny-llama"}, status=201, save="model"),
            Call("POST", JOBS, json=lambda saved: gptq_body(saved["model"]["id"], name="first", **SIXTY_FOUR),
                 status=201, save="job",
                 check=lambda answer, saved: equal(answer.headers["location"], JOBS + "/" + answer.json["id"])),
            Call("GET", JOBS + "/{job[id]}",
                 check=lambda answer, saved: equal(answer.json["status"], "awaiting_calibration")),
            Call("POST", calibration + "?offset=0", body=lambda saved: stream(first[1]), headers=ndjson,
                 check=lambda answer, saved: equal(answer.json["next_offset"], second[0])),
            Call("POST", calibration + "?offset=0", body=first[1], headers=ndjson, status=409, code="offset_mismatch",
                 check=lambda answer, saved: equal(answer.json["next_offset"], second[0])),
            Call("POST", calibration + "?offset=%d" % second[0], body=second[1], headers=ndjson,
                 check=lambda answer, saved: equal(answer.json["next_offset"], third[0])),
            Call("POST", calibration + "?offset=%d&complete=1" % third[0], body=lambda saved: stream(third[1]),
                 headers=ndjson),
        ])
        state = succeed(daemon, saved["job"]["id"])
        result = state["result"]
        true(4 < result["bits_per_weight"] < 4.6, "bits per weight %r" % result["bits_per_weight"])
        change = result["perplexity_after"] / result["perplexity_before"]
        true(0.99 < change < 1.03, "perplexity stays close: %r" % result)
        true(result["kl_divergence_mean"] > 0, "there is some divergence")
        equal(state["progress"]["fraction"], 1, "fraction")
        saved["artifact_id"] = result["artifact_id"]
        daemon.run([
            Call("GET", JOBS + "/{job[id]}/report", check=check_report),
            Call("GET", JOBS + "/{job[id]}/layers?sort=-output_relative_mse",
                 check=lambda answer, saved: equal(len(answer.json["data"]), 28)),
            Call("GET", JOBS + "/{job[id]}/layers", headers={"Accept": "text/csv"},
                 check=lambda answer, saved: equal(len(answer.body.decode().strip().split("\r\n")), 29)),
            Call("GET", "/v1/artifacts/{artifact_id}", save="artifact"),
            Do(check_artifact),
            Do(check_events),
            Do(check_phases),
            Call("POST", calibration, body=first[1], headers=ndjson, status=409, code="job_state_conflict"),
            Call("DELETE", "/v1/artifacts/{artifact_id}", status=204),
            Call("GET", JOBS + "/{job[id]}", check=check_artifact_gone),
            Call("GET", "/v1/artifacts/{artifact_id}", status=404),
        ], saved)


PHASES = ["loading", "quantizing", "evaluating", "exporting"]


def check_phases(daemon, saved):
    """A bar can show them: phases and blocks never go back."""
    events = daemon.get("%s/%s/events?limit=100" % (JOBS, saved["job"]["id"]))["data"]
    seen = [event["data"] for event in events if event["type"] == "progress"]
    true(seen, "there is progress")
    places = [(PHASES.index(data["phase"]), data["block"] or 0) for data in seen]
    equal(places, sorted(places), "phases and blocks in order")
    for data in seen:
        equal(data["block"] is not None, data["phase"] == "quantizing", "a block while blocks are quantized: %r" % data)
        true(data["block"] is None or 1 <= data["block"] <= data["layers_total"], "block of how many: %r" % data)
        true(data["step"], "a step: %r" % data)


def check_artifact_gone(answer, saved):
    result = answer.json["result"]
    equal(result["artifact_id"], None, "artifact_id of a deleted artifact")
    true(result["artifact_deleted_at"] >= answer.json["finished_at"], "it says when it was deleted: %r" % result)


def every_format_and_method():
    with Daemon() as daemon:
        losses = {}
        for method, output in [("rtn", FORMATS[0])] + [("gptq", output) for output in FORMATS]:
            job = new_job(daemon, RECORDS, method=method, output={"format": output}, **SIXTY_FOUR)
            state = succeed(daemon, job)
            losses[method, output] = state["result"]["perplexity_after"] - state["result"]["perplexity_before"]
            true(len(artifact_digests(daemon, state)) >= 5, "files in the artifact")
        values = {output: loss for (method, output), loss in losses.items() if method == "gptq"}
        true(max(values.values()) - min(values.values()) < 0.5, "formats carry the same result: %r" % values)


def rtn_needs_no_calibration():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        answer = daemon.request("POST", JOBS, json={"model": model, "method": "rtn"})
        equal(answer.status, 201, "status (%r)" % answer)
        state = succeed(daemon, answer.json["id"])
        equal(state["result"]["perplexity_after"], None, "perplexity without an evaluation set")


def calibration_from_a_file():
    with Daemon() as daemon:
        text = b"".join(b'{"text":"%d lines of a program that counts the lines of another program"}\n' % n
                        for n in range(400))
        ndjson = {"Content-Type": NDJSON}
        saved = daemon.run([
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama"}, status=201, save="model"),
            Call("POST", "/v1/files?purpose=calibration&name=text", body=text, headers=ndjson, status=201, save="file"),
            Call("POST", "/v1/files?purpose=evaluation", body=RECORDS, headers=ndjson, status=201, save="evaluation"),
            Call("POST", JOBS, json=lambda saved: gptq_body(
                saved["model"]["id"],
                calibration={"file_id": saved["file"]["id"], "num_samples": 16, "sequence_length": 64},
                evaluation={"file_id": saved["evaluation"]["id"], "max_tokens": 2048}), status=201, save="job"),
            Call("DELETE", "/v1/files/{file[id]}", status=409),
        ])
        succeed(daemon, saved["job"]["id"])
        daemon.run([Call("DELETE", "/v1/files/{file[id]}", status=204)], saved)


def cancel_a_running_job():
    with Daemon("--threads", "1") as daemon:
        job = new_job(daemon, ids_records(300, 256, 2048),
                      calibration={"stream": True, "num_samples": 0, "sequence_length": 256})
        wait_job(daemon, job, until=("running", "succeeded", "failed"))
        answer = daemon.request("POST", "%s/%s/cancel" % (JOBS, job))
        equal(answer.status, 202, "status of the cancellation (%r)" % answer)
        state = wait_job(daemon, job, 30)
        if state["status"] not in ("cancelled", "succeeded"):
            raise Failure("job is %s after a cancellation" % state["status"])
        equal(daemon.request("DELETE", "%s/%s" % (JOBS, job)).status, 204, "status of the deletion")
        equal(daemon.request("GET", "%s/%s" % (JOBS, job)).status, 404, "status after the deletion")


def heads_beside_a_tied_config():
    """tie_word_embeddings with a head: its values decide what is measured and what the artifact carries."""
    root = tempfile.mkdtemp(prefix="quantd-models-")
    tied = config(tie_word_embeddings=True)
    table = {}

    def equal_head(name, data):
        table[name] = data
        return table["model.embed_tokens.weight"] if name == "lm_head.weight" else data

    small = {"method": "rtn", "calibration": {"stream": True, "num_samples": 8, "sequence_length": 32},
             "evaluation": {"hold_back": 0.25}}
    try:
        write(os.path.join(root, "untied"))
        write(os.path.join(root, "own"), tied)
        write(os.path.join(root, "equal"), tied, change=equal_head)
        write(os.path.join(root, "none"), tied, change=lambda name, data: None if name == "lm_head.weight" else data)
        found = {}
        with Daemon(roots=[root]) as daemon:
            for name in ("untied", "own", "equal", "none"):
                state = succeed(daemon, new_job(daemon, ids_records(20, 64, 256), uri="file:" + name, **small))
                files = "/v1/artifacts/%s/files/" % state["result"]["artifact_id"]
                weights = daemon.request("GET", files + "model.safetensors").body
                header = json.loads(weights[8:8 + struct.unpack("<Q", weights[:8])[0]])
                registered = daemon.get("/v1/models/" + state["model"])
                found[name] = {
                    "perplexity": state["result"]["perplexity_before"], "head": "lm_head.weight" in header,
                    "config": json.loads(daemon.request("GET", files + "config.json").body)["tie_word_embeddings"],
                    "tied": registered["tied"], "parameters": registered["parameters"]}
        equal(found["own"], found["untied"], "a head of its own")
        equal(found["equal"], found["none"], "a head that is the embedding")
        true(found["own"]["head"] and not found["own"]["config"] and not found["own"]["tied"], "not copied: %r" % found)
        true(not found["none"]["head"] and found["none"]["config"] and found["none"]["tied"], "left out: %r" % found)
        true(found["own"]["perplexity"] != found["none"]["perplexity"], "the heads differ: %r" % found)
    finally:
        shutil.rmtree(root)


main([main_job, every_format_and_method, rtn_needs_no_calibration, calibration_from_a_file, cancel_a_running_job,
      heads_beside_a_tied_config])
