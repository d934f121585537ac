"""Models in: resumable uploads, through kills of the daemon, and checkpoints made of uploaded files.

    QUANTD=build-release/daemon/quantd python3 tests/e2e/test_transfers.py [--gigabytes 10]
"""

import base64
import hashlib
import http.client
import json
import os
import random
import select
import threading
import time

from harness import (DATA, JOBS, SANITIZED, Call, Daemon, NO_MODULES, Failure, artifact_digests, equal, main, post, succeed, true, wait_until)
from large import GROWTH_BYTES, content, size_asked

PIECE_TYPE = "application/partial-upload"
NO_UPLOAD = "upl_01ARZ3NDEKTSV4RRFFQ69G5FAV"
SIZE = size_asked((16 if SANITIZED else 256) << 20)


def digest_field(data):
    return "sha-256=:%s:" % base64.b64encode(hashlib.sha256(data).digest()).decode()


def begin(daemon, length, purpose="calibration", name=None):
    answer = daemon.request("POST", "/v1/uploads?purpose=%s%s" % (purpose, "&name=" + name if name else ""),
                            headers={"Upload-Length": str(length), "Upload-Complete": "?0"})
    equal(answer.status, 201, "status of the upload's creation (%r)" % answer)
    equal(answer.headers["location"], "/v1/uploads/" + answer.json["id"])
    return answer.json["id"]


def piece(offset, complete=False, **more):
    return dict({"Upload-Offset": str(offset), "Upload-Complete": "?1" if complete else "?0", "Content-Type": PIECE_TYPE},
                **more)


def offset_of(daemon, upload):
    answer = daemon.request("HEAD", "/v1/uploads/" + upload)
    equal(answer.status, 200, "status of HEAD")
    return int(answer.headers["upload-offset"])


def send(daemon, data, purpose="model", name=None):
    """A complete upload; the file."""
    upload = begin(daemon, len(data), purpose, name)
    answer = daemon.request("PATCH", "/v1/uploads/" + upload, body=data, headers=piece(0, True))
    equal(answer.status, 201, "status of the last piece (%r)" % answer)
    return answer.json


def pieces():
    data = os.urandom(300000)
    wrong = digest_field(b"other")
    with Daemon() as daemon:
        upload = begin(daemon, len(data), name="set")
        path = "/v1/uploads/" + upload
        saved = {}
        daemon.run([
            Call("GET", path, check=lambda answer, saved: equal((answer.json["status"], answer.json["offset"], answer.json["bytes"]),
                                                                ("in_progress", 0, len(data)))),
            Call("PATCH", path, body=data[:1000], headers=piece(0), status=204,
                 check=lambda answer, saved: equal(answer.headers["upload-offset"], "1000")),
            Call("PATCH", path, body=data[:1000], headers=piece(0), status=409, code="offset_mismatch",
                 param="Upload-Offset", check=lambda answer, saved: equal(answer.json["next_offset"], 1000)),
            Call("PATCH", path, body=data[900:2000], headers=piece(900), status=409, code="offset_mismatch"),
            Call("PATCH", path, body=data[2000:3000], headers=piece(2000), status=409, code="offset_mismatch"),
            Call("PATCH", path, body=data[1000:2000], headers=piece(1000, **{"Content-Digest": wrong}), status=422,
                 code="digest_mismatch", param="Content-Digest"),
            Call("HEAD", path, check=lambda answer, saved: equal(answer.headers["upload-offset"], "1000")),
            Call("PATCH", path, body=data[1000:2000], status=204,
                 headers=piece(1000, **{"Content-Digest": digest_field(data[1000:2000])})),
            Call("PATCH", path, body=data[2000:] + b"x", headers=piece(2000), status=413, code="payload_too_large"),
            Call("PATCH", path, body=lambda saved: iter([data[2000:], b"x"]), headers=piece(2000), status=413,
                 code="payload_too_large"),
            Call("HEAD", path, check=lambda answer, saved: equal(answer.headers["upload-offset"], "2000")),
            Call("PATCH", path, body=data[2000:3000], headers=piece(2000, True), status=400, code="invalid_parameter",
                 param="Upload-Complete"),
            Call("PATCH", path, body=data[3000:], headers=piece(3000), status=204),
            Call("HEAD", path, check=lambda answer, saved: equal(
                (answer.headers["upload-offset"], answer.headers["upload-complete"]), (str(len(data)), "?0"))),
            Call("PATCH", path, body=b"", headers=piece(len(data), True), status=201, save="file"),
            Call("PATCH", path, body=b"", headers=piece(len(data), True), status=201, save="again"),
            Call("PATCH", path, body=b"more", headers=piece(len(data), True), status=413, code="payload_too_large"),
            Call("PATCH", path, body=data, headers=piece(0, True), status=409, code="offset_mismatch"),
            Call("HEAD", path, check=lambda answer, saved: equal(answer.headers["upload-complete"], "?1")),
            Call("GET", "/v1/files/{file[id]}/content", check=lambda answer, saved: equal(answer.body, data, "content")),
            Call("GET", "/v1/uploads", check=lambda answer, saved: equal(len(answer.json["data"]), 1)),
            Call("DELETE", path, status=204),
            Call("HEAD", path, status=404),
            Call("GET", "/v1/files/{file[id]}/content", headers={"Range": "bytes=0-9"}, status=206),
        ], saved)
        equal(saved["file"]["sha256"], hashlib.sha256(data).hexdigest(), "digest of the file")
        equal(saved["again"]["id"], saved["file"]["id"], "id of the file when the end is repeated")
        equal(os.listdir(os.path.join(daemon.data, "uploads")), [], "what is left of uploads")


def refusals():
    with Daemon() as daemon:
        upload = begin(daemon, 10)
        path = "/v1/uploads/" + upload
        daemon.run([
            Call("POST", "/v1/uploads?purpose=model", status=400, code="missing_parameter", param="Upload-Length"),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": "-1"}, status=400, param="Upload-Length"),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": "9" * 30}, status=400, param="Upload-Length"),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": str(1 << 42)}, status=507,
                 code="insufficient_storage"),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": "1", "Upload-Complete": "?1"}, status=400,
                 param="Upload-Complete"),
            Call("POST", "/v1/uploads", headers={"Upload-Length": "1"}, status=400, param="?purpose"),
            Call("PATCH", path, body=b"12345", headers={"Content-Type": PIECE_TYPE, "Upload-Complete": "?0"}, status=400,
                 code="missing_parameter", param="Upload-Offset"),
            Call("PATCH", path, body=b"12345", headers={"Content-Type": PIECE_TYPE, "Upload-Offset": "0"}, status=400,
                 code="missing_parameter", param="Upload-Complete"),
            Call("PATCH", path, body=b"12345", headers=piece("x"), status=400, param="Upload-Offset"),
            Call("PATCH", path, body=b"12345", headers=dict(piece(0), **{"Upload-Complete": "true"}), status=400,
                 param="Upload-Complete"),
            Call("PATCH", path, body=b"12345", headers=dict(piece(0), **{"Content-Type": "text/plain"}), status=415),
            Call("PATCH", "/v1/uploads/" + NO_UPLOAD, body=b"12345", headers=piece(0), status=404),
            Call("HEAD", "/v1/uploads/" + NO_UPLOAD, status=404),
            Call("DELETE", "/v1/uploads/" + NO_UPLOAD, status=404),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": "1", "Idempotency-Key": "k"}, status=201,
                 save="first"),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": "1", "Idempotency-Key": "k"}, status=201,
                 save="second"),
            Call("POST", "/v1/uploads?purpose=model", headers={"Upload-Length": "2", "Idempotency-Key": "k"}, status=422,
                 code="idempotency_key_reused"),
            Call("HEAD", path, check=lambda answer, saved: equal(answer.headers["upload-offset"], "0")),
        ], saved := {})
        equal(saved["first"]["id"], saved["second"]["id"], "id of the replay")


def one_piece_at_a_time():
    data = os.urandom(2 << 20)
    with Daemon() as daemon:
        upload = begin(daemon, len(data))
        path = "/v1/uploads/" + upload
        wrong = dict(piece(0), **{"Content-Digest": "sha-256=:%s:" % base64.b64encode(bytes(32)).decode()})  # counts in no case

        def begin_first():
            connection = daemon.connection()
            connection.putrequest("PATCH", path)
            for name, value in dict(piece(0), **{"Content-Length": str(len(data))}).items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(data[:1500000])
            return connection
        first = begin_first()

        def second_refused():
            nonlocal first
            if select.select([first.sock], [], [], 0)[0]:  # it came while a second one was being refused, and was refused itself
                first.close()
                first = begin_first()
            return daemon.request("PATCH", path, body=b"y" * 10, headers=wrong).json["code"] == "upload_busy"
        wait_until(second_refused, "a second piece is refused")
        busy = daemon.request("DELETE", path)
        equal((busy.status, busy.headers["retry-after"]), (409, "2"), "an upload is not deleted under a request")
        first.sock.close()
        first.close()  # breaks off: what was received counts
        offset = wait_until(lambda: offset_of(daemon, upload), "bytes of the broken piece count")
        true(offset <= 1500000, "only those that were sent")

        def rest():
            answer = daemon.request("PATCH", path, body=data[offset:], headers=piece(offset, True))
            return answer if answer.status != 409 or answer.json["code"] != "upload_busy" else None
        answer = wait_until(rest, "the rest is taken")
        equal(answer.status, 201, "status of the rest (%r)" % answer)
        equal(answer.json["sha256"], hashlib.sha256(data).hexdigest(), "digest")


class Watch:
    """The maximum of the daemon's memory while the block ran, over its restarts."""

    def __init__(self, daemon):
        self.daemon, self.max, self.over = daemon, 0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.over.wait(0.02):
            try:
                self.max = max(self.max, self.daemon.memory("VmRSS"))
            except (OSError, Failure):
                pass  # between a kill and the next start

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Killer:
    """Kills the daemon when so many bytes of the file were sent, and starts it again."""

    def __init__(self, points):
        self.points = sorted(points)
        self.kills = 0

    def due(self, sent):
        return bool(self.points) and sent >= self.points[0]

    def strike(self, daemon):
        self.points.pop(0)
        self.kills += 1
        daemon.kill()
        daemon.start()


def send_cut(daemon, upload, size, dice, killer):
    """All of the file, in pieces of random sizes; the answer to the last one."""
    offset, acknowledged = 0, 0
    while True:
        end = min(size, offset + dice.randrange(1, max(2, size // 12)))
        connection = daemon.connection()
        try:
            connection.putrequest("PATCH", "/v1/uploads/" + upload)
            for name, value in dict(piece(offset, end == size), **{"Content-Length": str(end - offset)}).items():
                connection.putheader(name, value)
            connection.endheaders()
            sent = offset
            for part in content(offset, end):
                connection.send(part)
                sent += len(part)
                if killer.due(sent):
                    killer.strike(daemon)
            response = connection.getresponse()
            body = response.read()
            if response.status == 409 and offset == size and json.loads(body)["code"] == "upload_busy":
                time.sleep(int(response.headers["Retry-After"]))  # a request whose answer was not awaited hashes the file
                continue
            equal(response.status, 201 if end == size else 204, "status of a piece (%r)" % body[:300])
            if end == size:
                return body
            acknowledged = end
        except (http.client.HTTPException, OSError):
            pass
        finally:
            connection.close()
        offset = offset_of(daemon, upload)
        true(offset >= acknowledged, "acknowledged bytes are still there: %d of %d" % (offset, acknowledged))


def cut_and_killed():
    """10 kills at random moments; nothing acknowledged is lost, the digest is that of what was sent, memory is bounded."""
    dice = random.Random(os.environ.get("QUANTD_SEED", "7"))
    expected = hashlib.sha256()
    for part in content(0, SIZE):
        expected.update(part)
    killer = Killer(dice.randrange(SIZE) for _ in range(10))
    with Daemon(*NO_MODULES) as daemon:
        idle = daemon.memory("VmRSS")
        started = time.monotonic()
        with Watch(daemon) as watch:
            upload = begin(daemon, SIZE)
            file = json.loads(send_cut(daemon, upload, SIZE, dice, killer))
        took = time.monotonic() - started
        equal(killer.kills, 10, "kills")
        equal(file["bytes"], SIZE, "bytes")
        equal(file["sha256"], expected.hexdigest(), "digest")
        equal(os.listdir(os.path.join(daemon.data, "uploads")), [], "what is left of uploads")
        print("%d MiB in %.0f s, %d kills, %d MiB of memory at most (%d idle)" % (
            SIZE >> 20, took, killer.kills, watch.max >> 20, idle >> 20))
        if not SANITIZED:
            true(watch.max < idle + GROWTH_BYTES, "memory is bounded: %d of %d" % (watch.max, idle))


def several_at_once():
    data = [os.urandom(3 << 20) for _ in range(4)]
    with Daemon() as daemon:
        files, faults = {}, []

        def run(number):
            try:
                upload = begin(daemon, len(data[number]))
                for at in range(0, len(data[number]), 500000):
                    part = data[number][at:at + 500000]
                    answer = daemon.request("PATCH", "/v1/uploads/" + upload, body=part,
                                            headers=piece(at, at + len(part) == len(data[number])))
                files[number] = answer.json["sha256"]
            except Exception as fault:  # told by the main thread
                faults.append(fault)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(data))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        equal(faults, [], "faults")
        equal(files, {number: hashlib.sha256(part).hexdigest() for number, part in enumerate(data)}, "digests")


def upload_folder(daemon, folder):
    """Every file of a checkpoint, as POST /v1/models wants them."""
    files = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            files.append({"path": name, "file_id": send(daemon, file.read(), name=name)["id"]})
    return files


def uploaded_checkpoint():
    """It is the model that it is on disk: the same digest, and the same artifact."""
    body = {"method": "rtn", "quantization": {"bits": 4, "group_size": 64}, "evaluation": {"hold_back": 0}}
    with Daemon() as daemon:
        local = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json
        files = upload_folder(daemon, os.path.join(DATA, "tiny-llama"))
        answer = daemon.request("POST", "/v1/models", json={"name": "sent", "uri": "upload:", "files": files})
        equal(answer.status, 201, "status of the registration (%r)" % answer)
        model = answer.json
        equal((model["digest"], model["uri"]), (local["digest"], "upload:" + model["id"]))
        for file in files:  # the model keeps what it needs
            equal(daemon.request("DELETE", "/v1/files/" + file["file_id"]).status, 204, "status")
        equal(daemon.stop(), 0, "exit status")
        daemon.start()
        jobs = [post(daemon, JOBS, json=dict(body, model=it["id"])) for it in (local, model)]
        digests = [artifact_digests(daemon, succeed(daemon, job)) for job in jobs]
        equal(digests[0], digests[1], "artifacts")
        equal(daemon.request("DELETE", "/v1/models/" + model["id"]).status, 204, "status")
        equal(os.listdir(os.path.join(daemon.data, "models")), [], "what is left of models")


def checkpoint_refusals():
    with Daemon() as daemon:
        files = upload_folder(daemon, os.path.join(DATA, "tiny-llama"))
        wrong = send(daemon, b"{}\n", purpose="calibration")["id"]

        def refused(listed, status, code, param, **more):
            return Call("POST", "/v1/models", json=dict({"uri": "upload:", "files": listed}, **more), status=status,
                        code=code, param=param)

        def renamed(path):
            return [dict(files[0], path=path)] + files[1:]

        without_config = [file for file in files if file["path"] != "config.json"]
        without_weights = [file for file in files if not file["path"].endswith(".safetensors")]
        daemon.run([
            Call("POST", "/v1/models", json={"uri": "upload:"}, status=400, code="missing_parameter", param="/files"),
            refused([], 400, "invalid_parameter", "/files"),
            refused({}, 400, "invalid_parameter", "/files"),
            refused(["config.json"], 400, "invalid_parameter", "/files/0"),
            refused([dict(files[0], size=1)], 400, "invalid_parameter", "/files/0"),
            refused(renamed("../config.json"), 400, "invalid_parameter", "/files/0/path"),
            refused(renamed(".."), 400, "invalid_parameter", "/files/0/path"),
            refused(renamed("/etc/passwd"), 400, "invalid_parameter", "/files/0/path"),
            refused(renamed(""), 400, "invalid_parameter", "/files/0/path"),
            refused(renamed("a\u001fb"), 400, "invalid_parameter", "/files/0/path"),
            refused(renamed("a" * 256), 400, "invalid_parameter", "/files/0/path"),
            refused(renamed(3), 400, "invalid_parameter", "/files/0/path"),
            refused(files + [files[0]], 400, "invalid_parameter", "/files/%d/path" % len(files)),
            refused([dict(files[0], file_id="file_01ARZ3NDEKTSV4RRFFQ69G5FAV")], 400, "invalid_parameter", "/files/0/file_id"),
            refused([dict(files[0], file_id=wrong)], 400, "invalid_parameter", "/files/0/file_id"),
            refused(files, 422, "digest_mismatch", "/expected_sha256", expected_sha256="0" * 64),
            Call("POST", "/v1/models", json={"uri": "file:tiny-llama", "files": files}, status=400, param="/files"),
            Call("POST", "/v1/models", json={"uri": "upload:mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV"}, status=400, param="/uri"),
        ])
        for listed, word in ((without_config, "config.json"), (without_weights, "safetensors")):
            answer = daemon.request("POST", "/v1/models", json={"uri": "upload:", "files": listed})
            true(400 <= answer.status < 500 and word in answer.json["detail"], "the missing file is named: %r" % answer)
            equal(answer.json["param"], "/files", "param")
        equal(os.listdir(os.path.join(daemon.data, "models")), [], "what refused registrations leave")


if __name__ == "__main__":
    main([pieces, refusals, one_piece_at_a_time, several_at_once, cut_and_killed, uploaded_checkpoint, checkpoint_refusals])
