"""gptq with output moments: rows say what it gained, kill -9 in the pass and after it leaves no trace, and what cannot have them is refused.
"""

import os
import tempfile
import time

import checkpoint
import rows
from harness import JOBS, NDJSON, Daemon, artifact_digests, equal, gptq_body, ids_records, main, post, succeed, true

RECORDS = ids_records(24, 160, 2048)


def submit(daemon, uri="file:tiny-llama"):
    model = post(daemon, "/v1/models", json={"uri": uri})
    file = post(daemon, "/v1/files?purpose=calibration", headers={"Content-Type": NDJSON}, body=RECORDS)
    return post(daemon, JOBS, json=body_of(model, file))


def body_of(model, file, **more):
    body = gptq_body(model, calibration={"file_id": file, "num_samples": 24, "sequence_length": 128}, **more)
    body["quantization"] = {"bits": 2, "group_size": 64, "output_moments": True}
    return body


def kills_leave_no_trace():
    with Daemon("--threads", "1") as daemon:
        job = submit(daemon)
        expected = artifact_digests(daemon, succeed(daemon, job))
        rows = daemon.get("%s/%s/layers" % (JOBS, job))["data"]
        equal(len(rows), 28, "rows")
        true(all(0 < row["two_sided_loss"] <= row["two_sided_start"] for row in rows), "losses")
    with Daemon("--threads", "2") as daemon:
        job = submit(daemon)
        for phase in ("measuring", "quantizing"):
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                state = daemon.get("%s/%s" % (JOBS, job))
                if state["status"] == "succeeded" or state["phase"] == phase:
                    break
                time.sleep(0.02)
            daemon.kill()
            daemon.start()
        equal(artifact_digests(daemon, succeed(daemon, job)), expected, "files after kill -9")


def what_cannot_have_them_is_refused():
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        file = post(daemon, "/v1/files?purpose=calibration", headers={"Content-Type": NDJSON}, body=RECORDS)
        answer = daemon.request("POST", JOBS, json={**body_of(model, file), "method": ["awq", "gptq"]})
        equal(answer.status, 422, "status of awq before it (%r)" % answer)
        equal([error["param"] for error in answer.json["errors"]], ["/quantization/output_moments"], "what is refused")
    with tempfile.TemporaryDirectory() as root:
        for family in ("nemotron_h", "qwen3_next"):
            rows.write(os.path.join(root, family), rows.rows()[family])
        checkpoint.write(os.path.join(root, "unknown"), {**checkpoint.config(), "architectures": ["UnknownForCausalLM"], "model_type": "unknown"})
        with Daemon("--model-root", root) as daemon:
            file = post(daemon, "/v1/files?purpose=calibration", headers={"Content-Type": NDJSON}, body=RECORDS)
            for family in ("nemotron_h", "qwen3_next"):
                model = post(daemon, "/v1/models", json={"uri": "file:" + family})
                for method in ("gptq", "autoround"):
                    answer = daemon.request("POST", JOBS, json={**body_of(model, file), "method": method})
                    equal(answer.status, 422, "status of %s of %s (%r)" % (method, family, answer))
                    found = [error["detail"] for error in answer.json["errors"] if error["param"] == "/quantization/output_moments"]
                    true(found and "no backward pass" in found[0], "%s of %s: %r" % (method, family, answer.json["errors"]))
            model = post(daemon, "/v1/models", json={"uri": "file:unknown", "mode": "model_free"})
            answer = daemon.request("POST", JOBS, json={**body_of(model, file), "mode": "model_free"})
            equal(answer.status, 422, "status of a bare model (%r)" % answer)
            true("/method" in [error["param"] for error in answer.json["errors"]], "the method is refused: %r" % answer.json["errors"])


main([kills_leave_no_trace, what_cannot_have_them_is_refused])
