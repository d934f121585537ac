"""A large calibration upload to a consumer that is slower than the network: TCP pushes back, memory stays flat.

    QUANTD=build-release/daemon/quantd python3 tests/e2e/test_upload.py [--megabytes 1024]
"""

import os
import sys
import threading
import time

from harness import JOBS, NDJSON, SANITIZED, Daemon, NO_MODULES, Failure, Skip, equal, gptq_body, main, true, wait_until

LIMIT_BYTES = 200 << 20


def megabytes():
    if "--megabytes" in sys.argv:
        at = sys.argv.index("--megabytes")
        value = int(sys.argv[at + 1])
        del sys.argv[at:at + 2]
        return value
    return int(os.environ.get("QUANTD_UPLOAD_MEGABYTES", "64"))


SIZE = megabytes() << 20


def text(size):
    """NDJSON of about `size` bytes. Numbers make the words differ, so that the tokenizer's cache is of little help."""
    sent, number = 0, 0
    while sent < size:
        lines = []
        for _ in range(64):
            number += 1
            words = " ".join("line%x of%d file" % ((number * 2654435761 + k) & 0xFFFFFF, k * number) for k in range(60))
            lines.append('{"text":"%s"}\n' % words)
        block = "".join(lines).encode()
        sent += len(block)
        yield block


class Watch:
    """The maximum of the daemon's memory while the block ran."""

    def __init__(self, daemon):
        self.daemon, self.max, self.over = daemon, 0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.over.wait(0.05):
            self.max = max(self.max, self.daemon.memory("VmRSS"))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def upload_into_a_job():
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    with Daemon(*NO_MODULES) as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        job = daemon.request("POST", JOBS, json=gptq_body(model)).json["id"]
        idle = daemon.memory("VmRSS")
        started = time.monotonic()
        others = []
        with Watch(daemon) as watch:
            finished = threading.Event()

            def poll():
                while not finished.wait(0.1):
                    before = time.monotonic()
                    equal(daemon.request("GET", "/livez").status, 200)
                    others.append(time.monotonic() - before)

            poller = threading.Thread(target=poll, daemon=True)
            poller.start()
            answer = daemon.request("POST", "%s/%s/calibration?offset=0" % (JOBS, job), body=text(SIZE),
                                    headers={"Content-Type": NDJSON}, timeout=3600)
            finished.set()
            poller.join()
        equal(answer.status, 200, "status (%r)" % answer)
        seconds = time.monotonic() - started
        print("%d MiB in %.1f s, %d records, %d tokens; idle %.1f MiB, at most %.1f MiB above; others waited %.0f ms at most"
              % (SIZE >> 20, seconds, answer.json["accepted"], answer.json["tokens"], idle / 2**20,
                 (watch.max - idle) / 2**20, 1000 * max(others)))
        if watch.max - idle > LIMIT_BYTES:
            raise Failure("memory rose by %d bytes" % (watch.max - idle))
        true(max(others) < 5, "other requests are served meanwhile")
        equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202)


def upload_as_a_file():
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    with Daemon(*NO_MODULES) as daemon:
        idle = daemon.memory("VmRSS")
        with Watch(daemon) as watch:
            answer = daemon.request("POST", "/v1/files?purpose=calibration", body=text(SIZE),
                                    headers={"Content-Type": NDJSON}, timeout=3600)
        equal(answer.status, 201, "status (%r)" % answer)
        if watch.max - idle > LIMIT_BYTES:
            raise Failure("memory rose by %d bytes" % (watch.max - idle))


def broken_upload_leaves_nothing():
    with Daemon(*NO_MODULES) as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        job = daemon.request("POST", JOBS, json=gptq_body(model)).json["id"]
        before = daemon.descriptors()
        for _ in range(3):
            connection = daemon.connection()
            connection.putrequest("POST", "%s/%s/calibration?offset=0" % (JOBS, job))
            connection.putheader("Content-Type", NDJSON)
            connection.putheader("Content-Length", "1000000")
            connection.endheaders()
            connection.send(b'{"text":"half of an upload"}\n' * 1000)
            connection.sock.close()
            connection.close()
        def accepted():  # as soon as the daemon has noticed the end of the last of them
            answer = daemon.request("POST", "%s/%s/calibration?offset=0" % (JOBS, job), body=b'{"text":"all of it"}\n',
                                    headers={"Content-Type": NDJSON})
            if answer.status != 200:
                equal(answer.json["code"], "job_state_conflict", "code (%r)" % answer)
            return answer if answer.status == 200 else None
        answer = wait_until(accepted, "another upload is accepted")
        equal((answer.json["accepted"], answer.json["next_offset"]), (1, 1), "records accepted and next offset")
        wait_until(lambda: daemon.descriptors() <= before, "descriptors are closed")


main([upload_into_a_job, upload_as_a_file, broken_upload_leaves_nothing])
