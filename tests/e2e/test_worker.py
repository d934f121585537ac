"""Jobs in processes of their own (--worker process): the same bytes and reports as in the daemon's thread, and a process that dies,
hangs or outlives its daemon costs an attempt at most.
"""

import functools
import os
import signal
import sys

from harness import (JOBS, NDJSON, SLOWER, TERMINAL, Daemon, Failure, artifact_digests, child_of, equal, ids_records, main, new_job, post, succeed,
                     true, wait_job, wait_until, without)

# Jobs last alike in every build.
RECORDS = ids_records(200 // SLOWER, 256, 2048)
BODY = {"quantization": {"bits": 4, "group_size": 64, "quality": "fast"},
        "calibration": {"stream": True, "num_samples": 160 // SLOWER, "sequence_length": 256}}
SMALL = ids_records(48, 160, 2048)
SMALL_BODY = {"calibration": {"stream": True, "num_samples": 36 // SLOWER, "sequence_length": 128}}
WAIT_SECONDS = 120
TIMED = {"seconds", "solve_seconds", "elapsed_seconds", "phases", "host_peak_bytes", "artifact_bytes", "job_id", "model", "created_at",
         "threads"}


def process_daemon(*options, **more):
    return Daemon("--threads", "1", "--worker", "process", *options, **more)


def is_gone(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return True if file.read().rsplit(")", 1)[1].split()[0] == "Z" else None
    except OSError:
        return True


def state_of(daemon, job):
    return daemon.get("%s/%s" % (JOBS, job))


def running_child(daemon, job, attempt=1, layers=0):
    """The process of this attempt, once so many blocks are finished."""
    def look():
        state = state_of(daemon, job)
        if state["status"] in TERMINAL:
            raise Failure("attempt %d with %d blocks did not come: %r" % (attempt, layers, state))
        done = (state["progress"] or {}).get("layers_done", 0)
        if state["status"] != "running" or state["attempt"] != attempt or done < layers:
            return None
        return child_of(daemon.process.pid)
    return wait_until(look, "there is the process of attempt %d" % attempt, WAIT_SECONDS)


def outcome(daemon, job):
    state = succeed(daemon, job)
    digests = artifact_digests(daemon, state) if state["result"]["artifact_id"] else None
    return digests, without(daemon.get("%s/%s/report" % (JOBS, job)), TIMED)


REQUESTS = [
    dict(SMALL_BODY),
    dict(SMALL_BODY, method=["smoothquant", "gptq"], quantization={
        "bits": 8, "smoothing_strength": 0.5, "input_range": "absmax", "kv_cache": {"granularity": "per_head"}}),
    dict(SMALL_BODY, method="rtn", quantization={"bits": 4, "group_size": 64, "overrides": [
        {"match": "*.down_proj", "skip": True}, {"match": "*layers.1*", "bits": 8}]}),
    dict(SMALL_BODY, method="kv_analysis", quantization={}),
]


def jobs_of(daemon):
    return [outcome(daemon, new_job(daemon, SMALL, **request)) for request in REQUESTS]


def the_same_bytes_and_reports():
    with Daemon("--threads", "1") as daemon:
        expected = jobs_of(daemon)
        true(child_of(daemon.process.pid) is None, "a thread needs no process")
    with process_daemon() as daemon:
        found = jobs_of(daemon)
    for number, (one, other) in enumerate(zip(expected, found)):
        equal(other[0], one[0], "files of job %d" % number)
        equal(other[1], one[1], "report of job %d" % number)


@functools.cache
def undisturbed():
    with Daemon("--threads", "1") as daemon:
        return artifact_digests(daemon, succeed(daemon, new_job(daemon, RECORDS, **BODY)))


def a_killed_process_is_an_attempt():
    expected = undisturbed()
    with process_daemon() as daemon:
        job = new_job(daemon, RECORDS, **BODY)
        child = running_child(daemon, job, 1, 1)
        os.kill(child, signal.SIGTERM)  # as a service manager or a terminal would, to every process: not the run's business
        os.kill(child, signal.SIGKILL)
        child = running_child(daemon, job, 2, 2)
        os.kill(child, signal.SIGSEGV)
        state = succeed(daemon, job)
        equal(state["attempt"], 3, "attempts")
        equal(artifact_digests(daemon, state), expected, "files")
        true(state["memory"]["gpu_peak_bytes"] > 0, "the device's peak is known")


def one_that_always_crashes_is_given_up():
    with process_daemon() as daemon:
        job = new_job(daemon, RECORDS, max_attempts=2, **BODY)
        for attempt in (1, 2):
            os.kill(running_child(daemon, job, attempt), signal.SIGKILL)
        state = wait_job(daemon, job)
        equal(state["status"], "failed", "status")
        error = state["error"]
        equal(error["code"], "worker_lost", "code")
        true("crashed repeatedly" in error["message"] and "signal 9" in error["message"], "the message says what: %r" % error)
        true(error["hint"], "there is a hint")
        equal(error["retryable"], True, "retryable")
        succeed(daemon, new_job(daemon, SMALL, **SMALL_BODY))


class CarelesslyStarted(Daemon):
    """By a program that ignores the ends of its children, which a new program inherits."""

    def command(self):
        return [sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
                "os.execv(sys.argv[1], sys.argv[1:])"] + super().command()


def a_crash_is_seen_whoever_started_the_daemon():
    with CarelesslyStarted("--threads", "1", "--worker", "process") as daemon:
        job = new_job(daemon, RECORDS, max_attempts=1, **BODY)
        os.kill(running_child(daemon, job), signal.SIGKILL)
        error = wait_job(daemon, job)["error"]
        equal(error["code"], "worker_lost", "code")
        true("signal 9" in error["message"], "the message says what: %r" % error)


def a_cancelled_run_ends():
    with process_daemon() as daemon:
        for stopped in (False, True):
            job = new_job(daemon, RECORDS, **BODY)
            child = running_child(daemon, job)
            if stopped:
                os.kill(child, signal.SIGSTOP)  # it hears nothing
            equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202, "status of the cancellation")
            equal(wait_job(daemon, job, 30)["status"], "cancelled", "status")
            wait_until(lambda: is_gone(child), "the process has ended", 10)
        succeed(daemon, new_job(daemon, SMALL, **SMALL_BODY))


def a_shutdown_leaves_nothing_and_resumes():
    expected = undisturbed()
    with process_daemon() as daemon:
        job = new_job(daemon, RECORDS, **BODY)
        child = running_child(daemon, job, 1, 1)
        equal(daemon.stop(), 0, "exit status of the daemon")
        true(is_gone(child), "the process ended before the daemon")
        daemon.start()
        child = running_child(daemon, job, 2)
        daemon.kill()
        wait_until(lambda: is_gone(child), "the process has ended", 10)
        daemon.start()
        state = succeed(daemon, job)
        equal(artifact_digests(daemon, state), expected, "files")


def the_process_has_what_it_needs_alone():
    with process_daemon() as daemon:
        job = new_job(daemon, RECORDS, **BODY)
        child = running_child(daemon, job, 1, 1)
        os.kill(child, signal.SIGSTOP)
        names = {}
        for name in os.listdir("/proc/%d/fd" % child):
            names[int(name)] = os.readlink("/proc/%d/fd/%s" % (child, name))
        with open("/proc/%d/oom_score_adj" % child) as file:
            equal(file.read().strip(), "500", "score of the process where memory runs out")
        os.kill(child, signal.SIGCONT)
        equal([number for number, name in names.items() if name.startswith("socket:")], [3], "sockets of the process")
        true(not any("quantd.db" in name or ".sqlite" in name or "/jobs/" not in name and daemon.data in name
                     for name in names.values()), "the process has no file of the store: %r" % names)
        equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202, "status of the cancellation")
        equal(wait_job(daemon, job, 30)["status"], "cancelled", "status")


def its_lines_have_the_trace():
    trace = "0af7651916cd43dd8448eb211c80319c"
    with process_daemon("--log-level", "debug") as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        file = post(daemon, "/v1/files?purpose=calibration", body=SMALL, headers={"Content-Type": NDJSON})
        body = {"model": model, "method": "aqlm", "quantization": {"num_codebooks": 1, "nbits_per_codebook": 4, "max_epochs": 2},
                "calibration": {"file_id": file, "num_samples": 18, "sequence_length": 128}}
        job = post(daemon, JOBS, json=body, headers={"traceparent": "00-%s-b7ad6b7169203331-01" % trace})
        daemon.wait_line("run started in a process", trace_id=trace)
        daemon.wait_line("epoch of codebooks", trace_id=trace)
        equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202, "status of the cancellation")
        wait_job(daemon, job, 30)


def an_unknown_worker_is_refused():
    import subprocess
    from harness import BINARY
    refused = subprocess.run([BINARY, "--data-dir", "d", "--worker", "fork"], capture_output=True, text=True, timeout=60)
    equal(refused.returncode, 2, "exit status")
    true("--worker: \"fork\"" in refused.stderr and "thread" in refused.stderr, "the message names the values: %r" % refused.stderr)
    stray = subprocess.run([BINARY, "pipeline-process", "1"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    equal(stray.returncode, 1, "exit status of a process that nobody started")


main([the_same_bytes_and_reports, a_killed_process_is_an_attempt, one_that_always_crashes_is_given_up,
      a_crash_is_seen_whoever_started_the_daemon, a_cancelled_run_ends,
      a_shutdown_leaves_nothing_and_resumes, the_process_has_what_it_needs_alone, its_lines_have_the_trace, an_unknown_worker_is_refused])
