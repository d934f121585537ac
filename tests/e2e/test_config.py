"""What the daemon says to its options: the sources and their order, refusals in one line with exit status 2."""

import os
import subprocess
import tempfile
import time

from certificates import Authority
from harness import BINARY, SANITIZED, Daemon, Failure, equal, main, true


def run_quantd(*options, env=None):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUANTD_")}
    return subprocess.run([BINARY, *options], env=dict(clean, **(env or {})), stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60, text=True)


def refused(words, *options, env=None):
    outcome = run_quantd(*options, env=env)
    equal(outcome.returncode, 2, "exit status (%r)" % outcome.stderr)
    equal(outcome.stdout, "", "standard output")
    last = outcome.stderr.strip().splitlines()[-1]
    if words not in outcome.stderr:
        raise Failure("%r does not say %r" % (last, words))


def version_and_help():
    outcome = run_quantd("--version")
    equal(outcome.returncode, 0)
    true(outcome.stdout.startswith("quantd "), "a version is printed")
    outcome = run_quantd("--help")
    equal(outcome.returncode, 0)
    for option in ("--data-dir", "--model-root", "--listen", "--config", "--auth", "--trust-proxy", "--drain-seconds"):
        true(option in outcome.stdout, "help names %s" % option)
    words = " ".join(outcome.stdout.split())
    for default in ("127.0.0.1:8080", "auto", "0", "25", "info", "false"):
        true("(default: %s)" % default in words, "help tells the default %s" % default)
    true("quantd --data-dir /var/lib/quantd --model-root /models" in words, "help has an example")


def bad_options_are_refused():
    refused("--data-dir")
    refused("unrecognized option", "--no-such-option")
    refused("is not an option", "stray")
    refused("--threads", "--data-dir", "d", "--threads", "many")
    refused("--cpu-products: \"bf16\" is not float32, bfloat16 or auto", "--data-dir", "d", "--cpu-products", "bf16")
    refused("from 0 to 4096", "--data-dir", "d", "--threads", "-1")
    refused("QUANTD_MAX_QUEUED", "--data-dir", "d", env={"QUANTD_MAX_QUEUED": "1x"})
    refused("HOST:PORT", "--data-dir", "d", "--listen", "8080")
    refused("HOST:PORT", "--data-dir", "d", "--listen", "127.0.0.1:65536")
    refused("not an IP address", "--data-dir", "d", "--listen", "::1:80")
    refused("--model-root", "--data-dir", "d", "--model-root", "/no/such/place")
    refused("is not a directory", "--data-dir", "d", "--model-root", "/dev/null")
    refused("--log-level", "--data-dir", "d", "--log-level", "loud")
    refused("--threads: the value contains the control character 0x0a", "--data-dir", "d", "--threads", "\n1")
    refused("QUANTD_LISTEN: the value contains the control character 0x1b", "--data-dir", "d",
            env={"QUANTD_LISTEN": "\033[2J:1"})
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data")
        for device in ("abacus", "gpu", "cpu:1", ""):
            refused("no device '%s'" % device, "--data-dir", data, "--device", device)
            true(not os.path.exists(data), "nothing is written for a device that does not exist")


def remote_addresses_need_a_word():
    refused("--auth keys", "--data-dir", "d", "--listen", "0.0.0.0:0")
    refused("--auth keys", "--data-dir", "d", "--listen", "[::]:0")


def old_libraries_stay_at_home():
    """A libmicrohttpd that is older than the one that is tested is not let out without a proxy."""
    if SANITIZED:
        return  # the sanitizer must be the first library
    with tempfile.TemporaryDirectory() as folder:
        shim, data = os.path.join(folder, "old.so"), os.path.join(folder, "data")
        subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", shim], check=True, text=True,
                       input="const char *MHD_get_version(void) { return \"0.9.9\"; }\n")
        options = ["--data-dir", data, "--auth", "keys", "--tls-certificate", os.path.join(folder, "tls.pem"),
                   "--tls-key", os.path.join(folder, "tls.key")]
        Authority(folder, "tls")
        os.mkdir(data)
        equal(run_quantd("key", "create", "--scope", "admin", "--data-dir", data).returncode, 0)
        refused("libmicrohttpd", *options, "--listen", "0.0.0.0:0", env={"LD_PRELOAD": shim})
        with Daemon("--listen", "0.0.0.0:0", "--auth", "keys", "--trust-proxy", data=data, env={"LD_PRELOAD": shim}):
            pass
        with Daemon(env={"LD_PRELOAD": shim}):
            pass


def file_faults_name_their_line():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "quantd.yaml")
        for text, words in (
            ("data_dir: /srv/x\n\n# note\nthreds: 2\n", ":4: Unexpected key: threds"),
            ("data_dir: [a]\n", ":1: "),
            ("threads: few\n", "threads: \"few\" is not a number"),
            ("data_dir: \"open\n", path),
        ):
            with open(path, "w") as file:
                file.write(text)
            refused(words, "--config", path)
        refused("cannot be opened", "--config", os.path.join(folder, "absent.yaml"))


def precedence():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "quantd.yaml")
        with open(path, "w") as file:
            file.write("max_queued: fromfile\n")
        refused("fromfile", "--data-dir", "d", "--config", path)
        refused("fromenv", "--data-dir", "d", env={"QUANTD_CONFIG": path, "QUANTD_MAX_QUEUED": "fromenv"})
        refused("fromline", "--data-dir", "d", "--max-queued", "fromline",
                env={"QUANTD_CONFIG": path, "QUANTD_MAX_QUEUED": "fromenv"})


def starts_from_a_file():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "quantd.yaml")
        with open(path, "w") as file:
            file.write("threads: 1\nlog_level: warn\nmodel_root:\n  - %s\n" % folder)
        with Daemon("--config", path, roots=[]) as daemon:
            equal(daemon.get("/readyz").get("status"), daemon.get("/readyz").get("status"))


def second_daemon_is_refused():
    with Daemon() as daemon:
        started = time.monotonic()
        outcome = run_quantd("--data-dir", daemon.data, "--listen", "127.0.0.1:0")
        true(outcome.returncode not in (0, None), "the second daemon fails")
        true("another daemon holds" in outcome.stderr, "it says why: %r" % outcome.stderr)
        true(time.monotonic() - started < 30, "it does not wait for the first one")
        equal(daemon.request("GET", "/livez").status, 200, "status of the first one")


def port_in_use_is_refused():
    with Daemon() as daemon:
        outcome = run_quantd("--data-dir", tempfile.mkdtemp(), "--listen", "127.0.0.1:%d" % daemon.port)
        true(outcome.returncode != 0, "a taken port fails")
        true("quantd:" in outcome.stderr, "it says why: %r" % outcome.stderr)


def wake_ups(pid):
    tasks, total = "/proc/%d/task" % pid, 0
    for task in os.listdir(tasks):
        with open("%s/%s/status" % (tasks, task)) as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total


def idle_daemon_sleeps():
    """Nothing wakes up once the first look for work after the start is done; the next is after five seconds."""
    with Daemon() as daemon:
        daemon.request("GET", "/livez")
        time.sleep(1.5)
        before = wake_ups(daemon.process.pid)
        time.sleep(2)
        true(wake_ups(daemon.process.pid) - before <= 1, "an idle daemon wakes up: %d times" % (wake_ups(daemon.process.pid) - before))


main([version_and_help, bad_options_are_refused, remote_addresses_need_a_word, old_libraries_stay_at_home, file_faults_name_their_line, precedence,
      starts_from_a_file, second_daemon_is_refused, port_in_use_is_refused, idle_daemon_sleeps])
