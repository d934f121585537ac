"""Requests that two readers could take for two different ones (probes.py), and those that a strict reader must let through.

Each is sent in one piece and byte by byte, since a reader's state must not depend on where pieces end.
"""

from harness import Daemon, equal, main, true
from probes import HOST, LINE, LIVE, POST, live, run_probes, statuses_of, talk


def run(bytewise):
    with Daemon() as daemon:
        run_probes(daemon, bytewise)


def in_one_piece():
    run(False)


def byte_by_byte():
    run(True)


def honest_requests_pass():
    """What the strict reader must let through."""
    honest = {
        "one empty line ahead": b"\r\n" + live(),
        "blanks around values": live(b"X:  \t y \t ", b"Y:"),
        "bytes beyond ASCII in a value": live(b"X: \xc3\xa4"),
        "IPv6": b"GET /livez HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
        "HTTP/1.0": b"GET /livez HTTP/1.0\r\n" + HOST + b"\r\n",
        "chunks": POST + b"Transfer-Encoding: Chunked\r\n\r\n5\r\n" + LINE[:5] + b"\r\n00e;a=\"b c\";d\r\n" + LINE[5:] +
                  b"\r\n0;x\r\nX-Trailer: y\r\n\r\n",
        "length with zeros": POST + b"content-length: 0019\r\n\r\n" + LINE,
    }
    with Daemon() as daemon:
        for name, data in honest.items():
            for bytewise in (False, True):
                last = LIVE + b"Connection: close\r\n\r\n"
                answer, closed = talk(daemon, data + (b"" if name == "HTTP/1.0" else last), bytewise)
                codes = statuses_of(answer)
                expected = [200] if name == "HTTP/1.0" else [201 if data.startswith(b"POST") else 200, 200]
                equal(codes, expected, "%s: %r" % (name, answer[:300]))
                true(closed, name + " ends")


main([in_one_piece, byte_by_byte, honest_requests_pass])
