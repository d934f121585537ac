"""GET /metrics: the text that Prometheus reads, what it counts, and the alerts and the dashboard that use its names.

promtool of Debian's package prometheus checks text and rules too, where it is installed or named by PROMTOOL."""

import json
import os
import re
import shutil
import subprocess

from harness import Daemon, Failure, equal, gptq_body, ids_records, main, new_job, succeed, true

DEPLOY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy")
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
NAMES = {
    "quantd_build_info": "gauge",
    "quantd_http_requests_total": "counter",
    "quantd_http_request_duration_seconds": "histogram",
    "quantd_tls_handshakes_total": "counter",
    "quantd_jobs": "gauge",
    "quantd_jobs_finished_total": "counter",
    "quantd_job_queue_wait_seconds": "histogram",
    "quantd_layer_duration_seconds": "histogram",
    "quantd_layer_relative_mse": "histogram",
    "quantd_gpu_memory_bytes": "gauge",
    "quantd_checkpoint_bytes_total": "counter",
    "quantd_lease_lost_total": "counter",
    "quantd_gate_failures_total": "counter",
    "quantd_webhook_deliveries_total": "counter",
    "quantd_webhook_delivery_duration_seconds": "histogram",
    "quantd_storage_duration_seconds": "histogram",
}

WITH_TLS = {"quantd_tls_certificate_expiry_timestamp_seconds"}  # test_tls.py reads it


def promtool(*words, text=None):
    if PROMTOOL is not None:
        done = subprocess.run([PROMTOOL, *words], input=text, capture_output=True)
        if done.returncode != 0 or (text is not None and (done.stdout or done.stderr)):
            raise Failure("promtool %s: %s" % (" ".join(words), (done.stdout + done.stderr).decode()))


class Metrics:
    """A scrape: the types of its families, and its samples by name and sorted labels."""

    def __init__(self, daemon):
        answer = daemon.request("GET", "/metrics")
        equal(answer.status, 200)
        equal(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        promtool("check", "metrics", text=answer.body)
        self.text = answer.body.decode()
        self.types, self.samples = {}, {}
        true(self.text.endswith("\n"), "the last line ends")
        for line in self.text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                true(name not in self.types, "%s is one family" % name)
                self.types[name] = kind
            elif not line.startswith("# HELP "):
                found = SAMPLE.fullmatch(line)
                true(found, "a sample: %r" % line)
                key = (found[1], tuple(sorted(LABEL.findall(found[2] or ""))))
                true(key not in self.samples, "no sample twice: %r" % line)
                self.samples[key] = float(found[3])

    def get(self, name, **labels):
        return self.samples.get((name, tuple(sorted(labels.items()))), 0)

    def families(self):
        return {re.sub("_(bucket|sum|count)$", "", name) if name not in self.types else name for name, _ in self.samples}


def names_and_types():
    with Daemon() as daemon:
        first = Metrics(daemon)
        equal(first.types, NAMES, "families")
        second = Metrics(daemon)
        equal(second.families(), set(NAMES), "families with samples")
        equal(second.get("quantd_http_requests_total", route="/metrics", method="GET", code="200"), 1)
        equal(daemon.request("HEAD", "/metrics").body, b"")
        equal(daemon.request("GET", "/metrics?x=1").status, 400)


def requests_are_counted_by_template():
    with Daemon() as daemon:
        for path in ("/v1/models/mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV", "/v1/models/mdl_01ARZ3NDEKTSV4RRFFQ69G5FAW"):
            equal(daemon.request("GET", path).status, 404)
        equal(daemon.request("HEAD", "/livez").status, 200)
        equal(daemon.request("GET", "/made/up").status, 404)
        equal(daemon.request("GET", "/made/up/again").status, 404)
        daemon.contract_checked = False
        equal(daemon.request("QUUX", "/livez").status, 405)
        metrics = Metrics(daemon)
        requests = "quantd_http_requests_total"
        equal(metrics.get(requests, route="/v1/models/{model_id}", method="GET", code="404"), 2)
        equal(metrics.get(requests, route="/livez", method="HEAD", code="200"), 1)
        equal(metrics.get(requests, route="none", method="GET", code="404"), 2)
        equal(metrics.get(requests, route="none", method="other", code="405"), 1)
        count = metrics.get("quantd_http_request_duration_seconds_count", route="/v1/models/{model_id}", method="GET")
        equal(count, 2, "observed durations")
        true("01ARZ3" not in metrics.text and "made" not in metrics.text and "QUUX" not in metrics.text,
             "nothing that a client made up is a label")


def jobs_are_counted():
    with Daemon() as daemon:
        state = succeed(daemon, new_job(daemon, ids_records(30, 160, 2048)))
        rows = len(daemon.get("/v1/quantization/jobs/%s/layers" % state["id"])["data"])
        metrics = Metrics(daemon)
        equal(metrics.get("quantd_jobs", status="succeeded"), 1)
        equal(metrics.get("quantd_jobs", status="running"), 0)
        equal(metrics.get("quantd_jobs_finished_total", method="gptq", outcome="succeeded"), 1)
        equal(metrics.get("quantd_jobs_finished_total", method="gptq", outcome="failed"), 0)
        equal(metrics.get("quantd_job_queue_wait_seconds_count"), 1)
        equal(metrics.get("quantd_layer_duration_seconds_count", method="gptq"), rows, "observed layers")
        equal(metrics.get("quantd_layer_relative_mse_count", method="gptq"), rows, "observed errors")
        true(metrics.get("quantd_layer_relative_mse_sum", method="gptq") > 0, "errors are above 0")
        true(metrics.get("quantd_checkpoint_bytes_total") > 1000, "blocks were stored")
        equal(metrics.get("quantd_lease_lost_total"), 0)
        true(metrics.get("quantd_gpu_memory_bytes", gpu="cpu", kind="total") > 0, "memory of the device")
        equal(metrics.get("quantd_gpu_memory_bytes", gpu="cpu", kind="job_peak"), 0, "no job runs")
        true(metrics.get("quantd_storage_duration_seconds_count", op="job_update", backend="sqlite") > 2,
             "updates were observed")
        true(state["id"] not in metrics.text and "mdl_" not in metrics.text, "no id is a label")


def cancelled_jobs_are_counted():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        created = daemon.request("POST", "/v1/quantization/jobs", json=gptq_body(model))
        equal(created.status, 201, "status (%r)" % created)
        equal(Metrics(daemon).get("quantd_jobs", status="awaiting_calibration"), 1)
        equal(daemon.request("POST", "/v1/quantization/jobs/%s/cancel" % created.json["id"]).status, 202)
        metrics = Metrics(daemon)
        equal(metrics.get("quantd_jobs_finished_total", method="gptq", outcome="cancelled"), 1)
        equal(metrics.get("quantd_jobs", status="cancelled"), 1)


def names_in(expression):
    return {re.sub("_(bucket|sum|count)$", "", name) if name not in NAMES else name
            for name in re.findall(r"quantd_[a-z_]+", expression)}


def alerts_and_dashboard_use_these_names():
    rules = os.path.join(DEPLOY, "prometheus-rules.yml")
    promtool("check", "rules", rules)
    with open(rules) as file:
        text = file.read()
    true(text.count("- alert:") >= 5 and names_in(text) <= set(NAMES) | WITH_TLS, "names in the rules: %r" % (names_in(text) - set(NAMES)))
    with open(os.path.join(DEPLOY, "grafana-dashboard.json")) as file:
        dashboard = json.load(file)
    used, places = set(), []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            used |= names_in(target["expr"])
        place = panel["gridPos"]
        places += [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]
    equal(len(places), len(set(places)), "panels do not overlap")
    equal(len({panel["id"] for panel in dashboard["panels"]}), len(dashboard["panels"]), "ids of panels")
    true(used <= set(NAMES) | WITH_TLS, "names in the dashboard: %r" % (used - set(NAMES)))
    equal(used | {"quantd_build_info"}, set(NAMES) | WITH_TLS, "the dashboard shows every family")


main([names_and_types, requests_are_counted_by_template, jobs_are_counted, cancelled_jobs_are_counted,
      alerts_and_dashboard_use_these_names])
