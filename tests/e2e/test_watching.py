"""What a person or a collector sees of requests and jobs: traces, and the log as JSON and on a terminal."""

import os
import pty
import re
import subprocess

from harness import BINARY, JOBS, Daemon, equal, gptq_body, ids_records, main, succeed, true

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00-%s-00f067aa0ba902b7-01" % ID
TRACE = {"traceparent": PARENT, "tracestate": "vendor=1"}


def traced_job(daemon, headers):
    model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
    answer = daemon.request("POST", JOBS, json=gptq_body(model), headers=headers)
    equal(answer.status, 201, "status (%r)" % answer)
    return answer


def trace_goes_to_the_job_its_events_and_lines():
    with Daemon() as daemon:
        answer = traced_job(daemon, TRACE)
        job = answer.json["id"]
        equal((answer.json["traceparent"], answer.json["tracestate"]), (PARENT, "vendor=1"))
        daemon.request("POST", "%s/%s/calibration?complete=1" % (JOBS, job), body=ids_records(30, 160, 2048),
                       headers={"Content-Type": "application/x-ndjson"})
        equal(succeed(daemon, job)["traceparent"], PARENT)
        events = daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"]
        equal({event["traceparent"] for event in events}, {PARENT}, "events")
        stream = daemon.request("GET", "%s/%s/events" % (JOBS, job), headers={"Accept": "text/event-stream"})
        equal(stream.body.count(PARENT.encode()), len(events), "events of the stream")
        line = daemon.wait_line("request", request=answer.headers["x-request-id"])
        equal(line["trace_id"], ID, "line of the request")
        moves = [line for line in daemon.log_lines() if line["message"] == "job status" and line["job"] == job]
        equal([(line["from"], line["to"]) for line in moves],
              [(None, "awaiting_calibration"), ("awaiting_calibration", "queued"), ("queued", "running"), ("running", "succeeded")])
        equal({line["trace_id"] for line in moves}, {ID}, "lines of the job")
        other = daemon.request("GET", "/livez")
        true("trace_id" not in daemon.wait_line("request", request=other.headers["x-request-id"]), "another request has no trace")


def trace_survives_the_daemon():
    with Daemon() as daemon:
        job = traced_job(daemon, TRACE).json["id"]
        daemon.kill()
        daemon.start()
        state = daemon.get("%s/%s" % (JOBS, job))
        equal((state["traceparent"], state["tracestate"]), (PARENT, "vendor=1"))


def trace_that_is_none_is_ignored():
    with Daemon() as daemon:
        for headers in ({}, {"traceparent": "00-" + "0" * 32 + "-00f067aa0ba902b7-01"}, {"tracestate": "vendor=1"},
                        {"traceparent": PARENT + "x"}, {"traceparent": PARENT.upper()}, {"traceparent": "x" * 4000}):
            job = traced_job(daemon, headers).json
            equal((job["traceparent"], job["tracestate"]), (None, None), "trace of %r" % headers)
            equal(daemon.get("%s/%s/events" % (JOBS, job["id"]))["data"][0]["traceparent"], None)


def failures_and_cancellations_are_lines():
    with Daemon() as daemon:
        job = traced_job(daemon, {}).json["id"]
        equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202)
        line = daemon.wait_line("job status", job=job, to="cancelled")
        equal((line["from"], line["reason"], line["level"]), ("awaiting_calibration", "cancelled by request", "info"))


def requests_have_what_an_operator_asks_for():
    with Daemon() as daemon:
        answer = daemon.request("POST", "/v1/models?x=secret", json={"uri": "file:secret"})
        line = daemon.wait_line("request", request=answer.headers["x-request-id"])
        true({"method", "route", "status", "bytes_in", "bytes_out", "seconds", "request"} <= set(line), "members: %r" % line)
        equal((line["method"], line["route"], line["status"]), ("POST", "/v1/models", 400))
        true("secret" not in daemon.log_tail(), "neither queries nor bodies are in the log")


def lines_on_a_terminal_are_for_reading():
    with Daemon(start=False) as daemon:
        ours, theirs = pty.openpty()
        daemon.log.close()
        process = subprocess.Popen([BINARY, "--data-dir", daemon.data, "--listen", "127.0.0.1:0"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        try:
            daemon.port = int(process.stdout.readline().decode().rsplit(":", 1)[1])
            equal(daemon.request("GET", "/livez", headers=dict(TRACE, **{"X-Request-Id": "req-1"})).status, 200)
        finally:
            process.terminate()
        text = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
        os.close(ours)
        equal(process.wait(60), 0, "exit status")
        process.stdout.close()
        lines = text.decode().splitlines()
        for line in lines:
            true(re.match(r"\d\d:\d\d:\d\d\.\d\d\d (info |warn |error|debug) \S", line), "a line to read: %r" % line)
        found = [line for line in lines if "  request=req-1" in line]
        equal(len(found), 1, "one line of the request in %r" % lines)
        for part in (" info  request  trace_id=%s" % ID, "  method=GET", "  route=/livez", "  status=200", "  bytes_in=0"):
            true(part in found[0], "%r is in %r" % (part, found[0]))


main([trace_goes_to_the_job_its_events_and_lines, trace_survives_the_daemon, trace_that_is_none_is_ignored,
      failures_and_cancellations_are_lines, requests_have_what_an_operator_asks_for, lines_on_a_terminal_are_for_reading])
