"""An analysis of a model's sensitivity: rows and no artifact, progress while it measures, kill -9 at any moment, tied experts, quantctl's table,
and requests that are refused.
"""

import os
import tempfile
import time

import families
from harness import JOBS, NDJSON, Daemon, equal, ids_records, main, post, succeed, true, wait_job
from quantctl import Client, url_of

RECORDS = ids_records(24, 160, 2048)


def submit(daemon, uri="file:tiny-llama", records=RECORDS, length=128, **quantization):
    model = post(daemon, "/v1/models", json={"uri": uri})
    file = post(daemon, "/v1/files?purpose=calibration", headers={"Content-Type": NDJSON}, body=records)
    return post(daemon, JOBS, json={"model": model, "method": "sensitivity", "quantization": quantization,
                                    "calibration": {"file_id": file, "num_samples": 24, "sequence_length": length}})


def analysis_of(daemon, job):
    return daemon.get("%s/%s/report" % (JOBS, job))["analysis"]


def rows_and_no_artifact():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = submit(daemon, group_size=64)
        state = succeed(daemon, job)
        equal(state["result"]["artifact_id"], None, "artifact")
        analysis = analysis_of(daemon, job)
        rows = analysis["rows"]
        equal(len(rows), 4 * 7 * 4, "rows: blocks, linears, candidates")
        equal([scheme["scheme"] for scheme in analysis["schemes"]], ["gptq-w2g64", "gptq-w3g64", "gptq-w4g64", "gptq-w8g64"], "schemes")
        totals = [scheme["total_kl"] for scheme in analysis["schemes"]]
        true(totals == sorted(totals, reverse=True) and totals[-1] > 0, "fewer bits lose more: %r" % totals)
        true(analysis["predictions"]["rows"] > 20 and analysis["predictions"]["spearman"] > 0.8, "predictions: %r" % analysis["predictions"])
        equal({row["set"] for row in rows if row["layer"] == 1 and ".self_attn." in row["module"]}, {4, 5}, "sets of attention in block 1")
        events = [event for event in daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"] if event["type"] == "progress"]
        true(all(event["data"]["fraction"] is not None for event in events), "fractions")
        shown = client.run("report", job, "--all").out
        at = [shown.find(row["module"]) for row in sorted(rows, key=lambda row: -row["kl"])[:1]]
        true(at[0] >= 0 and "measured" in shown and "gptq-w2g64" in shown, shown)
        table = shown[shown.index("linears by kl"):].splitlines()[2:]
        equal([line.split()[:2] for line in table if line.strip()],
              [[row["module"], row["scheme"]] for row in sorted(rows, key=lambda row: -row["kl"])], "the table, by what they cost")


def a_killed_pass_goes_on():
    more = {"group_size": 64, "kl_tokens": 256}
    with Daemon("--threads", "1") as daemon:
        expected = analysis_of(daemon, submit_and_wait(daemon, more))
    with Daemon("--threads", "2") as daemon:
        job = submit(daemon, **more)
        reached = 0
        for share in (0.1, 0.6):
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                state = daemon.get("%s/%s" % (JOBS, job))
                reached = (state["progress"] or {}).get("fraction") or 0
                if state["status"] == "succeeded" or (state["phase"] == "measuring" and reached > share):
                    break
                time.sleep(0.02)
            daemon.kill()
            daemon.start()
        succeed(daemon, job)
        equal(analysis_of(daemon, job), expected, "the analysis after kill -9")


def submit_and_wait(daemon, quantization):
    job = submit(daemon, **quantization)
    succeed(daemon, job)
    return job


def experts_are_tied():
    with tempfile.TemporaryDirectory() as root:
        families.write(os.path.join(root, "model"), "qwen3_moe")
        with Daemon(roots=[root]) as daemon:
            job = submit(daemon, "file:model", ids_records(16, 72, families.VOCABULARY, 1), 64, solver="rtn",
                         candidates=[{"bits": 3, "group_size": 32}, {"bits": 8, "group_size": 32}])
            succeed(daemon, job)
            rows = [row for row in analysis_of(daemon, job)["rows"] if ".experts." in row["module"]]
            true(rows and all(".experts.*." in row["module"] for row in rows), "names of experts: %r" % [row["module"] for row in rows])
            for layer in {row["layer"] for row in rows}:
                own = [row for row in rows if row["layer"] == layer]
                equal(len(own), 6, "three paths, two candidates")
                equal(len({row["set"] for row in own}), 1, "sets of the experts of a layer")
                for three, eight in zip(own[0::2], own[1::2]):
                    true(three["measured"] and three["kl"] > 10 * eight["kl"] > 0, "3 and 8 bits of %r" % three)


def refusals():
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        for quantization, param in (({"candidates": [{"bits": 7}]}, "/quantization/candidates/0/bits"), ({"overrides": []}, "/quantization/overrides"),
                                    ({"candidates": [{"method": "kv_cache"}]}, "/quantization/candidates/0/method")):
            answer = daemon.request("POST", JOBS, json={"model": model, "method": "sensitivity", "quantization": quantization,
                                                        "calibration": {"stream": True}})
            true(answer.status in (400, 422) and param in [error["param"] for error in answer.json["errors"]], "%r: %r" % (quantization, answer.json))
        answer = daemon.request("POST", JOBS, json={"model": model, "method": "sensitivity"})
        equal(answer.json["errors"][0]["param"], "/calibration", "without calibration")


main([rows_and_no_artifact, a_killed_pass_goes_on, experts_are_tied, refusals])
