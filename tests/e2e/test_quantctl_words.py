"""What people type into quantctl, and what it says back: names and times in place of ids and numbers, changed jobs, lines of a file that
were not accepted, suggestions, and help."""

import os
import re
import subprocess

from harness import JOBS, NDJSON, Daemon, equal, ids_records, main, true
from quantctl import Client, LOCAL, QUANTCTL, REFUSED, Server, USAGE, job_file, json_answer, records, url_of

RTN = ("submit", "-m", "file:tiny-llama", "--method", "rtn")
GPTQ = ("submit", "-m", "file:tiny-llama", "--method", "gptq", "-g", "64", "--num-samples", "24", "--sequence-length", "128")


def folders_are_registered_once():
    """The same folder is one model; a job that is refused leaves none; a repeated idempotency key is the same request."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        client.run(*RTN, "-b", "7", status=REFUSED)
        equal(client.run("models", "--json").json["data"], [], "models after a job that was refused")
        jobs = [client.run(*RTN, "--idempotency-key", key).out for key in ("one", "one", "two")]
        true(jobs[0] == jobs[1] != jobs[2], "jobs by their keys: %r" % jobs)
        equal(len(client.run("models", "--json").json["data"]), 1, "models of one folder")


def models_have_names():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        model = client.run("models", "register", "file:tiny-llama", "--name", "tiny", "--json").json
        equal(client.run("models", "show", "tiny", "--json").json, model, "the model of a name")
        job = client.run(*RTN, "--wait", "--json").json
        equal([each["id"] for each in client.run("jobs", "-m", "tiny", "--json").json["data"]], [job["id"]], "jobs of a name")
        client.run("models", "register", "file:tiny-llama", "--name", "tiny")
        for words in (["jobs", "-m", "tiny"], ["models", "delete", "tiny"], ["models", "show", "none"]):
            client.run(*words, status=USAGE)
        equal(len(client.run("models", "--json").json["data"]), 2, "nothing was deleted")


def jobs_have_times():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = client.run(*RTN, "--wait", "--json").json
        count = lambda text, **env: len(client.run("jobs", "--created-after", text, "--json", env=env).json["data"])
        shown = re.search(r"[0-9-]{10} [0-9:]{8}", client.run("jobs").out).group()
        true(shown is not None, "a time is shown")
        for text, wanted in (("2020-01-01", 1), ("2099-12-31 23:59", 0), ("2020-01-01T00:00:00Z", 1), (str(job["created_at"] - 1), 1),
                             (str(job["created_at"]), 0), (shown, 0)):
            equal(count(text), wanted, "jobs after %s" % text)
        for zone, wanted in (("UTC-2", 1), ("UTC+2", 0)):  # the same words are earlier where clocks are ahead
            equal(count(shown, TZ=zone), wanted, "jobs after %s in %s" % (shown, zone))
        for text in ("yesterday", "2026-13-01", "2026-11-29 20", ""):
            client.run("jobs", "--created-after", text, status=USAGE)


def jobs_are_changed():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job_file(client)
        file = client.run("upload", "texts.ndjson", "--json").json["id"]
        waiting = client.run(*GPTQ, "--set", "calibration.stream=true", "--metadata", "a=b", "--json").json["id"]
        changed = client.run("jobs", "update", waiting, "--name", "n", "--priority", "7", "--metadata", "c=d", "--json").json
        equal([changed[key] for key in ("name", "priority", "metadata")], ["n", 7, {"c": "d"}], "what was changed")
        client.run("jobs", "update", waiting, status=USAGE)
        client.run("jobs", "update", "mdl_1", "--name", "n", status=USAGE)
        client.run("cancel", waiting)
        true("changed by request, name n, priority 7" in client.run("watch", waiting, status=1).out, "the change among the events")
        job = client.run(*GPTQ, "-c", file, "--json").json["id"]
        client.run("cancel", job)
        client.run("watch", job, status=None)
        client.run("retry", job, "--set", "damp=1", status=REFUSED)
        retried = client.run("retry", job, "--set", "damp_percent=0.02", "--max-attempts", "2", "--time-limit", "100", "--json").json
        equal([retried[key] for key in ("max_attempts", "timeout_seconds")], [2, 100], "what a retry changed")
        equal(retried["quantization"]["damp_percent"], 0.02, "a parameter of the retry")


def a_job_that_waits_gets_its_records():
    """All of them, and after an interruption the rest; a job that does not wait is refused."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        lines = ids_records(30, 160, 2048).splitlines(True)
        with open(client.path("all.jsonl"), "wb") as file:
            file.write(b"".join(lines))
        job = client.run(*GPTQ, "--set", "calibration.stream=true", "--json").json["id"]
        answer = daemon.request("POST", "%s/%s/calibration?offset=0" % (JOBS, job), body=b"".join(lines[:11]), headers={"Content-Type": NDJSON})
        equal(answer.status, 200, "status of the first records")
        true("none.jsonl" in client.run("calibrate", job, "none.jsonl", status=LOCAL).err, "the file that is missing")
        client.run("calibrate", job, "all.jsonl")
        equal(daemon.get("%s/%s" % (JOBS, job))["calibration"]["records"], 30, "records")
        true("does not wait" in client.run("calibrate", job, "all.jsonl", status=REFUSED).err, "once is enough")
        client.run("watch", job, status=None)


def a_pause_is_now():
    seen = []

    def answer(handler):
        seen.append(handler.rfile.read(int(handler.headers.get("Content-Length", 0))))
        handler.send(202, "application/json", b'{"id": "job_1", "status": "pausing"}')

    with Server(answer) as server, Client(server.url) as client:
        client.run("pause", "job_1", "--now")
        client.run("pause", "job_1")
        equal(seen, [b'{"mode":"now"}', b""], "bodies of pauses")


def a_queue_has_places():
    job = {"id": "job_1", "status": "queued", "queue_position": 3, "estimated_start_at": 0}
    with Server(json_answer(job)) as server, Client(server.url) as client:
        true("position 3, starts about 1970-01-01 00:00:00" in client.run("jobs", "show", "job_1", env={"TZ": "UTC"}).out, "its place")


def lines_are_those_of_the_file():
    """Blank lines and batches before do not change the number that is said."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        with open(client.path("none.jsonl"), "w") as file:
            file.write("\n{\"text\": 1}\r\nno\n")
        answer = client.run(*GPTQ, "-c", "none.jsonl", status=REFUSED)
        for text in ("insufficient_calibration", "none.jsonl:2: ", "none.jsonl:3: "):
            true(text in answer.err, "%s: %r" % (text, answer))
        with open(client.path("many.jsonl"), "wb") as file:
            for _ in range(60):
                file.write(b"\n" + records())
            lines = 60 * (1 + records().count(b"\n"))
            file.write(b"no\n")
        true(os.path.getsize(client.path("many.jsonl")) > 1 << 20, "more than a batch")
        answer = client.run(*GPTQ, "-c", "many.jsonl")
        true("many.jsonl:%d: not accepted" % (lines + 1) in answer.err, "the line of the last batch: %r" % answer)
        jobs = len(client.run("jobs", "--json").json["data"])
        for name, text in (("missing.jsonl", "No such file"), (".", "is a directory")):
            true(text in client.run(*GPTQ, "-c", name, status=LOCAL).err, "why %s is not read" % name)
        equal(len(client.run("jobs", "--json").json["data"]), jobs, "no job waits for a file that cannot be read")


def mistakes_are_explained():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        for words, status, text in ((["jobs", "shwo", "job_1"], USAGE, '"jobs show"'), (["methods", "gtpq"], REFUSED, '"gptq"'),
                                    (["report", "job_1", "--sort", "mse"], USAGE, "--csv")):
            true(text in client.run(*words, status=status).err, "the hint of %r" % words)
        key = client.run("verify", ".", "-k", "missing.pub", status=LOCAL).err
        equal(key.count("No such file"), 1, "the reason of %r" % key)
        job = client.run(*RTN, "--wait", "--json").json["id"]
        for words, text in ((["report", job, "--csv"], "output: No space left"), (["watch", job, "--json"], "output\n")):
            with open("/dev/full", "w") as full:
                done = subprocess.run([QUANTCTL, *words], env=client.env, stdout=full, stderr=subprocess.PIPE, text=True)
            true(done.returncode == LOCAL and text in done.stderr, "a full disk at %r: %r" % (words, done))
    problem = {"status": 401, "code": "invalid_api_key", "detail": "this daemon needs an API key", "hint": "send a header", "errors": []}
    with Server(json_answer(problem, 401, "application/problem+json")) as server, Client(server.url) as client:
        true("quantctl login" in client.run("jobs", status=REFUSED).err, "how quantctl gets a key")


def errors_of_outputs_are_measured():
    """Without calibration there is no output error: it is not 0."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        jobs = [client.run(*RTN, "-b", bits, "--wait", "--json").json["id"] for bits in ("4", "8")]
        equal(client.run("report", jobs[0], "--json").json["totals"]["mean_output_relative_mse"], None, "the mean")
        line = re.search("mean output error.*", client.run("compare", *jobs).out).group()
        equal(line.split()[3:], ["-", "-"], "the mean of a comparison")


def json_is_all_there_is():
    """With --json standard output is JSON or empty."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        equal(client.run("login", "--no-key", "--json").json["object"], "system", "the answer of login")
        job = client.run(*RTN, "--wait", "--json").json
        for words in (["jobs", "delete", job["id"]], ["artifacts", "delete", job["result"]["artifact_id"]], ["models", "delete", job["model"]]):
            equal(client.run(*words, "--json").out, "", "output of %r" % words)
        equal(client.run("login", "http://127.0.0.1:1", "--no-key", "--no-check", "--json").out, "", "a login without a request")
        answer = client.run("login", "http://127.0.0.1:1", "--no-key", "--no-check")
        true(answer.out.startswith("http://127.0.0.1:1, not asked"), "a login without a request: %r" % answer)


def help_has_no_broken_lines():
    with Client(None) as client:
        listed = client.run("--help").out.split("Commands (")[1].split("Exit status")[0].splitlines()[2:]
        true(all(line == "" or line.startswith("  ") for line in listed), "lines of --help: %r" % listed)
        for group in ("jobs", "models", "webhooks"):
            true("Commands of %s:" % group in client.run(group, "--help").out, "the commands of %s" % group)


main([folders_are_registered_once, models_have_names, jobs_have_times, jobs_are_changed, a_job_that_waits_gets_its_records, a_pause_is_now, a_queue_has_places,
      lines_are_those_of_the_file, mistakes_are_explained, errors_of_outputs_are_measured, json_is_all_there_is, help_has_no_broken_lines])
