"""TLS: what is negotiated, that HTTP within it is what it is without it, replacing the certificate, and clients that misbehave.

The table of malformed requests (probes.py) is sent through TLS as well. Certificates are made by the openssl command."""

import concurrent.futures
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import time
import warnings

from certificates import Authority, Pair
from harness import BINARY, JOBS, NDJSON, SANITIZED, Daemon, Failure, equal, ids_records, main, post, succeed, true, wait_until
from probes import run_probes
from quantctl import Client, REFUSED, UNREACHABLE, USAGE

LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


class Secure:
    """An authority, a certificate, and a daemon that serves it."""

    def __init__(self, *options, **more):
        self.folder = tempfile.mkdtemp(prefix="quantd-tls-")
        self.authority = Authority(self.folder)
        self.pair = self.authority.issue("server")
        self.daemon = Daemon(*self.pair.options(), *options, tls=self.authority.context(), **more)

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *error):
        try:
            self.daemon.__exit__(*error)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def context(self, lowest, highest, ciphers="ALL:@SECLEVEL=0"):
        """Of a client that takes nearly anything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.authority.certificate)
        context.set_ciphers(ciphers)
        with warnings.catch_warnings(action="ignore"):  # of old versions, which must be refused
            context.minimum_version, context.maximum_version = lowest, highest
        return context

    def handshake(self, context, session=None):
        raw = socket.create_connection(("127.0.0.1", self.daemon.port), timeout=20)
        try:
            return context.wrap_socket(raw, server_hostname="localhost", session=session)
        except BaseException:
            raw.close()
            raise

    def refuses(self, context, what):
        try:
            self.handshake(context).close()
        except (ssl.SSLError, ConnectionResetError):
            return
        raise Failure("not refused: " + what)


def exchange(connection, data):
    connection.sendall(data)
    got = b""
    while True:
        piece = connection.recv(65536)
        if not piece:
            return got
        got += piece


def versions_and_ciphers():
    version = ssl.TLSVersion
    with Secure() as secure:
        secure.refuses(secure.context(version.TLSv1, version.TLSv1), "TLS 1.0")
        secure.refuses(secure.context(version.TLSv1, version.TLSv1_1), "TLS 1.1")
        two = secure.context(version.TLSv1_2, version.TLSv1_2)
        for weak in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "NULL:@SECLEVEL=0", "ADH:@SECLEVEL=0", "DHE"):
            secure.refuses(secure.context(version.TLSv1_2, version.TLSv1_2, weak), weak)
        for context, name in ((two, "TLSv1.2"), (secure.context(version.TLSv1_2, version.TLSv1_3), "TLSv1.3")):
            with secure.handshake(context) as connection:
                equal(connection.version(), name)
                true(exchange(connection, LAST).startswith(b"HTTP/1.1 200"), "an answer over " + name)
                session = connection.session
            with secure.handshake(context, session) as connection:
                true(connection.session_reused, "a session of %s is resumed" % name)
        for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), ([], None)):
            context = secure.authority.context()
            if offered:
                context.set_alpn_protocols(offered)
            with secure.handshake(context) as connection:
                equal(connection.selected_alpn_protocol(), chosen, "protocol of %r" % offered)
        context = secure.authority.context()
        context.set_alpn_protocols(["h2"])
        secure.refuses(context, "HTTP/2 alone")
        metrics = secure.daemon.request("GET", "/metrics").body.decode()
        ends = next(line.split()[1] for line in metrics.splitlines() if line.startswith("quantd_tls_certificate_expiry_timestamp_seconds "))
        true(abs(int(ends) - time.time() - 90 * 86400) < 3600, "the end of the certificate: " + ends)
        true('quantd_tls_handshakes_total{outcome="complete"}' in metrics, "handshakes are counted")
        secure.daemon.wait_line("TLS handshake failed", reason="no shared cipher")


def requests_without_tls():
    with Secure() as secure:
        for method in ("GET", "POST", "DELETE", "PATCH", "OPTIONS", "PUT"):
            with socket.create_connection(("127.0.0.1", secure.daemon.port), timeout=10) as raw:
                answer = exchange(raw, b"%s /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" % method.encode())
                true(answer.startswith(b"HTTP/1.1 400 ") and b"text/plain" in answer and b"https://" in answer, repr(answer))
        for noise in (b"\x00" * 300, b"SSH-2.0-x\r\n", b"\x16\x03\x01\xff\xff" + b"\x01" * 400, b"\x16\x03", b"\x80\x2e\x01\x00\x02", b""):
            with socket.create_connection(("127.0.0.1", secure.daemon.port), timeout=10) as raw:
                raw.sendall(noise)
                raw.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    answer = raw.recv(65536)
                    true(b"HTTP/1.1 200" not in answer, "no answer to %r" % noise[:8])
        equal(secure.daemon.request("GET", "/livez").status, 200)


def malformed_requests():
    with Secure() as secure:
        run_probes(secure.daemon, False)


def malformed_requests_bytewise():
    with Secure() as secure:
        run_probes(secure.daemon, True)


def bodies_and_streams():
    """An upload, ranges, an event stream and a job."""
    records = ids_records(4000, 160, 2048)
    with Secure() as secure:
        daemon = secure.daemon
        answer = daemon.request("POST", "/v1/files?purpose=calibration", body=records, headers={"Content-Type": NDJSON})
        equal(answer.status, 201, repr(answer))
        pieces = (records[at:at + 70001] for at in range(0, len(records), 70001))
        chunked = daemon.request("POST", "/v1/files?purpose=calibration", body=pieces, headers={"Content-Type": NDJSON})
        equal((chunked.status, chunked.json["sha256"]), (201, answer.json["sha256"]), "the same in chunks")
        content = "/v1/files/%s/content" % answer.json["id"]
        equal(hashlib.sha256(daemon.request("GET", content).body).hexdigest(), hashlib.sha256(records).hexdigest())
        for first, last in ((0, 0), (16383, 16384), (1, 1 << 20), (len(records) - 5, len(records) - 1)):
            part = daemon.request("GET", content, headers={"Range": "bytes=%d-%d" % (first, last)})
            equal((part.status, part.body), (206, records[first:last + 1]), "range %d-%d" % (first, last))
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        job = post(daemon, JOBS, json={"model": model, "method": "rtn"})
        connection = daemon.connection()
        connection.request("GET", "%s/%s/events" % (JOBS, job), headers={"Accept": "text/event-stream"})
        events = connection.getresponse().read().decode()
        connection.close()
        true('"succeeded"' in events.rstrip().rsplit("\n\n", 1)[-1], "the stream ends with the job: %r" % events[-300:])
        artifact = succeed(daemon, job)["result"]["artifact_id"]
        true(artifact_urls(daemon, artifact).startswith("https://127.0.0.1:%d/" % daemon.port), "scheme of URLs")
        proxied(daemon, artifact)


def artifact_urls(daemon, artifact, **headers):
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "artifact_url", "arguments": {"artifact_id": artifact}}}
    answer = daemon.request("POST", "/mcp", json=call, headers=headers)
    return answer.json["result"]["structuredContent"]["files"][0]["url"]


def proxied(daemon, artifact):
    """The same data directory without TLS: a header counts only where the proxy is trusted."""
    equal(daemon.stop(), 0)
    header = {"X-Forwarded-Proto": "https"}
    for options, headers, scheme in (((), {}, "http"), ((), header, "http"), (("--trust-proxy",), {}, "http"),
                                     (("--trust-proxy",), header, "https"), (("--trust-proxy",), {"X-Forwarded-Proto": "https, http"}, "https"),
                                     (("--trust-proxy",), {"X-Forwarded-Proto": "gopher"}, "http")):
        with Daemon(*options, data=daemon.data) as other:
            true(artifact_urls(other, artifact, **headers).startswith(scheme + "://127"), "%r with %r" % (options, headers))


def ends_of_connections():
    with Secure() as secure:
        # An answer ends with close_notify, so that its end cannot be cut off.
        raw = socket.create_connection(("127.0.0.1", secure.daemon.port), timeout=20)
        with secure.authority.context().wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as connection:
            true(exchange(connection, LAST).startswith(b"HTTP/1.1 200"), "an answer, and close_notify")
        # A client that says it is done gets its answer; one that vanishes within a body changes nothing.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = secure.authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", secure.daemon.port), timeout=20) as raw:
            def step(call, *arguments):
                while True:
                    try:
                        return call(*arguments)
                    except ssl.SSLWantReadError:
                        raw.sendall(outgoing.read())
                        piece = raw.recv(65536)
                        true(piece, "the server answers")
                        incoming.write(piece)
            step(tls.do_handshake)
            tls.write(LIVE)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()  # writes close_notify
            raw.sendall(outgoing.read())
            true(step(tls.read).startswith(b"HTTP/1.1 200"), "an answer after close_notify")
        body = b'{"uri": "file:tiny-llama"}'
        head = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1)
        connection = secure.daemon.connect()
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        connection.close()
        secure.daemon.wait_line("request", route="/v1/models", end="aborted")
        equal(secure.daemon.get("/v1/models")["data"], [], "models")


def serial(secure):
    with secure.handshake(secure.authority.context()) as connection:
        return connection.getpeercert()["serialNumber"]


def certificate_is_replaced():
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.path.join(folder, "notify"))
        manager.settimeout(20)
        with Secure(env={"NOTIFY_SOCKET": os.path.join(folder, "notify")}) as secure:
            replace_certificates(secure, manager)


def replace_certificates(secure, manager):
    daemon, first = secure.daemon, serial(secure)
    equal(manager.recv(100), b"READY=1", "what the service manager is told at start")
    kept = daemon.connection()
    kept.request("GET", "/livez")
    kept.getresponse().read()

    def replace(certificate, key, message):
        for source, target in ((certificate, secure.pair.certificate), (key, secure.pair.key)):
            with open(source, "rb") as file:
                data = file.read()
            with open(target + ".new", "wb") as file:
                file.write(data)
            os.rename(target + ".new", target)
        before = sum(line["message"] == message for line in daemon.log_lines())
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: sum(line["message"] == message for line in daemon.log_lines()) > before, message)

    second = secure.authority.issue("second", days=10)
    replace(second.certificate, second.key, "certificate loaded")
    true(manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC="), "it is told of the reload")
    equal(manager.recv(100), b"READY=1", "and of its end")
    changed = serial(secure)
    true(changed != first, "new connections get the new certificate")
    daemon.wait_line("the certificate expires soon: replace it and send SIGHUP")
    kept.request("GET", "/livez")
    equal(kept.getresponse().read() != b"", True, "an answer on the connection from before")
    kept.close()
    third = secure.authority.issue("third", kind=("rsa:2048",))
    for certificate, key in ((third.certificate, second.key), (os.devnull, third.key), (third.certificate, os.devnull),
                             (third.key, third.key), (BINARY, third.key)):
        replace(certificate, key, "the certificate cannot be loaded, the previous one is kept")
        equal(serial(secure), changed, "the certificate after a failure")
    replace(third.certificate, third.key, "certificate loaded")
    true(serial(secure) not in (first, changed), "a key of another kind")
    for _ in range(20):  # signals that come while the files are read
        daemon.signal(signal.SIGHUP)
    equal(daemon.request("GET", "/livez").status, 200)


def starts():
    def run(*options):
        return subprocess.run([BINARY, "--data-dir", os.path.join(folder, "data"), *options], capture_output=True, text=True,
                              timeout=60, stdin=subprocess.DEVNULL)

    def refused(words, *options):
        done = run("--listen", "127.0.0.1:0", *options)
        equal(done.returncode, 2, "exit status with %r (%s)" % (options, done.stderr))
        true(words in done.stderr, "%r says %r: %s" % (options, words, done.stderr))
        true(not os.path.exists(os.path.join(folder, "data")), "nothing is made")

    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(folder)
        pair, other = authority.issue("server", "DNS:quantd.example.org"), authority.issue("other")
        locked = os.path.join(folder, "locked.key")
        subprocess.run(["openssl", "pkey", "-in", pair.key, "-out", locked, "-aes256", "-passout", "pass:secret"], check=True)
        refused("--tls-certificate is set without --tls-key", "--tls-certificate", pair.certificate)
        refused("--tls-key is set without --tls-certificate", "--tls-key", pair.key)
        refused("No such file", *Pair(pair.certificate + "x", pair.key).options())
        refused("not a file", *Pair(folder, pair.key).options())
        refused("not a file", *Pair("/dev/zero", pair.key).options())
        refused("BEGIN CERTIFICATE", *Pair(pair.key, pair.key).options())
        refused("BEGIN PRIVATE KEY", *Pair(pair.certificate, pair.certificate).options())
        refused("is not that of the first certificate", *Pair(pair.certificate, other.key).options())
        refused("passphrase", *Pair(pair.certificate, locked).options())
        for options in ((), ("--trust-proxy",), ("--auth", "keys"), tuple(pair.options())):
            done = run("--listen", "0.0.0.0:0", *options)
            equal(done.returncode, 2, "exit status beyond loopback with %r" % (options,))
            for way in ("127.0.0.1", "--auth keys", "--tls-certificate", "--trust-proxy"):
                true(way in done.stderr, "%r: %s is a way out: %s" % (options, way, done.stderr))
        data = os.path.join(folder, "data")
        os.mkdir(data)
        key = subprocess.run([BINARY, "key", "create", "--scope", "admin", "--data-dir", data], capture_output=True, text=True,
                             timeout=60, check=True).stdout.strip()
        for options in (pair.options(), ["--trust-proxy"]):
            tls = authority.context() if options == pair.options() else None
            if tls is not None:
                tls.check_hostname = False
            with Daemon("--listen", "0.0.0.0:0", "--auth", "keys", *options, data=data, tls=tls) as daemon:
                daemon.contract_checked = False
                for host, status in (("127.0.0.1", 200), ("quantd.example.org", 200 if tls else 403), ("example.org", 403), (".example.org", 403)):
                    headers = {"Authorization": "Bearer " + key, "Host": host}
                    equal(daemon.request("GET", "/v1/system", headers=headers).status, status, "status for the host %s with %r" % (host, options))


def handshakes_that_stall():
    """Clients that begin a handshake and stop, or leave, hold up nobody and are ended within the time of a first request."""
    count = 60 if SANITIZED else 150
    with Secure() as secure:
        daemon = secure.daemon
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = secure.authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        before = daemon.descriptors()
        for size in (1, 5, 100, len(hello)) * 10:  # a reset in the middle
            raw = socket.create_connection(("127.0.0.1", daemon.port), timeout=20)
            raw.sendall(hello[:size])
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        wait_until(lambda: daemon.descriptors() <= before, "descriptors are closed after resets")
        raw = [socket.create_connection(("127.0.0.1", daemon.port), timeout=20) for _ in range(count)]
        started = time.monotonic()
        for number, one in enumerate(raw):
            one.sendall(hello[:(0, 3, 60, len(hello))[number % 4]])
        after = [daemon.connect() for _ in range(10)]  # and those whose header never ends
        for one in after:
            one.sendall(LIVE[:-2] + b"X-Slow: ")
        slowest, answers = 0.0, 0
        while raw + after and time.monotonic() - started < 40:
            for one in raw + after:
                one.setblocking(False)
                try:
                    if one in after:
                        one.sendall(b"a")
                    got = one.recv(4096)
                    answers += got.startswith(b"HTTP/1.1 408")
                    if got == b"":
                        raise ConnectionResetError
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
                except OSError:
                    one.close()
                    (after if one in after else raw).remove(one)
            at = time.monotonic()
            equal(daemon.request("GET", "/livez").status, 200)
            slowest = max(slowest, time.monotonic() - at)
            time.sleep(0.2)
        spent = time.monotonic() - started
        true(not raw + after, "all were ended (%d are left)" % len(raw + after))
        equal(answers, 10, "slow headers that were told so")
        true(8 < spent < 25, "they were ended in time: %.1f s" % spent)
        true(slowest < 5, "others are served meanwhile (%.3f s)" % slowest)
        wait_until(lambda: daemon.descriptors() <= before, "descriptors are closed")


def many_connections():
    with Secure() as secure:
        daemon = secure.daemon
        before = daemon.descriptors()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            connections = list(pool.map(lambda _: daemon.connect(), range(200)))
        for _ in range(3):
            for one in connections:
                one.sendall(LIVE * 2)
            for one in connections:
                got = b""
                while got.count(b'{"status":"ok"}') < 2:
                    piece = one.recv(65536)
                    true(piece, "the connection is kept")
                    got += piece
        for one in connections:
            one.close()
        wait_until(lambda: daemon.descriptors() <= before + 5, "descriptors are closed")


def too_many_connections():
    with Secure("--max-connections", "4", "--max-connections-per-address", "4") as secure:
        busy = [secure.daemon.connect() for _ in range(4)]
        for one in busy:
            one.sendall(LIVE[:-2])
        time.sleep(0.1)
        answer = exchange(secure.daemon.connect(), LAST)
        true(answer.startswith(b"HTTP/1.1 503 ") and b"queue_full" in answer, "refused in words: %r" % answer[:300])
        for one in busy:
            one.sendall(b"\r\n")
            true(one.recv(4096).startswith(b"HTTP/1.1 200"), "the others are served")
            one.close()


def slow_readers():
    """Backpressure: what a client does not read is not held in memory, and it gets every byte when it does."""
    records = ids_records(10000, 160, 2048)
    with Secure() as secure:
        daemon = secure.daemon
        file = post(daemon, "/v1/files?purpose=calibration", body=records, headers={"Content-Type": NDJSON})
        request = b"GET /v1/files/%s/content HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % file.encode()
        rss = daemon.memory("VmRSS")
        # An end without close_notify is an error to them.
        readers = [daemon.tls.wrap_socket(socket.create_connection(("127.0.0.1", daemon.port), timeout=60), server_hostname="localhost",
                                          suppress_ragged_eofs=False) for _ in range(12)]
        for one in readers:
            one.sendall(request)
        time.sleep(0.5)
        if not SANITIZED:
            grown = daemon.memory("VmRSS") - rss
            true(grown < 24 << 20, "readers that wait take %d MiB" % (grown >> 20))
        for one in readers:
            body = hashlib.sha256()
            exchange_head(one, body)
            while True:
                piece = one.recv(1 << 16)
                if not piece:
                    break
                body.update(piece)
            equal(body.hexdigest(), hashlib.sha256(records).hexdigest(), "what a slow reader got")
            one.close()


def exchange_head(connection, body):
    """Read up to the end of the header; what follows goes into body."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = connection.recv(4096)
        true(piece, "an answer")
        got += piece
    body.update(got.split(b"\r\n\r\n", 1)[1])


def quantctl_says_what_is_wrong():
    with Secure() as secure, Client(None) as client:
        https = "https://localhost:%d" % secure.daemon.port
        ca = secure.authority.certificate
        answer = client.run("system", "-s", https, status=UNREACHABLE)
        true("not trusted" in answer.err and "--ca-file" in answer.err, repr(answer))
        client.run("system", "-s", https, "--ca-file", ca)
        client.run("system", "-s", https, env={"QUANTD_CA_FILE": ca})
        client.run("login", https, "--no-key", "--ca-file", ca)
        client.run("system")  # by the profile
        client.run("models", "register", "file:tiny-llama")
        answer = client.run("system", "-s", https.replace("https", "http"), status=REFUSED)
        true("https://" in answer.err, repr(answer))
        answer = client.run("system", "--ca-file", secure.pair.key, status=USAGE)
        true("no certificates" in answer.err, repr(answer))
        for name, more, words in (("elsewhere", {"names": "DNS:example.org"}, "another host name"), ("old", {"days": -1}, "has expired")):
            pair = secure.authority.issue(name, **more)
            with Daemon(*pair.options(), tls=secure.authority.context()) as daemon:
                answer = client.run("system", "-s", "https://localhost:%d" % daemon.port, status=UNREACHABLE)
                true(words in answer.err, repr(answer))
    with Daemon() as daemon, Client("https://127.0.0.1:%d" % daemon.port) as client:
        answer = client.run("system", status=UNREACHABLE)
        true("http://" in answer.err, repr(answer))


main([versions_and_ciphers, requests_without_tls, malformed_requests, malformed_requests_bytewise, bodies_and_streams, ends_of_connections,
      certificate_is_replaced, starts, handshakes_that_stall, many_connections, too_many_connections, slow_readers, quantctl_says_what_is_wrong])
