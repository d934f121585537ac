"""Quotas of projects: set, counted, kept over a restart; what is beyond them is refused or waits, whoever asks at the same time."""

import threading

from guarded import Guarded
from harness import JOBS, NDJSON, equal, gptq_body, ids_records, main, true, wait_until

PROJECT = "/v1/projects/%s/quota"
RECORDS = {"Content-Type": NDJSON}
DATA_SET = ids_records(30, 160, 2048)


def set_quota(daemon, project="default", **limits):
    answer = daemon.ask(daemon.keys["admin"], "PUT", PROJECT % project, json=limits)
    equal(answer.status, 200, "status of the quota (%r)" % answer)
    return answer.json


def usage(daemon, project="default"):
    return daemon.ask(daemon.keys["admin"], "GET", PROJECT % project).json["usage"]


def model_of(daemon, key):
    return daemon.ask(key, "POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]


def store(daemon, key, data, **headers):
    return daemon.ask(key, "POST", "/v1/files?purpose=calibration", body=data, headers=dict(RECORDS, **headers))


def begin(daemon, key, length):
    return daemon.ask(key, "POST", "/v1/uploads?purpose=model", headers={"Upload-Length": str(length)})


def exceeded(answer, what):
    equal((answer.status, answer.json["code"], answer.headers.get("retry-after")), (429, "quota_exceeded", "30"), what)
    true(answer.json["hint"], what + " says what to do")


def at_once(count, call):
    """The statuses of so many calls, all begun together."""
    barrier, statuses = threading.Barrier(count), []

    def run(number):
        barrier.wait()
        statuses.append(call(number).status)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


def are_set_and_shown():
    with Guarded("--max-stored-per-project", "1G", "--max-queued-per-project", "7") as daemon:
        admin = daemon.keys["admin"]
        shown = daemon.ask(admin, "GET", PROJECT % "search").json
        equal((shown["project"], shown["max_queued_jobs"], shown["updated_at"]), ("search", None, None), "a project that has nothing")
        equal(shown["effective"], {"max_queued_jobs": 7, "max_running_jobs": None, "max_stored_bytes": 1 << 30,
                                   "max_upload_bytes": None}, "the daemon's defaults")
        equal(set(shown["usage"].values()), {0}, "its use")
        shown = set_quota(daemon, "search", max_queued_jobs=0, max_upload_bytes=1 << 60)
        equal((shown["max_queued_jobs"], shown["max_upload_bytes"], shown["max_stored_bytes"]), (0, 1 << 60, None), "as it was set")
        equal(shown["effective"]["max_queued_jobs"], 0, "none is not the default")
        for body, param in (({"max_queued_jobs": -1}, "/max_queued_jobs"), ({"max_stored_bytes": 1.5}, "/max_stored_bytes"),
                            ({"max_running_jobs": "1"}, "/max_running_jobs"), ({"max_upload_bytes": True}, "/max_upload_bytes"),
                            ({"max_stored_bytes": (1 << 60) + 1}, "/max_stored_bytes"), ({"max_jobs": 1}, "/max_jobs")):
            answer = daemon.ask(admin, "PUT", PROJECT % "search", json=body)
            equal((answer.status, answer.json["errors"][0]["param"]), (400, param), repr(answer))
        equal(daemon.ask(admin, "GET", PROJECT % "search").json, shown, "after requests that were refused")
        for name in ("A", "a%20b", "x" * 65):
            equal(daemon.ask(admin, "PUT", PROJECT % name, json={}).status, 400, name)
        equal([row["project"] for row in daemon.ask(admin, "GET", "/v1/projects").json["data"]], ["default", "other", "search"])
        page = daemon.ask(admin, "GET", "/v1/projects?limit=1&after=default").json
        equal((page["data"][0]["project"], page["last_id"], page["has_more"]), ("other", "other", True), "a page")
        equal(daemon.ask(admin, "GET", "/v1/projects?after=No").json["code"], "invalid_cursor")
        equal(set_quota(daemon, "search")["max_queued_jobs"], None, "absent is the default")
        lines = [line for line in open(daemon.data + "/audit.log") if '"set_quota"' in line]
        true('"object":"search"' in lines[0] and '"status":200' in lines[0], "the audit log names the project: %r" % lines[0])


def of_waiting_jobs():
    with Guarded() as daemon:
        key = daemon.keys["write"]
        set_quota(daemon, max_queued_jobs=3)
        model, foreign = model_of(daemon, key), model_of(daemon, daemon.other)
        submit = lambda number: daemon.ask(key, "POST", JOBS, json=gptq_body(model))
        equal(at_once(8, submit), [201] * 3 + [429] * 5, "eight at once")
        exceeded(submit(0), "one more")
        equal(daemon.ask(daemon.other, "POST", JOBS, json=gptq_body(foreign)).status, 201, "of another project")
        equal((usage(daemon)["queued_jobs"], usage(daemon, "other")["queued_jobs"]), (3, 1))
        daemon.stop()
        daemon.start()
        exceeded(submit(0), "after a restart")
        job = daemon.ask(key, "GET", JOBS).json["data"][0]["id"]
        daemon.ask(key, "POST", "%s/%s/cancel" % (JOBS, job))
        equal(submit(0).status, 201, "in the place of a cancelled one")
        equal(daemon.ask(key, "POST", "%s/%s/retry" % (JOBS, job)).status, 409, "its records are gone")
        set_quota(daemon, max_queued_jobs=0)
        exceeded(submit(0), "none is allowed")


def of_stored_bytes():
    with Guarded() as daemon:
        key = daemon.keys["write"]
        set_quota(daemon, max_stored_bytes=1000)
        equal(store(daemon, key, b"a" * 600, **{"Idempotency-Key": "one"}).status, 201)
        exceeded(store(daemon, key, b"b" * 401), "by its length")
        exceeded(store(daemon, key, iter([b"c" * 200, b"d" * 201])), "while it arrives")
        again = store(daemon, key, b"a" * 600, **{"Idempotency-Key": "one"})
        equal((again.status, again.headers.get("idempotency-replayed")), (201, "true"), "an answer that was given before")
        equal(daemon.ask(daemon.other, "POST", "/v1/files?purpose=calibration", body=b"b" * 2000, headers=RECORDS).status, 201)
        begun = begin(daemon, key, 300)
        equal(begun.status, 201)
        exceeded(begin(daemon, key, 101), "an upload")
        exceeded(store(daemon, key, b"e" * 101), "what an upload will need is taken")
        equal({name: usage(daemon)[name] for name in ("stored_bytes", "upload_bytes")}, {"stored_bytes": 600, "upload_bytes": 300})
        set_quota(daemon, max_stored_bytes=10)
        headers = {"Upload-Offset": "0", "Upload-Complete": "?1", "Content-Type": "application/partial-upload"}
        done = daemon.ask(key, "PATCH", "/v1/uploads/" + begun.json["id"], body=b"f" * 300, headers=headers)
        equal(done.status, 201, "an upload that was begun is completed")
        equal((usage(daemon)["stored_bytes"], usage(daemon)["upload_bytes"]), (900, 0))
        equal(daemon.ask(key, "DELETE", "/v1/files/" + done.json["id"]).status, 204)
        equal(usage(daemon)["stored_bytes"], 600, "after a deletion")
        set_quota(daemon, max_stored_bytes=1200, max_upload_bytes=100)
        equal(at_once(8, lambda number: store(daemon, key, b"%d" % number * 250)), [201] * 2 + [429] * 6, "files at once")
        equal(at_once(8, lambda number: begin(daemon, key, 40)), [201] * 2 + [429] * 6, "uploads at once")
        daemon.kill()
        daemon.start()
        equal((usage(daemon)["stored_bytes"], usage(daemon)["upload_bytes"]), (1100, 80), "after a crash")


def of_artifacts():
    with Guarded() as daemon:
        key = daemon.keys["write"]
        model = model_of(daemon, key)
        body = {"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 64}}
        set_quota(daemon, max_stored_bytes=100000, max_running_jobs=0)
        exceeded(daemon.ask(key, "POST", JOBS, json=body), "a job whose artifact would be too large")
        set_quota(daemon, max_stored_bytes=1 << 30, max_running_jobs=0)
        job = daemon.ask(key, "POST", JOBS, json=body).json["id"]
        reserved = usage(daemon)["reserved_bytes"]
        set_quota(daemon, max_stored_bytes=int(reserved * 1.5), max_running_jobs=0)
        exceeded(daemon.ask(key, "POST", JOBS, json=body), "a second job, for which the first leaves no room")
        set_quota(daemon, max_stored_bytes=1)
        ended = wait_until(lambda: (lambda state: state["status"] == "succeeded" and state)(
            daemon.ask(key, "GET", JOBS + "/" + job).json), "an accepted job succeeds", 120)
        used = usage(daemon)
        made = daemon.ask(key, "GET", "/v1/artifacts/" + ended["result"]["artifact_id"]).json
        equal((used["reserved_bytes"], used["stored_bytes"]), (0, sum(file["bytes"] for file in made["files"])), "once it has ended")
        weights = sum(file["bytes"] for file in made["files"] if file["path"].endswith(".safetensors"))
        true(abs(reserved - weights) < weights / 100, "the estimate of %d bytes is near %d" % (reserved, weights))


def of_running_jobs():
    with Guarded() as daemon:
        key = daemon.keys["write"]
        set_quota(daemon, max_running_jobs=0)
        body = {"method": "rtn", "quantization": {"bits": 4, "group_size": 64}}
        held = daemon.ask(key, "POST", JOBS, json=dict(body, model=model_of(daemon, key))).json["id"]
        passes = daemon.ask(daemon.other, "POST", JOBS, json=dict(body, model=model_of(daemon, daemon.other))).json["id"]
        wait_until(lambda: daemon.ask(daemon.other, "GET", JOBS + "/" + passes).json["status"] == "succeeded", "another project's job passes", 120)
        for restart in (False, True):
            if restart:
                daemon.stop()
                daemon.start()
            state = daemon.ask(key, "GET", JOBS + "/" + held).json
            equal((state["status"], state["queue_position"]), ("queued", None), "the held job")
            true("max_running_jobs" in state["status_reason"], "it says why: %r" % state["status_reason"])
            equal(daemon.ask(key, "GET", JOBS + "?status=queued").json["data"][0]["status_reason"], state["status_reason"], "in the list")
        set_quota(daemon, max_running_jobs=1)
        state = wait_until(lambda: (lambda state: state["status"] == "succeeded" and state)(
            daemon.ask(key, "GET", JOBS + "/" + held).json), "it runs when it may", 120)
        equal(state["status_reason"], None)


main([are_set_and_shown, of_waiting_jobs, of_stored_bytes, of_artifacts, of_running_jobs])
