"""Clients that take every descriptor: others are answered within a second, and the running job ends as if nothing were.

The limit of open files is lowered, so that a few hundred slow downloads are what thousands are on a large host.
"""

import resource
import socket
import time

from harness import JOBS, NDJSON, SANITIZED, SLOWER, Daemon, Skip, equal, ids_records, main, new_job, succeed, true, wait_job, wait_until

RECORDS = ids_records(120 // SLOWER, 256, 2048)
LONG = {"calibration": {"stream": True, "num_samples": 0, "sequence_length": 256}}
WITHIN = 1.0


class Narrow(Daemon):
    """A daemon that may have so many open files."""

    def __init__(self, files, *options):
        self.files = files
        super().__init__(*options)

    def command(self):
        return ["sh", "-c", "ulimit -n %d && exec \"$@\"" % self.files, "sh"] + super().command()


def slow_get(daemon, path, version="1.1"):
    raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(5)
    raw.connect(("127.0.0.1", daemon.port))
    raw.sendall(("GET %s HTTP/%s\r\nHost: localhost\r\n\r\n" % (path, version)).encode())
    return raw


def others_are_answered(daemon, times):
    slowest = 0.0
    for _ in range(times):
        for path in ("/livez", "/readyz", "/v1/system", JOBS):
            began = time.monotonic()
            equal(daemon.request("GET", path).status, 200, "status of " + path)
            slowest = max(slowest, time.monotonic() - began)
    true(slowest < WITHIN, "others are answered within a second (%.2f s)" % slowest)


def stored_file(daemon, size):
    line = b'{"text": "%s"}\n' % (b"a" * 1000)
    answer = daemon.request("POST", "/v1/files?purpose=calibration", body=line * (size // len(line)),
                            headers={"Content-Type": NDJSON})
    equal(answer.status, 201, "status of the upload (%r)" % answer)
    return "/v1/files/%s/content" % answer.json["id"]


def slow_downloads():
    with Narrow(400, "--threads", "1") as daemon:
        path = stored_file(daemon, 4 << 20)
        job = new_job(daemon, RECORDS, **LONG)
        wait_job(daemon, job, until=("running",))
        raw = [slow_get(daemon, path) for _ in range(600)]
        others_are_answered(daemon, 5)
        first = [one.recv(12) for one in raw]
        served, refused = first.count(b"HTTP/1.1 200"), first.count(b"HTTP/1.1 503")
        equal(served + refused, len(raw), "each download is served or told to come again")
        true(served > 0 and refused > 0, "some of each (%d, %d)" % (served, refused))
        true(daemon.descriptors() < 400 - 50, "descriptors are left (%d are open)" % daemon.descriptors())
        state = succeed(daemon, job)
        equal(state["attempt"], 1, "attempts of the job")
        for one in raw:
            one.close()
        wait_until(lambda: daemon.request("GET", path).status == 200, "a download after the flood is served")


def thousands_of_slow_downloads():
    """Under the ordinary limits, of a file that no socket's buffer holds: what is queued for slow clients delays nobody."""
    count = 400 if SANITIZED else 2300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * count:
        raise Skip("this host lets a process open %d files" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count), hard))
    with Daemon("--threads", "1") as daemon:
        path = stored_file(daemon, 64 << 20)
        job = new_job(daemon, RECORDS, **LONG)
        wait_job(daemon, job, until=("running",))
        raw = [slow_get(daemon, path) for _ in range(count)]
        others_are_answered(daemon, 5)
        first = [one.recv(12) for one in raw]
        equal(first.count(b"HTTP/1.1 200"), 256, "downloads that are served")
        equal(first.count(b"HTTP/1.1 503"), count - 256, "downloads that are told to come again")
        equal(succeed(daemon, job)["attempt"], 1, "attempts of the job")
        for one in raw:
            one.close()


def job_waits_for_a_descriptor():
    """No descriptor is to be had in the middle of a job: it waits, without an attempt being charged."""
    with Daemon("--threads", "1") as daemon:
        job = new_job(daemon, RECORDS, max_attempts=1, **LONG)
        wait_until(lambda: (daemon.get("%s/%s" % (JOBS, job))["progress"] or {}).get("layers_done", 0) >= 1, "a block is finished", 60)
        before = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (8, before[1]))  # 0 to 7 are taken for good
        wait_until(lambda: sum(line["message"] == "job status" and line["from"] == "running" and line["to"] == "queued"
                               for line in daemon.log_lines()) >= 2, "it is queued again, more often than max_attempts", 60)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
        succeed(daemon, job)


def idle_connections():
    with Narrow(400) as daemon:
        raw = []
        for _ in range(500):
            raw.append(socket.create_connection(("127.0.0.1", daemon.port), timeout=5))
            raw[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for one in raw:  # once answered it is idle, and may be closed for another
            true(one.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503"), "each is answered")
        others_are_answered(daemon, 5)
        for one in raw:
            one.close()


def connections_are_parked_between_requests():
    """Descriptors for about a hundred requests at a time: 250 connections are kept all the same, and each is answered whenever it asks."""
    count, files = 250, 1300
    with Narrow(files, "--max-connections", "300", "--max-connections-per-address", "300", "--max-streams", "16") as daemon:
        begun = daemon.descriptors()
        raw = [socket.create_connection(("127.0.0.1", daemon.port), timeout=10) for _ in range(count)]
        for _ in range(3):
            for one in raw:
                one.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for one in raw:
                equal(one.recv(4096)[:12], b"HTTP/1.1 200", "the answer on a connection that is kept")
        # Idle for a moment, each takes its own socket alone.
        wait_until(lambda: daemon.descriptors() - begun <= count + 5, "idle connections take a descriptor each")
        for one in raw:
            one.sendall(b"GET /v1/system HTTP/1.1\r\nHost: localhost\r\n\r\n")
            equal(one.recv(4096)[:12], b"HTTP/1.1 200", "the answer after a pause")
            one.close()


def slow_uploads():
    head = b"POST /v1/files?purpose=calibration HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    with Narrow(400) as daemon:
        raw = []
        for _ in range(300):
            raw.append(socket.create_connection(("127.0.0.1", daemon.port), timeout=5))
            raw[-1].sendall(head + b"Content-Length: 1000000\r\n\r\n{")
        others_are_answered(daemon, 5)
        for one in raw:
            one.close()


def one_address_does_not_take_all():
    with Narrow(400, "--max-connections", "40", "--max-connections-per-address", "10") as daemon:
        raw = [socket.create_connection(("127.0.0.1", daemon.port), timeout=5) for _ in range(30)]
        for one in raw:
            one.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        other = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        other.bind(("127.0.0.2", 0))
        other.settimeout(5)
        other.connect(("127.0.0.1", daemon.port))
        other.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        true(other.recv(12) == b"HTTP/1.1 200", "another address is served")
        for one in raw[10:]:
            true(one.recv(12) == b"HTTP/1.1 503", "one too many is told to come again")
        for one in raw[:10]:
            one.sendall(b"\r\n")
            true(one.recv(12) == b"HTTP/1.1 200", "those that were let in are served")
        for one in raw + [other]:
            one.close()


main([thousands_of_slow_downloads, job_waits_for_a_descriptor, slow_downloads, idle_connections,
      connections_are_parked_between_requests, slow_uploads, one_address_does_not_take_all])
