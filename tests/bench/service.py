#!/usr/bin/env python3
"""What the service adds to the work: start-up, wake-ups of an idle daemon, and a job's time outside of its blocks.

    QUANTD=build-release/daemon/quantd QUANTD_TEST_DATA=tests/data python3 tests/bench/service.py [--starts 15] [--jobs 9] [--idle 30]

Medians. Start-up: from the call of exec to the answer of GET /livez, on a data directory that is there already. Jobs: rtn of tiny-llama (two blocks, no
calibration) as a client sees it that waits for changes.
"""

import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import JOBS, Daemon, equal, post  # noqa: E402


def start_seconds(daemon):
    daemon.stop()
    begin = time.monotonic()
    daemon.start()
    equal(daemon.request("GET", "/livez").status, 200)
    return time.monotonic() - begin


def wake_ups(pid):
    """By thread: voluntary context switches so far."""
    counts, tasks = {}, "/proc/%d/task" % pid
    for task in os.listdir(tasks):
        with open("%s/%s/status" % (tasks, task)) as file:
            counts[task] = next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return counts


def job_seconds(daemon, model):
    """From POST to the first block, from there to the last, and from it to the artifact."""
    begin, first, last, headers = time.monotonic(), None, None, {}
    job = post(daemon, JOBS, json={"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 64}, "calibration": {"stream": False}})
    while True:
        answer = daemon.request("GET", "%s/%s" % (JOBS, job), headers=headers)
        now = time.monotonic()
        headers = {"Prefer": "wait=5", "If-None-Match": answer.headers["etag"]}
        if answer.status == 304:
            continue
        state = answer.json
        progress = state["progress"] or {}
        done, total = progress.get("layers_done", 0), progress.get("layers_total", 0)
        first = now if first is None and done >= 1 else first
        last = now if last is None and total and done == total else last
        if state["finished_at"]:
            equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
            return first - begin, last - first, now - last


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("starts", 15), ("jobs", 9), ("idle", 30)):
        parser.add_argument("--" + name, type=int, default=default)
    options = parser.parse_args()
    with Daemon() as daemon:
        starts = [start_seconds(daemon) for _ in range(options.starts)]
        print("start-up to the first answer: %.0f ms (least %.0f)" % (1e3 * statistics.median(starts), 1e3 * min(starts)))
        time.sleep(30)  # looks get rarer: after 5 seconds, after 20 more
        before = wake_ups(daemon.process.pid)
        time.sleep(options.idle)
        after = wake_ups(daemon.process.pid)
        print("wake-ups of an idle daemon: %.2f a second" % (sum(after[task] - before.get(task, 0) for task in after) / options.idle))
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        jobs = [job_seconds(daemon, model) for _ in range(options.jobs)]
        for i, what in enumerate(("POST to the first block", "first to last block", "last block to the artifact")):
            print("%s: %.0f ms" % (what, 1e3 * statistics.median(job[i] for job in jobs)))


main()
