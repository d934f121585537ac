"""kill -9 at random moments of a job, also while its calibration streams in: every run ends with the artifact of an
unkilled run, byte for byte; so do runs with one and with two threads.

    QUANTD=build-release/daemon/quantd python3 tests/e2e/test_kill.py [--rounds 50] [--seed 1]
"""

import http.client
import os
import random
import sys
import threading
import time

from harness import JOBS, NDJSON, SANITIZED, Daemon, Failure, artifact_digests, equal, gptq_body, ids_records, main, wait_job

RECORDS = ids_records(48, 160, 2048)
BODY = {"calibration": {"stream": True, "num_samples": 32, "sequence_length": 128}}


def option(name, fallback):
    if name in sys.argv:
        at = sys.argv.index(name)
        value = sys.argv[at + 1]
        del sys.argv[at:at + 2]
        return int(value)
    return fallback


ROUNDS = option("--rounds", int(os.environ.get("QUANTD_KILL_ROUNDS", "2" if SANITIZED else "6")))
SEED = option("--seed", 1)


class Client:
    """Does what a careful client does: repeats what was not answered, with the same key or from the offset told."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.lines = RECORDS.splitlines(keepends=True)
        self.job = None

    def create(self):
        model = self.daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"},
                                    headers={"Idempotency-Key": "model"})
        equal(model.status, 201, "status of the registration (%r)" % model)
        job = self.daemon.request("POST", JOBS, json=gptq_body(model.json["id"], **BODY),
                                  headers={"Idempotency-Key": "job"})
        equal(job.status, 201, "status of the job (%r)" % job)
        self.job = job.json["id"]

    def stream(self):
        """From the records that the daemon has on, in pieces of eight."""
        while True:
            state = self.daemon.get("%s/%s" % (JOBS, self.job))
            if state["status"] != "awaiting_calibration":
                return
            offset = state["calibration"]["records"] or 0
            piece = self.lines[offset:offset + 8]
            last = offset + len(piece) >= len(self.lines)
            answer = self.daemon.request(
                "POST", "%s/%s/calibration?offset=%d%s" % (JOBS, self.job, offset, "&complete=1" if last else ""),
                body=b"".join(piece), headers={"Content-Type": NDJSON})
            equal(answer.status, 200, "status of the calibration (%r)" % answer)

    def finish(self):
        if self.job is None:
            self.create()
        self.stream()
        state = wait_job(self.daemon, self.job)
        equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
        return state


def unkilled(threads):
    with Daemon("--threads", str(threads)) as daemon:
        started = time.monotonic()
        state = Client(daemon).finish()
        return artifact_digests(daemon, state), time.monotonic() - started


def killed(moments, expected):
    """One job; the daemon is killed at each of the moments, counted from each start."""
    with Daemon("--threads", "2") as daemon:
        client = Client(daemon)
        for moment in moments:
            timer = threading.Timer(moment, daemon.process.kill)
            timer.start()
            try:
                client.finish()
            except (OSError, http.client.HTTPException):
                pass
            finally:
                timer.cancel()
                timer.join()
            if daemon.process.poll() is None:
                daemon.kill()
            else:
                daemon.wait()
            daemon.start()
        state = client.finish()
        got = artifact_digests(daemon, state)
        if got != expected:
            differing = sorted(name for name in set(got) | set(expected) if got.get(name) != expected.get(name))
            raise Failure("killed at %s: these files differ: %s" % (moments, differing))
        rows = daemon.get("%s/%s/layers" % (JOBS, client.job))["data"]
        equal(len(rows), 28, "layer rows after kills at %s" % moments)
        seqs = [event["seq"] for event in daemon.get("%s/%s/events?limit=100" % (JOBS, client.job))["data"]]
        equal(seqs, list(range(1, len(seqs) + 1)), "event numbers")


def thread_counts_agree():
    one, _ = unkilled(1)
    two, _ = unkilled(2)
    equal(one, two, "files with one and with two threads")


def kills_leave_no_trace():
    expected, seconds = unkilled(2)
    source = random.Random(SEED)
    for number in range(ROUNDS):
        moments = [source.uniform(0, 1.05 * seconds)]
        if number % 3 == 2:  # and again, on the way back
            moments.append(source.uniform(0, 0.7 * seconds))
        killed(moments, expected)
        if ROUNDS > 10:
            print("round %d of %d: killed at %s" % (number + 1, ROUNDS, ", ".join("%.2f" % m for m in moments)),
                  flush=True)


main([thread_counts_agree, kills_leave_no_trace])
