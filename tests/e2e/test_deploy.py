"""What surrounds the daemon where it is deployed: its unit, its manual page, the watchdog and the health check."""

import os
import re
import shutil
import socket
import subprocess
import tempfile

from certificates import Authority
from harness import BINARY, Daemon, Skip, equal, main, true

TOP = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def unit(folder):
    """The unit with a program that is there, since nothing is installed."""
    with open(os.path.join(TOP, "deploy", "systemd", "quantd.service.in")) as file:
        text = file.read()
    path = os.path.join(folder, "quantd.service")
    with open(path, "w") as file:
        file.write(text.replace("@bindir@/quantd", os.path.realpath(BINARY)))
    return path


def systemd_unit():
    if shutil.which("systemd-analyze") is None:
        raise Skip("no systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        path = unit(folder)
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=60)
        equal((done.returncode, [line for line in done.stderr.splitlines() if "quantd" in line]), (0, []), "systemd-analyze verify")
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", path], capture_output=True, text=True, timeout=60)
        found = re.search(r"Overall exposure level for quantd.service: ([0-9.]+)", done.stdout)
        if not found:
            raise Skip("systemd-analyze security: " + done.stderr[-200:])
        true(float(found.group(1)) < 2.5, "the exposure %s is below 2.5" % found.group(1))


def unit_allows_openat2():
    """Model roots are opened with it; RestrictSUIDSGID, which DynamicUser implies, refuses it."""
    with open(os.path.join(TOP, "deploy", "systemd", "quantd.service.in")) as file:
        settings = dict(line.split("=", 1) for line in file.read().splitlines() if re.match(r"[A-Za-z]+=", line))
    equal({name for name in ("RestrictSUIDSGID", "DynamicUser") if settings.get(name, "no") != "no"}, set(), "settings that refuse openat2")


def unit_outlasts_the_drain():
    with open(os.path.join(TOP, "deploy", "systemd", "quantd.service.in")) as file:
        stop = int(re.search(r"^TimeoutStopSec=(\d+)$", file.read(), re.M).group(1))
    drain = re.search(r"shutdown, in\s+seconds\s+\(default:\s+(\d+)\)", help_text())
    true(stop > int(drain.group(1)), "TimeoutStopSec is above --drain-seconds")


def help_text():
    return subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=60).stdout


def manual_page():
    with open(os.path.join(TOP, "daemon", "quantd.8")) as file:
        page = file.read().replace("\\-", "-")
    options = set(re.findall(r"--[a-z-]+[a-z]", re.split("Every option can", help_text())[0])) - {"--usage"}
    true(len(options) > 20, "options were found")
    equal(sorted(options - set(re.findall(r"\\fB(--[a-z-]+)\\fR", page)) - set(re.findall(r"^\.B (--[a-z]+)$", page, re.M))), [],
          "options that quantd.8 does not have")


def watchdog():
    """READY, then twice in the interval WATCHDOG; none for a process that the manager does not watch."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.path.join(folder, "notify"))
        manager.settimeout(20)
        with Daemon(env={"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}):
            equal([manager.recv(100) for _ in range(4)], [b"READY=1"] + [b"WATCHDOG=1"] * 3, "what the manager hears")
        while manager.recv(100) == b"WATCHDOG=1":
            pass
        with Daemon(env={"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}) as daemon:
            equal(manager.recv(100), b"READY=1", "what the manager hears")
            for _ in range(20):
                daemon.get("/livez")
        equal(manager.recv(100), b"STOPPING=1", "what the manager hears then")


def health(daemon, *words, options=()):
    return subprocess.run([BINARY, "health", *words, "--data-dir", daemon.data, *options], capture_output=True, text=True, timeout=60)


def health_check():
    with Daemon() as daemon:
        here = ["--listen", "0.0.0.0:%d" % daemon.port, "--auth", "keys", "--trust-proxy"]
        for words, said in (([], "alive"), (["live"], "alive"), (["ready"], "ready")):
            done = health(daemon, *words, options=here)
            equal((done.returncode, done.stdout.strip()), (0, said), "quantd health %s (%s)" % (words, done.stderr))
        environment = dict(os.environ, QUANTD_LISTEN="127.0.0.1:%d" % daemon.port, QUANTD_DATA_DIR=daemon.data, http_proxy="http://127.0.0.1:1")
        done = subprocess.run([BINARY, "health"], env=environment, capture_output=True, text=True, timeout=60)
        equal(done.returncode, 0, "quantd health by variables (%s)" % done.stderr)
        done = health(daemon, options=["--listen", "127.0.0.1:0"])
        equal(done.returncode, 2, "exit status with port 0")
        true("--listen" in done.stderr, "the message says what to pass")
        equal(health(daemon, "well").returncode, 2, "exit status of an unknown word")
        port = daemon.port
    with Daemon(start=False) as daemon:
        done = health(daemon, options=["--listen", "127.0.0.1:%d" % port])
        equal(done.returncode, 1, "exit status without a daemon")
        true("does not answer" in done.stderr, "the message says so")


def health_check_with_tls():
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(folder)
        pair = authority.issue("server")
        with Daemon(*pair.options(), tls=authority.context()) as daemon:
            done = health(daemon, options=["--listen", "127.0.0.1:%d" % daemon.port, *pair.options()])
            equal((done.returncode, done.stdout.strip()), (0, "alive"), "quantd health with TLS (%s)" % done.stderr)


main([systemd_unit, unit_allows_openat2, unit_outlasts_the_drain, manual_page, watchdog, health_check, health_check_with_tls])
