"""HTTP at its edges: malformed framing, hosts, slow senders, many connections. Raw sockets, since clients behave."""

import socket
import threading
import time

from harness import SANITIZED, Daemon, Failure, equal, main, true, wait_until


def talk(daemon, data, seconds=5):
    """Send bytes, read until the other side closes or is silent."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=seconds) as raw:
        raw.sendall(data)
        got = b""
        try:
            while True:
                piece = raw.recv(65536)
                if not piece:
                    break
                got += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return got


def statuses(answer):
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]


def hostile_requests():
    host = b"Host: 127.0.0.1\r\n"
    smuggled = b"GET /v1/system HTTP/1.1\r\n" + host + b"\r\n"
    cases = {
        "two lengths": b"POST /v1/models HTTP/1.1\r\n" + host + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        "length and chunks": b"POST /v1/models HTTP/1.1\r\n" + host +
                             b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
        "two hosts": b"GET /livez HTTP/1.1\r\n" + host + b"Host: example.org\r\n\r\n",
        "unknown coding": b"POST /v1/models HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip\r\n\r\n",
        "negative length": b"POST /v1/models HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n",
        "hex length": b"POST /v1/models HTTP/1.1\r\n" + host + b"Content-Length: 0x2\r\n\r\n{}",
        "no length": b"POST /v1/models HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\n\r\n",
        "no host": b"GET /livez HTTP/1.1\r\n\r\n",
        "other host": b"GET /livez HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "other origin": b"POST /v1/models HTTP/1.1\r\n" + host +
                        b"Origin: http://example.org\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "parent": b"GET /v1/../v1/system HTTP/1.1\r\n" + host + b"\r\n",
        "escaped slash": b"GET /v1%2fsystem HTTP/1.1\r\n" + host + b"\r\n",
        "escaped zero": b"GET /v1/models/%00 HTTP/1.1\r\n" + host + b"\r\n",
        "bad escape": b"GET /v1/models/%zz HTTP/1.1\r\n" + host + b"\r\n",
        "absolute": b"GET http://127.0.0.1/livez HTTP/1.1\r\n" + host + b"\r\n",
        "long path": b"GET /" + b"a" * 10000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        "many headers": b"GET /livez HTTP/1.1\r\n" + host + b"".join(b"X-%d: y\r\n" % n for n in range(300)) + b"\r\n",
        "space in name": b"GET /livez HTTP/1.1\r\n" + host + b"X y: z\r\n\r\n",
        "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    }
    with Daemon() as daemon:
        for name, data in cases.items():
            answer = talk(daemon, data, 3)
            codes = statuses(answer)
            if any(code < 400 for code in codes):
                raise Failure("%s: answered %r" % (name, answer[:300]))
            equal(daemon.request("GET", "/livez").status, 200, "status after " + name)


def framing_is_read_strictly():
    """Each request has exactly one answer with that status, and what follows it is not taken for a request."""
    host = b"Host: localhost\r\n"
    get, close = b"GET /livez HTTP/1.1\r\n", b"Connection: close\r\n\r\n"
    post = b"POST /v1/models HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n"
    smuggled = b"GET /v1/system HTTP/1.1\r\n" + host + b"\r\n"
    table = [
        ("length and coding", 400, post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", 400, post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
        ("equal lengths", 400, post + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
        ("list of lengths", 400, post + b"Content-Length: 2, 2\r\n\r\n{}"),
        ("signed length", 400, post + b"Content-Length: +2\r\n\r\n{}"),
        ("blank before the colon", 400, post + b"Content-Length : 2\r\n\r\n{}"),
        ("folded length", 400, post + b"Content-Length:\r\n 2\r\n\r\n{}"),
        ("folded header", 400, get + host + b"X: a\r\n b\r\n\r\n"),
        ("bare LF", 400, b"GET /livez HTTP/1.1\nHost: localhost\n\n"),
        ("bare CR in a value", 400, get + host + b"X: a\rb\r\n\r\n"),
        ("NUL in a value", 400, get + host + b"X: a\0b\r\n\r\n"),
        ("two hosts", 400, get + host + host + b"\r\n"),
        ("list of hosts", 400, get + b"Host: localhost, example.org\r\n\r\n"),
        ("unknown coding", 400, post + b"Transfer-Encoding: gzip\r\n\r\n"),
        ("coding like chunked", 400, post + b"Transfer-Encoding: xchunked\r\n\r\n"),
        ("coding in HTTP/1.0", 400, chunked.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n0\r\n\r\n"),
        ("chunks in LF", 400, chunked + b"\r\n2\n{}\n0\n\n"),
        ("chunk size with a prefix", 400, chunked + b"\r\n0x2\r\n{}\r\n0\r\n\r\n"),
        ("chunk beyond 64 bits", 413, chunked + b"\r\nfffffffffffffffff\r\n"),
        ("header in the trailer", 400, chunked + b"\r\n2\r\n{}\r\n0\r\nContent-Length: 2\r\n\r\n"),
        ("name that is no token", 400, get + host + b"X(: a\r\n\r\n"),
        ("no length", 411, post + b"\r\n"),
        ("HTTP/2.0", 505, b"GET /livez HTTP/2.0\r\n" + host + b"\r\n"),
        ("absolute target", 400, b"GET http://localhost/livez HTTP/1.1\r\n" + host + b"\r\n"),
        ("unknown expectation", 417, post + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}"),
    ] + [("target with " + bad, 400, b"GET /v1/models/a" + bad.encode() + b"b HTTP/1.1\r\n" + host + b"\r\n")
         for bad in ("%00", "%1f", "%2F", "%5C", "%25", "%zz", "%", "/../", "/./")]
    accepted = [
        ("blanks around Host", 200, get + b"Host: \t localhost \t\r\n" + close),
        ("blanks after Accept", 200, get + host + b"Accept: application/json \r\n" + close),
        ("blanks after Content-Type", 400, post.replace(b"json\r\n", b"json \r\n") + b"Content-Length: 2\r\n" + close + b"{}"),
        ("blanks after Expect", 400, post + b"Expect: 100-continue \r\nContent-Length: 2\r\n" + close + b"{}"),
        ("blanks after Idempotency-Key", 400, post + b"Idempotency-Key: a \r\nContent-Length: 2\r\n" + close + b"{}"),
        ("chunk extension", 400, chunked + close + b"2;a=b\r\n{}\r\n0\r\n\r\n"),
    ]
    with Daemon() as daemon:
        for name, status, data in table:
            equal(statuses(talk(daemon, data + smuggled, 3)), [status], "answers to: " + name)
        for name, status, data in accepted:  # 400: the body has no uri, which is found when it is read
            answer = talk(daemon, data, 3)
            final = [code for code in statuses(answer) if code != 100]
            equal(final, [status], "answers to: " + name)
            if status == 400:
                true(b"missing_parameter" in answer, "%s: the body is read: %r" % (name, answer[-400:]))


def keep_alive_and_pipelines():
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with Daemon() as daemon:
        equal(statuses(talk(daemon, request * 20 + last)), [200] * 21, "answers to a pipeline")


def slow_senders_are_ended():
    with Daemon() as daemon:
        raw = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(20)]
        for one in raw:
            one.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        started, ended = time.monotonic(), 0
        slowest = 0.0
        while raw and time.monotonic() - started < 90:
            time.sleep(0.5)  # each sends two bytes a second
            for one in list(raw):
                try:
                    one.sendall(b"a")
                    one.settimeout(0.001)
                    if one.recv(4096) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    continue
                except OSError:
                    one.close()
                    raw.remove(one)
                    ended += 1
            before = time.monotonic()
            equal(daemon.request("GET", "/livez").status, 200)
            slowest = max(slowest, time.monotonic() - before)
        equal(ended, 20, "slow senders that were ended")
        print("they were ended after %.1f s; others waited %.3f s at most" % (time.monotonic() - started, slowest))
        true(slowest < 10, "others are served meanwhile (%.3f s)" % slowest)


def many_connections():
    count = 200 if SANITIZED else 800
    with Daemon() as daemon:
        before = daemon.descriptors()
        raw = [socket.create_connection(("127.0.0.1", daemon.port), timeout=20) for _ in range(count)]
        for one in raw:
            one.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for one in raw:
            true(one.recv(4096).startswith(b"HTTP/1.1 200"), "each is answered")
        for one in raw:
            one.close()
        wait_until(lambda: daemon.descriptors() <= before + 5, "descriptors are closed")


def held_requests_do_not_block():
    with Daemon() as daemon:
        before = daemon.descriptors()
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        job = daemon.request("POST", "/v1/quantization/jobs", json={
            "model": model, "method": "gptq", "calibration": {"stream": True}}).json["id"]
        path = "/v1/quantization/jobs/" + job
        etag = daemon.request("GET", path).headers["etag"]
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(daemon.request(
            "GET", path, headers={"Prefer": "wait=60", "If-None-Match": etag}).status), daemon=True) for _ in range(40)]
        for thread in threads:
            thread.start()
        wait_until(lambda: daemon.descriptors() >= before + 3 * len(threads), "all have arrived")  # three for each connection
        equal(daemon.request("GET", "/v1/system").status, 200)
        equal(daemon.request("GET", "/readyz").status, 200)
        equal(answers, [], "others are served while forty wait")
        equal(daemon.request("POST", path + "/cancel").status, 202)
        for thread in threads:
            thread.join(30)
        equal(answers, [200] * 40, "a change ends the wait")  # 304 when its time is over


main([hostile_requests, framing_is_read_strictly, keep_alive_and_pipelines, slow_senders_are_ended, many_connections, held_requests_do_not_block])
