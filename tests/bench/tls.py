#!/usr/bin/env python3
"""What TLS costs: downloads and uploads, handshakes, and the memory of idle connections, each with and without it.

    QUANTD=build-release/daemon/quantd QUANTD_TEST_DATA=tests/data python3 tests/bench/tls.py [--megabytes 1024] [--connections 5000]

Bytes are moved by curl. Seconds of the daemon are those of its processor time, which other work on the machine changes less than the time on
the clock. A connection takes three descriptors of the daemon: the hard limit of open files bounds how many there can be.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from certificates import Authority  # noqa: E402
from harness import Daemon, wait_until  # noqa: E402

LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
KINDS = {"P-256": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "RSA 2048": ("rsa:2048",), "RSA 4096": ("rsa:4096",)}


def start(authority, pair, *options):
    daemon = Daemon(*(pair.options() if pair else []), "--log-level", "warn", *options, tls=authority.context() if pair else None)
    daemon.contract_checked = False
    return daemon


def processor_seconds(daemon):
    with open("/proc/%d/stat" % daemon.process.pid) as file:
        return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def curl(daemon, authority, *words):
    """MB/s and the daemon's seconds per GB."""
    before, at = processor_seconds(daemon), time.monotonic()
    url = "%s://127.0.0.1:%d%s" % ("https" if daemon.tls else "http", daemon.port, words[-1])
    done = subprocess.run(["curl", "-sSf", "--cacert", authority.certificate, *words[:-1], url, "-w", "%{size_download} %{size_upload}"],
                          check=True, capture_output=True, text=True)
    spent = time.monotonic() - at
    size = max(map(int, done.stdout.split()[-2:]))
    return size / 1e6 / spent, (processor_seconds(daemon) - before) / (size / 1e9)


def transfers(authority, pair, folder, megabytes):
    path, answer = os.path.join(folder, "records"), os.path.join(folder, "answer")
    if not os.path.exists(path):
        lines = (b'{"input_ids":[' + b"1," * 500 + b"1]}\n") * 1000
        with open(path, "wb") as file:
            while file.tell() < megabytes * 1_000_000:
                file.write(lines)
    with start(authority, pair) as daemon:
        up = curl(daemon, authority, "-H", "Content-Type: application/x-ndjson", "-X", "POST", "-T", path, "-o", answer, "/v1/files?purpose=calibration")
        with open(answer) as file:
            content = "/v1/files/%s/content" % json.load(file)["id"]
        down = [curl(daemon, authority, "-r", "0-", "-o", os.devnull, content) for _ in range(4)][1:]
    best = max(down)
    print("| %s | %.0f | %.2f | %.0f | %.2f |" % ("TLS" if pair else "plain", best[0], min(row[1] for row in down), up[0], up[1]), flush=True)


def handshakes(authority, name, pair, count):
    with start(authority, pair) as daemon:
        for _ in range(20):
            daemon.connect().close()
        before = processor_seconds(daemon)
        for _ in range(count):
            connection = daemon.connect()
            connection.sendall(LIVE)
            connection.recv(4096)
            connection.close()
        print("| %s | %.2f |" % (name, (processor_seconds(daemon) - before) * 1000 / count), flush=True)


def idle(authority, pair, count):
    limit = str(count + 50)
    with start(authority, pair, "--max-connections", limit, "--max-connections-per-address", limit) as daemon:
        for _ in range(20):
            daemon.connect().close()
        wait_until(lambda: daemon.request("GET", "/livez").status == 200, "it answers")
        before = daemon.memory("VmRSS")
        connections = []
        for _ in range(count):
            connections.append(daemon.connect())
            connections[-1].sendall(LIVE)
            connections[-1].recv(4096)
        memory = daemon.memory("VmRSS") - before
        times, begun, at = [], time.monotonic(), 0
        while time.monotonic() - begun < 10:  # each polls every five seconds
            connection = connections[at % count]
            due = begun + at * 5 / count
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.perf_counter()
            connection.sendall(LIVE)
            connection.recv(4096)
            times.append((time.perf_counter() - sent) * 1000)
            at += 1
        times.sort()
        print("| %s | %d | %.1f | %.2f | %.2f | %d |" % ("TLS" if pair else "plain", count, memory / 1024 / count, times[len(times) // 2],
                                                       times[len(times) * 99 // 100], len(times) // 10), flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--megabytes", type=int, default=1024)
    arguments.add_argument("--connections", type=int, default=5000)
    options = arguments.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = tempfile.mkdtemp(prefix="quantd-bench-")
    try:
        authority = Authority(folder)
        pairs = {name: authority.issue(name.replace(" ", ""), kind=kind) for name, kind in KINDS.items()}
        print("load average %.1f\n\n| | download MB/s | s/GB | upload MB/s | s/GB |\n|---|---|---|---|---|" % os.getloadavg()[0])
        for pair in (None, pairs["P-256"]):
            transfers(authority, pair, folder, options.megabytes)
        print("\n| connection, one request, end | ms of the daemon |\n|---|---|")
        for name, pair in (("plain", None), *pairs.items()):
            handshakes(authority, name, pair, 500)
        print("\n| | connections | KiB each | p50 ms | p99 ms | requests a second |\n|---|---|---|---|---|---|")
        for pair in (None, pairs["P-256"]):
            idle(authority, pair, options.connections)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
