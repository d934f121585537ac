"""POST /mcp as an agent uses it, and as it should not be used. tests/interop/test_mcp.py has the protocol's own client."""

import json

from harness import JOBS, Daemon, equal, gptq_body, ids_records, main, post, succeed, true

TOOLS = ["list_models", "list_methods", "recommend", "submit_job", "job_status", "report", "artifact_url"]
NO_JOB = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"


def rpc(daemon, method, params=None, **more):
    answer = daemon.request("POST", "/mcp", json={"jsonrpc": "2.0", "id": 7, "method": method, "params": params or {}}, **more)
    equal(answer.status, 200, "status (%r)" % answer)
    equal((answer.json["jsonrpc"], answer.json["id"]), ("2.0", 7))
    return answer.json


def call(daemon, name, failed=False, **arguments):
    result = rpc(daemon, "tools/call", {"name": name, "arguments": arguments})["result"]
    equal(result["isError"], failed, "isError of %r" % result)
    equal(json.loads(result["content"][0]["text"]), result["structuredContent"], "text and structure")
    return result["structuredContent"]


def a_session():
    with Daemon() as daemon:
        for asked, given in (("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25"), ("1999-01-01", "2025-11-25")):
            equal(rpc(daemon, "initialize", {"protocolVersion": asked})["result"]["protocolVersion"], given)
        answer = daemon.request("POST", "/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        equal((answer.status, answer.body), (202, b""))
        equal(rpc(daemon, "ping")["result"], {})
        tools = rpc(daemon, "tools/list")["result"]["tools"]
        equal([tool["name"] for tool in tools], TOOLS)
        for tool in tools:
            schema = tool["inputSchema"]
            equal(schema["type"], "object")
            text = json.dumps(schema)
            true("#/components" not in text, "references stay inside the schema of %s" % tool["name"])
        equal(daemon.request("GET", "/mcp").status, 405)


def a_job():
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(30, 160, 2048), headers={"Content-Type": "application/x-ndjson"})
        equal([row["id"] for row in call(daemon, "list_models", limit=5, order="asc")["data"]], [model])
        true("gptq" in [row["name"] for row in call(daemon, "list_methods")["data"]], "methods")
        ways = call(daemon, "recommend", model=model, goal="low_risk", accelerator="l4")["choices"]
        equal((ways[0]["name"], ways[0]["job"]["model"]), ("rtn-int8", model))
        body = gptq_body(model)
        body["calibration"] = {"file_id": file, "num_samples": 24, "sequence_length": 128}
        job = call(daemon, "submit_job", **body)["id"]
        succeed(daemon, job)
        state = call(daemon, "job_status", job_id=job)
        equal(state, daemon.get(JOBS + "/" + job), "the same job object")
        equal(call(daemon, "report", job_id=job), daemon.get(JOBS + "/" + job + "/report"), "the same report")
        urls = call(daemon, "artifact_url", artifact_id=state["result"]["artifact_id"])
        base = "http://127.0.0.1:%d" % daemon.port
        for file in urls["files"]:
            true(file["url"].startswith(base + "/v1/artifacts/"), "an absolute URL")
            equal(len(daemon.request("GET", file["url"][len(base):]).body), file["bytes"], "bytes of %s" % file["path"])


def failures_are_results():
    with Daemon() as daemon:
        equal(call(daemon, "job_status", failed=True, job_id=NO_JOB)["code"], "not_found")
        equal(call(daemon, "job_status", failed=True)["code"], "missing_parameter")
        equal(call(daemon, "job_status", failed=True, job_id="../x")["code"], "invalid_parameter")
        equal(call(daemon, "job_status", failed=True, job_id=NO_JOB, wait_for="terminal")["code"], "unknown_parameter")
        equal(call(daemon, "list_models", failed=True, limit=1000)["code"], "invalid_parameter")
        equal(call(daemon, "list_models", failed=True, limit=[1])["code"], "invalid_parameter")
        equal(call(daemon, "list_models", failed=True, **{"limit=1&order": "asc"})["code"], "unknown_parameter")
        problem = call(daemon, "submit_job", failed=True, method="gptq", colour=1)
        true({"/model", "/colour"} <= {error["param"] for error in problem["errors"]}, "each member is named: %r" % problem)
        equal(call(daemon, "list_models")["data"], [], "nothing is left of a failure")
        equal(daemon.get(JOBS)["data"], [])
        headers = {"Prefer": "wait=30", "If-None-Match": "*", "Idempotency-Key": "k", "Range": "bytes=0-1"}
        equal(rpc(daemon, "tools/call", {"name": "list_models"}, headers=headers)["result"]["isError"], False)
        for params in ({}, {"name": 1}, {"name": "delete_model"}, {"name": "list_models", "arguments": []}):
            equal(rpc(daemon, "tools/call", params)["error"]["code"], -32602)
        equal(rpc(daemon, "tools/none")["error"]["code"], -32601)


def messages_that_are_none():
    with Daemon() as daemon:
        good = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        for change, param in (({"jsonrpc": "1.0"}, "/jsonrpc"), ({"id": None}, "/id"), ({"id": 1.5}, "/id"), ({"method": 1}, "/method"),
                              ({"params": []}, "/params")):
            answer = daemon.request("POST", "/mcp", json=dict(good, **change))
            equal((answer.status, answer.json["errors"][0]["param"]), (400, param), "answer to %r" % change)
        for body in (b"", b"[]", b"{", b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', b'{"a":' * 40 + b"1" + b"}" * 40, b"\xff"):
            equal(daemon.request("POST", "/mcp", body=body, headers={"Content-Type": "application/json"}).status, 400, "status of %r" % body)
        answer = daemon.request("POST", "/mcp", json=good, headers={"MCP-Protocol-Version": "2024-11-05"})
        equal((answer.status, answer.json["errors"][0]["param"]), (400, "MCP-Protocol-Version"))
        equal(daemon.request("POST", "/mcp", json=dict(good, id="x" * (1 << 20))).status, 413)
        equal(daemon.request("POST", "/mcp", json=good, headers={"Origin": "http://evil.example"}).status, 403)


main([a_session, a_job, failures_are_results, messages_that_are_none])
