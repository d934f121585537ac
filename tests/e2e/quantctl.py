"""The rig of the tests of quantctl: the command with a home of its own, and servers that answer as a test wants."""

import contextlib
import http.server
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time

from harness import SANITIZED, Failure, ids_records

QUANTCTL = os.path.abspath(os.environ.get("QUANTCTL", "build-release/cli/quantctl"))
TOP = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
OK, JOB, USAGE, UNREACHABLE, REFUSED, SERVER, LOCAL, MISMATCH = range(8)
KEY = "qd_" + "0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
SECONDS = 120 if SANITIZED else 60


class Answer:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return "status %d\n%s\n%s" % (self.status, self.out[-1500:], self.err[-1500:])


class Client:
    """quantctl with a home of its own."""

    def __init__(self, url, **env):
        self.home = tempfile.mkdtemp(prefix="quantctl-e2e-")
        self.env = {name: value for name, value in os.environ.items()
                    if not name.startswith(("QUANTD_", "XDG_")) and "proxy" not in name.lower()}
        self.env.update(HOME=self.home, LANG="C.UTF-8", LC_ALL="C.UTF-8", **env)
        if url is not None:
            self.env["QUANTD_URL"] = url

    def __enter__(self):
        return self

    def __exit__(self, *error):
        shutil.rmtree(self.home, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.home, *names)

    def start(self, *words, **more):
        return subprocess.Popen([QUANTCTL, *words], env=self.env, cwd=self.home, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def run(self, *words, status=OK, stdin=b"", seconds=SECONDS, env=None):
        done = subprocess.run([QUANTCTL, *words], env=dict(self.env, **(env or {})), cwd=self.home, input=stdin,
                              capture_output=True, timeout=seconds)
        answer = Answer(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
        if status is not None and answer.status != status:
            raise Failure("quantctl %s: exit status is not %d: %r" % (" ".join(words), status, answer))
        return answer


def url_of(daemon):
    return "http://127.0.0.1:%d" % daemon.port


def records():
    return ids_records(40, 140, 2048)


def job_file(client):
    path = client.path("job.yaml")
    with open(path, "w") as file:
        file.write("name: from a file\nmodel: tiny\nmethod: gptq\nquantization: {bits: 4, group_size: 64}\n"
                   "calibration: {num_samples: 24, sequence_length: 128}\nevaluation: {hold_back: 0.125}\n"
                   "metadata: {team: search}\n")
    with open(client.path("texts.ndjson"), "wb") as file:
        file.write(records())
    return path


def read_pty(parent, process, seconds):
    output = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ready, _, _ = select.select([parent], [], [], 0.2)
        try:
            data = os.read(parent, 65536) if ready else b""
        except OSError:  # the other side is closed
            break
        output += data
        if not ready and process.poll() is not None:
            break
    return output.decode("utf-8", "replace")


PROBLEM = {"type": "urn:quantd:error:invalid_parameter", "title": "t", "status": 400, "detail": "first", "instance": "/",
           "code": "invalid_parameter", "param": "/a", "hint": None, "request_id": "req_1", "retryable": False,
           "errors": [{"code": "invalid_parameter", "param": "/a/b\x1b[2J", "detail": "one\x1b]0;x\x07", "hint": "h1"},
                      {"code": "missing_parameter", "param": "/c", "detail": "two\nthree", "hint": None}]}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def send(self, status, kind, body, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.answer(self)

    do_POST = do_DELETE = do_GET


class Server(http.server.ThreadingHTTPServer):
    """answer(handler) for each request."""

    daemon_threads = True

    def __init__(self, answer, tls=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.tls = answer, [], tls
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request, address):
        pass  # a client that hangs up is part of the tests

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    @property
    def url(self):
        return "%s://127.0.0.1:%d" % ("https" if self.tls else "http", self.server_address[1])


def json_answer(value, status=200, kind="application/json"):
    return lambda handler: handler.send(status, kind, json.dumps(value).encode())
