"""An artifact that is large leaves the daemon: quantctl pull and push through kills of either side, and a file that was tampered with.

    QUANTD=... QUANTCTL=... python3 tests/e2e/test_quantctl_large.py [--gigabytes 5]
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import threading

from harness import JOBS, NO_MODULES, SANITIZED, Daemon, equal, main, post, succeed, true
from large import GROWTH_BYTES, content, size_asked
from quantctl import MISMATCH, OK, SECONDS, Client
from registry import Registry

SIZE = size_asked(64 << 20)
WAIT = max(SECONDS, SIZE >> 24)  # at 16 MiB/s and more
CHUNK = 4 << 20
WEIGHTS = "model.safetensors"


class Relay:
    """Between quantctl and the daemon, wherever that listens now; it stops when so many bytes have come from the daemon."""

    def __init__(self, daemon):
        self.daemon, self.passed, self.stops = daemon, 0, []
        self.reached, self.go, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go.set()
        self.socket.close()

    def accept(self):
        while True:
            try:
                client, _ = self.socket.accept()
                server = socket.create_connection(("127.0.0.1", self.daemon.port))
            except OSError:
                if self.socket.fileno() < 0:
                    return
                client.close()  # the daemon is not there
                continue
            for source, target, counted in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.copy, args=(source, target, counted), daemon=True).start()

    def copy(self, source, target, counted):
        try:
            while data := source.recv(1 << 18):
                with self.lock:
                    self.passed += len(data) if counted else 0
                    stop = counted and self.stops and self.passed >= self.stops[0]
                    if stop:
                        self.stops.pop(0)
                        self.go.clear()
                        self.reached.set()
                if counted and self.reached.is_set():
                    self.go.wait()
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def wait(self, what):
        true(self.reached.wait(WAIT), what)

    def resume(self):
        self.reached.clear()
        self.go.set()


def put_blob(daemon):
    """SIZE bytes as a blob; its digest."""
    digest, path = hashlib.sha256(), os.path.join(daemon.data, "blobs", "large")
    with open(path, "wb") as file:
        for part in content(0, SIZE):
            digest.update(part)
            file.write(part)
    folder = os.path.join(daemon.data, "blobs", "sha256", digest.hexdigest()[:2])
    os.makedirs(folder, exist_ok=True)
    os.rename(path, os.path.join(folder, digest.hexdigest()))
    return digest.hexdigest()


def large_artifact(daemon):
    """The artifact of a job, whose weights are then replaced in the stopped daemon's store; its id and their digest."""
    model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
    body = {"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 64}}
    artifact = succeed(daemon, post(daemon, JOBS, json=body))["result"]["artifact_id"]
    equal(daemon.stop(), 0, "exit status")
    sha256 = put_blob(daemon)
    database = sqlite3.connect(os.path.join(daemon.data, "quantd.db"))
    with database:
        stored = json.loads(database.execute("SELECT body FROM objects WHERE id = ?", (artifact,)).fetchone()[0])
        weights = next(file for file in stored["files"] if file["path"] == WEIGHTS)
        database.execute("UPDATE blob_refs SET sha256 = ?, bytes = ? WHERE sha256 = ? AND id = ?", (sha256, SIZE, weights["sha256"], artifact))
        weights.update(sha256=sha256, bytes=SIZE)
        database.execute("UPDATE objects SET body = ? WHERE id = ?", (json.dumps(stored), artifact))
    database.close()
    daemon.start()
    return artifact, sha256


def peak_of(process):
    with open("/proc/%d/status" % process.pid) as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def digest_of(path):
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def pull(daemon, artifact, sha256):
    """The daemon is killed after a quarter, quantctl after a half: what has arrived is not fetched again."""
    with Relay(daemon) as relay, Client(relay.url) as client:
        relay.stops = [SIZE // 4, SIZE // 2]
        process = client.start("pull", artifact, "-o", "out", "-j", "2")
        relay.wait("a quarter has arrived")
        daemon.kill()
        daemon.start()
        relay.resume()
        relay.wait("a half has arrived")
        peak = peak_of(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        relay.resume()
        relay.passed = 0
        client.run("pull", artifact, "-o", "out", "-j", "2", seconds=WAIT)
        equal(digest_of(client.path("out", WEIGHTS)), sha256, "digest of what was pulled")
        lost = 4 * CHUNK + (1 << 20)  # of two transfers at two kills, and the other files
        true(relay.passed <= SIZE - SIZE // 2 + lost, "what had arrived was not fetched again: %d of %d" % (relay.passed, SIZE))
        true(SANITIZED or peak < GROWTH_BYTES, "memory of quantctl: %d" % peak)
        shutil.rmtree(client.path("out"))
        tamper(daemon, sha256)
        answer = client.run("pull", artifact, "-o", "out", status=MISMATCH, seconds=WAIT)
        true(WEIGHTS in answer.err and not os.path.exists(client.path("out", WEIGHTS)), "the file is refused: %r" % answer)


def tamper(daemon, sha256):
    path = os.path.join(daemon.data, "blobs", "sha256", sha256[:2], sha256)
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(SIZE // 3)
        byte = file.read(1)
        file.seek(SIZE // 3)
        file.write(bytes([byte[0] ^ 1]))


def push(daemon, artifact, sha256):
    """The daemon is killed in the middle of a layer: it is sent again, and the registry has what it should have."""
    with Relay(daemon) as relay, Registry(keep=False) as registry, Client(relay.url) as client:
        relay.stops = [SIZE // 2]
        process = client.start("push", artifact, registry.name + "/models/large:w4", "-q")
        relay.wait("a half is on its way")
        daemon.kill()
        daemon.start()
        relay.resume()
        output = process.communicate(timeout=WAIT)
        equal(process.returncode, OK, "exit status (%r)" % (output,))
        true("sha256:" + sha256 in registry.puts and "models/large:w4" in registry.manifests, "the layer and the manifest are there")
        equal(registry.puts.count("sha256:" + sha256), 1, "uploads of the layer that were completed")


def large():
    with Daemon(*NO_MODULES) as daemon:
        artifact, sha256 = large_artifact(daemon)
        idle = daemon.memory("VmRSS")
        push(daemon, artifact, sha256)
        pull(daemon, artifact, sha256)
        true(SANITIZED or daemon.memory("VmHWM") < idle + GROWTH_BYTES, "memory of the daemon: %d, idle %d" % (daemon.memory("VmHWM"), idle))


main([large])
