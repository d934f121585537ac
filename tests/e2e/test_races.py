"""Requests that meet: what two clients do to one job at the same moment leaves it whole."""

import os
import threading
import time

from guarded import Guarded
from harness import JOBS, NDJSON, TERMINAL, Daemon, equal, gptq_body, ids_records, main, post, succeed, true, wait_job

RTN = {"model": {"uri": "file:tiny-llama"}, "method": "rtn"}


def at_once(*functions):
    """Run them in threads; what each returned."""
    results = [None] * len(functions)

    def call(index):
        results[index] = functions[index]()
    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def a_retry_keeps_its_files():
    """A cancellation that is still removing a large folder does not remove what the retry of the job writes there."""
    with Daemon() as daemon:
        status = None
        while status != "paused":  # the job may have ended before
            true(status in (None, "succeeded"), "the job was paused or had ended (%r)" % status)
            job = post(daemon, JOBS, json=RTN)
            path = "%s/%s" % (JOBS, job)
            daemon.request("POST", path + "/pause", json={"mode": "now"})
            status = wait_job(daemon, job, until=TERMINAL + ("paused",))["status"]
        folder = os.path.join(daemon.data, "jobs", job)
        os.makedirs(folder, exist_ok=True)
        for number in range(20000):
            open(os.path.join(folder, "x%d" % number), "w").close()

        def retry():
            while daemon.request("POST", path + "/retry").status != 202:
                pass
        equal(at_once(lambda: daemon.request("POST", path + "/cancel").status, retry)[0], 202)
        succeed(daemon, job)


def an_upload_into_an_ended_job_leaves_nothing():
    """Records that begin to arrive while their job is cancelled, or deleted, do not stay on the disk."""
    records, seen = ids_records(64, 128, 2048), set()
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        for round in range(60):
            job = post(daemon, JOBS, json=gptq_body(model))
            path = "%s/%s" % (JOBS, job)

            def end():
                equal(daemon.request("POST", path + "/cancel").status, 202)
                if round % 2:
                    equal(daemon.request("DELETE", path).status, 204)
            upload, _ = at_once(lambda: daemon.request("POST", path + "/calibration?offset=0", body=records,
                                                       headers={"Content-Type": NDJSON}), end)
            seen.add(upload.status)
            true(upload.status in (200, 404, 409), repr(upload))
            true(not os.path.exists(os.path.join(daemon.data, "jobs", job)), "the folder is gone (round %d, %r)" % (round, upload))


def a_refusal_takes_no_model_away():
    """A job that describes its model is accepted, whatever becomes of others that describe the same one."""
    refused = dict(RTN, quantization={"overrides": [{"match": "nothing", "bits": 8}]})
    over = threading.Event()
    with Daemon() as daemon:
        def refuse():
            while not over.is_set():
                equal(daemon.request("POST", JOBS, json=refused).status, 400)

        def accept():
            try:
                for _ in range(30):
                    job = post(daemon, JOBS, json=RTN)
                    daemon.request("POST", "%s/%s/cancel" % (JOBS, job))
                    model = wait_job(daemon, job)["model"]
                    equal(daemon.request("DELETE", "/v1/models/" + model).status, 204)
            finally:
                over.set()
            return True
        true(at_once(accept, refuse, refuse, refuse)[0], "all were accepted")
        equal(daemon.get("/v1/models")["data"], [], "models that refused requests left")


def what_a_moving_job_needs_stays():
    """A job that is paused and resumed all the time is never between two states, where its model and file look unused."""
    deadline = time.monotonic() + 6
    with Guarded("--max-queued", "10") as daemon:
        key = daemon.keys["admin"]
        equal(daemon.ask(key, "PUT", "/v1/projects/default/quota", json={"max_running_jobs": 0}).status, 200)
        model = daemon.ask(key, "POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        file = daemon.ask(key, "POST", "/v1/files?purpose=calibration", body=ids_records(8, 64, 256),
                          headers={"Content-Type": NDJSON}).json["id"]
        job = daemon.ask(key, "POST", JOBS, json={"model": model, "method": "gptq", "calibration": {"file_id": file}}).json["id"]

        def move():
            while time.monotonic() < deadline:
                daemon.ask(key, "POST", "%s/%s/pause" % (JOBS, job))
                daemon.ask(key, "POST", "%s/%s/resume" % (JOBS, job))

        def delete(path):
            answers = set()
            while time.monotonic() < deadline:
                answers.add(daemon.ask(key, "DELETE", path).status)
            return answers
        got = at_once(move, move, lambda: delete("/v1/models/" + model), lambda: delete("/v1/files/" + file))
        equal(got[2:], [{409}, {409}], "deletions of the model and of the file")


main([a_retry_keeps_its_files, an_upload_into_an_ended_job_leaves_nothing, a_refusal_takes_no_model_away,
      what_a_moving_job_needs_stays])
