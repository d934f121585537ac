#!/usr/bin/env python3
"""How requests fare while thousands of connections are open and a job runs.

    QUANTD=build-release/daemon/quantd QUANTD_TEST_DATA=tests/data python3 tests/bench/connections.py [--connections 10000] [--every 5]
        [--seconds 30] [--readers 1000]

First, connections that are kept alive each ask for the job every few seconds, with its ETag, at times spread evenly: the latencies, seen by
the client, with what the daemon's memory grew by. Then readers take the job's events at one byte a second, each from its beginning, and
others ask for the job meanwhile. The job is the bundled checkpoint's, made again as often as it ends, so that two threads compute all the time.
"""

import argparse
import collections
import os
import select
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import JOBS, TERMINAL, Daemon, gptq_body, ids_records, post  # noqa: E402


class Job(threading.Thread):
    """Keeps one job running; `path` is that of the first, which stays."""

    def __init__(self, daemon, model):
        super().__init__(daemon=True)
        self.daemon_, self.model, self.over, self.done = daemon, model, threading.Event(), 0
        self.path = self.submit()

    def submit(self):
        job = post(self.daemon_, JOBS, json=gptq_body(self.model))
        path = "%s/%s" % (JOBS, job)
        self.daemon_.request("POST", path + "/calibration?complete=1", body=ids_records(256, 64, 256),
                             headers={"Content-Type": "application/x-ndjson"})
        return path

    def run(self):
        path = self.path
        while not self.over.wait(0.5):
            if self.daemon_.get(path)["status"] in TERMINAL:
                self.done += 1
                path = self.submit()


class Poller:
    """One connection: a request now and then, its answer, and when it was sent."""

    def __init__(self, port, epoll, by_fd):
        self.port, self.epoll, self.by_fd = port, epoll, by_fd
        self.socket, self.sent, self.data = None, None, b""

    def connect(self):
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.by_fd[self.socket.fileno()] = self
        self.epoll.register(self.socket, select.EPOLLIN)

    def ask(self, request):
        if self.socket is None:
            self.connect()
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def take(self):
        """The status of a complete answer, 0 at the end of the connection, else None."""
        try:
            part = self.socket.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            self.epoll.unregister(self.socket)
            self.socket.close()
            self.socket, self.data = None, b""  # the next request connects again
            return 0
        self.data += part
        head, separator, body = self.data.partition(b"\r\n\r\n")
        if not separator:
            return None
        status = int(head[9:12])
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if status != 304 and len(body) < length:
            return None
        self.data = b""
        return status


def percentile(times, share):
    return times[min(len(times) - 1, int(len(times) * share))] * 1000


def row(name, times, extra=""):
    times.sort()
    print("| %s | %d | %.2f | %.2f | %.2f | %.2f |%s" % (name, len(times), percentile(times, .5), percentile(times, .99),
                                                         percentile(times, .999), times[-1] * 1000, extra), flush=True)


def poll(daemon, path, connections, every, seconds):
    epoll = select.epoll()
    by_fd = {}
    pollers = [Poller(daemon.port, epoll, by_fd) for _ in range(connections)]
    tag = daemon.request("GET", path).headers["etag"]
    request = ("GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nIf-None-Match: %s\r\n\r\n" % (path, daemon.port, tag)).encode()
    times, statuses, late = [], collections.Counter(), 0
    start, sent, top = time.perf_counter(), 0, 0
    rate = connections / every
    while True:
        now = time.perf_counter()
        if now - start > every + seconds and all(poller.sent is None for poller in pollers):
            break
        while now - start <= every + seconds and sent < (now - start) * rate:
            poller = pollers[sent % connections]
            if poller.sent is None:
                poller.ask(request)
            else:
                late += 1  # the answer to the last one is still due
            sent += 1
        for fd, _ in epoll.poll(0.001, 256):
            poller = by_fd[fd]
            status = poller.take()
            if status is not None:
                statuses[status] += 1
                if status != 0 and poller.sent is not None and poller.sent - start > every:  # before that connections are made
                    times.append(time.perf_counter() - poller.sent)
                poller.sent = None
        if sent % 1000 == 0:
            top = max(top, daemon.memory("VmRSS"))
    for poller in pollers:
        if poller.socket is not None:
            poller.socket.close()
    return times, statuses, late, top


def read_slowly(daemon, path, count, over):
    """Streams of events, of each of which a byte a second is read."""
    readers = []
    for _ in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", daemon.port))
        connection.sendall(("GET %s/events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n" % (path, daemon.port)).encode())
        readers.append(connection)
    while not over.wait(1):
        for reader in readers:
            reader.setblocking(False)
            try:
                reader.recv(1)
            except BlockingIOError:
                pass
    for reader in readers:
        reader.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=10000)
    parser.add_argument("--every", type=float, default=5, help="seconds between two requests of a connection")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--readers", type=int, default=1000)
    options = parser.parse_args()
    most = str(max(options.connections, options.readers) + 100)
    with Daemon("--max-connections", most, "--max-connections-per-address", most, "--threads", "2") as daemon:
        daemon.contract_checked = False
        job = Job(daemon, post(daemon, "/v1/models", json={"uri": "file:tiny-llama"}))
        daemon.get(job.path)
        idle = daemon.memory("VmRSS")
        job.start()
        print("| requests | number | p50 ms | p99 ms | p99.9 ms | longest ms |\n|---|---|---|---|---|---|")
        for name, connections in (("100 connections", 100), ("%d connections" % options.connections, options.connections)):
            times, statuses, late, top = poll(daemon, job.path, connections, options.every, options.seconds)
            row(name, times, " %s, %d not sent in time, memory %+d MiB" % (
                ", ".join("%d of status %d" % (n, status) if status else "%d CLOSED" % n for status, n in statuses.items()), late, (top - idle) // (1 << 20)))
        over = threading.Event()
        reader = threading.Thread(target=read_slowly, args=(daemon, job.path, options.readers, over), daemon=True)
        reader.start()
        time.sleep(2)
        times, statuses, late, top = poll(daemon, job.path, 100, 1, options.seconds)
        row("100 connections, beside %d slow readers" % options.readers, times, " memory %+d MiB" % ((top - idle) // (1 << 20)))
        over.set()
        reader.join()
        job.over.set()
        print("%d jobs ended meanwhile" % job.done)


main()
