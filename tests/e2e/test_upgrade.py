"""A data directory of version 0.1.0 opens in this build: what had ended is served as it was, what had not goes on.

tests/data/data-dir-0.1.0.tar.xz is the directory of a daemon that was killed, with what it had answered before (expected.json):
jobs that succeeded, failed and were cancelled, one whose artifact was deleted, one that waits for the rest of its calibration, one that
was in line, and one that was running, with two blocks or more on disk. It was made by the binary of that version:

    QUANTD=... python3 tests/e2e/test_upgrade.py --record
"""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import struct
import sys
import tarfile
import tempfile

import families
from harness import DATA, JOBS, NDJSON, Daemon, Failure, artifact_digests, equal, ids_records, main, post, succeed, true, wait_job
from portable import PORTABLE, made_with

ARCHIVE = os.path.join(DATA, "data-dir-0.1.0.tar.xz")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 64}
RECORDS = ids_records(12, 36, 64)
GPTQ = {"method": "gptq", "quantization": {"bits": 4, "group_size": 32, "target_tokens": 1, "refine_rounds": 16}, "evaluation": {"hold_back": 0.2}}
STREAM = {"stream": True, "num_samples": 8, "sequence_length": 32}


def write_models(root):
    """Two checkpoints; the second one has a weight that is not a number in block 2."""
    families.write(os.path.join(root, "sound"), "llama", **SHAPE)
    families.write(os.path.join(root, "broken"), "llama", **SHAPE)
    path = os.path.join(root, "broken", "model.safetensors")
    with open(path, "r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        file.seek(8 + size + header["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0])
        file.write(b"\xc0\x7f")


def answers(daemon, job):
    """All that the API says of a job that has ended."""
    said = {"job": daemon.get("%s/%s" % (JOBS, job)), "report": daemon.get("%s/%s/report" % (JOBS, job)),
            "layers": daemon.get("%s/%s/layers" % (JOBS, job)), "events": daemon.get("%s/%s/events?limit=100" % (JOBS, job)),
            "artifact": None}
    result = said["job"]["result"]
    if result and result["artifact_id"] and not result["artifact_deleted_at"]:
        said["artifact"] = daemon.get("/v1/artifacts/%s" % result["artifact_id"])
    return said


def events(daemon, job, after=0):
    return daemon.get("%s/%s/events?limit=100&after=%d" % (JOBS, job, after))["data"]


def kill_in_the_middle(daemon, body):
    """A job of which the daemon was killed with two blocks or three on disk; its id."""
    for _ in range(40):
        job = post(daemon, JOBS, json=body)
        connection = daemon.connection()
        connection.request("GET", "%s/%s/events" % (JOBS, job), headers={"Accept": "application/x-ndjson"})
        response = connection.getresponse()
        while json.loads(response.readline())["data"].get("layer") != 1:
            pass
        daemon.kill()
        connection.close()
        with sqlite3.connect(os.path.join(daemon.data, "quantd.db")) as database:
            status = database.execute("SELECT status FROM jobs WHERE id = ?", (job,)).fetchone()[0]
        database.close()
        if status == "running":
            return job
        daemon.start()
        wait_job(daemon, job)
        equal(daemon.request("DELETE", "%s/%s" % (JOBS, job)).status, 204, "status of the deletion")
    raise Failure("every job was over before it could be killed")


def record():
    root = tempfile.mkdtemp(prefix="quantd-record-")
    write_models(root)
    daemon = Daemon("--threads", "1", roots=[root], env=PORTABLE)
    sound = post(daemon, "/v1/models", json={"uri": "file:sound", "name": "sound"})
    broken = post(daemon, "/v1/models", json={"uri": "file:broken"})
    file = post(daemon, "/v1/files?purpose=calibration&name=ids", body=RECORDS, headers={"Content-Type": NDJSON})
    calibration = {"file_id": file, "num_samples": 8, "sequence_length": 32}
    jobs = {}
    for name, body in {
            "gptq": dict(GPTQ, model=sound, calibration=calibration, metadata={"team": "search"}),
            "gguf": {"model": sound, "method": "rtn", "quantization": {"bits": 8, "group_size": 32}, "output": {"format": "gguf"}},
            "cache": {"model": sound, "method": "fp8", "calibration": calibration,
                      "quantization": {"kv_cache": {"dtype": "fp8_e4m3", "granularity": "per_tensor"}}},
            "deleted": {"model": sound, "method": "nf4"},
            "failed": dict(GPTQ, model=broken, calibration=calibration)}.items():
        jobs[name] = post(daemon, JOBS, json=body)
        equal(wait_job(daemon, jobs[name])["status"], "failed" if name == "failed" else "succeeded", "status of %s" % name)
    artifact = daemon.get("%s/%s" % (JOBS, jobs["deleted"]))["result"]["artifact_id"]
    equal(daemon.request("DELETE", "/v1/artifacts/%s" % artifact).status, 204, "status of the deletion")
    jobs["cancelled"] = post(daemon, JOBS, json=dict(GPTQ, model=sound, calibration=STREAM))
    equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, jobs["cancelled"])).status, 202, "status of the cancellation")
    wait_job(daemon, jobs["cancelled"])
    expected = {"made_with": made_with(), "jobs": jobs, "answers": {name: answers(daemon, job) for name, job in jobs.items()},
                "models": daemon.get("/v1/models"), "files": daemon.get("/v1/files")}
    jobs["waits"] = post(daemon, JOBS, json=dict(GPTQ, model=sound, calibration=STREAM))
    answer = daemon.request("POST", "%s/%s/calibration?offset=0" % (JOBS, jobs["waits"]), headers={"Content-Type": NDJSON},
                            body=b"".join(RECORDS.splitlines(True)[:5]))
    equal(answer.status, 200, "status of the upload")
    jobs["running"] = kill_in_the_middle(daemon, dict(GPTQ, model=sound, calibration=calibration))
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        text = json.dumps(expected).encode()
        info = tarfile.TarInfo("expected.json")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
        for name in ("quantd.db", "blobs", "jobs"):
            archive.add(os.path.join(daemon.data, name), "data/" + name)
    shutil.rmtree(daemon.work)
    shutil.rmtree(root)
    print("%s: %d bytes" % (ARCHIVE, os.path.getsize(ARCHIVE)))


class Upgraded(Daemon):
    """This build on a copy of the directory; change(database) may edit it first."""

    def __init__(self, change=None):
        self.folder = tempfile.mkdtemp(prefix="quantd-upgrade-")
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(self.folder)
        with open(os.path.join(self.folder, "expected.json")) as file:
            self.expected = json.load(file)
        self.jobs, self.answers = self.expected["jobs"], self.expected["answers"]
        write_models(self.folder)
        data = os.path.join(self.folder, "data")
        if change is not None:
            database = sqlite3.connect(os.path.join(data, "quantd.db"))
            change(database, self.jobs)
            database.commit()
            database.close()
        super().__init__("--threads", "1", roots=[self.folder], data=data, env=PORTABLE)

    def __exit__(self, *what):
        super().__exit__(*what)
        shutil.rmtree(self.folder)

    def same_bytes(self, state):
        """A job ended in the files of the one that was never disturbed."""
        if made_with() != self.expected["made_with"]:
            print("bytes are not compared: %s made the directory, here is %s" % (self.expected["made_with"], made_with()))
            return
        digests = artifact_digests(self, state)
        for file in self.answers["gptq"]["artifact"]["files"]:
            if file["path"] != "quantd_manifest.json":  # names the device
                equal(digests[file["path"]], file["sha256"], "SHA-256 of %s" % file["path"])


def without_devices(warnings):
    """The processor that made the first blocks may have had wider vectors than this one."""
    return [warning for warning in warnings if warning["code"] != "device_changed"]


def holds(now, before, where):
    """Whatever was said is still said; there may be more. An output error that was not measured was 0 and is null; a job without a
    result names the device of today."""
    if where in tuple("%s.report.environment.device.%s" % (job, what) for job in ("failed", "cancelled") for what in ("name", "detail")):
        return
    if where.endswith(".mean_output_relative_mse") and before == 0 and now is None:
        return
    if isinstance(before, dict):
        true(isinstance(now, dict), "%s is an object: %r" % (where, now))
        for key, value in before.items():
            true(key in now, "%s has %s" % (where, key))
            holds(now[key], value, "%s.%s" % (where, key))
    elif isinstance(before, list):
        equal(len(now), len(before), "length of %s" % where)
        for i, value in enumerate(before):
            holds(now[i], value, "%s[%d]" % (where, i))
    else:
        equal(now, before, where)


def what_had_ended_is_served_as_it_was():
    with Upgraded() as daemon:
        for name, before in daemon.answers.items():
            holds(answers(daemon, daemon.jobs[name]), before, name)
            for file in (before["artifact"] or {"files": []})["files"]:
                path = "/v1/artifacts/%s/files/%s" % (before["artifact"]["id"], file["path"])
                answer = daemon.request("GET", path)
                equal(answer.status, 200, "status of GET %s" % path)
                equal(hashlib.sha256(answer.body).hexdigest(), file["sha256"], "SHA-256 of %s of %s" % (file["path"], name))
        for name in ("models", "files"):
            holds(daemon.get("/v1/" + name), daemon.expected[name], name)
        content = daemon.request("GET", "/v1/files/%s/content" % daemon.expected["files"]["first_id"])
        equal(content.body, RECORDS, "bytes of the file")
        true(len(daemon.get(JOBS + "?status=succeeded")["data"]) >= 4, "jobs are found by their status")
        equal([job["id"] for job in daemon.get(JOBS + "?metadata[team]=search")["data"]], [daemon.jobs["gptq"]], "jobs by metadata")


def what_was_running_goes_on():
    with Upgraded() as daemon:
        job = daemon.jobs["running"]
        state = succeed(daemon, job)
        seen = events(daemon, job)
        death = next(event["seq"] for event in seen if event["data"].get("reason") == "the daemon stopped without warning")
        before = [event["data"]["layer"] for event in seen if event["type"] == "layer" and event["seq"] < death]
        after = [event["data"]["layer"] for event in seen if event["type"] == "layer" and event["seq"] > death]
        true(len(before) >= 2, "two blocks were done before: %r" % before)
        equal(before + after, [0, 1, 2, 3], "blocks that were finished, before and after the upgrade")
        equal(without_devices(state["warnings"]), [], "warnings")
        equal(len(daemon.get("%s/%s/layers" % (JOBS, job))["data"]), 28, "rows of the report")
        daemon.same_bytes(state)


def blocks_of_an_older_version_are_solved_again():
    def age(database, jobs):
        changed = database.execute("UPDATE blocks SET body = json_remove(body, '$.version') WHERE job = ? AND number >= 1",
                                   (jobs["running"],)).rowcount
        true(changed >= 1, "there is a second block")

    with Upgraded(age) as daemon:
        job = daemon.jobs["running"]
        state = succeed(daemon, job)
        seen = events(daemon, job)
        death = next(event["seq"] for event in seen if event["data"].get("reason") == "the daemon stopped without warning")
        equal([event["data"]["layer"] for event in seen if event["type"] == "layer" and event["seq"] > death], [1, 2, 3],
              "blocks that were finished after the upgrade")
        said = without_devices(event["data"] for event in seen if event["type"] == "warning")
        equal([data["code"] for data in said], ["checkpoint_version"], "codes of the warnings among the events")
        true("block 1 was saved in version 0" in said[0]["message"] and "went on after block 0" in said[0]["message"],
             "the event says what was done: %r" % said)
        equal([warning["code"] for warning in without_devices(state["warnings"])], ["checkpoint_version"], "codes of the job's warnings")
        equal(len(daemon.get("%s/%s/layers" % (JOBS, job))["data"]), 28, "rows of the report")
        daemon.same_bytes(state)


def what_waited_for_calibration_takes_the_rest():
    with Upgraded() as daemon:
        job = daemon.jobs["waits"]
        equal(daemon.get("%s/%s" % (JOBS, job))["calibration"]["records"], 5, "records that were uploaded before")
        answer = daemon.request("POST", "%s/%s/calibration?offset=5&complete=1" % (JOBS, job), headers={"Content-Type": NDJSON},
                                body=b"".join(RECORDS.splitlines(True)[5:]))
        equal(answer.status, 200, "status of the upload (%r)" % answer)
        daemon.same_bytes(succeed(daemon, job))


def new_jobs_run_beside_old_ones():
    with Upgraded() as daemon:
        old = daemon.answers["gptq"]["job"]
        again = post(daemon, JOBS, json={"model": old["model"], "method": "gptq", "quantization": GPTQ["quantization"],
                                         "evaluation": GPTQ["evaluation"],
                                         "calibration": {"file_id": old["calibration"]["file_id"], "num_samples": 8, "sequence_length": 32}})
        daemon.same_bytes(succeed(daemon, again))
        for name, job in daemon.jobs.items():
            if name != "waits":
                wait_job(daemon, job)
                equal(daemon.request("DELETE", "%s/%s" % (JOBS, job)).status, 204, "status of the deletion")


if "--record" in sys.argv:
    record()
else:
    main([what_had_ended_is_served_as_it_was, what_was_running_goes_on, blocks_of_an_older_version_are_solved_again,
          what_waited_for_calibration_takes_the_rest, new_jobs_run_beside_old_ones])
