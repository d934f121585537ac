"""The daemon under test and the words in which tests speak to it.

A test is a list of commands, run in order against one daemon. A command may save what it got under a name, and later
commands read it: paths are format strings over what was saved ("/v1/models/{model[id]}"), bodies may be functions of it.

    with Daemon() as daemon:
        daemon.run([
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama"}, status=201, save="model"),
            Call("GET", "/v1/models/{model[id]}", check=lambda answer, saved: equal(answer.json["object"], "model")),
        ])

Every answer is held to GET /openapi.json (contract.py). Standard library, and jsonschema where it is installed. Exit status 0, 1 on a
failure, 77 when there is nothing to test here.
"""

import hashlib
import http.client
import json as jsonlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import contract

BINARY = os.environ.get("QUANTD", "build-release/daemon/quantd")
DATA = os.environ.get("QUANTD_TEST_DATA", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data"))
SANITIZED = os.environ.get("QUANTD_E2E_SANITIZED", "0") == "1"
SLOWER = int(os.environ.get("QUANTD_E2E_SLOWER", "1"))  # so many times as long a sanitized daemon takes for a record
# A daemon that looks for modules where there are none: memory is measured without the peak of a module that is opened and closed again.
NO_MODULES = ("--module-dir", os.path.dirname(os.path.abspath(__file__)))
START_SECONDS = 60
# The same bytes on every machine, whatever its instructions are, unless a test asks for something else.
os.environ.setdefault("QUANTD_CPU_PRODUCTS", "float32")
JSON = "application/json"
NDJSON = "application/x-ndjson"
JOBS = "/v1/quantization/jobs"


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def equal(actual, expected, what="value"):
    if actual != expected:
        raise Failure("%s is %r, not %r" % (what, actual, expected))


def true(condition, what):
    if not condition:
        raise Failure("not true: %s" % what)


def wait_until(condition, what, seconds=20):
    """What condition() returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure("not true after %d s: %s" % (seconds, what))
        time.sleep(0.01)


class Answer:
    def __init__(self, response, body):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = body

    @property
    def json(self):
        return jsonlib.loads(self.body)

    def __repr__(self):
        return "%d %s" % (self.status, self.body[:600].decode("utf-8", "replace"))


class Daemon:
    """One data directory and, nearly always, one process on it."""

    def __init__(self, *options, roots=None, data=None, env=None, start=True, tls=None):
        self.work = None
        if data is None:
            self.work = tempfile.mkdtemp(prefix="quantd-e2e-")
            data = os.path.join(self.work, "data")
        self.data = data
        self.roots = roots if roots is not None else [DATA]
        self.options = list(options)
        self.env = dict(os.environ, **(env or {}))
        self.process = None
        self.port = None
        self.tls = tls  # an ssl.SSLContext to talk to it with
        self.contract, self.contract_checked = None, True
        self.log = tempfile.TemporaryFile()
        if start:
            self.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if self.process is not None and self.process.poll() is None:
                if kind is None:
                    equal(self.stop(), 0, "exit status of the daemon")
                else:
                    self.kill()
        finally:
            if kind is not None:
                sys.stderr.write("--- end of the log of the daemon\n" + self.log_tail())
            if self.work is not None:
                shutil.rmtree(self.work, ignore_errors=True)

    def command(self):
        words = [BINARY, "--data-dir", self.data, "--listen", "127.0.0.1:0"]
        for root in self.roots:
            words += ["--model-root", root]
        return words + self.options

    def start(self):
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=self.log, env=self.env)
        line = [b""]
        reader = threading.Thread(target=lambda: line.__setitem__(0, self.process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(START_SECONDS)
        text = line[0].decode()
        if not text.startswith("listening on %s://" % ("https" if self.tls else "http")):
            self.kill()
            raise Failure("the daemon did not start: %r\n%s" % (text, self.log_tail()))
        self.port = int(text.rsplit(":", 1)[1])

    def log_tail(self, size=8000):
        end = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, max(0, end - size)).decode("utf-8", "replace")

    def log_lines(self):
        return [jsonlib.loads(line) for line in self.log_tail(1 << 20).splitlines()]

    def wait_line(self, message, **fields):
        """The first line of the log with this message and these fields."""
        def found():
            return next((line for line in self.log_lines()
                         if line["message"] == message and all(line.get(name) == value for name, value in fields.items())), None)
        return wait_until(found, "the log has %s %r" % (message, fields))

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=60):
        status = self.process.wait(seconds)
        self.process.stdout.close()
        return status

    def stop(self, seconds=60):
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self):
        self.process.kill()
        return self.wait()

    def memory(self, key):
        """VmRSS or VmHWM in bytes."""
        with open("/proc/%d/status" % self.process.pid) as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
        raise Failure("no %s" % key)

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def connection(self, timeout=60):
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def connect(self, timeout=60):
        """A socket to it; with TLS, after the handshake."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tls.wrap_socket(raw, server_hostname="127.0.0.1") if self.tls is not None else raw

    def request(self, method, path, body=None, headers=None, json=None, timeout=120):
        headers = dict(headers or {})
        if json is not None:
            body = jsonlib.dumps(json).encode()
            headers.setdefault("Content-Type", JSON)
        if body is None and method == "POST":
            body = b""
        connection = self.connection(timeout)
        try:
            connection.request(method, path, body=body, headers=headers, encode_chunked=hasattr(body, "__next__"))
            response = connection.getresponse()
            answer = Answer(response, response.read())
        finally:
            connection.close()
        self.check_contract(method, path, answer)
        return answer

    def check_contract(self, method, path, answer):
        """Every answer is one that GET /openapi.json describes."""
        if contract.jsonschema is None or not self.contract_checked:
            return
        if self.contract is None:
            connection = self.connection()
            try:
                connection.request("GET", "/openapi.json")
                self.contract = contract.Contract(jsonlib.loads(connection.getresponse().read()))
            finally:
                connection.close()
        faults = self.contract.faults(method, path, answer.status, answer.headers.get("content-type"), answer.body)
        if faults:
            raise Failure("%s %s is not as the API's description has it:\n    %s\n    %r" % (
                method, path, "\n    ".join(faults[:8]), answer))

    def get(self, path, **headers):
        answer = self.request("GET", path, headers=headers)
        equal(answer.status, 200, "status of GET %s (%r)" % (path, answer))
        return answer.json

    def run(self, commands, saved=None):
        saved = {} if saved is None else saved
        for number, command in enumerate(commands, 1):
            try:
                command.run(self, saved)
            except Failure as failure:
                raise Failure("command %d, %s: %s" % (number, command, failure)) from None
        return saved


class Call:
    """One request and what is expected of its answer. code and param: of the problem document, or of one of its errors."""

    def __init__(self, method, path, status=200, json=None, body=None, headers=None, save=None, check=None, code=None,
                 param=None):
        self.method, self.path, self.status = method, path, status
        self.json, self.body, self.headers = json, body, headers
        self.save, self.check, self.code, self.param = save, check, code, param

    def __str__(self):
        return "%s %s" % (self.method, self.path)

    def run(self, daemon, saved):
        json = self.json(saved) if callable(self.json) else self.json
        body = self.body(saved) if callable(self.body) else self.body
        headers = {name: value.format(**saved) for name, value in (self.headers or {}).items()}
        answer = daemon.request(self.method, self.path.format(**saved), body=body, headers=headers, json=json)
        if answer.status != self.status:
            raise Failure("status is not %d: %r" % (self.status, answer))
        if answer.status >= 400 and self.method != "HEAD":
            self.check_problem(answer)
        if self.save is not None:
            saved[self.save] = answer.json
        if self.check is not None:
            self.check(answer, saved)

    def check_problem(self, answer):
        problem = answer.json
        equal(answer.headers.get("content-type"), "application/problem+json", "Content-Type")
        for member in ("type", "title", "status", "detail", "instance", "code", "param", "request_id", "errors"):
            true(member in problem, "problem has %s: %r" % (member, answer))
        equal(problem["status"], answer.status, "status in the problem")
        faults = [problem] + problem["errors"]
        if self.code is not None and not any(
                fault["code"] == self.code and (self.param is None or fault["param"] == self.param)
                for fault in faults):
            raise Failure("no fault %s at %s: %r" % (self.code, self.param, answer))


class Do:
    """Anything else: a function of the daemon and what was saved."""

    def __init__(self, function):
        self.function = function

    def __str__(self):
        return self.function.__name__

    def run(self, daemon, saved):
        self.function(daemon, saved)


def ids_records(count, length, vocabulary, seed=1):
    """NDJSON of seeded token ids with some structure, so that a Hessian is not that of white noise."""
    state = seed & 0x7FFFFFFF
    lines = []
    for _ in range(count):
        ids = []
        for _ in range(length):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            value = (state >> 8) % vocabulary
            ids.append(value if state & 64 else value % (1 + vocabulary // 8))
        lines.append(jsonlib.dumps({"input_ids": ids}, separators=(",", ":")))
    return ("\n".join(lines) + "\n").encode()


def gptq_body(model_id, **more):
    body = {
        "model": model_id,
        "method": "gptq",
        "quantization": {"bits": 4, "group_size": 64},
        "calibration": {"stream": True, "num_samples": 24, "sequence_length": 128},
        "evaluation": {"hold_back": 0.125},
    }
    body.update(more)
    return body


def post(daemon, path, **more):
    """The id of what is made."""
    answer = daemon.request("POST", path, **more)
    equal(answer.status, 201, "status of POST %s (%r)" % (path, answer))
    return answer.json["id"]


TERMINAL = ("succeeded", "failed", "cancelled", "expired")


def wait_job(daemon, job, seconds=240, until=TERMINAL):
    """The job once its status is one of `until`. Each read waits for what differs from the one before, so that none is missed."""
    deadline, headers = time.monotonic() + seconds, {}
    while True:
        answer = daemon.request("GET", "%s/%s" % (JOBS, job), headers=headers)
        if answer.status != 304:
            equal(answer.status, 200, "status of the job's GET (%r)" % answer)
            state = answer.json
            headers = {"Prefer": "wait=5", "If-None-Match": answer.headers["etag"]}
        if state["status"] in until:
            return state
        if time.monotonic() > deadline:
            raise Failure("job is still %s after %d s: %r" % (state["status"], seconds, state["progress"]))


def new_job(daemon, records, uri="file:tiny-llama", **more):
    """A registered model, a job and its complete calibration; the job's id."""
    model = post(daemon, "/v1/models", json={"uri": uri})
    job = post(daemon, JOBS, json=gptq_body(model, **more))
    answer = daemon.request("POST", "%s/%s/calibration?offset=0&complete=1" % (JOBS, job), body=records,
                            headers={"Content-Type": NDJSON})
    equal(answer.status, 200, "status of the calibration (%r)" % answer)
    return job


def succeed(daemon, job, seconds=240):
    state = wait_job(daemon, job, seconds)
    equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
    return state


def artifact_digests(daemon, state):
    """{path: sha256} of what a job made, as its manifest says."""
    manifest = daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])
    return {file["path"]: file["sha256"] for file in manifest["files"]}


def child_of(pid):
    """The process of a run (--worker process) of the daemon of that pid, once it has become quantd; None: there is none."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name) as file:
                fields = file.read().rsplit(")", 1)[1].split()
            with open("/proc/%s/cmdline" % name, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and b"pipeline-process" in words:
            return int(name)
    return None


def without(value, keys):
    """JSON without the members of these names, at any depth."""
    if isinstance(value, dict):
        return {key: without(member, keys) for key, member in value.items() if key not in keys}
    if isinstance(value, list):
        return [without(member, keys) for member in value]
    return value


def signing_key(path, curve="prime256v1"):
    """A new private key for --signing-key; its path."""
    if shutil.which("openssl") is None:
        raise Skip("there is no openssl")
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-out", path], check=True)
    os.chmod(path, 0o600)
    return path


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def main(tests):
    """Run functions by name; a first failure is told and the rest still run."""
    chosen = [word for word in sys.argv[1:] if not word.startswith("-")]
    failed, skipped, ran = 0, 0, 0
    for test in tests:
        if chosen and test.__name__ not in chosen:
            continue
        started = time.monotonic()
        ran += 1
        try:
            test()
            outcome = "ok"
        except Skip as reason:
            outcome, skipped = "skipped: %s" % reason, skipped + 1
        except Failure as failure:
            outcome, failed = "FAILED: %s" % failure, failed + 1
        except Exception:  # an unexpected one is a failure of the test as well
            outcome, failed = "FAILED:\n" + traceback.format_exc(), failed + 1
        print("%-44s %6.1f s  %s" % (test.__name__, time.monotonic() - started, outcome), flush=True)
    sys.exit(1 if failed or not ran else 77 if skipped == ran else 0)
