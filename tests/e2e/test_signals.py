"""Signals: SIGTERM in the middle of a job ends with 0 and the job continues later; a second signal ends the daemon at once."""

import signal
import time

from harness import JOBS, SLOWER, Daemon, artifact_digests, equal, ids_records, main, new_job, succeed, true, wait_job, wait_until

LONG = {"calibration": {"stream": True, "num_samples": 0, "sequence_length": 256}}
RECORDS = ids_records(120 // SLOWER, 256, 2048)


def wait_layers(daemon, job, layers):
    def reached():
        state = daemon.get("%s/%s" % (JOBS, job))
        return state["status"] in ("succeeded", "failed") or (state["progress"] or {}).get("layers_done", 0) >= layers
    wait_until(reached, "a layer is finished", 240)


def idle_daemon_stops():
    for number in (signal.SIGTERM, signal.SIGINT):
        with Daemon() as daemon:
            started = time.monotonic()
            daemon.signal(number)
            equal(daemon.wait(), 0, "exit status")
            true(time.monotonic() - started < 30, "an idle daemon stops")


def term_in_the_middle_of_a_job():
    with Daemon("--threads", "1") as undisturbed:
        expected = artifact_digests(undisturbed, succeed(undisturbed, new_job(undisturbed, RECORDS, **LONG)))
    with Daemon("--threads", "1") as daemon:
        job = new_job(daemon, RECORDS, **LONG)
        wait_layers(daemon, job, 1)
        started = time.monotonic()
        equal(daemon.stop(), 0, "exit status")
        true(time.monotonic() - started < 60, "it took %.1f s" % (time.monotonic() - started))
        daemon.start()
        state = succeed(daemon, job)
        equal(artifact_digests(daemon, state), expected, "files after the interruption")
        layers = daemon.get("%s/%s/layers" % (JOBS, job))["data"]
        equal(len(layers), 28, "layer rows")


def draining_refuses_new_work():
    with Daemon("--threads", "1", "--drain-seconds", "20") as daemon:
        job = new_job(daemon, RECORDS, **LONG)
        wait_job(daemon, job, until=("running", "succeeded"))
        connection = daemon.connection()
        connection.request("GET", "/readyz")
        equal(connection.getresponse().read() and 200, 200)
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("shutting down")
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            equal(answer.status, 503, "status of /readyz while draining")
        except OSError:
            pass  # the job had ended, and then the daemon did
        finally:
            connection.close()
        equal(daemon.wait(), 0, "exit status")


def streams_end_with_the_daemon():
    with Daemon("--threads", "1") as daemon:
        job = new_job(daemon, RECORDS, **LONG)
        connection = daemon.connection(timeout=5)
        connection.request("GET", "%s/%s/events" % (JOBS, job), headers={"Accept": "text/event-stream"})
        stream = connection.getresponse()
        equal(stream.status, 200, "status of the stream")
        true(stream.readline(), "the stream has begun")
        equal(daemon.stop(), 0, "exit status")
        stream.read()  # to its end, within the time limit
        connection.close()


def second_signal_leaves_at_once():
    with Daemon("--threads", "1", "--drain-seconds", "60") as daemon:
        job = new_job(daemon, RECORDS, **LONG)
        wait_job(daemon, job, until=("running", "succeeded"))
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("shutting down")
        if daemon.process.poll() is None:
            daemon.signal(signal.SIGTERM)
        started = time.monotonic()
        true(daemon.wait() in (0, 1), "it ends")
        true(time.monotonic() - started < 30, "it does not wait for the job")
        daemon.start()
        succeed(daemon, job)


def other_signals_are_noted():
    with Daemon() as daemon:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPWR):
            daemon.signal(number)
            daemon.wait_line("signal ignored", signal=number.name)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGALRM):
            daemon.signal(number)
        equal(daemon.request("GET", "/livez").status, 200, "status after the signals")
        daemon.signal(signal.SIGXCPU)
        equal(daemon.wait(), 0, "exit status after the limit of CPU time")


def log_says_who_asked_for_what():
    with Daemon("--max-queued", "17") as daemon:
        start = daemon.wait_line("started")
        equal(start["address"], "127.0.0.1:%d" % daemon.port, "address")
        equal(start["data_dir"], daemon.data, "data directory")
        equal(start["max_queued"], 17, "an option")
        true(start["version"] and start["libmicrohttpd"], "versions are named")
        body = b'{"uri": "file:tiny-llama"}'
        answer = daemon.request("POST", "/v1/models?x", body=body, headers={"Content-Type": "application/json"})
        equal(answer.status, 400)
        model = daemon.request("POST", "/v1/models", body=body, headers={"Content-Type": "application/json"})
        got = daemon.request("GET", "/v1/models/" + model.json["id"])
        line = daemon.wait_line("request", request=got.headers["x-request-id"])
        equal(line["route"], "/v1/models/{model_id}", "route")
        equal(line["object"], model.json["id"], "object")
        equal(line["bytes_out"], len(got.body), "bytes out")
        true(line["client"].startswith("127.0.0.1:"), "client is named")
        line = daemon.wait_line("request", request=model.headers["x-request-id"])
        equal(line["bytes_in"], len(body), "bytes in")
        equal(daemon.stop(), 0)
        equal(daemon.wait_line("stopped")["reason"], "SIGTERM", "why it ended")


main([other_signals_are_noted, log_says_who_asked_for_what, idle_daemon_stops, term_in_the_middle_of_a_job, draining_refuses_new_work, streams_end_with_the_daemon,
      second_signal_leaves_at_once])
