"""quantctl at servers that misbehave, and what it tells a server: keys, certificates, profiles."""

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import ssl
import subprocess
import tempfile
import termios
import time

from harness import Skip, equal, main, true
from quantctl import Client, KEY, OK, PROBLEM, QUANTCTL, REFUSED, SECONDS, SERVER, Server, UNREACHABLE, USAGE, json_answer, read_pty


# --- servers that misbehave


def raw_answer(data, wait=0):
    def answer(handler):
        handler.wfile.write(data)
        handler.wfile.flush()
        handler.close_connection = True
        time.sleep(wait)
    return answer


def huge(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        for _ in range(300):
            handler.wfile.write(b" " * (1 << 20))


def wrong_servers():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    page = b"<html>\x1b[2Jlogin</html>"
    cases = [
        ("a page", lambda handler: handler.send(200, "text/html", page), SERVER),
        ("a page that refuses", lambda handler: handler.send(404, "text/html", page), REFUSED),
        ("a proxy's page", lambda handler: handler.send(502, "text/html", page), SERVER),
        ("a redirect", lambda handler: handler.send(302, "text/html", b"", Location="http://127.0.0.1:1/"), SERVER),
        ("half an answer", raw_answer(head + b"Content-Length: 100\r\n\r\n{"), UNREACHABLE),
        ("half a chunk", raw_answer(head + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{"), UNREACHABLE),
        ("nothing", raw_answer(b""), UNREACHABLE),
        ("noise", raw_answer(b"\x00\x01SSH-2.0-x\r\n\r\n"), SERVER),
        ("silence", raw_answer(b"", wait=5), UNREACHABLE),
        ("not JSON", lambda handler: handler.send(200, "application/json", b"{"), SERVER),
        ("a list", json_answer([1, 2]), SERVER),
        ("deep JSON", lambda handler: handler.send(200, "application/json", b"[" * 100000), SERVER),
        ("too much", huge, SERVER),
        ("a problem", json_answer(PROBLEM, 400, "application/problem+json"), REFUSED),
        ("a problem of the server", json_answer(PROBLEM, 500, "application/problem+json"), SERVER),
        ("a problem that is not one", json_answer(7, 400, "application/problem+json"), REFUSED),
    ]
    for name, answer, status in cases:
        with Server(answer) as server, Client(server.url) as client:
            got = client.run("system", "--timeout", "2", status=None)
            equal(got.status, status, "exit status at %s (%r)" % (name, got))
            true(got.err.startswith("quantctl: ") and got.out == "", "one sentence at %s: %r" % (name, got))
            true("\x1b" not in got.err, "no escape sequence at %s: %r" % (name, got))
    with Client("http://127.0.0.1:1") as client:
        client.run("system", status=UNREACHABLE)
        client.run("watch", "job_01", status=UNREACHABLE)
        client.run("system", "--server", "http://name.invalid", status=UNREACHABLE)


def busy_servers():
    """503 and 429 with Retry-After: what can be repeated is, what cannot is not."""
    seen = []

    def answer(handler):
        seen.append((handler.command, handler.headers.get("Idempotency-Key")))
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if len(seen) < 3:
            problem = dict(PROBLEM, status=429, code="rate_limited", errors=[])
            return handler.send(429 if len(seen) == 1 else 503, "application/problem+json", json.dumps(problem).encode(),
                                Retry_After="0")
        return handler.send(200, "application/json", b'{"id": "job_1", "status": "queued", "name": "quantd"}')

    with Server(answer) as server, Client(server.url) as client:
        client.run("system")
        equal(len(seen), 3, "requests")
        del seen[:]
        client.run("submit", "-m", "mdl_1", "--method", "rtn")
        equal(len(seen), 3, "requests to create a job")
        equal(len(set(seen)), 1, "of one idempotency key")
        true(seen[0][1] is not None, "it is there")
        del seen[:]
        client.run("models", "register", "file:x", status=REFUSED)
        equal(len(seen), 1, "requests that cannot be repeated")


def full_servers():
    """A watcher that is turned away at once says why."""
    for status in (503, 429):
        problem = json.dumps(dict(PROBLEM, status=status, errors=[])).encode()
        answer = lambda handler: handler.send(status, "application/problem+json", problem, Retry_After="1")
        with Server(answer) as server, Client(server.url) as client:
            got = client.run("watch", "job_1", status=UNREACHABLE)
            true(got.err.startswith("quantctl: ") and str(status) in got.err, "the reason: %r" % got)


def problems_are_shown():
    with Server(json_answer(PROBLEM, 400, "application/problem+json")) as server, Client(server.url) as client:
        answer = client.run("submit", "-m", "mdl_01", "--method", "rtn", status=REFUSED)
        for words in ("/a/b\\x1b[2J: one\\x1b]0;x\\x07", "hint: h1", "/c: two\\x0athree"):
            true(words in answer.err, "%r is shown: %r" % (words, answer))
        equal(client.run("system", "--json", status=REFUSED).json, PROBLEM, "the problem with --json")


def names_are_harmless():
    name = "\x1b]0;owned\x07\x1b[2J\n\u202enow"
    rows = [{"id": "mdl_1", "name": name, "architecture": name, "created_at": 1}]
    with Server(json_answer({"object": "list", "data": rows, "has_more": False, "last_id": "mdl_1"})) as server:
        with Client(server.url) as client:
            answer = client.run("models")
            true("\x1b" not in answer.out and "\u202e" not in answer.out, "harmless: %r" % answer)
            equal(len(answer.out.splitlines()), 2, "lines")
            equal(client.run("models", "--json").json["data"], rows, "and unchanged as JSON")


def endless_lists():
    """Pages that never end, and one that is its own successor."""
    page = {"object": "list", "data": [{"id": "job_1"}] * 100, "has_more": True, "last_id": "job_1"}
    with Server(json_answer(page)) as server, Client(server.url) as client:
        equal(len(client.run("jobs", "--all", "--json").json["data"]), 200, "pages of one cursor")
        equal(len(client.run("jobs", "-n", "150", "--json").json["data"]) <= 200, True, "a limit")


# --- keys, certificates, profiles


def keys():
    def answer(handler):
        if handler.headers.get("Authorization") == "Bearer " + KEY:
            return handler.send(200, "application/json", b'{"object": "system", "name": "quantd", "version": "1"}')
        problem = dict(PROBLEM, status=401, code="invalid_api_key", detail="the key is not known", errors=[])
        return handler.send(401, "application/problem+json", json.dumps(problem).encode())

    with Server(answer) as server, Client(server.url) as client:
        answers = [client.run("system", status=REFUSED), client.run("system", env={"QUANTD_API_KEY": KEY}),
                   client.run("system", status=REFUSED, env={"QUANTD_API_KEY": KEY + "x"}),
                   client.run("system", status=USAGE, env={"QUANTD_API_KEY": KEY + " x"}),
                   client.run("system", "--api-key", KEY, status=USAGE),
                   client.run("system", "--api-key=" + KEY, status=USAGE),
                   client.run("login", "--key=" + KEY, status=USAGE),
                   client.run("login", status=USAGE),  # standard input is not a terminal
                   client.run("login", "--key-stdin", status=REFUSED, stdin=b"qd_wrong\n")]
        config = client.path(".config", "quantctl", "config")
        true(not os.path.exists(config), "no profile of a key that is refused")
        answers.append(client.run("login", "--key-stdin", stdin=KEY.encode() + b"\n"))
        equal(os.stat(config).st_mode & 0o7777, 0o600, "mode of the profile")
        del client.env["QUANTD_URL"]
        answers.append(client.run("system"))
        os.chmod(config, 0o640)
        answers.append(client.run("system", status=USAGE))
        for got in answers:
            true(KEY[3:] not in got.out + got.err, "the key is not shown: %r" % got)
        answers = client.run("system", "--server", "http://192.0.2.1", status=USAGE, env={"QUANTD_API_KEY": KEY})
    with Client(None) as client:
        os.makedirs(client.path(".config", "quantctl"))
        with open(client.path(".config", "quantctl", "config"), "w") as file:
            file.write("url = http://127.0.0.1:1\nhost = x\n")
        answer = client.run("system", status=USAGE)
        true("config:2: " in answer.err, "the line is named: %r" % answer)


def asks_for_a_key():
    """The prompt does not show what is typed, and an interrupt leaves the terminal as it was."""
    answer = json_answer({"object": "system", "name": "quantd", "version": "1"})
    with Server(answer) as server, Client(server.url) as client:
        for text, status in ((KEY + "\n", OK), ("\x03", -signal.SIGINT)):
            parent, child = pty.openpty()
            process = subprocess.Popen([QUANTCTL, "login"], env=client.env, stdin=child, stdout=child, stderr=child,
                                       start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
            output = b""
            while b"none): " not in output:
                output += os.read(parent, 1000)
            deadline = time.monotonic() + SECONDS
            while termios.tcgetattr(child)[3] & termios.ECHO:
                true(time.monotonic() < deadline, "the echo is off")
                time.sleep(0.01)
            os.write(parent, text.encode())
            equal(process.wait(SECONDS), status, "exit status")
            true(termios.tcgetattr(child)[3] & termios.ECHO, "the echo is on again")
            os.close(child)
            shown = output.decode() + read_pty(parent, process, 5)
            os.close(parent)
            true(KEY not in shown, "the key is not shown: %r" % shown)
        with open(client.path(".config", "quantctl", "config")) as file:
            true("api_key = %s\n" % KEY in file.read(), "the key is in the profile")
        equal(server.seen[0][1].get("Authorization"), "Bearer " + KEY, "the key was tried")


def a_proxy_gets_no_key():
    """http_proxy of the environment is not for this host."""
    with Server(json_answer({})) as proxy, Server(json_answer({"object": "system", "name": "quantd"})) as server:
        with Client(server.url, QUANTD_API_KEY=KEY, http_proxy=proxy.url, HTTP_PROXY=proxy.url, all_proxy=proxy.url) as client:
            client.run("system")
        equal((len(proxy.seen), len(server.seen)), (0, 1), "requests to the proxy and to the server")


def a_redirect_gets_no_key():
    seen = []
    with Server(lambda handler: seen.append(handler.path) or handler.send(200, "application/json", b"{}")) as other:
        with Server(lambda handler: handler.send(307, "text/html", b"", Location=other.url + "/v1/system")) as server:
            with Client(server.url, QUANTD_API_KEY=KEY) as client:
                client.run("system", status=SERVER)
    equal(seen, [], "requests to the other server")


def certificates():
    if shutil.which("openssl") is None:
        raise Skip("there is no openssl")
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                        "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True,
                       capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with Server(json_answer({"object": "system", "name": "quantd"}), tls) as server, Client(server.url) as client:
            answer = client.run("system", status=UNREACHABLE, env={"QUANTD_API_KEY": KEY})
            true("--ca-file" in answer.err, "the option is named: %r" % answer)
            equal(server.seen, [], "requests before the certificate was trusted")
            client.run("system", "--ca-file", certificate)
            client.run("system", "--insecure")
            client.run("system", env={"QUANTD_CA_FILE": certificate})
            client.run("system", "--ca-file", "missing.pem", status=USAGE)
            name = server.url.replace("127.0.0.1", "localhost")  # not in the certificate
            client.run("system", "--server", name, "--ca-file", certificate, status=UNREACHABLE)


main([wrong_servers, busy_servers, full_servers, problems_are_shown, names_are_harmless, endless_lists, keys, asks_for_a_key,
      a_proxy_gets_no_key, a_redirect_gets_no_key, certificates])
