"""What clients do to jobs beside creating them: change, pause, resume, retry, compare, wait; each route and each conflict."""

import os
import tempfile
import time

import checkpoint
from harness import (JOBS, NDJSON, SLOWER, Call, Daemon, artifact_digests, equal, gptq_body, ids_records, main, new_job, post, succeed,
                     true, wait_job, wait_until)

# Jobs last alike in every build.
RECORDS = ids_records(64 // SLOWER, 160, 256)
NO_JOB = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
CANCEL_SECONDS = 20  # in which work in progress ends, on a busy machine too
LONG = {"calibration": {"stream": True, "num_samples": 0, "sequence_length": 128}}
LONG_RECORDS = ids_records(120 // SLOWER, 160, 256)


def path(job, action=""):
    return "%s/%s%s" % (JOBS, job, "/" + action if action else "")


def act(daemon, job, action, status=202, body=None):
    answer = daemon.request("POST", path(job, action), json=body)
    equal(answer.status, status, "%s of the job (%r)" % (action, answer))
    return answer.json


def wait_layers(daemon, job, count=1):
    wait_until(lambda: (daemon.get(path(job))["progress"] or {"layers_done": 0})["layers_done"] >= count,
               "%d blocks are finished" % count)


def changes():
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        first = post(daemon, JOBS, json=gptq_body(model, metadata={"team": "a"}))
        second = post(daemon, JOBS, json=gptq_body(model))
        changed = daemon.request("PATCH", path(first), json={"name": "new", "priority": 7, "metadata": {"team": "b", "run": "1"}})
        equal(changed.status, 200, "status of the change (%r)" % changed)
        job = daemon.get(path(first))
        equal((job["name"], job["priority"], job["metadata"]), ("new", 7, {"team": "b", "run": "1"}))
        listed = lambda query: [job["id"] for job in daemon.get(JOBS + query)["data"]]
        equal(listed("?metadata[team]=b"), [first], "jobs of the new metadata")
        equal(listed("?metadata[team]=a"), [], "jobs of the old metadata")
        daemon.run([
            Call("PATCH", path(first), json={"name": "again"}, check=lambda answer, saved: equal(
                (answer.json["name"], answer.json["priority"]), ("again", 7))),
            Call("PATCH", path(first), json={"metadata": None}, check=lambda answer, saved: equal(answer.json["metadata"], None)),
            Call("PATCH", path(first), json={"model": model}, status=400, code="unknown_parameter", param="/model"),
            Call("PATCH", path(first), json={"priority": 101}, status=400, code="invalid_parameter", param="/priority"),
            Call("PATCH", path(first), json={"priority": "1"}, status=400, code="invalid_parameter", param="/priority"),
            Call("PATCH", path(first), json={"metadata": {"a": 1}}, status=400, code="invalid_parameter", param="/metadata"),
            Call("PATCH", path(first), json=[], status=400),
            Call("PATCH", path(NO_JOB), json={"name": "x"}, status=404, code="not_found"),
            Call("GET", path(first), check=lambda answer, saved: equal(answer.json["name"], "again")),
        ])
        equal(daemon.get(path(second))["links"]["calibration"], path(second, "calibration"))


def priority_decides_who_is_next():
    with Daemon() as daemon:
        running = new_job(daemon, LONG_RECORDS, **LONG)
        wait_until(lambda: daemon.get(path(running))["status"] == "running", "the first runs")
        low, high = new_job(daemon, RECORDS), new_job(daemon, RECORDS)
        equal((daemon.get(path(low))["queue_position"], daemon.get(path(high))["queue_position"]), (1, 2))
        equal(daemon.request("PATCH", path(high), json={"priority": 5}).status, 200)
        equal((daemon.get(path(low))["queue_position"], daemon.get(path(high))["queue_position"]), (2, 1))
        act(daemon, running, "cancel", body={"mode": "now"})
        true(succeed(daemon, high)["started_at"] <= succeed(daemon, low)["started_at"], "the higher priority starts first")


def pause_and_resume():
    with Daemon() as daemon:
        undisturbed = artifact_digests(daemon, succeed(daemon, new_job(daemon, LONG_RECORDS, **LONG)))
        job = new_job(daemon, LONG_RECORDS, **LONG)
        wait_layers(daemon, job)
        true(act(daemon, job, "pause")["status"] in ("pausing", "paused"), "it is on its way")
        act(daemon, job, "pause")
        state = wait_job(daemon, job, until=("paused",))
        equal((state["status_reason"], state["worker_id"]), ("paused by request", None))
        equal((state["links"]["resume"], state["links"]["pause"]), (path(job, "resume"), None), "links to what can be done next")
        true(state["checkpoint"] is not None, "its finished blocks stay")
        daemon.run([
            Call("DELETE", path(job), status=409, code="job_state_conflict"),
            Call("POST", path(job, "retry"), status=409, code="job_state_conflict"),
            Call("POST", path(job, "pause"), json={"mode": "soon"}, status=400, code="invalid_parameter", param="/mode"),
            Call("POST", path(NO_JOB, "pause"), status=404),
            Call("POST", path(NO_JOB, "resume"), status=404),
            Call("POST", path(NO_JOB, "retry"), status=404),
        ])
        daemon.kill()
        daemon.start()
        equal(daemon.get(path(job))["status"], "paused", "status after kill -9")
        act(daemon, job, "resume")
        act(daemon, job, "resume")
        equal(artifact_digests(daemon, succeed(daemon, job)), undisturbed, "digests")
        act(daemon, job, "pause", 409)
        act(daemon, job, "resume", 409)
        act(daemon, job, "retry", 409)
        waiting = post(daemon, JOBS, json=gptq_body(state["model"]))
        act(daemon, waiting, "pause", 409)
        act(daemon, waiting, "resume", 409)


def pause_now_and_cancel():
    with Daemon() as daemon:
        job = new_job(daemon, LONG_RECORDS, **LONG)
        wait_until(lambda: daemon.get(path(job))["status"] == "running", "it runs")
        started = time.monotonic()
        act(daemon, job, "pause", body={"mode": "now"})
        wait_job(daemon, job, until=("paused",))
        true(time.monotonic() - started < CANCEL_SECONDS, "a pause now takes %.1f s" % (time.monotonic() - started))
        act(daemon, job, "cancel")
        equal(daemon.get(path(job))["status"], "cancelled")
        act(daemon, job, "retry", 409)  # its records were streamed, and are gone


def retry_after_a_failure():
    """A job that ran out of time goes on from its blocks, and ends in the bytes of one that had time enough."""
    records = ids_records(200 // SLOWER, 160, 256)
    with Daemon() as daemon:
        undisturbed = artifact_digests(daemon, succeed(daemon, new_job(daemon, records, **LONG)))
        job = new_job(daemon, records, timeout_seconds=1, **LONG)
        state = wait_job(daemon, job)
        equal((state["status"], state["error"]["code"]), ("failed", "timeout"))
        equal(state["links"]["retry"], path(job, "retry"), "link to a retry")
        done = 0 if state["checkpoint"] is None else state["checkpoint"]["layer"] + 1
        for body, code, param in (
                ({"seed": 1}, "unknown_parameter", "/seed"),
                ({"quantization": {"bitz": 3}}, "unknown_parameter", "/quantization/bitz"),
                ({"timeout_seconds": 0}, "invalid_parameter", "/timeout_seconds"),
                ({"output": {"format": "none"}}, "invalid_parameter", "/output/format")):
            daemon.run([Call("POST", path(job, "retry"), json=body, status=400, code=code, param=param)])
        if done > 0:
            daemon.run([
                Call("POST", path(job, "retry"), json={"quantization": {"bits": 8}}, status=422, code="incompatible_options",
                     param="/quantization"),
                Call("POST", path(job, "retry"), json={"quantization": {"group_size": 32}}, status=422,
                     code="incompatible_options", param="/quantization"),
            ])
        equal(daemon.get(path(job))["status"], "failed", "status after refusals")
        daemon.kill()
        daemon.start()
        state = act(daemon, job, "retry", body={"timeout_seconds": 600})
        equal((state["error"], state["finished_at"], state["timeout_seconds"]), (None, None, 600))
        daemon.kill()
        daemon.start()
        equal(artifact_digests(daemon, succeed(daemon, job)), undisturbed, "digests after the retry")


def retry_with_other_parameters():
    with Daemon() as daemon:
        file = post(daemon, "/v1/files?purpose=calibration", body=RECORDS, headers={"Content-Type": NDJSON})
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        job = post(daemon, JOBS, json=gptq_body(model, calibration={"file_id": file, "num_samples": 24, "sequence_length": 128}))
        act(daemon, job, "cancel")
        wait_job(daemon, job)
        state = act(daemon, job, "retry", body={"quantization": {"bits": 8, "percdamp": 0.05}})
        equal((state["quantization"]["bits"], state["quantization"]["damp_percent"]), (8, 0.05))
        equal(succeed(daemon, job)["cancelled_at"], None)
        rows = daemon.get(path(job, "layers"))["data"]
        equal({row["bits"] for row in rows}, {8}, "bits of all modules")


def comparison():
    with Daemon() as daemon:
        jobs = [new_job(daemon, RECORDS, quantization={"bits": bits, "group_size": 64}) for bits in (4, 8)]
        for job in jobs:
            succeed(daemon, job)
        answer = daemon.get("/v1/quantization/compare?jobs=" + ",".join(jobs))
        equal([job["id"] for job in answer["jobs"]], jobs)
        rows = {row["module"]: row for row in daemon.get(path(jobs[1], "layers"))["data"]}
        equal({module["module"] for module in answer["modules"]}, set(rows))
        for module in answer["modules"]:
            four, eight = module["values"]
            equal((four["bits"], eight["bits"]), (4, 8))
            equal(eight["relative_mse"], rows[module["module"]]["relative_mse"])
        for ids in ("", jobs[0], "%s,%s" % (jobs[0], jobs[0]), jobs[0] + ",x", jobs[0] + ",", ",".join([NO_JOB[:-1] + c for c in "ABCDEFGHJ"])):
            daemon.run([Call("GET", "/v1/quantization/compare?jobs=" + ids, status=400, code="invalid_parameter", param="?jobs")])
        daemon.run([
            Call("GET", "/v1/quantization/compare", status=400, code="missing_parameter", param="?jobs"),
            Call("GET", "/v1/quantization/compare?jobs=%s,%s" % (jobs[0], NO_JOB), status=404, code="not_found"),
        ])


def waiting_for_the_end():
    with Daemon() as daemon:
        job = new_job(daemon, RECORDS)
        state = daemon.request("GET", path(job, "") + "?wait_for=terminal", headers={"Prefer": "wait=60"})
        equal((state.status, state.headers.get("preference-applied")), (200, "wait=60"))
        equal(state.json["status"], "succeeded")
        daemon.run([Call("GET", path(job) + "?wait_for=end", status=400, code="invalid_parameter", param="?wait_for")])


def model_in_the_request():
    with Daemon() as daemon:
        inline = lambda **more: gptq_body({"uri": "file:tiny-llama"}, **more)
        first = post(daemon, JOBS, json=inline())
        second = post(daemon, JOBS, json=inline())
        model = daemon.get(path(first))["model"]
        equal(daemon.get(path(second))["model"], model, "one digest, one model")
        equal([found["id"] for found in daemon.get("/v1/models")["data"]], [model])
        daemon.run([
            Call("POST", JOBS, json=gptq_body({"uri": "file:none"}), status=400, code="invalid_parameter", param="/model/uri"),
            Call("POST", JOBS, json=gptq_body({"url": "file:tiny-llama"}), status=400, code="unknown_parameter", param="/model/url"),
            Call("POST", JOBS, json=gptq_body({"uri": "file:tiny-llama", "expected_sha256": "0" * 64}), status=422,
                 code="digest_mismatch", param="/model/expected_sha256"),
        ])
    with Daemon() as daemon:
        daemon.run([Call("POST", JOBS, json=inline(calibration={"stream": True, "sequence_length": 1 << 20}), status=422,
                         code="incompatible_options", param="/calibration/sequence_length")])
        equal(daemon.get("/v1/models")["data"], [], "a refused job leaves no model")


def models_of_equal_headers():
    """Checkpoints of one fine-tune differ in their weights alone, so they have one digest: each is a model of its own."""
    with tempfile.TemporaryDirectory() as root:
        for name, seed in (("one", 1), ("two", 2)):
            checkpoint.write(os.path.join(root, name), seed=seed)
        with Daemon(roots=[root]) as daemon:
            submit = lambda uri: post(daemon, JOBS, json={"model": {"uri": uri}, "method": "rtn", "quantization": {"group_size": 32}})
            registered = post(daemon, "/v1/models", json={"uri": "file:one"})
            jobs = {name: submit(f"file:{name}") for name in ("one", "two")}
            models = {name: daemon.get(path(job))["model"] for name, job in jobs.items()}
            equal(models["one"], registered, "the model of the folder")
            second = daemon.get(f"/v1/models/{models['two']}")
            equal((second["uri"], second["digest"]), ("file:two", daemon.get(f"/v1/models/{registered}")["digest"]))
            for uri in (f"file://{root}/two", f"file:{root}//two/", "file:./two", "file:t%77o"):
                equal(daemon.get(path(submit(uri)))["model"], models["two"], uri)
            digests = [succeed(daemon, jobs[name])["result"]["artifact_id"] for name in jobs]
            files = [daemon.get(f"/v1/artifacts/{artifact}")["files"] for artifact in digests]
            weights = [[file["sha256"] for file in each if file["path"] == "model.safetensors"] for each in files]
            true(weights[0] != weights[1], "each artifact is of its own weights")


def jobs_expire():
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        job = post(daemon, JOBS, json=gptq_body(model, expires_after_seconds=2))
        other = post(daemon, JOBS, json=gptq_body(model))
        state = daemon.get(path(job))
        equal(state["expires_at"], state["created_at"] + 2)
        state = wait_job(daemon, job)
        equal((state["status"], state["expires_at"]), ("expired", None))
        true(state["finished_at"] >= state["created_at"] + 2, "not before its time")
        daemon.run([
            Call("POST", path(job, "calibration?complete=1"), body=RECORDS, headers={"Content-Type": NDJSON}, status=409,
                 code="job_state_conflict"),
            Call("POST", path(job, "retry"), status=409, code="job_state_conflict"),
            Call("POST", path(job, "cancel"), status=409, code="job_state_conflict"),
            Call("GET", JOBS + "?status=expired", check=lambda answer, saved: equal(
                [job["id"] for job in answer.json["data"]], [job])),
            Call("POST", JOBS, json=gptq_body(model, expires_after_seconds=0), status=400, param="/expires_after_seconds"),
        ])
        equal(daemon.get(path(other))["status"], "awaiting_calibration")


def retention():
    """What has been kept for long enough goes; what has not ended stays."""
    with Daemon() as daemon:
        job = new_job(daemon, RECORDS)
        artifact = succeed(daemon, job)["result"]["artifact_id"]
        kept = post(daemon, JOBS, json=gptq_body(daemon.get(path(job))["model"]))
        failed = new_job(daemon, RECORDS, timeout_seconds=1, calibration={"stream": True, "num_samples": 0, "sequence_length": 64})
        act(daemon, failed, "cancel")
        ended = wait_job(daemon, failed)["finished_at"]
        equal(daemon.stop(), 0)
        wait_until(lambda: time.time() > ended + 3, "the last to end has been kept for long enough")  # a look is taken once a minute
        daemon.options += ["--keep-jobs-seconds", "1", "--keep-artifacts-seconds", "1", "--keep-checkpoints-seconds", "1"]
        daemon.start()
        gone = lambda at: wait_until(lambda: daemon.request("GET", at).status == 404, "%s is gone" % at)
        gone(path(job))
        gone(path(failed))
        gone("/v1/artifacts/" + artifact)
        equal(daemon.get(path(kept))["status"], "awaiting_calibration")


def cancel_now_in_each_phase():
    """Within two seconds, whatever the job is at; the clock runs from the request to the end that a client sees. A phase may
    be over before the request arrives: each is tried a few times, and must be met; but the evaluation at the end of a job of
    this size is over in tenths of a second, and is timed where it is met."""
    with Daemon() as daemon:
        cancelled_at(daemon, "evaluating", 0)
        for phase, fraction in (("loading", 0), ("quantizing", 0), ("quantizing", 0.3), ("quantizing", 0.7)):
            true(any(cancelled_at(daemon, phase, fraction) for _ in range(4)), "a job was cancelled at %s, %g" % (phase, fraction))


def cancelled_at(daemon, phase, fraction):
    job = new_job(daemon, LONG_RECORDS, evaluation={"hold_back": 0.5}, **LONG)

    def at_phase():
        state = daemon.get(path(job))
        return state["status"] in ("succeeded", "failed") or (state["phase"] == phase and state["progress"]["fraction"] >= fraction)

    wait_until(at_phase, "the job is at " + phase, 240)  # the last phase comes after all others
    started = time.monotonic()
    answer = daemon.request("POST", path(job, "cancel"), json={"mode": "now"})
    if answer.status == 409:  # it was over before it was asked
        return False
    equal(answer.status, 202)
    state = wait_job(daemon, job)
    seconds = time.monotonic() - started
    print("    asked at %-11s %s after %.2f s" % (phase, state["status"], seconds))
    true(seconds < CANCEL_SECONDS, "a cancellation at %s took %.1f s" % (phase, seconds))
    return state["status"] == "cancelled"


main([changes, priority_decides_who_is_next, pause_and_resume, pause_now_and_cancel, retry_after_a_failure,
      retry_with_other_parameters, comparison, waiting_for_the_end, model_in_the_request, models_of_equal_headers, jobs_expire, retention,
      cancel_now_in_each_phase])
