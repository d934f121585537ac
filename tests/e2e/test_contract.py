"""GET /openapi.json says what the daemon answers: every operation, called with success and with refusals.

The harness holds each answer to the document (contract.py); here no operation may be left out, and the checks themselves must find faults.
"""

import os
import tempfile

import contract
from harness import JOBS, NDJSON, Daemon, Failure, Skip, equal, gptq_body, ids_records, main, post, signing_key, true, wait_job


def every_operation_is_as_described():
    """One job of its whole life, and everything that can be asked about it."""
    if contract.jsonschema is None:
        raise Skip("jsonschema (python3-jsonschema) is not installed")
    with tempfile.TemporaryDirectory() as keys, Daemon("--webhook-host", "127.0.0.1:9", "--signing-key", signing_key(os.path.join(keys, "key"))) as daemon:
        seen = {}
        ask = daemon.request

        def request(method, path, **more):
            answer = ask(method, path, **more)
            operation = daemon.contract.operation(method, path.split("?")[0])
            if operation is not None:
                seen.setdefault(operation["operationId"], set()).add(answer.status)
            return answer

        daemon.request = request
        for path in ("/livez", "/readyz", "/openapi.json", "/v1/system", "/v1/methods", "/v1/methods/gptq", "/v1/architectures", "/v1/runtimes"):
            daemon.get(path)
        equal(daemon.request("GET", "/metrics").status, 200)
        for path in ("/", "/dashboard/app.js"):
            equal(daemon.request("GET", path).status, 200)
        for message, status in (({"id": 1, "method": "tools/list"}, 200), ({"id": 2, "method": "none"}, 200),
                                ({"method": "notifications/initialized"}, 202), ({"id": None}, 400)):
            equal(daemon.request("POST", "/mcp", json=dict(message, jsonrpc="2.0")).status, status)
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"}, headers={"Idempotency-Key": "a"})
        records = ids_records(64, 160, 256)
        file = post(daemon, "/v1/files?purpose=calibration&name=set", body=records, headers={"Content-Type": NDJSON})
        equal(daemon.request("POST", "/v1/quantization/estimates", json=gptq_body(model)).json["possible"], True)
        equal(daemon.request("POST", "/v1/quantization/recommendations", json={"model": model, "goal": "low_risk", "accelerator": "h200"}).status, 200)
        job = post(daemon, JOBS, json=gptq_body(model, metadata={"team": "search"}))
        equal(daemon.request("POST", "%s/%s/calibration?complete=1" % (JOBS, job), body=records,
                             headers={"Content-Type": NDJSON}).status, 200)
        state = daemon.get("%s/%s?wait_for=terminal" % (JOBS, job))
        while state["status"] == "running" or state["status"] == "queued":  # on a loaded host a minute may not do
            state = daemon.get("%s/%s?wait_for=terminal" % (JOBS, job))
        equal(state["status"], "succeeded", "status after the wait for the end")
        analysis = post(daemon, JOBS, json={"model": model, "method": "kv_analysis", "calibration": {"file_id": file}})
        wait_job(daemon, analysis)
        calibration = {"stream": True, "file_id": None, "num_samples": 24}  # null, as the job shows it
        stopped = post(daemon, JOBS, json=gptq_body(model, calibration=calibration))
        links = daemon.get("%s/%s" % (JOBS, stopped))["links"]
        equal(links["calibration"], "%s/%s/calibration" % (JOBS, stopped), "link of a job that waits for records")
        equal(links["artifact"], None, "link to what is not made yet")
        equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, stopped), json={"mode": "now"}).status, 202)
        held = post(daemon, JOBS, json=gptq_body(model, calibration={"file_id": file, "num_samples": 24, "sequence_length": 128}))
        for action, until in (("pause", "paused"), ("resume", None), ("cancel", "cancelled"), ("retry", "succeeded")):
            equal(daemon.request("POST", "%s/%s/%s" % (JOBS, held, action)).status, 202)
            if until is not None:
                wait_job(daemon, held, until=(until,))
        equal(daemon.request("PATCH", "%s/%s" % (JOBS, held), json={"name": "held", "priority": -1}).status, 200)
        daemon.get("/v1/quantization/compare?jobs=%s,%s" % (job, held))
        artifact = "/v1/artifacts/" + state["result"]["artifact_id"]
        equal((state["links"]["artifact"], state["links"]["cancel"]), (artifact, None), "links of a job that has succeeded")
        webhook = "/v1/webhooks/" + post(daemon, "/v1/webhooks", json={"url": "https://127.0.0.1:9/", "disabled": True})
        equal(daemon.request("PATCH", webhook, json={"name": "ci", "events": ["quantization.job.failed"]}).status, 200)
        equal(daemon.request("POST", webhook + "/secret").status, 200)
        delivery = daemon.request("POST", webhook + "/test")
        equal(delivery.status, 202)
        for path in ("/v1/webhooks", webhook, webhook + "/deliveries", webhook + "/deliveries/" + delivery.json["id"]):
            daemon.get(path)
        equal(daemon.request("DELETE", webhook).status, 204)
        key = post(daemon, "/v1/api_keys", json={"scope": "read", "name": "ci"})
        for path in ("/v1/api_keys", "/v1/api_keys/" + key):
            daemon.get(path)
        equal(daemon.request("DELETE", "/v1/api_keys/" + key).status, 204)
        equal(daemon.request("PUT", "/v1/projects/default/quota", json={"max_queued_jobs": 100}).status, 200)
        for path in ("/v1/projects", "/v1/projects/default/quota"):
            daemon.get(path)
        for path in ("/v1/models", "/v1/models/" + model, "/v1/files", "/v1/files/" + file, "/v1/artifacts", artifact,
                     JOBS + "?metadata[team]=search", "%s/%s" % (JOBS, job)):
            daemon.get(path)
        for done in (job, analysis, stopped):
            for part in ("events", "layers", "report"):
                daemon.get("%s/%s/%s" % (JOBS, done, part))
        for kind in ("text/csv", NDJSON):
            equal(daemon.request("GET", "%s/%s/layers" % (JOBS, job), headers={"Accept": kind}).status, 200)
        for kind in ("text/event-stream", NDJSON):
            equal(daemon.request("GET", "%s/%s/events" % (JOBS, job), headers={"Accept": kind}).status, 200)
        piece = {"Content-Type": "application/partial-upload", "Upload-Offset": "0", "Upload-Complete": "?0"}
        upload = "/v1/uploads/" + post(daemon, "/v1/uploads?purpose=model", headers={"Upload-Length": "3"})
        equal(daemon.request("PATCH", upload, body=b"abc", headers=piece).status, 204)
        daemon.get(upload)
        daemon.get("/v1/uploads")
        equal(daemon.request("PATCH", upload, body=b"", headers=dict(piece, **{
            "Upload-Offset": "3", "Upload-Complete": "?1"})).status, 201)
        equal(daemon.request("PATCH", upload, body=b"abc", headers=piece).status, 409)
        equal(daemon.request("DELETE", upload).status, 204)
        equal(daemon.request("POST", artifact + "/verify").json["intact"], True)
        equal(daemon.request("POST", artifact + "/signature").status, 200)
        for path in ("/v1/files/%s/content" % file, artifact + "/files/config.json", artifact + "/files/model.safetensors",
                     artifact + "/archive", artifact + "/oci", artifact + "/signature"):
            equal(daemon.request("GET", path).status, 200)
            equal(daemon.request("GET", path, headers={"Range": "bytes=0-9"}).status, 206)
            equal(daemon.request("GET", path, headers={"Range": "bytes=999999999-"}).status, 416)
            equal(daemon.request("GET", path, headers={"If-Match": '"x"'}).status, 412)
        for path in (artifact, artifact + "/oci/manifest", artifact + "/oci/config"):
            tag = daemon.request("GET", path).headers["etag"]
            equal(daemon.request("GET", path, headers={"If-None-Match": tag}).status, 304)
        for path in (artifact, "%s/%s" % (JOBS, job), "%s/%s" % (JOBS, analysis), "/v1/models/" + model, "/v1/files/" + file):
            equal(daemon.request("DELETE", path).status, 204)
            equal(daemon.request("DELETE", path).status, 404)
        for path in ("/v1/models", "/v1/files?purpose=calibration", JOBS, "%s/%s/calibration" % (JOBS, stopped)):
            equal(daemon.request("POST", path, body=b"").status, 415)
            equal(daemon.request("POST", path, body=b"", headers={"Content-Type": "text/plain"}).status, 415)
        wanted = {operation["operationId"] for item in daemon.contract.document["paths"].values() for operation in item.values()}
        for operation in sorted(wanted):
            if not any(status < 300 for status in seen.get(operation, ())):
                raise Failure("%s was not called with success" % operation)


def answers_that_differ_are_found():
    """A contract that accepts anything would prove nothing."""
    if contract.jsonschema is None:
        raise Skip("jsonschema (python3-jsonschema) is not installed")
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        path = "/v1/models/" + model
        answer = daemon.request("GET", path)
        faults = lambda status, kind, body: daemon.contract.faults("GET", path, status, kind, body)
        equal(faults(200, "application/json", answer.body), [])
        true(faults(418, "application/json", answer.body), "a status that is not listed is found")
        true(faults(200, "text/plain", answer.body), "a content type that is not listed is found")
        true(faults(200, "application/json", answer.body.replace(b'"dtype"', b'"kind"')), "another member is found")
        true(faults(200, "application/json", answer.body.replace(b'"mdl_', b'"job_')), "another id is found")
        true(faults(404, "application/problem+json", b"{}"), "a problem without members is found")


main([every_operation_is_as_described, answers_that_differ_are_found])
