"""What devices do to jobs. A lost one: the daemon becomes a new process at the same address, and its jobs continue. One without
memory: the job asks less of it and says so. The device is a shim of CUDA that fails on order."""

import http.client
import os
import re
import socket
import subprocess
import tempfile
import time

from harness import (BINARY, DATA, JOBS, NDJSON, TERMINAL, Daemon, Failure, Skip, artifact_digests, equal, gptq_body, main,
                     new_job, succeed, true, wait_until)

SHIM = os.environ.get("QUANTD_SHIM_MODULE_DIR", "")
CALIBRATION = {"stream": True, "num_samples": 3, "sequence_length": 32}
UNSPECIFIED_LAUNCH_FAILURE = 719

with open(os.path.join(DATA, "..", "..", "deploy", "calibration.ndjson"), "rb") as text:
    RECORDS = text.read()


class ShimDaemon(Daemon):
    def __init__(self, *options):
        if not os.path.exists(os.path.join(SHIM, "quantd_gpu_cuda.so")):
            raise Skip("the shim was not built")
        self.orders = tempfile.mkdtemp(prefix="quantd-orders-")
        self.order_file = os.path.join(self.orders, "order")
        super().__init__("--module-dir", SHIM, "--device", "cuda:0", *options, env={"QUANTD_SHIM_ORDERS": self.order_file})

    def __exit__(self, *what):
        super().__exit__(*what)
        if os.path.exists(self.order_file):
            os.unlink(self.order_file)
        os.rmdir(self.orders)

    def order(self, line):
        with open(self.order_file + ".new", "w") as file:
            file.write(line + "\n")
        os.rename(self.order_file + ".new", self.order_file)

    def patient_get(self, path, **headers):
        """Through a restart: an open connection may break, and no more than that."""
        for _ in range(200):
            try:
                return self.get(path, **headers)
            except (http.client.HTTPException, ConnectionResetError, BrokenPipeError):
                time.sleep(0.05)
        raise Failure("no answer to GET %s" % path)

    def wait_job_through(self, job, done, seconds=240):
        def reached():
            state = self.patient_get("%s/%s" % (JOBS, job))
            return state if done(state) else None
        return wait_until(reached, "the job gets there", seconds)

    def restarts(self):
        return self.log_tail(1 << 20).count("device lost, restarting in place")


def layers_done(state):
    return (state["progress"] or {}).get("layers_done", 0)


def follow(daemon, job):
    """Events of a job by SSE, over as many connections as it takes; and their number."""
    seen, connections, last = [], 0, None
    while not seen or seen[-1] != "end":
        connections += 1
        if connections > 50:
            raise Failure("the stream does not end: %r" % seen)
        connection = daemon.connection()
        try:
            headers = {"Accept": "text/event-stream"}
            if last is not None:
                headers["Last-Event-ID"] = last
            connection.request("GET", "%s/%s/events" % (JOBS, job), headers=headers)
            response = connection.getresponse()
            for line in response:
                text = line.decode().strip()
                if text.startswith("id:"):
                    last = text[3:].strip()
                    seen.append(int(last))
                elif re.search('"type":"status".*"status":"(%s)"' % "|".join(TERMINAL), text):
                    seen.append("end")
        except (http.client.HTTPException, OSError):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    return seen[:-1], connections


def a_lost_device_costs_a_restart():
    with ShimDaemon() as undisturbed:
        expected = artifact_digests(undisturbed, succeed(undisturbed, new_job(undisturbed, RECORDS, method="rtn", calibration=CALIBRATION)))
    with ShimDaemon() as daemon:
        port = daemon.port
        job = new_job(daemon, RECORDS, method="rtn", calibration=CALIBRATION)
        state = daemon.wait_job_through(job, lambda state: layers_done(state) >= 1 or state["status"] in TERMINAL)
        equal(state["status"], "running", "status when the device is lost")
        daemon.order("lose %d" % UNSPECIFIED_LAUNCH_FAILURE)
        sequence, connections = follow(daemon, job)
        state = daemon.wait_job_through(job, lambda state: state["status"] in TERMINAL)
        equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
        equal(state["attempt"], 2, "attempts")
        equal(artifact_digests(daemon, state), expected, "files after the restart")
        equal(daemon.restarts(), 1, "restarts")
        true(daemon.process.poll() is None, "the process is the same")
        equal(daemon.process.stdout.readline().decode(), "listening on http://127.0.0.1:%d\n" % port, "the second address")
        equal(sequence, list(range(1, len(sequence) + 1)), "numbers of the events")
        true(connections >= 2, "the stream was taken up again")
        reasons = [event["data"].get("reason") or "" for event in
                   daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"] if event["type"] == "status"]
        true(any("an error of the shim (719)" in reason for reason in reasons), "an event says what happened: %r" % reasons)


def a_process_loses_its_device_alone():
    """The next attempt opens the device in another process; nobody who is connected notices."""
    with ShimDaemon() as undisturbed:
        expected = artifact_digests(undisturbed, succeed(undisturbed, new_job(undisturbed, RECORDS, method="rtn", calibration=CALIBRATION)))
    with ShimDaemon("--worker", "process") as daemon:
        job = new_job(daemon, RECORDS, method="rtn", calibration=CALIBRATION)
        state = daemon.wait_job_through(job, lambda state: layers_done(state) >= 1 or state["status"] in TERMINAL)
        equal(state["status"], "running", "status when the device is lost")
        daemon.order("lose %d" % UNSPECIFIED_LAUNCH_FAILURE)
        sequence, connections = follow(daemon, job)
        state = daemon.get("%s/%s" % (JOBS, job))
        equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
        equal(state["attempt"], 2, "attempts")
        equal(artifact_digests(daemon, state), expected, "files after the loss")
        equal(daemon.restarts(), 0, "restarts")
        equal(connections, 1, "connections of the stream")
        reasons = [event["data"].get("reason") or "" for event in
                   daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"] if event["type"] == "status"]
        true(any("an error of the shim (719)" in reason for reason in reasons), "an event says what happened: %r" % reasons)


def a_device_that_is_always_lost_fails_its_job():
    with ShimDaemon() as daemon:
        daemon.order("lose %d always" % UNSPECIFIED_LAUNCH_FAILURE)
        job = new_job(daemon, RECORDS, method="rtn", calibration=CALIBRATION)
        state = daemon.wait_job_through(job, lambda state: state["status"] in TERMINAL)
        equal(state["status"], "failed", "status of the job")
        equal(state["error"]["code"], "device_lost", "code of the error")
        true("cpu" in state["error"]["hint"], "the hint says what to do: %r" % state["error"])
        equal(state["attempt"], 3, "attempts")
        on_cpu = None
        for _ in range(200):  # the third restart may still be under way
            try:
                on_cpu = new_job(daemon, RECORDS, calibration=CALIBRATION, resources={"device": "cpu"})
                break
            except (Failure, http.client.HTTPException, ConnectionResetError, BrokenPipeError):
                time.sleep(0.05)
        state = daemon.wait_job_through(on_cpu, lambda state: state["status"] in TERMINAL)
        equal(state["status"], "succeeded", "status of a job on the CPU (error %r)" % state["error"])
        equal(daemon.restarts(), 3, "restarts")


def unfinished_upload(daemon, model):
    """A request that stays open for as long as it may."""
    job = daemon.request("POST", JOBS, json=gptq_body(model))
    equal(job.status, 201, "status of the job (%r)" % job)
    connection = daemon.connection()
    connection.putrequest("POST", "%s/%s/calibration" % (JOBS, job.json["id"]))
    connection.putheader("Content-Type", NDJSON)
    connection.putheader("Content-Length", "100000")
    connection.endheaders(b'{"text":"')
    return connection


def a_signal_makes_a_restart_a_shutdown():
    with ShimDaemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        connection = unfinished_upload(daemon, model)
        daemon.order("lose %d" % UNSPECIFIED_LAUNCH_FAILURE)
        job = daemon.request("POST", JOBS, json={"model": model, "method": "rtn", "evaluation": {"hold_back": 0}})
        equal(job.status, 201, "status of the job (%r)" % job)
        wait_until(lambda: daemon.restarts() > 0, "the device is found lost", 240)
        equal(daemon.stop(), 0, "exit status")
        connection.close()
        equal(daemon.log_tail(1 << 20).count('"device opened"'), 1, "processes so far")
        daemon.start()
        state = succeed(daemon, job.json["id"])
        equal(state["attempt"], 2, "attempts")


def a_device_without_memory_is_told():
    with ShimDaemon() as daemon:
        job = new_job(daemon, RECORDS, method="rtn", calibration=CALIBRATION)
        daemon.wait_job_through(job, lambda state: layers_done(state) >= 1)
        daemon.order("allocation 1 4")
        state = daemon.wait_job_through(job, lambda state: state["status"] in TERMINAL)
        equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
        told = [warning["code"] for warning in state["warnings"]]
        for code in ("activations_on_host", "micro_batch_halved"):
            true(code in told, "%s is among the warnings %r" % (code, told))
        report = daemon.get("%s/%s/report" % (JOBS, job))
        equal(report["warnings"], state["warnings"], "warnings in the report")
        events = daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"]
        equal([event["data"] for event in events if event["type"] == "warning"],
              [warning for warning in state["warnings"] if "out of memory" in warning["message"]], "warnings as events")
        equal(daemon.restarts(), 0, "restarts")


def start_with_socket(listener, *options):
    """A daemon that inherits a socket, as a service manager would start it."""
    os.set_inheritable(listener.fileno(), True)
    data = tempfile.mkdtemp(prefix="quantd-e2e-")
    script = 'exec 3<&%d; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"' % listener.fileno()
    return subprocess.Popen(["sh", "-c", script, "sh", BINARY, "--data-dir", data, *options], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[listener.fileno()])


def a_socket_is_inherited():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        early = socket.create_connection(("127.0.0.1", port))
        early.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        process = start_with_socket(listener, "--listen", "127.0.0.1:1")
        equal(process.stdout.readline().decode(), "listening on http://127.0.0.1:%d\n" % port, "the address")
        true(early.recv(64).startswith(b"HTTP/1.1 200"), "who came before it was up is served")
        early.close()
        process.terminate()
        equal(process.wait(30), 0, "exit status")
        process.communicate()


def an_inherited_socket_is_held_to_the_rules():
    with socket.create_server(("0.0.0.0", 0)) as listener:
        process = start_with_socket(listener)
        words = process.communicate(timeout=30)[1].decode()
        equal(process.returncode, 2, "exit status")
        true("refusing to listen on 0.0.0.0" in words, "the reason: %r" % words)
    with socket.socket() as idle:
        process = start_with_socket(idle)
        words = process.communicate(timeout=30)[1].decode()
        equal(process.returncode, 2, "exit status")
        true("LISTEN_FDS" in words, "the reason: %r" % words)


main([a_lost_device_costs_a_restart, a_process_loses_its_device_alone, a_device_that_is_always_lost_fails_its_job,
      a_signal_makes_a_restart_a_shutdown, a_device_without_memory_is_told, a_socket_is_inherited,
      an_inherited_socket_is_held_to_the_rules])
