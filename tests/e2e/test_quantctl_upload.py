"""Uploads by quantctl: in pieces, several at once, continued after the client or the server was killed; models; quotas.

Between the client and the daemon is a gate, which stops the bytes at a place that the test chooses, so that nothing depends on speed.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import threading

from guarded import Guarded
from harness import DATA, JOBS, Daemon, artifact_digests, equal, main, post, sha256, succeed, true, wait_until
from quantctl import LOCAL, MISMATCH, OK, REFUSED, USAGE, Client, url_of

PIECE = 16 << 20
SIZE = 3 * PIECE + 12345


class Gate:
    """A port that leads to the daemon, wherever that listens now. Bytes towards it pass up to `limit`; None: all."""

    def __init__(self, daemon, limit=None):
        self.daemon, self.limit, self.passed = daemon, limit, 0
        self.condition = threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open()
        self.listener.close()

    def open(self, limit=None):
        with self.condition:
            self.limit = limit
            self.condition.notify_all()

    def is_shut(self):
        return self.limit is not None and self.passed >= self.limit

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.connect, args=(self.listener.accept()[0],), daemon=True).start()

    def connect(self, client):
        with client, contextlib.suppress(OSError):  # of a daemon that is down
            with socket.create_connection(("127.0.0.1", self.daemon.port)) as server:
                up = threading.Thread(target=self.pump, args=(client, server, True), daemon=True)
                up.start()
                self.pump(server, client, False)
                up.join()

    def pump(self, source, target, counted):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                target.sendall(data)
                if counted:
                    with self.condition:
                        self.passed += len(data)
                        self.condition.notify_all()
                        self.condition.wait_for(lambda: not self.is_shut())
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def write(client, name, size, seed):
    path = client.path(name)
    with open(path, "wb") as file:
        file.write(random.Random(seed).randbytes(size))
    return path


def files_of(daemon):
    return {file["name"]: file for file in daemon.get("/v1/files")["data"]}


def states(client):
    folder = client.path(".local", "state", "quantctl", "uploads")
    return os.listdir(folder) if os.path.isdir(folder) else []


def check_file(daemon, client, name):
    with open(client.path(name), "rb") as file:
        equal(files_of(daemon)[name]["sha256"], sha256(file.read()), "digest of " + name)


def small_and_large_files():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        for name, size, seed in (("empty", 0, 1), ("small.ndjson", 1000, 2), ("edge", PIECE, 3), ("large", PIECE + 1, 4), ("larger", SIZE, 5)):
            write(client, name, size, seed)
        out = client.run("upload", "empty", "small.ndjson", "edge", "large", "larger", "-p", "evaluation").out
        equal([line.split()[-1] for line in out.splitlines()], ["empty", "small.ndjson", "edge", "large", "larger"], "lines")
        for name in ("empty", "small.ndjson", "edge", "large", "larger"):
            check_file(daemon, client, name)
        equal(daemon.get("/v1/uploads")["data"], [], "uploads that are left")
        equal(states(client), [], "what is remembered")
        again = client.run("upload", "large", "--json").json
        equal(again["bytes"], PIECE + 1, "a second upload of the same file")
        client.run("upload", "large", "missing", status=LOCAL)


def continues_after_its_own_death():
    with Daemon() as daemon, Client(None) as client, Gate(daemon, PIECE + (4 << 20)) as gate:  # sockets hold some more
        write(client, "large", SIZE, 1)
        process = client.start("upload", "large", "--server", gate.url)
        wait_until(gate.is_shut, "a piece and a part of the next have passed", 60)
        process.kill()
        process.communicate()
        upload = daemon.get("/v1/uploads")["data"][0]
        equal((upload["offset"], upload["status"]), (PIECE, "in_progress"), "what counts")
        gate.open()
        client.run("upload", "large", "--server", gate.url)
        check_file(daemon, client, "large")
        pieces = [line["bytes_in"] for line in daemon.log_lines()
                  if line["message"] == "request" and line["method"] == "PATCH" and line["status"] in (201, 204)]
        equal(pieces, [PIECE, PIECE, PIECE, SIZE - 3 * PIECE], "pieces that were accepted: each once")
        equal((daemon.get("/v1/uploads")["data"], states(client)), ([], []), "nothing is left")


def continues_after_the_daemons_death():
    with Daemon() as daemon, Client(None) as client, Gate(daemon, PIECE + (4 << 20)) as gate:
        write(client, "large", SIZE, 2)
        process = client.start("upload", "large", "--server", gate.url)
        for times in (1, 2):
            wait_until(gate.is_shut, "bytes have passed", 60)
            daemon.kill()
            daemon.start()
            gate.open(gate.passed + (4 << 20) + PIECE if times == 1 else None)
        out, err = process.communicate(timeout=120)
        equal(process.returncode, OK, "exit status: %r" % err)
        check_file(daemon, client, "large")


def two_processes_do_not_meet():
    with Daemon() as daemon, Client(None) as client, Gate(daemon, 4 << 20) as gate:
        write(client, "large", SIZE, 3)
        process = client.start("upload", "large", "--server", gate.url)
        wait_until(gate.is_shut, "bytes have passed", 60)
        true("another process" in client.run("upload", "large", "--server", gate.url, status=LOCAL).err, "the second says why")
        gate.open()
        process.communicate(timeout=60)
        equal(process.returncode, OK, "the first")
        equal(list(files_of(daemon)), ["large"], "one file")


def a_file_that_changes():
    with Daemon() as daemon, Client(None) as client, Gate(daemon, PIECE + (4 << 20)) as gate:
        path = write(client, "large", SIZE, 4)
        process = client.start("upload", "large", "--server", gate.url)
        wait_until(gate.is_shut, "bytes have passed", 60)
        info = os.stat(path)
        process.kill()
        process.communicate()
        with open(path, "r+b") as file:
            file.write(b"other")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # as if nothing had happened
        gate.open()
        true("changed" in client.run("upload", "large", "--server", gate.url, status=MISMATCH).err, "it says so")
        equal(files_of(daemon), {}, "the server keeps nothing")
        client.run("upload", "large", "--server", gate.url)
        check_file(daemon, client, "large")


def an_upload_that_the_server_forgot():
    with Daemon() as daemon, Client(None) as client, Gate(daemon, PIECE + (4 << 20)) as gate:
        write(client, "large", SIZE, 5)
        process = client.start("upload", "large", "--server", gate.url)
        wait_until(gate.is_shut, "bytes have passed", 60)
        process.kill()
        process.communicate()
        gate.open()
        upload = "/v1/uploads/" + daemon.get("/v1/uploads")["data"][0]["id"]
        wait_until(lambda: daemon.request("DELETE", upload).status == 204, "the broken piece has ended")
        client.run("upload", "large", "--server", gate.url)
        check_file(daemon, client, "large")


def checkpoint(client):
    """A folder with shards, one of them large, and what does not belong to the model."""
    folder = client.path("my-model")
    shutil.copytree(os.path.join(DATA, "tiny-llama"), folder)
    for name in os.listdir(folder):
        os.chmod(os.path.join(folder, name), 0o644)
    os.chmod(folder, 0o755)
    if not os.path.exists(os.path.join(folder, "model.safetensors.index.json")):
        path = os.path.join(folder, "model.safetensors")
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            names = [name for name in json.loads(file.read(size)) if name != "__metadata__"]
        os.rename(path, os.path.join(folder, "model-00001-of-00001.safetensors"))
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
            json.dump({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}, file)
    for name in ("consolidated.safetensors", "pytorch_model.bin", ".hidden"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"not of the model")
    os.mkdir(os.path.join(folder, "original"))
    return folder


def models():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        folder = checkpoint(client)
        with open(os.path.join(folder, "large.txt"), "wb") as file:  # one of the size that travels in pieces
            file.write(random.Random(7).randbytes(PIECE + 99))
        model = client.run("models", "upload", folder + "/", "--json").json
        equal((model["name"], model["architecture"]), ("my-model", "LlamaForCausalLM"), "the model")
        names = {file["path"] for file in model["files"]}
        true({"config.json", "tokenizer.json", "large.txt"} <= names and not {"consolidated.safetensors", "pytorch_model.bin", ".hidden"} & names,
             "its files: %r" % names)
        equal((daemon.get("/v1/files")["data"], daemon.get("/v1/uploads")["data"], states(client)), ([], [], []), "what is left")
        body = {"model": model["id"], "method": "rtn", "quantization": {"bits": 4, "group_size": 64}}
        uploaded = artifact_digests(daemon, succeed(daemon, post(daemon, JOBS, json=body)))
        true(len(uploaded) > 2, "an artifact of it")
        client.run("models", "upload", os.path.join(folder, "original"), status=LOCAL)
        client.run("models", "upload", folder, "--expected-sha256", "0" * 64, status=REFUSED)
        equal(list(files_of(daemon)), ["large.txt"], "what the same command continues with")
        client.run("models", "upload", folder, "--name", "again")
        equal(daemon.get("/v1/files")["data"], [], "files, once the second try has used them")


def quotas():
    with Guarded() as daemon, Client(url_of(daemon), QUANTD_API_KEY=daemon.keys["admin"]) as client:
        true("no limit" in client.run("quota", "search").out, "a project without a quota")
        client.run("quota", "default", "--set", "max_stored_bytes=20M", "--set", "max_queued_jobs=5")
        shown = client.run("quota", "default", "--set", "max_running_jobs=0", "--json").json
        equal([shown[name] for name in ("max_stored_bytes", "max_queued_jobs", "max_running_jobs")], [20 << 20, 5, 0], "what is set stays")
        shown = client.run("quota", "default", "--set", "max_queued_jobs=default", "--json").json
        equal((shown["max_queued_jobs"], shown["max_running_jobs"]), (None, 0), "and goes")
        true("20.0 MiB" in client.run("quota").out, "the list")
        for words in (("x=1",), ("max_queued_jobs",), ("max_queued_jobs=-1",), ("max_stored_bytes=1Q",), ("max_stored_bytes=9999999T",)):
            client.run("quota", "default", "--set", *words, status=USAGE)
        client.run("quota", "--set", "max_queued_jobs=1", status=USAGE)
        client.run("quota", "No/Project", status=REFUSED)
        write(client, "large", SIZE, 6)
        write(client, "small", 21 << 20, 6)
        for name in ("large", "small"):
            refused = client.run("upload", name, status=REFUSED)
            true("max_stored_bytes" in refused.err and "again in" not in refused.err, "at once, with the reason: %r" % refused)
        client.run("quota", status=REFUSED, env={"QUANTD_API_KEY": daemon.keys["write"]})


main([small_and_large_files, continues_after_its_own_death, continues_after_the_daemons_death, two_processes_do_not_meet,
      a_file_that_changes, an_upload_that_the_server_forgot, models, quotas])
