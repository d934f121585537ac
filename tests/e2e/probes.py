"""The table of requests that two readers could take for two different ones. Each is followed by a request that would register a model.

Whatever a probe is, it gets one answer, a refusal, and the connection ends; the request that follows is never run.
"""

import re

from harness import Failure, equal, true

HOST = b"Host: 127.0.0.1\r\n"
TYPE = b"Content-Type: application/json\r\n"
BODY = b'{"uri": "file:tiny-llama"}'
NEXT = b"POST /v1/models HTTP/1.1\r\n" + HOST + TYPE + b"X-Request-Id: behind\r\nContent-Length: 26\r\n\r\n" + BODY
POST = b"POST /v1/files?purpose=calibration HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-ndjson\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST
LINE = b'{"input_ids": [1]}\n'


def get(target, more=b""):
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + more + b"\r\n"


def post(*lines):
    return POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def live(*lines):
    return LIVE + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# name: (bytes, statuses)
PROBES = {
    # lengths
    "two lengths": (post(b"Content-Length: 0", b"Content-Length: 300"), [400]),
    "two equal lengths": (post(b"Content-Length: 0", b"Content-Length: 0"), [400]),
    "a list of lengths": (post(b"Content-Length: 0, 300"), [400]),
    "length and chunks": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [400]),
    "chunks and length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n", [400]),
    "length, blank ahead of the colon": (post(b"Content-Length : 300"), [400]),
    "length, tab ahead of the colon": (post(b"Content-Length\t: 300"), [400]),
    "length on a folded line": (post(b"Content-Length:", b" 300"), [400]),
    "length goes on in a folded line": (post(b"Content-Length: 0", b"\t300"), [400]),
    "negative length": (post(b"Content-Length: -1"), [400]),
    "length with a plus": (post(b"Content-Length: +0"), [400]),
    "hexadecimal length": (post(b"Content-Length: 0x0"), [400]),
    "length with a fraction": (post(b"Content-Length: 0.0"), [400]),
    "length that overflows": (post(b"Content-Length: 18446744073709551616"), [400]),
    "overlong length": (post(b"Content-Length: " + b"0" * 40), [400]),
    "empty length": (post(b"Content-Length:"), [400]),
    "length with a blank within": (post(b"Content-Length: 0 0"), [400]),
    "length with a vertical tab": (post(b"Content-Length:\v0"), [400]),
    "length after a NUL": (post(b"Content-Length: 0\x00300"), [400]),
    "length with a body on GET": (live(b"Content-Length: 5") + b"abcde", [400]),
    # codings
    "unknown coding": (post(b"Transfer-Encoding: gzip"), [400]),
    "coding with another ahead": (post(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", [400]),
    "coding twice": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [400]),
    "coding, then identity": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity") + b"0\r\n\r\n", [400]),
    "coding in quotes": (post(b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n", [400]),
    "coding with a prefix": (post(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", [400]),
    "coding with a parameter": (post(b"Transfer-Encoding: chunked;q=1") + b"0\r\n\r\n", [400]),
    "coding after a vertical tab": (post(b"Transfer-Encoding:\vchunked") + b"0\r\n\r\n", [400]),
    "coding, blank ahead of the colon": (post(b"Transfer-Encoding : chunked") + b"0\r\n\r\n", [400]),
    "coding on a folded line": (post(b"Transfer-Encoding:", b" chunked") + b"0\r\n\r\n", [400]),
    "empty coding": (post(b"Transfer-Encoding:"), [400]),
    "coding on HTTP/1.0": ((CHUNKED + b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), [400]),
    "coding on GET": (live(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [400]),
    # chunks
    "chunk size ends in LF": (CHUNKED + b"13\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "last chunk ends in LF": (CHUNKED + b"13\r\n" + LINE + b"\r\n0\n\r\n", [400]),
    "chunk extension ends in LF": (CHUNKED + b"13;a=b\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "last extension ends in LF": (CHUNKED + b"0;a\nb\r\n\r\n", [400]),
    "chunk extension with a CR": (CHUNKED + b"13;a\rb\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk extension with a NUL": (CHUNKED + b"13;a\x00b\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "endless chunk extension": (CHUNKED + b"13;" + b"a" * 5000 + b"\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk data without CRLF": (CHUNKED + b"13\r\n" + LINE + b"0\r\n\r\n", [400]),
    "chunk data ends in LF": (CHUNKED + b"13\r\n" + LINE + b"\n0\r\n\r\n", [400]),
    "chunk data longer than said": (CHUNKED + b"10\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "huge chunk size": (CHUNKED + b"ffffffffffffffff\r\n" + LINE, [413]),
    "chunk size that overflows": (CHUNKED + b"10000000000000000\r\n" + LINE, [400, 413]),
    "chunk size of many zeros": (CHUNKED + b"0" * 100 + b"13\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "negative chunk size": (CHUNKED + b"-1\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk size with a plus": (CHUNKED + b"+13\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk size with 0x": (CHUNKED + b"0x13\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk size with an underscore": (CHUNKED + b"1_3\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk size after a blank": (CHUNKED + b" 13\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk size ahead of a blank": (CHUNKED + b"13 \r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "empty chunk size": (CHUNKED + b"\r\n" + LINE + b"\r\n0\r\n\r\n", [400]),
    "chunk size of letters": (CHUNKED + b"zz\r\n", [400]),
    "trailer ends in LF": (CHUNKED + b"0\r\nX: y\n\r\n", [400]),
    "trailer that is folded": (CHUNKED + b"0\r\nX: y\r\n z\r\n\r\n", [400]),
    "trailer with a length": (CHUNKED + b"0\r\nContent-Length: 300\r\n\r\n", [400]),
    "trailer without a colon": (CHUNKED + b"0\r\nno colon\r\n\r\n", [400]),
    "trailer with a NUL": (CHUNKED + b"0\r\nX: a\x00b\r\n\r\n", [400]),
    "endless trailer": (CHUNKED + b"0\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 200 + b"\r\n", [431]),
    # header lines
    "lines end in LF": (LIVE.replace(b"\r\n", b"\n") + b"\n", [400]),
    "one line ends in LF": (LIVE + b"X: y\n\r\n", [400]),
    "header ends in LF": (LIVE + b"\n", [400]),
    "request line ends in LF": (b"GET /livez HTTP/1.1\n" + HOST + b"\r\n", [400]),
    "header ends in two CR": (LIVE + b"\r\r\n", [400]),
    "CR in a value": (live(b"X: a\rb"), [400]),
    "CR in a name": (live(b"X\rY: z"), [400]),
    "CR alone ends a line": (LIVE + b"X: y\rContent-Length: 300\r\n\r\n", [400]),
    "NUL in a value": (live(b"X: a\x00b"), [400]),
    "NUL in a name": (live(b"X\x00Y: z"), [400]),
    "NUL in Host": (b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\x00.example.org\r\n\r\n", [400]),
    "NUL in the target": (get(b"/livez\x00x"), [400]),
    "NUL in the method": (b"GE\x00T /livez HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "control byte in a value": (live(b"X: a\x01b"), [400]),
    "DEL in a value": (live(b"X: a\x7fb"), [400]),
    "empty name": (live(b": x"), [400]),
    "no colon": (live(b"no colon"), [400]),
    "blank in a name": (live(b"X Y: z"), [400]),
    "brackets in a name": (live(b"X(Y): z"), [400]),
    "bytes beyond ASCII in a name": (live(b"X\xc3\xa4: y"), [400]),
    "folded header": (live(b"X: y", b" z"), [400]),
    "folded first line": (b"GET /livez HTTP/1.1\r\n " + HOST + b"\r\n", [400]),
    "too many lines": (live(*[b"X-%d: y" % n for n in range(100)]), [431]),
    "too large a header": (live(b"X: " + b"y" * 9000), [431]),
    "far too large a header": (live(b"X: " + b"y" * 100000), [431]),
    # hosts
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", [400]),
    "two hosts": (live(b"Host: example.org"), [400]),
    "two equal hosts": (live(HOST[:-2]), [400]),
    "empty host": (b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n", [400]),
    "another host": (b"GET /livez HTTP/1.1\r\nHost: example.org\r\n\r\n", [403]),
    "a name in brackets": (b"GET /livez HTTP/1.1\r\nHost: [localhost]\r\n\r\n", [400]),
    "an address in brackets": (b"GET /livez HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n", [400]),
    "brackets left open": (b"GET /livez HTTP/1.1\r\nHost: [::1\r\n\r\n", [400]),
    "IPv6 without brackets": (b"GET /livez HTTP/1.1\r\nHost: ::1\r\n\r\n", [400]),
    "host with a path": (b"GET /livez HTTP/1.1\r\nHost: localhost/x\r\n\r\n", [400]),
    "host with a user": (b"GET /livez HTTP/1.1\r\nHost: localhost@example.org\r\n\r\n", [400]),
    "host with a port that is none": (b"GET /livez HTTP/1.1\r\nHost: localhost:8a\r\n\r\n", [400]),
    "another site": (POST + b"Origin: http://example.org\r\nContent-Length: 0\r\n\r\n", [403]),
    # targets
    "absolute target": (get(b"http://127.0.0.1/livez"), [400]),
    "authority as target": (b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "asterisk as target": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "escaped NUL": (get(b"/livez%00"), [400]),
    "escaped slash": (get(b"/v1%2Fsystem"), [400]),
    "escaped backslash": (get(b"/v1%5Csystem"), [400]),
    "escaped percent": (get(b"/v1/models/a%25b"), [400]),
    "escaped parent": (get(b"/v1/%2e%2e/livez"), [400]),
    "parent": (get(b"/v1/../livez"), [400]),
    "cut escape": (get(b"/livez%"), [400]),
    "bad escape": (get(b"/livez%zz"), [400]),
    "escaped NUL in the query": (get(b"/v1/models?after=%00"), [400]),
    "backslash": (get(b"/v1\\system"), [400]),
    "fragment": (get(b"/livez#x"), [400]),
    "bytes beyond ASCII in the target": (get(b"/\xc3\xa4"), [400]),
    "control byte in the target": (get(b"/livez\x01"), [400]),
    "tab in the target": (get(b"/livez\tx"), [400]),
    "two blanks": (b"GET  /livez HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "blank in the target": (get(b"/live z"), [400]),
    "too many parts of a query": (get(b"/v1/models?" + b"a&" * 400), [414]),
    "too many cookies": (live(b"Cookie: " + b"; ".join(b"a%d=b" % n for n in range(310))), [431]),
    "length before a blank": (post(b"Content-Length: 0 "), [400]),
    "length before a tab": (post(b"Content-Length: 0\t"), [400]),
    "chunked before a blank": (post(b"Transfer-Encoding: chunked ") + b"0\r\n\r\n", [400]),
    "too long a target": (get(b"/" + b"a" * 10000), [414]),
    # versions and other protocols
    "HTTP/0.9": (b"GET /livez\r\n\r\n", [400]),
    "HTTP/0.9 by name": (b"GET /livez HTTP/0.9\r\n" + HOST + b"\r\n", [505]),
    "HTTP/1.2": (b"GET /livez HTTP/1.2\r\n" + HOST + b"\r\n", [505]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505]),
    "version in lower case": (b"GET /livez http/1.1\r\n" + HOST + b"\r\n", [400]),
    "version with a blank": (b"GET /livez HTTP/1.1 \r\n" + HOST + b"\r\n", [400]),
    "version with digits": (b"GET /livez HTTP/1.11\r\n" + HOST + b"\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [400]),
    "two empty lines ahead": (b"\r\n\r\n" + LIVE + b"\r\n", [400]),
    "LF ahead": (b"\n" + LIVE + b"\r\n", [400]),
    "blank ahead of the method": (b" " + LIVE + b"\r\n", [400]),
    "method that is no token": (b"G{T /livez HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "endless method": (b"G" * 5000 + b" /livez HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    # expectations and codings of content
    "unknown expectation": (post(b"Content-Length: 5", b"Expect: a-miracle"), [417]),
    "encoded body": (post(b"Content-Length: 0", b"Content-Encoding: gzip"), [415]),
}


def talk(daemon, data, bytewise):
    """What comes back until the other side closes; and whether it did."""
    with daemon.connect(10) as raw:
        try:
            if bytewise:
                for at in range(len(data)):
                    raw.send(data[at:at + 1])
            else:
                raw.sendall(data)
        except OSError:
            pass  # it has refused already
        got = b""
        try:
            while True:
                piece = raw.recv(65536)
                if not piece:
                    return got, True
                got += piece
        except TimeoutError:
            return got, False
        except ConnectionResetError:
            return got, True


def statuses_of(answer):
    return [int(code) for code in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", answer)]


def check(daemon, name, probe, statuses, bytewise):
    answer, closed = talk(daemon, probe + NEXT, bytewise)
    codes = statuses_of(answer)
    if len(codes) != 1 or codes[0] not in statuses:
        raise Failure("%s: answered %r, not one of %r: %r" % (name, codes, statuses, answer[:300]))
    true(closed, "%s: the connection is closed" % name)
    true(b"onnection: close" in answer, "%s: the answer says so: %r" % (name, answer))
    true(b"application/problem+json" in answer, "%s: the answer is a problem: %r" % (name, answer))
    equal(daemon.get("/v1/models")["data"], [], "models after " + name)


def run_probes(daemon, bytewise):
    true(len(PROBES) > 100, "the table is there")
    for name, (probe, statuses) in PROBES.items():
        check(daemon, name, probe, statuses, bytewise and len(probe) < 4000)
    answer, _ = talk(daemon, NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False)
    true(answer.startswith(b"HTTP/1.1 201"), "alone, the request is run: %r" % answer[:200])
