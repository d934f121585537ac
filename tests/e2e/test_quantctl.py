"""quantctl against the daemon, and against servers that are none: what it prints, what it stores, and its exit status."""

import contextlib
import csv
import fcntl
import hashlib
import http.server
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import termios
import threading
import time

from harness import DATA, JOBS, SANITIZED, Daemon, Failure, Skip, equal, ids_records, main, new_job, true, wait_job

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


# --- a job, from its model to its files


def tour():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        client.run("login", "--no-key")
        model = client.run("models", "register", "file:tiny-llama", "--name", "tiny", "--json").json
        true("tiny" in client.run("models").out and model["id"] in client.run("models", "list").out, "the model is listed")
        equal(client.run("models", "show", model["id"], "--json").json, daemon.get("/v1/models/" + model["id"]), "the model")
        path = job_file(client)
        file = client.run("upload", "texts.ndjson", "--json").json
        equal(file["sha256"], hashlib.sha256(records()).hexdigest(), "digest of the upload")
        equal(file["name"], "texts.ndjson", "name of the upload")
        answer = client.run("submit", "-f", path, "--calibration", "texts.ndjson", "--wait", "--json")
        first = answer.json
        equal(first["status"], "succeeded", "the job")
        equal(first["calibration"]["records"], 40, "records that were streamed")
        equal(first["metadata"], {"team": "search"}, "metadata")
        by_flags = client.run("submit", "--model", model["id"], "--method", "gptq", "-b", "4", "-g", "64", "--calibration",
                              file["id"], "--num-samples", "24", "--sequence-length", "128", "--evaluation", "0.125",
                              "--set", "damp_percent=0.02", "--set", "output.max_shard_bytes=1073741824", "--metadata",
                              "team=maps", "--name", "by flags", "--wait", "--json").json
        equal(by_flags["quantization"]["damp_percent"], 0.02, "damp_percent")
        equal(by_flags["output"]["max_shard_bytes"], 1073741824, "max_shard_bytes")
        listed = client.run("jobs", "--json").json["data"]
        equal([job["id"] for job in listed], [by_flags["id"], first["id"]], "jobs, newest first")
        equal([job["id"] for job in client.run("jobs", "--metadata", "team=search", "--json").json["data"]],
              [first["id"]], "jobs by metadata")
        equal(client.run("jobs", "--status", "failed", "--json").json["data"], [], "failed jobs")
        true("there are more" in client.run("jobs", "-n", "1").err, "a limit is said")
        show_report(client, daemon, first["id"], by_flags["id"])
        pull_artifact(client, daemon, first)
        equal([entry["id"] for entry in client.run("artifacts", "--job", first["id"], "--json").json["data"]],
              [first["result"]["artifact_id"]], "the artifact of a job")
        true("model.safetensors" in client.run("artifacts", "show", first["result"]["artifact_id"]).out, "its files")
        true("texts.ndjson" in client.run("files", "-p", "calibration").out, "uploaded files")
        client.run("artifacts", "delete", by_flags["result"]["artifact_id"], "mdl_1", status=USAGE)
        client.run("artifacts", "delete", by_flags["result"]["artifact_id"])
        client.run("pull", by_flags["result"]["artifact_id"], status=REFUSED)
        client.run("jobs", "delete", by_flags["id"])
        client.run("files", "delete", file["id"])
        equal(client.run("files", "--json").json["data"], [], "files that are left")
        client.run("jobs", "show", by_flags["id"], status=REFUSED)
        true("gptq" in client.run("methods").out, "methods are listed")
        true("damp_percent" in client.run("methods", "gptq").out, "parameters are listed")
        equal(client.run("system", "--json").json["name"], "quantd", "the server")


def show_report(client, daemon, first, second):
    route = daemon.request("GET", "%s/%s/layers?sort=-output_relative_mse" % (JOBS, first), headers={"Accept": "text/csv"})
    answer = client.run("report", first, "--csv", "--sort", "-output_relative_mse")
    equal(answer.out.encode(), route.body, "report --csv")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    text = client.run("report", first, "-n", "3").out
    true(rows[0]["module"] in text and rows[2]["module"] in text, "the worst modules are shown")
    true(rows[-1]["module"] not in text and len(re.findall("\u2588", text)) > 10, "and bars, and no others")
    true(all(row["module"] in client.run("report", first, "--all").out for row in rows), "all are shown with --all")
    equal(client.run("report", first, "--json").json, daemon.get("%s/%s/report" % (JOBS, first)), "report --json")
    client.run("report", first, "--metric", "nonsense", status=USAGE)
    both = client.run("compare", first, second, "--json").json
    equal(both, daemon.get("/v1/quantization/compare?jobs=%s,%s" % (first, second)), "compare --json")
    equal(sorted(module["module"] for module in both["modules"]), sorted(row["module"] for row in rows), "modules that are compared")
    errors = {module["module"]: module["values"][0]["output_relative_mse"] for module in both["modules"]}
    equal(["%.9g" % float(row["output_relative_mse"]) for row in rows], ["%.9g" % errors[row["module"]] for row in rows],
          "errors that are compared")
    client.run("compare", first, second, "--metric", "nonsense", status=USAGE)
    true("sqnr_db of the modules" in client.run("compare", first, second, "--metric", "sqnr_db").out, "another column")
    client.run("compare", first, first, status=REFUSED)
    client.run("compare", first, "mdl_1", status=USAGE)
    true("perplexity after" in client.run("compare", first, second).out, "a comparison is shown")
    client.run("compare", first, status=USAGE)


def pull_artifact(client, daemon, job):
    artifact = daemon.get("/v1/artifacts/" + job["result"]["artifact_id"])
    client.run("pull", job["id"], "-o", "out/model")
    for file in artifact["files"]:
        with open(client.path("out", "model", file["path"]), "rb") as handle:
            equal(hashlib.sha256(handle.read()).hexdigest(), file["sha256"], file["path"])
    equal(sorted(os.listdir(client.path("out", "model"))), sorted(file["path"] for file in artifact["files"]), "files")
    again = client.run("pull", artifact["id"], "-o", "out/model", "--json").json
    true(not any(file["downloaded"] for file in again["files"]), "what is there is kept")
    tampered = client.path("out", "model", "model.safetensors")
    with open(tampered, "r+b") as handle:
        handle.seek(1000)
        handle.write(b"XXXX")
    answer = client.run("pull", artifact["id"], "-o", "out/model", status=MISMATCH)
    true("model.safetensors" in answer.err and "--force" in answer.err, "the file is named: %r" % answer)
    client.run("pull", artifact["id"], "-o", "out/model", "--force")
    # the server's own bytes are damaged now
    (weights,) = (file for file in artifact["files"] if file["path"] == "model.safetensors")
    (blob,) = (os.path.join(top, name) for top, _, names in os.walk(os.path.join(daemon.data, "blobs")) for name in names
               if weights["sha256"] in os.path.join(top, name).replace("/", "") or name == weights["sha256"])
    os.chmod(blob, 0o600)
    with open(blob, "r+b") as handle:
        handle.seek(70000)
        handle.write(b"XXXX")
    answer = client.run("pull", artifact["id"], "-o", "fresh", status=MISMATCH)
    true(weights["sha256"] in answer.err, "both digests are named: %r" % answer)
    true("model.safetensors" not in " ".join(os.listdir(client.path("fresh"))), "the file is not kept")


# --- watching


def watch_lines():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = new_job(daemon, records())
        answer = client.run("watch", job)
        true("\x1b" not in answer.out, "no escape sequence: %r" % answer)
        for words in ("queued -> running", "block 1 of 4 done", "block 4 of 4 done", "running -> succeeded", "perplexity"):
            true(words in answer.out, "%r is shown: %r" % (words, answer))
        events = [json.loads(line) for line in client.run("watch", job, "--json").out.splitlines()]
        equal([event["seq"] for event in events], list(range(1, len(events) + 1)), "numbers of the events")
        equal(client.run("watch", job, "--quiet").out, "", "quiet")
        cancelled = new_job(daemon, records())
        client.run("cancel", cancelled)
        answer = client.run("watch", cancelled, status=JOB)
        true("cancelled" in answer.err, "the outcome is said: %r" % answer)


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


def watch_terminal():
    """Bars in place: what is drawn is erased before it is drawn again, and nothing else moves the cursor."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = new_job(daemon, records())
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        process = subprocess.Popen([QUANTCTL, "watch", job], env=client.env, stdin=child, stdout=child, stderr=child)
        os.close(child)
        output = read_pty(parent, process, SECONDS)
        os.close(parent)
        equal(process.wait(10), OK, "exit status (%r)" % output[-500:])
        true(re.search(r"total   \[-{40}\]   0%  elapsed \S+  ETA", output), "a bar: %r" % output[-500:])
        true(re.search(r"total   \[#{40}\] 100%", output), "a full bar: %r" % output[-500:])
        true("blocks  [########################################] 4 of 4 done" in output, "all blocks: %r" % output[-500:])
        true("errors  [" in output, "errors of blocks")
        true("\x1b[4A\x1b[J" in output, "it is drawn in place")
        equal(re.sub("\x1b\\[\\d+A\x1b\\[J", "", output).count("\x1b"), 0, "other escape sequences")
        true(all(len(line) <= 100 for line in re.sub("\x1b\\[[0-9]*[AJ]", "", output).split("\r\n")), "no line wraps")


class FixedPort(Daemon):
    def command(self):
        words = super().command()
        words[words.index("--listen") + 1] = "127.0.0.1:%d" % self.fixed
        return words


def watch_goes_on_after_a_crash():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = FixedPort(start=False)
    daemon.fixed = port
    daemon.start()
    with daemon, Client(url_of(daemon)) as client:
        job = new_job(daemon, records())
        watcher = client.start("watch", job, "--json")
        lines = [watcher.stdout.readline() for _ in range(4)]
        daemon.kill()
        daemon.start()
        wait_job(daemon, job)
        rest, errors = watcher.communicate(timeout=SECONDS)
        equal(watcher.returncode, OK, "exit status of watch (%r)" % errors)
        numbers = [json.loads(line)["seq"] for line in lines + rest.splitlines()]
        equal(numbers, list(range(1, len(numbers) + 1)), "each event once")


# --- servers that are none


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


def raw_answer(data, wait=0):
    def answer(handler):
        handler.wfile.write(data)
        handler.wfile.flush()
        handler.close_connection = True
        time.sleep(wait)
    return answer


def huge(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        for _ in range(300):
            handler.wfile.write(b" " * (1 << 20))


def wrong_servers():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    page = b"<html>\x1b[2Jlogin</html>"
    cases = [
        ("a page", lambda handler: handler.send(200, "text/html", page), SERVER),
        ("a page that refuses", lambda handler: handler.send(404, "text/html", page), REFUSED),
        ("a proxy's page", lambda handler: handler.send(502, "text/html", page), SERVER),
        ("a redirect", lambda handler: handler.send(302, "text/html", b"", Location="http://127.0.0.1:1/"), SERVER),
        ("half an answer", raw_answer(head + b"Content-Length: 100\r\n\r\n{"), UNREACHABLE),
        ("half a chunk", raw_answer(head + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{"), UNREACHABLE),
        ("nothing", raw_answer(b""), UNREACHABLE),
        ("noise", raw_answer(b"\x00\x01SSH-2.0-x\r\n\r\n"), SERVER),
        ("silence", raw_answer(b"", wait=5), UNREACHABLE),
        ("not JSON", lambda handler: handler.send(200, "application/json", b"{"), SERVER),
        ("a list", json_answer([1, 2]), SERVER),
        ("deep JSON", lambda handler: handler.send(200, "application/json", b"[" * 100000), SERVER),
        ("too much", huge, SERVER),
        ("a problem", json_answer(PROBLEM, 400, "application/problem+json"), REFUSED),
        ("a problem of the server", json_answer(PROBLEM, 500, "application/problem+json"), SERVER),
        ("a problem that is not one", json_answer(7, 400, "application/problem+json"), REFUSED),
    ]
    for name, answer, status in cases:
        with Server(answer) as server, Client(server.url) as client:
            got = client.run("system", "--timeout", "2", status=None)
            equal(got.status, status, "exit status at %s (%r)" % (name, got))
            true(got.err.startswith("quantctl: ") and got.out == "", "one sentence at %s: %r" % (name, got))
            true("\x1b" not in got.err, "no escape sequence at %s: %r" % (name, got))
    with Client("http://127.0.0.1:1") as client:
        client.run("system", status=UNREACHABLE)
        client.run("watch", "job_01", status=UNREACHABLE)
        client.run("system", "--server", "http://name.invalid", status=UNREACHABLE)


def busy_servers():
    """503 and 429 with Retry-After: what can be repeated is, what cannot is not."""
    seen = []

    def answer(handler):
        seen.append((handler.command, handler.headers.get("Idempotency-Key")))
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if len(seen) < 3:
            problem = dict(PROBLEM, status=429, code="rate_limited", errors=[])
            return handler.send(429 if len(seen) == 1 else 503, "application/problem+json", json.dumps(problem).encode(),
                                Retry_After="0")
        return handler.send(200, "application/json", b'{"id": "job_1", "status": "queued", "name": "quantd"}')

    with Server(answer) as server, Client(server.url) as client:
        client.run("system")
        equal(len(seen), 3, "requests")
        del seen[:]
        client.run("submit", "-m", "mdl_1", "--method", "rtn")
        equal(len(seen), 3, "requests to create a job")
        equal(len(set(seen)), 1, "of one idempotency key")
        true(seen[0][1] is not None, "it is there")
        del seen[:]
        client.run("models", "register", "file:x", status=REFUSED)
        equal(len(seen), 1, "requests that cannot be repeated")


def problems_are_shown():
    with Server(json_answer(PROBLEM, 400, "application/problem+json")) as server, Client(server.url) as client:
        answer = client.run("submit", "-m", "mdl_01", "--method", "rtn", status=REFUSED)
        for words in ("/a/b\\x1b[2J: one\\x1b]0;x\\x07", "hint: h1", "/c: two\\x0athree"):
            true(words in answer.err, "%r is shown: %r" % (words, answer))
        equal(client.run("system", "--json", status=REFUSED).json, PROBLEM, "the problem with --json")


def names_are_harmless():
    name = "\x1b]0;owned\x07\x1b[2J\n\u202enow"
    rows = [{"id": "mdl_1", "name": name, "architecture": name, "created_at": 1}]
    with Server(json_answer({"object": "list", "data": rows, "has_more": False, "last_id": "mdl_1"})) as server:
        with Client(server.url) as client:
            answer = client.run("models")
            true("\x1b" not in answer.out and "\u202e" not in answer.out, "harmless: %r" % answer)
            equal(len(answer.out.splitlines()), 2, "lines")
            equal(client.run("models", "--json").json["data"], rows, "and unchanged as JSON")


def endless_lists():
    """Pages that never end, and one that is its own successor."""
    page = {"object": "list", "data": [{"id": "job_1"}] * 100, "has_more": True, "last_id": "job_1"}
    with Server(json_answer(page)) as server, Client(server.url) as client:
        equal(len(client.run("jobs", "--all", "--json").json["data"]), 200, "pages of one cursor")
        equal(len(client.run("jobs", "-n", "150", "--json").json["data"]) <= 200, True, "a limit")


# --- downloads


class Artifact:
    """A server of files; stop_after: bytes after which answers wait until go is set."""

    def __init__(self, files, paths=None, stop_after=None, ranges=True, lie=None):
        self.files, self.served, self.stop_after, self.ranges = files, 0, stop_after, ranges
        self.go, self.stopped, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.listed = [{"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                       for path, data in files.items()]
        if paths is not None:
            for entry, path in zip(self.listed, paths):
                entry["path"] = path
        self.lie = lie or {}

    def __call__(self, handler):
        if "/files/" not in handler.path:
            return handler.send(200, "application/json", json.dumps({"id": "art_1", "files": self.listed}).encode())
        data = self.files[handler.path.split("/files/")[1]]
        data = self.lie.get(handler.path.split("/files/")[1], data)
        first, last = 0, len(data) - 1
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if match and self.ranges:
            first, last = int(match.group(1)), min(int(match.group(2)), last)
            handler.send_response(206)
            handler.send_header("Content-Range", "bytes %d-%d/%d" % (first, last, len(data)))
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        for at in range(first, last + 1, 65536):
            with self.lock:
                self.served += min(65536, last + 1 - at)
                wait = self.stop_after is not None and self.served > self.stop_after
            if wait:
                self.stopped.set()
                self.go.wait(SECONDS)
            try:
                handler.wfile.write(data[at:min(at + 65536, last + 1)])
            except OSError:
                return None
        return None


def noise(size, seed):
    return hashlib.shake_128(b"%d" % seed).digest(size)


def pull_resumes():
    """Killed in the middle, and continued: what had arrived is not sent again."""
    size = 48 << 20
    files = {"model.safetensors": noise(size, 1), "config.json": b"{}", "sub/empty": b""}
    artifact = Artifact(files, stop_after=size // 2)
    with Server(artifact) as server, Client(server.url) as client:
        process = client.start("pull", "art_1", "-o", "out", "-j", "4")
        true(artifact.stopped.wait(SECONDS), "half of it was served")
        deadline = time.monotonic() + SECONDS
        chart = client.path("out", "model.safetensors.quantctl-map")
        while not os.path.exists(chart) or os.path.getsize(chart) < 128 + 2:
            true(time.monotonic() < deadline, "chunks were completed")
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        artifact.stop_after, artifact.served = None, 0
        artifact.go.set()
        true(not os.path.exists(client.path("out", "model.safetensors")), "no name before its digest")
        client.run("pull", "art_1", "-o", "out")
        true(artifact.served < size - (4 << 20), "the rest was served, not all: %d" % artifact.served)
        for path, data in files.items():
            with open(client.path("out", path), "rb") as handle:
                true(handle.read() == data, "%s is complete" % path)
        equal(sorted(os.listdir(client.path("out"))), ["config.json", "model.safetensors", "sub"], "nothing else is left")


def pulls_do_not_meet():
    """Two processes at one directory: the second one says so and touches nothing."""
    files = {"model.safetensors": noise(12 << 20, 5)}
    artifact = Artifact(files, stop_after=6 << 20)
    with Server(artifact) as server, Client(server.url) as client:
        first = client.start("pull", "art_1", "-o", "out")
        true(artifact.stopped.wait(SECONDS), "some of it was served")
        answer = client.run("pull", "art_1", "-o", "out", status=LOCAL)
        true("another process" in answer.err, "the reason: %r" % answer)
        artifact.go.set()
        equal(first.communicate(timeout=SECONDS)[1], b"", "errors of the first one")
        equal(first.returncode, OK, "exit status of the first one")
        with open(client.path("out", "model.safetensors"), "rb") as handle:
            true(handle.read() == files["model.safetensors"], "the bytes")


def pull_distrusts_its_own_past():
    """What an earlier process left may be damaged: then everything is fetched again."""
    files = {"model.safetensors": noise(12 << 20, 2)}
    artifact = Artifact(files, stop_after=9 << 20)
    with Server(artifact) as server, Client(server.url) as client:
        process = client.start("pull", "art_1", "-o", "out", "-j", "1")
        true(artifact.stopped.wait(SECONDS), "most of it was served")
        deadline = time.monotonic() + SECONDS
        while os.path.getsize(client.path("out", "model.safetensors.quantctl-map")) < 128 + 2:
            true(time.monotonic() < deadline, "chunks were completed")
            time.sleep(0.01)
        process.kill()
        process.communicate()
        artifact.stop_after = None
        artifact.go.set()
        with open(client.path("out", "model.safetensors.quantctl-part"), "r+b") as handle:
            handle.seek(100)
            handle.write(b"XXXX")
        client.run("pull", "art_1", "-o", "out")
        with open(client.path("out", "model.safetensors"), "rb") as handle:
            true(handle.read() == files["model.safetensors"], "the bytes")


def pull_refuses():
    data = {"a.bin": noise(9 << 20, 3), "b.bin": b"b" * 100}
    other = bytearray(data["a.bin"])
    other[5 << 20] ^= 1
    cases = [
        ("a changed byte", Artifact(data, lie={"a.bin": bytes(other)}), MISMATCH),
        ("a file that is too short", Artifact(data, lie={"a.bin": data["a.bin"][:-1]}), SERVER),
        ("a file that is too long", Artifact(data, lie={"b.bin": b"b" * 101}), SERVER),
        ("no ranges", Artifact(data, ranges=False), SERVER),
        ("a file outside", Artifact(data, paths=["../x"]), MISMATCH),
        ("an absolute file", Artifact(data, paths=["/etc/cron.d/x"]), MISMATCH),
        ("a file above in the middle", Artifact(data, paths=["a/../../x"]), MISMATCH),
        ("a NUL", Artifact(data, paths=["a\x00b"]), SERVER),
        ("an escape sequence", Artifact(data, paths=["a\x1b[2J"]), MISMATCH),
        ("a name of its own", Artifact(data, paths=["b.bin.quantctl-part"]), MISMATCH),
        ("a name twice", Artifact(data, paths=["b.bin"]), MISMATCH),
        ("a file as a directory", Artifact(data, paths=["b.bin/x"]), MISMATCH),
    ]
    for name, artifact, status in cases:
        with Server(artifact) as server, Client(server.url) as client:
            answer = client.run("pull", "art_1", "-o", "in/out", status=None)
            equal(answer.status, status, "exit status at %s (%r)" % (name, answer))
            true("\x1b" not in answer.err, "harmless at %s: %r" % (name, answer))
            equal([file for file in os.listdir(client.home) if file != "in"], [], "files outside at %s" % name)
            true(not os.path.exists(client.path("in", "out", "a.bin")), "the file is not kept at %s" % name)
    with Server(Artifact(data)) as server, Client(server.url) as client:  # a symbolic link leads out of the directory
        os.makedirs(client.path("out"))
        os.symlink("/", client.path("out", "sub"))
        server.answer.listed[0]["path"] = "sub/x"
        server.answer.files["sub/x"] = data["a.bin"]
        answer = client.run("pull", "art_1", "-o", "out", status=LOCAL)
        true(not os.path.exists("/x"), "nothing outside: %r" % answer)
    with Server(Artifact(data)) as server, Client(server.url) as client:
        client.run("pull", "art_1", "-o", "/proc/nowhere", status=LOCAL)


def pull_survives_the_server():
    """Connections that break, and 503 answers, are tried again."""
    data = {"a.bin": noise(9 << 20, 4)}
    artifact = Artifact(data)
    failures = []

    def answer(handler):
        if "/files/" in handler.path and len(failures) < 3:
            failures.append(handler.path)
            if len(failures) == 2:
                return handler.send(503, "application/problem+json", b"{}", Retry_After="1")
            handler.send_response(206)
            handler.send_header("Content-Length", "4194304")
            handler.end_headers()
            handler.wfile.write(b"x" * 1000)
            handler.close_connection = True
            return None
        return artifact(handler)

    with Server(answer) as server, Client(server.url) as client:
        client.run("pull", "art_1", "-o", "out", "-j", "2")
        with open(client.path("out", "a.bin"), "rb") as handle:
            true(handle.read() == data["a.bin"], "the bytes")


# --- keys, certificates, profiles


def keys():
    def answer(handler):
        if handler.headers.get("Authorization") == "Bearer " + KEY:
            return handler.send(200, "application/json", b'{"object": "system", "name": "quantd", "version": "1"}')
        problem = dict(PROBLEM, status=401, code="invalid_api_key", detail="the key is not known", errors=[])
        return handler.send(401, "application/problem+json", json.dumps(problem).encode())

    with Server(answer) as server, Client(server.url) as client:
        answers = [client.run("system", status=REFUSED), client.run("system", env={"QUANTD_API_KEY": KEY}),
                   client.run("system", status=REFUSED, env={"QUANTD_API_KEY": KEY + "x"}),
                   client.run("system", status=USAGE, env={"QUANTD_API_KEY": KEY + " x"}),
                   client.run("system", "--api-key", KEY, status=USAGE),
                   client.run("system", "--api-key=" + KEY, status=USAGE),
                   client.run("login", "--key=" + KEY, status=USAGE),
                   client.run("login", status=USAGE),  # standard input is not a terminal
                   client.run("login", "--key-stdin", status=REFUSED, stdin=b"qd_wrong\n")]
        config = client.path(".config", "quantctl", "config")
        true(not os.path.exists(config), "no profile of a key that is refused")
        answers.append(client.run("login", "--key-stdin", stdin=KEY.encode() + b"\n"))
        equal(os.stat(config).st_mode & 0o7777, 0o600, "mode of the profile")
        del client.env["QUANTD_URL"]
        answers.append(client.run("system"))
        os.chmod(config, 0o640)
        answers.append(client.run("system", status=USAGE))
        for got in answers:
            true(KEY[3:] not in got.out + got.err, "the key is not shown: %r" % got)
        answers = client.run("system", "--server", "http://192.0.2.1", status=USAGE, env={"QUANTD_API_KEY": KEY})
    with Client(None) as client:
        os.makedirs(client.path(".config", "quantctl"))
        with open(client.path(".config", "quantctl", "config"), "w") as file:
            file.write("url = http://127.0.0.1:1\nhost = x\n")
        answer = client.run("system", status=USAGE)
        true("config:2: " in answer.err, "the line is named: %r" % answer)


def asks_for_a_key():
    """The prompt does not show what is typed, and an interrupt leaves the terminal as it was."""
    answer = json_answer({"object": "system", "name": "quantd", "version": "1"})
    with Server(answer) as server, Client(server.url) as client:
        for text, status in ((KEY + "\n", OK), ("\x03", -signal.SIGINT)):
            parent, child = pty.openpty()
            process = subprocess.Popen([QUANTCTL, "login"], env=client.env, stdin=child, stdout=child, stderr=child,
                                       start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
            output = b""
            while b"none): " not in output:
                output += os.read(parent, 1000)
            deadline = time.monotonic() + SECONDS
            while termios.tcgetattr(child)[3] & termios.ECHO:
                true(time.monotonic() < deadline, "the echo is off")
                time.sleep(0.01)
            os.write(parent, text.encode())
            equal(process.wait(SECONDS), status, "exit status")
            true(termios.tcgetattr(child)[3] & termios.ECHO, "the echo is on again")
            os.close(child)
            shown = output.decode() + read_pty(parent, process, 5)
            os.close(parent)
            true(KEY not in shown, "the key is not shown: %r" % shown)
        with open(client.path(".config", "quantctl", "config")) as file:
            true("api_key = %s\n" % KEY in file.read(), "the key is in the profile")
        equal(server.seen[0][1].get("Authorization"), "Bearer " + KEY, "the key was tried")


def a_proxy_gets_no_key():
    """http_proxy of the environment is not for this host."""
    with Server(json_answer({})) as proxy, Server(json_answer({"object": "system", "name": "quantd"})) as server:
        with Client(server.url, QUANTD_API_KEY=KEY, http_proxy=proxy.url, HTTP_PROXY=proxy.url, all_proxy=proxy.url) as client:
            client.run("system")
        equal((len(proxy.seen), len(server.seen)), (0, 1), "requests to the proxy and to the server")


def a_redirect_gets_no_key():
    seen = []
    with Server(lambda handler: seen.append(handler.path) or handler.send(200, "application/json", b"{}")) as other:
        with Server(lambda handler: handler.send(307, "text/html", b"", Location=other.url + "/v1/system")) as server:
            with Client(server.url, QUANTD_API_KEY=KEY) as client:
                client.run("system", status=SERVER)
    equal(seen, [], "requests to the other server")


def certificates():
    if shutil.which("openssl") is None:
        raise Skip("there is no openssl")
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                        "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True,
                       capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with Server(json_answer({"object": "system", "name": "quantd"}), tls) as server, Client(server.url) as client:
            answer = client.run("system", status=UNREACHABLE, env={"QUANTD_API_KEY": KEY})
            true("--ca-file" in answer.err, "the option is named: %r" % answer)
            equal(server.seen, [], "requests before the certificate was trusted")
            client.run("system", "--ca-file", certificate)
            client.run("system", "--insecure")
            client.run("system", env={"QUANTD_CA_FILE": certificate})
            client.run("system", "--ca-file", "missing.pem", status=USAGE)
            name = server.url.replace("127.0.0.1", "localhost")  # not in the certificate
            client.run("system", "--server", name, "--ca-file", certificate, status=UNREACHABLE)


# --- arguments


def usage():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        for words in ([], ["nonsense"], ["jobs", "show"], ["watch", "mdl_1"], ["watch", "job_1/../.."], ["pull", "../x"],
                      ["submit", "--nonsense"], ["submit"], ["submit", "-m", "no such model", "--method", "rtn"],
                      ["submit", "-m", "mdl_1", "--bits", "x"], ["submit", "-m", "mdl_1", "--set", "x"],
                      ["jobs", "--metadata", "x"], ["pull", "art_1", "-j", "1000"]):
            answer = client.run(*words, status=USAGE)
            true(answer.err != "" and answer.out == "", "a sentence at %r: %r" % (words, answer))
        for text, line in (("a: 1\na: 2\n", ":2: "), ("a: *x\n", ":1: "), ("method: [", ":"), ("- 1\n", "job file")):
            with open(client.path("job.yaml"), "w") as file:
                file.write(text)
            answer = client.run("submit", "-f", "job.yaml", status=USAGE)
            true(line in answer.err, "the line of %r: %r" % (text, answer))
        client.run("submit", "-f", "missing.yaml", "-m", "mdl_1", status=LOCAL)
        client.run("submit", "-m", "mdl_1", "--method", "gptq", "-c", "missing.ndjson", status=LOCAL)
        client.run("upload", "missing", status=LOCAL)
        client.run("upload", client.home, status=LOCAL)
        client.run("watch", "job_01ARZ3NDEKTSV4RRFFQ69G5FAV", status=REFUSED)
        client.run("pull", "art_01ARZ3NDEKTSV4RRFFQ69G5FAV", status=REFUSED)
        client.run("submit", "-m", "file:tiny-llama", "--method", "gptqq", status=REFUSED)
        job = client.run("submit", "-m", "file:tiny-llama", "--method", "rtn", "--wait", "--json").json
        answer = client.run("retry", job["id"], status=REFUSED)
        true(answer.err != "", "a reason: %r" % answer)
        client.run("cancel", job["id"], status=REFUSED)
        with open("/dev/full", "w") as full:
            done = subprocess.run([QUANTCTL, "system"], env=client.env, stdout=full, stderr=subprocess.PIPE)
            equal(done.returncode, LOCAL, "exit status with a full disk")


def actions():
    """Each is one request for each job, and none when an id is not one."""
    def answer(handler):
        handler.send(202, "application/json", b'{"id": "job_1", "status": "queued"}')

    for action in ("cancel", "pause", "resume", "retry"):
        with Server(answer) as server, Client(server.url) as client:
            client.run(action, "job_1", "mdl_1", status=USAGE)
            equal(server.seen, [], "requests with an argument that is wrong")
            equal(client.run(action, "job_1", "job_2").out, "job_1 queued\njob_2 queued\n", "output of %s" % action)
            equal([path for path, _ in server.seen], ["/v1/quantization/jobs/job_%d/%s" % (i, action) for i in (1, 2)],
                  "requests of %s" % action)


def streams_standard_input():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = client.run("submit", "-m", "file:tiny-llama", "--method", "gptq", "-g", "64", "--num-samples", "24",
                         "--sequence-length", "128", "-c", "-", "--wait", "--json", stdin=records()).json
        equal(job["calibration"]["records"], 40, "records")
        job = client.run("submit", "-f", "-", "--wait", "--json",
                         stdin=b'{"model": "file:tiny-llama", "method": "rtn"}').json
        equal(job["status"], "succeeded", "a job from standard input")
        key = ["submit", "-m", job["model"], "--method", "rtn", "--idempotency-key", "once"]
        equal(client.run(*key).out, client.run(*key).out, "the job of one key")
        job_file(client)
        key = ["submit", "-m", job["model"], "--method", "gptq", "-g", "64", "-c", "texts.ndjson", "--num-samples", "24",
               "--sequence-length", "128", "--idempotency-key", "streamed"]
        first = client.run(*key).out
        equal(client.run(*key, "--wait", "--json").json["id"], first.strip(), "the job of one key, with its records")


def continues_calibration():
    """A connection that breaks after the server took a batch: its records are sent once."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        with open(client.path("many.ndjson"), "wb") as file:
            file.write(ids_records(3000, 140, 2048))
        cut = []

        def forward(handler):
            size = int(handler.headers.get("Content-Length", 0))
            body = handler.rfile.read(size)
            answer = daemon.request(handler.command, handler.path, body=body or None,
                                    headers={name: value for name, value in handler.headers.items() if name != "Host"})
            if "/calibration" in handler.path and len(cut) < 2:
                cut.append(handler.path)
                handler.close_connection = True
                return None
            return handler.send(answer.status, answer.headers.get("content-type", ""), answer.body)

        with Server(forward) as server:
            answer = client.run("submit", "-m", "file:tiny-llama", "--method", "gptq", "-g", "64", "--num-samples", "24",
                                "--sequence-length", "128", "-c", "many.ndjson", "--server", server.url, "--json")
        equal(len(cut), 2, "broken connections")
        equal(answer.json["calibration"]["records"], 3000, "records")


def words_of(client, *command):
    return client.run(*command, "--words").out.split("\n")[:-1]


def pages_name_everything():
    """The manual page and the documentation have each command and option, and the shell completes them."""
    with open(os.path.join(TOP, "cli", "quantctl.1")) as file:
        manual = file.read().replace("\\-", "-")
    with open(os.path.join(TOP, "docs", "quantctl.md")) as file:
        docs = file.read()
    with Client(None) as client:
        names = [word for word in words_of(client) if not word.startswith("--")]
        true(len(names) > 12, "commands: %r" % names)
        for name in names:
            true("quantctl %s" % name in docs, "docs/quantctl.md has %r" % name)
            true(".SS %s" % name in manual, "quantctl.1 has %r" % name)
            client.run(*name.split(), "--help")
            for option in words_of(client, *name.split()):
                true(option in manual, "quantctl.1 has %s of %s" % (option, name))
        script = ("source %s; COMP_WORDS=(quantctl %%s); COMP_CWORD=%%d; PATH=%s:$PATH _quantctl quantctl; echo \"${COMPREPLY[*]}\""
                  % (os.path.join(TOP, "cli", "quantctl.bash"), os.path.dirname(os.path.realpath(QUANTCTL))))
        for words, at, wanted in (("re", 1, {"report", "resume", "retry"}), ("jobs s", 2, {"show"}), ("watch --l", 2, {"--lines"}),
                                  ("models register --na", 3, {"--name"}), ("--js", 1, {"--json"})):
            done = subprocess.run(["bash", "-c", script % (words, at)], env=client.env, capture_output=True, text=True)
            equal(set(done.stdout.split()), wanted, "completions of %r (%s)" % (words, done.stderr))


main([tour, watch_lines, watch_terminal, watch_goes_on_after_a_crash, wrong_servers, busy_servers, problems_are_shown,
      names_are_harmless, endless_lists, pull_resumes, pulls_do_not_meet, pull_distrusts_its_own_past, pull_refuses,
      pull_survives_the_server, keys, asks_for_a_key, a_proxy_gets_no_key, a_redirect_gets_no_key, certificates, usage,
      actions, streams_standard_input, continues_calibration, pages_name_everything])
