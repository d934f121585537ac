"""Every route of the REST subset, with what it answers to good, conditional and impossible requests."""

import json
import socket

from harness import JOBS, NDJSON, Call, Daemon, equal, gptq_body, ids_records, main, new_job, sha256, succeed, true

DATA_SET = ids_records(10, 64, 2048)
NO_JOB = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"


def header(name, value):
    return lambda answer, saved: equal(answer.headers.get(name), value, name)


def health_and_system():
    with Daemon() as daemon:
        daemon.run([
            Call("GET", "/livez"),
            Call("HEAD", "/livez"),
            Call("GET", "/readyz"),
            Call("GET", "/v1/system", check=lambda answer, saved: true(
                answer.json["version"] and answer.json["devices"] and answer.json["formats"], "system tells of itself")),
            Call("GET", "/nothing", status=404, code="not_found"),
            Call("POST", "/livez", status=405, code="method_not_allowed", check=header("allow", "GET, HEAD")),
            Call("DELETE", "/v1/system", status=405),
            Call("GET", "/livez?x=1", status=400, code="unknown_parameter", param="?x"),
            Call("GET", "/v1/system", headers={"Accept": "image/png"}, status=406, code="not_acceptable"),
        ])


def methods():
    with Daemon() as daemon:
        listed = daemon.get("/v1/methods")["data"]
        names = [method["name"] for method in listed]
        true({"rtn", "gptq"} <= set(names), "rtn and gptq are listed: %r" % names)
        for name in names:
            method = daemon.get("/v1/methods/" + name)
            schema = json.dumps(method)
            equal("\"modules_to_not_convert\"" in schema, not method["follows"], "the schema of %s names what all take" % name)
            equal(len(method["formats"]) > 0, not method["analysis"], "formats of %s" % name)
        daemon.run([Call("GET", "/v1/methods/none", status=404, code="not_found")])


def models():
    with Daemon() as daemon:
        daemon.run([
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama", "name": "a"}, status=201, save="model",
                 headers={"Idempotency-Key": "k1"}),
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama", "name": "a"}, status=201, save="again",
                 headers={"Idempotency-Key": "k1"}, check=header("idempotency-replayed", "true")),
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama", "name": "b"}, status=422,
                 headers={"Idempotency-Key": "k1"}, code="idempotency_key_reused"),
            Call("GET", "/v1/models/{model[id]}", save="got"),
            Call("GET", "/v1/models", check=lambda answer, saved: equal(len(answer.json["data"]), 1)),
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama", "expected_sha256": "0" * 64}, status=422,
                 code="digest_mismatch"),
            Call("POST", "/v1/models", json={}, status=400, code="missing_parameter", param="/uri"),
            Call("GET", "/v1/models/mdl_nonsense", status=404),
            Call("DELETE", "/v1/models/{model[id]}", status=204),
            Call("GET", "/v1/models/{model[id]}", status=404, code="not_found"),
        ], saved := {})
        equal(saved["again"]["id"], saved["model"]["id"], "id of the replay")
        model = saved["got"]
        equal((model["object"], model["architecture"], model["supported"]), ("model", "LlamaForCausalLM", True))
        equal(len(model["digest"]), 64, "length of the digest")


def files():
    ndjson = {"Content-Type": NDJSON}
    with Daemon() as daemon:
        daemon.run([
            Call("POST", "/v1/files?purpose=calibration&name=set", body=DATA_SET, headers=ndjson, status=201, save="file"),
            Call("GET", "/v1/files/{file[id]}",
                 check=lambda answer, saved: equal(answer.json["sha256"], sha256(DATA_SET))),
            Call("GET", "/v1/files/{file[id]}/content",
                 check=lambda answer, saved: equal(answer.body, DATA_SET, "content")),
            Call("GET", "/v1/files/{file[id]}/content", headers={"Range": "bytes=-5"}, status=206,
                 check=lambda answer, saved: equal(answer.body, DATA_SET[-5:], "content")),
            Call("GET", "/v1/files/{file[id]}/content", headers={"Range": "bytes=99999999-"}, status=416,
                 code="range_not_satisfiable"),
            Call("HEAD", "/v1/files/{file[id]}/content", check=header("content-length", str(len(DATA_SET)))),
            Call("GET", "/v1/files?purpose=evaluation", check=lambda answer, saved: equal(answer.json["data"], [])),
            Call("POST", "/v1/files", body=DATA_SET, headers=ndjson, status=400, param="?purpose"),
            Call("POST", "/v1/files?purpose=fun", body=DATA_SET, headers=ndjson, status=400, param="?purpose"),
            Call("POST", "/v1/files?purpose=calibration", body=b"x", headers={"Content-Type": "text/html"}, status=415),
            Call("POST", "/v1/files?purpose=calibration", body=DATA_SET, status=422, code="digest_mismatch",
                 headers=dict(ndjson, **{"Content-Digest":
                              "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"})),
            Call("DELETE", "/v1/files/{file[id]}", status=204),
            Call("GET", "/v1/files/{file[id]}", status=404),
        ])


def pages():
    with Daemon() as daemon:
        ids = [daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama", "name": str(n)}).json["id"]
               for n in range(5)]
        first = daemon.get("/v1/models?limit=2&order=asc")
        equal([model["id"] for model in first["data"]], ids[:2], "first page")
        equal((first["first_id"], first["last_id"], first["has_more"]), (ids[0], ids[1], True))
        rest = daemon.get("/v1/models?limit=100&order=asc&after=" + ids[1])
        equal([model["id"] for model in rest["data"]], ids[2:], "second page")
        equal(rest["has_more"], False, "has_more")
        down = daemon.get("/v1/models?limit=2")
        equal([model["id"] for model in down["data"]], ids[:2:-1], "newest first")
        daemon.run([
            Call("GET", "/v1/models?limit=0", status=400, code="invalid_parameter", param="?limit"),
            Call("GET", "/v1/models?limit=101", status=400, code="invalid_parameter", param="?limit"),
            Call("GET", "/v1/models?order=up", status=400, param="?order"),
            Call("GET", "/v1/models?after=bogus", status=400),
        ])


def jobs():
    with Daemon() as daemon:
        daemon.run([
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama"}, status=201, save="model"),
            Call("POST", JOBS, json=lambda saved: gptq_body(saved["model"]["id"], metadata={"team": "a"}), status=201,
                 save="job", headers={"Idempotency-Key": "j"}),
            Call("POST", JOBS, json=lambda saved: gptq_body(saved["model"]["id"], metadata={"team": "a"}), status=201,
                 headers={"Idempotency-Key": "j"}, check=header("idempotency-replayed", "true")),
            Call("GET", JOBS + "?metadata[team]=a", check=lambda answer, saved: equal(len(answer.json["data"]), 1)),
            Call("GET", JOBS + "?metadata%5Bteam%5D=b", check=lambda answer, saved: equal(answer.json["data"], [])),
            Call("GET", JOBS + "?status=awaiting_calibration&method=gptq",
                 check=lambda answer, saved: equal(answer.json["data"][0]["id"], saved["job"]["id"])),
            Call("GET", JOBS + "?status=strange", status=400, param="?status"),
            Call("GET", JOBS + "/{job[id]}", save="state",
                 check=lambda answer, saved: saved.update(etag=answer.headers["etag"])),
            Call("GET", JOBS + "/{job[id]}", headers={"If-None-Match": "{etag}"}, status=304),
            Call("GET", JOBS + "/{job[id]}", headers={"Prefer": "wait=1"}),
            Call("DELETE", JOBS + "/{job[id]}", status=409, code="job_state_conflict"),
            Call("GET", JOBS + "/{job[id]}/layers", check=lambda answer, saved: equal(answer.json["data"], [])),
            Call("GET", JOBS + "/{job[id]}/layers?sort=nothing", status=400, param="?sort"),
            Call("GET", JOBS + "/{job[id]}/layers", headers={"Accept": "image/png"}, status=406),
            Call("GET", JOBS + "/{job[id]}/events",
                 check=lambda answer, saved: equal(answer.json["data"][0]["type"], "status")),
            Call("GET", JOBS + "/{job[id]}/events", headers={"Last-Event-ID": "x"}, status=400),
            Call("DELETE", "/v1/models/{model[id]}", status=409, code="model_in_use"),
            Call("POST", JOBS + "/{job[id]}/cancel", json={"mode": "maybe"}, status=400, param="/mode"),
            Call("POST", JOBS + "/{job[id]}/cancel", status=202),
            Call("POST", JOBS + "/{job[id]}/cancel", status=202),
            Call("GET", JOBS + "/{job[id]}", check=lambda answer, saved: equal(answer.json["status"], "cancelled")),
            Call("GET", JOBS + "/{job[id]}/events", headers={"Accept": "text/event-stream"},
                 check=lambda answer, saved: true(b"cancelled" in answer.body, "the stream ends with the last status")),
            Call("DELETE", JOBS + "/{job[id]}", status=204),
            Call("GET", JOBS + "/{job[id]}", status=404),
            Call("GET", JOBS + "/" + NO_JOB, status=404, code="not_found"),
            Call("GET", JOBS + "/" + NO_JOB + "/report", status=404),
            Call("GET", JOBS + "/" + NO_JOB + "/events", status=404),
            Call("POST", JOBS + "/" + NO_JOB + "/cancel", status=404),
            Call("POST", JOBS + "/" + NO_JOB + "/calibration", body=DATA_SET, headers={"Content-Type": NDJSON},
                 status=404),
        ])


def artifacts():
    with Daemon() as daemon:
        job = new_job(daemon, ids_records(30, 160, 2048))
        state = succeed(daemon, job)
        saved = {"art": state["result"]["artifact_id"], "job": job}
        daemon.run([
            Call("GET", "/v1/artifacts?job_id={job}", check=lambda answer, saved: equal(len(answer.json["data"]), 1)),
            Call("GET", "/v1/artifacts/{art}"),
            Call("HEAD", "/v1/artifacts/{art}/files/config.json"),
            Call("GET", "/v1/artifacts/{art}/files/absent.json", status=404),
            Call("GET", "/v1/artifacts/{art}/files/%2e%2e/quantd.db", status=400),
            Call("DELETE", JOBS + "/{job}", status=204),
            Call("DELETE", "/v1/artifacts/{art}", status=204),
            Call("GET", "/v1/artifacts/{art}", status=404),
        ], saved)


def bare_post(daemon, path, more=""):
    """POST with neither a length nor a coding, as curl -X POST sends it; the status and the body."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as raw:
        raw.sendall(("POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n" % (path, more)).encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2]


def no_length_means_no_body():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        job = daemon.request("POST", JOBS, json=gptq_body(model)).json["id"]
        equal(bare_post(daemon, "/v1/nothing")[0], 404, "an unknown path")
        equal(bare_post(daemon, "/v1/methods")[0], 405, "a path that takes no POST")
        equal(bare_post(daemon, JOBS + "/" + NO_JOB + "/cancel")[0], 404, "an unknown job")
        equal(bare_post(daemon, "/v1/models")[0], 411, "a route that needs a body")
        equal(bare_post(daemon, JOBS + "/" + job + "/cancel")[0], 202, "a cancellation")


def accept_and_statuses():
    with Daemon() as daemon:
        html = {"Accept": "text/html"}
        commands = [Call("GET", path, headers=html, status=406, code="not_acceptable")
                    for path in ("/v1/models", "/v1/files", JOBS, "/v1/artifacts", "/v1/methods", "/v1/system",
                                 "/openapi.json")]
        commands += [Call("GET", path, headers=html, status=404)
                     for path in (JOBS + "/" + NO_JOB, JOBS + "/" + NO_JOB + "/layers", "/v1/models/x")]
        commands += [Call("POST", "/v1/models", headers=html, json={"uri": "file:tiny-llama"}, status=406),
                     Call("GET", "/v1/models", headers={"Accept": "text/html, */*;q=0.1"}),
                     Call("GET", "/livez", headers=html)]
        commands += [Call("GET", path, status=404, code="not_found")
                     for path in ("/v1/models/x", "/v1/files/x", JOBS + "/x", "/v1/artifacts/x", JOBS + "/x/layers",
                                  "/v1/models/", "/v1/methods/x")]
        commands += [Call("GET", JOBS + "?status=" + status, status=400, param="?status")
                     for status in ("validating", "finished")]
        commands += [Call("POST", "/v1/models", json={"uri": "file:tiny-llama"}, status=201, save="model"),
                     Call("POST", JOBS, json=lambda saved: gptq_body(saved["model"]["id"]), status=201, save="job"),
                     Call("POST", JOBS + "/{job[id]}/cancel", json={"mode": "now", "colour": 1}, status=400,
                          code="unknown_parameter", param="/colour")]
        daemon.run(commands)


main([no_length_means_no_body, accept_and_statuses, health_and_system, methods, models, files, pages, jobs, artifacts])
