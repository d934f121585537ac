"""API keys: who may do what, from the table of routes itself; how keys are made, end, and stay secret."""

import http.client
import json
import os
import socket
import subprocess
import tempfile

from guarded import Guarded, key_command, make_key
from harness import BINARY, JOBS, NDJSON, Daemon, Skip, equal, gptq_body, ids_records, main, true, wait_until

ABSENT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
PREFIXES = {"model_id": "mdl", "file_id": "file", "upload_id": "upl", "job_id": "job", "artifact_id": "art", "key_id": "key",
            "webhook_id": "wh", "delivery_id": "msg"}
RANKS = {"none": 0, "read": 1, "write": 2, "admin": 3}
DATA_SET = ids_records(30, 160, 2048)


def operations(daemon):
    """(method, path, operation) of every route."""
    document = daemon.request("GET", "/openapi.json").json
    return [(method.upper(), path, operation) for path, item in document["paths"].items()
            for method, operation in item.items()]


def send(daemon, key, method, path, operation):
    """A request of the operation that is as far as possible one that it takes."""
    content = operation.get("requestBody", {}).get("content", {})
    headers = {"Content-Type": next(iter(content))} if content else {}
    body = None if not content else b"{}" if "application/json" in content else b""
    return daemon.ask(key, method, path, headers=headers, body=body)


def fill(path, ids):
    return path.format(**dict({"name": "rtn", "path": "config.json", "asset": "app.js", "project": "default"}, **ids))


def every_route_by_scope():
    absent = {name: prefix + "_" + ABSENT for name, prefix in PREFIXES.items()}
    with Guarded() as daemon:
        seen = set()
        for method, path, operation in operations(daemon):
            scope = operation["x-scope"]
            seen.add(scope)
            what = "%s %s with " % (method, path)
            for held in (None, "read", "write", "admin"):
                answer = send(daemon, daemon.keys.get(held), method, fill(path, absent), operation)
                if scope == "none":
                    true(answer.status not in (401, 403), what + "%s: %r" % (held, answer))
                elif held is None:
                    equal((answer.status, answer.json["code"]), (401, "invalid_api_key"), what + "no key")
                    true(answer.headers["www-authenticate"].startswith("Bearer"), what + "no key: WWW-Authenticate")
                elif RANKS[held] < RANKS[scope]:
                    equal((answer.status, answer.json["code"]), (403, "insufficient_scope"), what + held)
                    true('scope="%s"' % scope in answer.headers["www-authenticate"], what + held + ": names the scope")
                else:
                    true(answer.status not in (401, 403), what + "%s: %r" % (held, answer))
            answer = send(daemon, "qd_" + "a" * 52, method, fill(path, absent), operation)
            equal(answer.status == 401, scope != "none", what + "a key that nobody made")
        equal(seen, set(RANKS), "scopes of the table")


def objects_of(daemon, key):
    ask = lambda *words, **more: daemon.ask(key, *words, **more)
    ndjson = {"Content-Type": NDJSON}
    model = ask("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
    file = ask("POST", "/v1/files?purpose=calibration", body=DATA_SET, headers=ndjson).json["id"]
    upload = ask("POST", "/v1/uploads?purpose=calibration",
                 headers=dict(ndjson, **{"Upload-Length": "10", "Upload-Complete": "?0"})).json["id"]
    body = gptq_body(model)
    body["calibration"] = {"file_id": file, "num_samples": 8, "sequence_length": 64}
    job = ask("POST", JOBS, json=body)
    equal(job.status, 201, repr(job))
    job = job.json["id"]
    ended = wait_until(lambda: (lambda state: state["status"] in ("succeeded", "failed") and state)(
        ask("GET", JOBS + "/" + job).json), "the job ends", 120)
    equal(ended["status"], "succeeded", repr(ended["error"]))
    webhook = ask("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/", "disabled": True}).json["id"]
    delivery = ask("POST", "/v1/webhooks/%s/test" % webhook).json["id"]
    return {"model_id": model, "file_id": file, "upload_id": upload, "job_id": job, "artifact_id": ended["result"]["artifact_id"],
            "webhook_id": webhook, "delivery_id": delivery}


def other_projects_are_not_there():
    absent = {name: prefix + "_" + ABSENT for name, prefix in PREFIXES.items()}
    with Guarded("--webhook-host", "hooks.example.com") as daemon:
        ids = objects_of(daemon, daemon.keys["write"])
        for method, path, operation in operations(daemon):
            if operation["x-scope"] == "admin" or not any("{%s}" % name in path for name in ids):
                continue
            what = "%s %s of another project" % (method, path)
            foreign = send(daemon, daemon.other, method, fill(path, dict(absent, **ids)), operation)
            missing = send(daemon, daemon.other, method, fill(path, absent), operation)
            equal((foreign.status, foreign.json["code"]), (missing.status, missing.json["code"]), what)
            if "requestBody" not in operation or not operation["requestBody"].get("required"):
                equal(foreign.status, 404, what)
        counted = lambda key: daemon.ask(key, "GET", "/v1/system").json["jobs"].get("succeeded", 0)
        equal((counted(daemon.keys["read"]), counted(daemon.other)), (1, 0), "jobs that GET /v1/system counts")
        equal(daemon.ask(daemon.keys["write"], "GET", "/metrics").json["code"], "insufficient_scope", "counts of all projects")
        true('quantd_jobs{status="succeeded"} 1' in daemon.ask(daemon.keys["admin"], "GET", "/metrics").body.decode(), "for administrators")
        stream = daemon.ask(daemon.other, "GET", "%s/%s/events" % (JOBS, ids["job_id"]),
                            headers={"Accept": "text/event-stream"})
        equal(stream.status, 404, "an event stream of another project")
        for path in ("/v1/models", "/v1/files", "/v1/uploads", JOBS, "/v1/artifacts", "/v1/webhooks"):
            equal(daemon.ask(daemon.other, "GET", path).json["data"], [], path + " of another project")
            equal(len(daemon.ask(daemon.keys["read"], "GET", path).json["data"]), 1, path + " of the project")
        body = gptq_body(ids["model_id"])
        equal(daemon.ask(daemon.other, "POST", JOBS, json=body).status, 400, "a job for a model of another project")
        own = daemon.ask(daemon.other, "POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        answer = daemon.ask(daemon.other, "POST", JOBS, json=gptq_body(own, webhook_id=ids["webhook_id"]))
        equal((answer.status, answer.json["param"]), (400, "/webhook_id"), "a job that names a webhook of another project")
        named = {"Idempotency-Key": "one"}
        first = daemon.ask(daemon.keys["write"], "POST", "/v1/models", json={"uri": "file:tiny-llama"}, headers=named)
        second = daemon.ask(daemon.other, "POST", "/v1/models", json={"uri": "file:tiny-llama"}, headers=named)
        equal(second.status, 201, "the same idempotency key in another project")
        true(first.json["id"] != second.json["id"] and "idempotency-replayed" not in second.headers, "its own object")


def tools_by_scope():
    """An agent's tool needs the scope of its route, whatever the endpoint needs."""
    with Guarded() as daemon:
        for held, tool, arguments, code in (("read", "list_models", {}, None), ("read", "submit_job", {}, "insufficient_scope"),
                                            ("write", "submit_job", {}, "missing_parameter")):
            answer = daemon.ask(daemon.keys[held], "POST", "/mcp", json={
                "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
            result = answer.json["result"]["structuredContent"]
            equal(result.get("code"), code, "%s with the scope %s" % (tool, held))


def malformed_keys():
    with Guarded() as daemon:
        good = daemon.keys["read"]
        for value in ("", "Bearer", "Bearer ", good, "Basic " + good, "Bearer " + good[:-1], "Bearer " + good + "a",
                      "Bearer " + good + " ", "Bearer qd_" + "A" * 52, "Bearer qd-" + good[3:], "Bearer " + good + ",x",
                      "Bearer " + good + " " + good, "Bearer\t" + good, "Bearer " + "q" * 4000):
            answer = daemon.request("GET", "/v1/models", headers={"Authorization": value})
            # blanks around a header's value are not part of it
            expected = 200 if value.strip() == "Bearer " + good else 401
            equal(answer.status, expected, "Authorization: %r" % value[:80])
        equal(daemon.request("GET", "/v1/models", headers={"Authorization": "bearer  " + good}).status, 200, "the scheme in lower case")
        equal(daemon.request("GET", "/v1/models?key=" + good).status, 401, "a key in the query")


def keys_over_rest():
    with Guarded() as daemon:
        admin = daemon.keys["admin"]
        made = daemon.ask(admin, "POST", "/v1/api_keys", json={"scope": "write", "name": "ci", "project": "search"})
        equal(made.status, 201, repr(made))
        key = made.json
        equal((key["scope"], key["project"], key["last_used_at"]), ("write", "search", None))
        path = "/v1/api_keys/" + key["id"]
        equal(made.headers["location"], path, "Location")
        equal(daemon.ask(key["key"], "GET", "/v1/models").json["data"], [], "models of the new project")
        stored = daemon.ask(admin, "GET", path)
        true("key" not in stored.json and key["key"] not in stored.body.decode(), "the text is shown once")
        true(stored.json["last_used_at"] is not None, "the last use is noted")
        equal(len(daemon.ask(admin, "GET", "/v1/api_keys").json["data"]), 5, "keys listed")
        page = daemon.ask(admin, "GET", "/v1/api_keys?limit=1").json
        equal((page["data"][0]["id"], page["has_more"]), (key["id"], True), "newest first")
        equal(daemon.ask(admin, "DELETE", path).status, 204, "revocation")
        refused = daemon.ask(key["key"], "GET", "/v1/models")
        equal((refused.status, "revoked" in refused.json["detail"]), (401, True), "a revoked key: %r" % refused)
        equal(daemon.ask(admin, "DELETE", path).status, 204, "revoked once more")
        equal(daemon.ask(admin, "GET", path).json["revoked_at"] is not None, True, "it says when")
        for body, param in (({}, "/scope"), ({"scope": "root"}, "/scope"), ({"scope": "read", "project": "A b"}, "/project"),
                            ({"scope": "read", "expires_after_seconds": -1}, "/expires_after_seconds"),
                            ({"scope": "read", "colour": 1}, "/colour")):
            answer = daemon.ask(admin, "POST", "/v1/api_keys", json=body)
            equal((answer.status, answer.json["param"]), (400, param), repr(body))


def keys_end():
    with Guarded() as daemon:
        key = make_key(daemon.data, "read", "default", "--expires-after-seconds", "2")
        equal(daemon.ask(key, "GET", "/v1/models").status, 200, "a key that was made while the daemon runs")
        answer = wait_until(lambda: (lambda a: a.status == 401 and a)(daemon.ask(key, "GET", "/v1/models")), "it expires")
        true("expired" in answer.json["detail"], "it says so: %r" % answer)
        listed = key_command(daemon.data, "list").stdout.splitlines()
        equal(len(listed), 6, "lines of key list")
        reader = next(line.split("\t")[0] for line in listed if line.split("\t")[1] == "read" and line.split("\t")[4] == "-")
        equal(daemon.ask(daemon.keys["read"], "GET", "/v1/models").status, 200, "before the revocation")
        equal(key_command(daemon.data, "revoke", reader).returncode, 0, "exit status of key revoke")
        wait_until(lambda: daemon.ask(daemon.keys["read"], "GET", "/v1/models").status == 401, "a revocation from outside is seen")


def bodies_with_unknown_keys():
    """The first request of a key is looked up before its body is read: of any size, also an empty one."""
    with Guarded() as daemon:
        for size in (0, 10, 100_000, 3_000_000):
            line = json.dumps({"text": "x" * 90}).encode() + b"\n"
            body = (line * (size // len(line) + 1))[:size - size % len(line)] if size else b""
            key = make_key(daemon.data, "write")
            answer = daemon.ask(key, "POST", "/v1/files?purpose=calibration", body=body, headers={"Content-Type": NDJSON}, timeout=20)
            true(answer.status in (201, 400), "%d bytes: %r" % (len(body), answer))
            answer = daemon.ask("qd_" + "b" * 52, "POST", "/v1/files?purpose=calibration", body=body,
                                headers={"Content-Type": NDJSON}, timeout=20)
            equal(answer.status, 401, "%d bytes without a key" % len(body))


def secrets_stay_secret():
    with Guarded() as daemon:
        admin = daemon.keys["admin"]
        made = daemon.ask(admin, "POST", "/v1/api_keys", json={"scope": "read"}).json["key"]
        daemon.ask(made, "GET", "/v1/models")
        daemon.ask(made, "POST", "/v1/models", json={"uri": "file:secret-body"})
        daemon.ask("qd_" + "c" * 52, "GET", "/v1/models")
        daemon.ask(admin, "POST", "/v1/models", json={"uri": "file:secret-body"})
        secrets = list(daemon.keys.values()) + [daemon.other, made, "qd_" + "c" * 52]
        log = daemon.log_tail(1 << 20)
        true("secret-body" not in log, "a body is in the log")
        for secret in secrets:
            true(secret not in log, "a key is in the log")
        for folder, _, names in os.walk(daemon.data):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    content = file.read()
                for secret in secrets:
                    true(secret.encode() not in content, "a key is in %s" % name)


def rates():
    with Guarded("--requests-per-key", "5") as daemon:
        answers = [daemon.ask(daemon.keys["read"], "GET", "/v1/models") for _ in range(40)]
        limited = [answer for answer in answers if answer.status == 429]
        true(len(limited) >= 5 and answers[0].status == 200, "a key is limited: %r" % [answer.status for answer in answers])
        equal((limited[0].json["code"], "retry-after" in limited[0].headers), ("rate_limited", True))
        equal(daemon.ask(daemon.keys["write"], "GET", "/v1/models").status, 200, "another key is not")
        equal({daemon.request("GET", "/livez").status for _ in range(40)}, {200}, "probes are not")
        wait_until(lambda: daemon.ask(daemon.keys["read"], "GET", "/v1/models").status == 200, "it may ask again")
    with Guarded("--requests-per-address", "5") as daemon:
        statuses = [daemon.request("GET", "/v1/models").status for _ in range(40)]
        equal(set(statuses), {401, 429}, "guesses from one address")


def rates_of_ipv4_clients_on_ipv6():
    """Behind a listener of both families each address of IPv4 has a rate of its own."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            raise Skip("there is no IPv6 here")
    with Guarded("--listen", "[::]:0", "--trust-proxy", "--requests-per-address", "1") as daemon:
        def status(source):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60, source_address=(source, 0))
            connection.request("GET", "/v1/models", headers={"Authorization": "Bearer " + daemon.keys["read"]})
            try:
                return connection.getresponse().status
            finally:
                connection.close()
        wait_until(lambda: status("127.0.0.1") == 429, "one address has used up its rate")
        equal(status("127.0.0.2"), 200, "another address")


def quota_of_queued_jobs():
    with Guarded("--max-queued-per-project", "1") as daemon:
        def submit(key):
            model = daemon.ask(key, "POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
            return daemon.ask(key, "POST", JOBS, json=gptq_body(model))
        first = submit(daemon.keys["write"])
        equal(first.status, 201, repr(first))
        second = submit(daemon.keys["write"])
        equal((second.status, second.json["code"], "retry-after" in second.headers), (429, "quota_exceeded", True))
        equal(submit(daemon.other).status, 201, "a job of another project")
        daemon.ask(daemon.keys["write"], "POST", "%s/%s/cancel" % (JOBS, first.json["id"]))
        equal(submit(daemon.keys["write"]).status, 201, "once the first is cancelled")


def audit_log():
    with Guarded() as daemon:
        made = daemon.ask(daemon.keys["admin"], "POST", "/v1/api_keys", json={"scope": "read", "name": "not-in-the-log"}).json
        daemon.ask(made["key"], "GET", "/v1/models")
        daemon.ask(made["key"], "DELETE", "/v1/models/mdl_" + ABSENT)
        daemon.request("GET", "/v1/models")
        for tool, arguments in (("list_models", {}), ("submit_job", {"model": {"uri": "file:tiny-llama"}, "method": "rtn"})):
            for held in ("read", "write"):
                daemon.ask(daemon.keys[held], "POST", "/mcp", json={
                    "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        path = os.path.join(daemon.data, "audit.log")
        everything = lambda: [json.loads(line) for line in open(path)]
        lines = lambda: [line for line in everything() if line["request"] is not None]
        wait_until(lambda: len(lines()) == 5, "five lines")
        of_commands = [line for line in everything() if line["request"] is None]
        equal([(line["operation"], line["status"], line["project"]) for line in of_commands],
              [("create_api_key", 201, project) for project in ("default", "default", "default", "other")], "keys made by the command")
        key_id = of_commands[-1]["object"].rsplit("/", 1)[1]
        equal(key_command(daemon.data, "revoke", key_id).returncode, 0)
        equal({name: value for name, value in everything()[-1].items() if name != "at"},
              {"request": None, "client": "uid:%d" % os.getuid(), "key": None, "project": "other", "operation": "delete_api_key",
               "object": key_id, "status": 204}, "a key revoked by the command")
        true(key_command(daemon.data, "revoke", "key_" + ABSENT).returncode != 0 and len(everything()) == 10, "nothing for a key that is not there")
        equal([(line["operation"], line["status"]) for line in lines()],
              [("create_api_key", 201), ("delete_model", 403), ("list_models", 401),
               ("create_job", 403), ("create_job", 201)])
        equal([line["key"] for line in lines()][1:3], [made["id"], None], "who")
        true(lines()[3]["object"] is None and lines()[4]["object"].startswith(JOBS + "/job_"), "what a tool made")
        equal([line["object"] for line in lines()][:2], ["/v1/api_keys/" + made["id"], "mdl_" + ABSENT], "what")
        equal(os.stat(path).st_mode & 0o777, 0o600, "its mode")
        text = open(path).read()
        true(made["key"] not in text and "not-in-the-log" not in text, "neither secrets nor bodies")


def keys_without_a_line():
    """A key that the audit log does not have is not given out."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink("/dev/full", os.path.join(folder, "audit.log"))
        done = key_command(folder, "create", "--scope", "admin")
        true(done.returncode == 1 and done.stdout == "" and "audit log" in done.stderr, repr(done))
        listed = key_command(folder, "list").stdout.splitlines()
        true(len(listed) == 2 and listed[1].split("\t")[6] != "-", "it is revoked: %r" % listed)


def starts():
    def refused(words, *options):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([BINARY, "--data-dir", os.path.join(folder, "data"), *options], capture_output=True,
                                  text=True, timeout=60, stdin=subprocess.DEVNULL)
            equal(done.returncode, 2, "exit status with %r" % (options,))
            true(words in done.stderr, "%r: %s" % (options, done.stderr))

    refused("quantd key create", "--auth", "keys", "--listen", "127.0.0.1:0")
    refused("--auth keys", "--listen", "0.0.0.0:0", "--trust-proxy")
    refused("--trust-proxy", "--listen", "0.0.0.0:0", "--auth", "keys")
    refused("--tls-certificate", "--listen", "0.0.0.0:0", "--auth", "keys")
    refused("neither none nor keys", "--auth", "basic")
    with tempfile.TemporaryDirectory() as folder:
        for words in ((), ("create",), ("create", "--scope", "root"), ("revoke",), ("burn",), ("list", "x"),
                      ("create", "--scope", "read", "--project", "../x"), ("revoke", "key_" + ABSENT)):
            true(key_command(os.path.join(folder, "data"), *words).returncode in (1, 2), "quantd key %r" % (words,))


main([every_route_by_scope, other_projects_are_not_there, tools_by_scope, malformed_keys, keys_over_rest, keys_end,
      bodies_with_unknown_keys, secrets_stay_secret, rates, rates_of_ipv4_clients_on_ipv6, quota_of_queued_jobs, audit_log, keys_without_a_line, starts])
