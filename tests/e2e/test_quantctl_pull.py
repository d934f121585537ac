"""Downloads of quantctl: broken off, damaged, and from servers that misbehave."""

import hashlib
import json
import os
import re
import signal
import threading
import time

from harness import equal, main, true
from quantctl import Client, LOCAL, MISMATCH, OK, SECONDS, SERVER, Server


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
    """Connections that break, 503 answers, and 429 answers of a server that limits requests, are tried again."""
    data = {"a.bin": noise(9 << 20, 4)}
    artifact = Artifact(data)
    failures = []

    def answer(handler):
        if "/files/" in handler.path and len(failures) < 4:
            failures.append(handler.path)
            if len(failures) in (2, 4):
                return handler.send(503 if len(failures) == 2 else 429, "application/problem+json", b"{}", Retry_After="1")
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


main([pull_resumes, pulls_do_not_meet, pull_distrusts_its_own_past, pull_refuses, pull_survives_the_server])
