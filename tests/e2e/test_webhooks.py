"""Webhooks: what receivers get, what happens when they do not take it, and where messages must not go."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading

from guarded import Guarded
from harness import JOBS, Call, Daemon, Failure, equal, gptq_body, ids_records, main, new_job, post, succeed, true, wait_job, wait_until

RECORDS = ids_records(30, 160, 2048)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Receiver:
    """An HTTP server that keeps what it gets. answer(number, message): a status, or (status, headers, body)."""

    def __init__(self, answer=lambda number, message: 204, address="127.0.0.1", tls=None):
        self.messages, self.lock = [], threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                message = {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body,
                           "json": json.loads(body)}
                with receiver.lock:
                    receiver.messages.append(message)
                    number = len(receiver.messages)
                given = answer(number, message)
                status, headers, text = given if isinstance(given, tuple) else (given, {}, b"")
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

            def handle_error(self, *_):
                pass

        self.server = Server((address, 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def entry(self):
        return "127.0.0.1:%d" % self.port

    @property
    def url(self):
        return "http://127.0.0.1:%d/hook" % self.port

    def wait(self, count=1, seconds=20):
        wait_until(lambda: len(self.messages) >= count, "%d messages arrive (%d did)" % (count, len(self.messages)), seconds)
        return self.messages


def signature(secret, message):
    headers = message["headers"]
    text = b"%s.%s." % (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode()) + message["body"]
    mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), text, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mac).decode()


def make(daemon, url, **more):
    answer = daemon.request("POST", "/v1/webhooks", json=dict({"url": url}, **more))
    equal(answer.status, 201, "status of POST /v1/webhooks (%r)" % answer)
    return answer.json


def cancelled_job(daemon, **more):
    """The quickest job that webhooks are told of."""
    job = post(daemon, JOBS, json=gptq_body(post(daemon, "/v1/models", json={"uri": "file:tiny-llama"}), **more))
    equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202)
    return job


def deliveries(daemon, webhook, query=""):
    return daemon.get("/v1/webhooks/%s/deliveries%s" % (webhook["id"], query))["data"]


def wait_delivery(daemon, webhook, seconds=20, **members):
    """The first delivery with these members."""
    def found():
        return next((d for d in deliveries(daemon, webhook) if all(d[k] == v for k, v in members.items())), None)
    try:
        return wait_until(found, "", seconds)
    except Failure:
        raise Failure("no delivery %r: %r" % (members, deliveries(daemon, webhook))) from None


def metric(daemon, outcome):
    text = daemon.request("GET", "/metrics").body.decode()
    return int(text.split('quantd_webhook_deliveries_total{outcome="%s"} ' % outcome)[1].split("\n")[0])


def a_job_is_told():
    with Receiver() as receiver, Daemon("--webhook-host", receiver.entry) as daemon:
        webhook = make(daemon, receiver.url, name="ci")
        secret = webhook.pop("secret")
        equal(daemon.get("/v1/webhooks/" + webhook["id"]), webhook, "the webhook without its secret")
        ask = daemon.request
        daemon.request = lambda method, path, headers=None, **more: ask(
            method, path, headers=dict(headers or {}, traceparent=TRACE, tracestate="vendor=1"), **more)
        state = succeed(daemon, new_job(daemon, RECORDS))
        message = receiver.wait()[0]
        headers = message["headers"]
        equal((message["path"], headers["content-type"], headers["user-agent"].split("/")[0]), ("/hook", "application/json", "quantd"))
        equal(headers["webhook-signature"], signature(secret, message), "signature")
        equal((headers["traceparent"], headers["tracestate"]), (TRACE, "vendor=1"), "the job's trace")
        equal(message["json"]["type"], "quantization.job.succeeded")
        true(message["json"]["timestamp"].endswith("Z"), "timestamp of RFC 3339: %r" % message["json"]["timestamp"])
        equal(message["json"]["data"], {"job": state}, "the job")
        faults = daemon.contract.errors({"$ref": "#/components/schemas/WebhookMessage"}, message["json"]) if daemon.contract else []
        equal(faults, [], "faults of the message by the description of the API")
        done = wait_delivery(daemon, webhook, status="delivered")
        equal((done["id"], done["job_id"], done["attempts"], done["response_status"], done["error"], done["next_attempt_at"]),
              (headers["webhook-id"], state["id"], 1, 204, None, None))
        equal(daemon.get("/v1/webhooks/%s/deliveries/%s" % (webhook["id"], done["id"])), done)
        wait_until(lambda: metric(daemon, "delivered") == 1, "the delivery is counted")
        true(secret not in daemon.log_tail(1 << 20) and "/hook" not in daemon.log_tail(1 << 20), "neither secret nor URL is logged")
        document = daemon.get("/openapi.json")
        equal(sorted(document["webhooks"]), sorted("quantization.job." + s for s in ("succeeded", "failed", "cancelled", "paused", "expired")))


def who_is_told_of_what():
    with Receiver() as receiver, Daemon("--webhook-host", receiver.entry) as daemon:
        url = receiver.url + "?"
        everything = make(daemon, url + "everything")
        cancelled = make(daemon, url + "cancelled", events=["quantization.job.cancelled"])
        make(daemon, url + "failed", events=["quantization.job.failed"])
        named = make(daemon, url + "named", jobs="named")
        silent = make(daemon, url + "silent", disabled=True)
        equal((silent["disabled"], silent["disabled_reason"]), (True, "by request"))
        first = cancelled_job(daemon)
        second = cancelled_job(daemon, webhook_id=named["id"])
        equal(daemon.get("%s/%s" % (JOBS, second))["webhook_id"], named["id"])
        equal(daemon.get("%s/%s" % (JOBS, first))["webhook_id"], None)
        told = lambda: sorted((m["path"].split("?")[1], m["json"]["data"]["job"]["id"]) for m in receiver.messages)
        wanted = sorted([("everything", first), ("everything", second), ("cancelled", first), ("cancelled", second), ("named", second)])
        wait_until(lambda: len(told()) >= len(wanted), "messages arrive")
        held = post(daemon, JOBS, json=gptq_body(post(daemon, "/v1/models", json={"uri": "file:tiny-llama"}),
                                                 calibration={"stream": True}, expires_after_seconds=1))
        wait_job(daemon, held, until=("expired",))
        wanted = sorted(wanted + [("everything", held)])
        wait_until(lambda: len(told()) >= len(wanted), "the expiry is told")
        equal(told(), wanted, "who is told of what")
        equal({m["json"]["type"] for m in receiver.messages}, {"quantization.job.cancelled", "quantization.job.expired"})
        equal(len({m["headers"]["webhook-id"] for m in receiver.messages}), len(wanted), "distinct ids")
        equal([d["job_id"] for d in deliveries(daemon, everything, "?order=asc&job_id=" + first)], [first])
        daemon.run([
            Call("PATCH", "/v1/webhooks/" + everything["id"], json={"disabled": True, "name": "old"},
                 check=lambda a, s: equal((a.json["disabled"], a.json["name"], a.json["url"]), (True, "old", everything["url"]))),
            Call("PATCH", "/v1/webhooks/" + cancelled["id"], json={"events": None, "jobs": "named"},
                 check=lambda a, s: equal((a.json["events"], a.json["jobs"]), (None, "named"))),
            Call("DELETE", "/v1/webhooks/" + named["id"], status=204),
            Call("GET", "/v1/webhooks/%s/deliveries" % named["id"], status=404, code="not_found"),
            Call("POST", JOBS, json=gptq_body("mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV", webhook_id=named["id"]), status=400,
                 code="invalid_parameter", param="/webhook_id"),
        ])
        third = cancelled_job(daemon)
        test = daemon.request("POST", "/v1/webhooks/%s/test" % everything["id"])
        equal(test.status, 202, repr(test))
        wait_delivery(daemon, everything, id=test.json["id"], status="delivered")
        equal(receiver.messages[-1]["json"]["data"], {"webhook_id": everything["id"]}, "the test")
        equal([m for m in receiver.messages if m["json"]["data"].get("job", {}).get("id") == third], [], "nobody is told any more")
        equal(daemon.request("DELETE", "%s/%s" % (JOBS, first)).status, 204)
        equal(deliveries(daemon, everything, "?job_id=" + first), [], "deliveries go with their job")


def secrets_are_replaced():
    with Receiver() as receiver, Daemon("--webhook-host", receiver.entry) as daemon:
        webhook = make(daemon, receiver.url)
        old, path = webhook["secret"], "/v1/webhooks/" + webhook["id"]
        new = daemon.request("POST", path + "/secret").json["secret"]
        true(new != old and new.startswith("whsec_") and len(base64.b64decode(new[6:])) == 32, "a secret of 32 bytes: %r" % new)
        equal(daemon.request("POST", path + "/test").status, 202)
        message = receiver.wait()[0]
        equal(message["headers"]["webhook-signature"], "%s %s" % (signature(new, message), signature(old, message)), "both sign")
        true("secret" not in daemon.get(path), "it is shown once")


def failures_are_retried():
    """After 500, over a restart and after kill -9: the same message under the same id."""
    status = [500]
    with Receiver(lambda number, message: status[0]) as receiver, Daemon("--webhook-host", receiver.entry) as daemon:
        webhook = make(daemon, receiver.url)
        job = cancelled_job(daemon)
        waits = wait_delivery(daemon, webhook, status="pending", attempts=1)
        equal((waits["response_status"], waits["error"]), (500, "the receiver answered 500"))
        true(waits["next_attempt_at"] >= waits["last_attempt_at"] + 1, "the next attempt is later: %r" % waits)
        daemon.kill()
        daemon.start()
        receiver.wait(2)
        equal(daemon.stop(), 0)
        count = len(receiver.messages)
        daemon.start()
        receiver.wait(count + 1, 60)
        status[0] = 200
        done = wait_delivery(daemon, webhook, 60, status="delivered")
        true(done["attempts"] >= 3, "attempts: %r" % done)
        equal({m["headers"]["webhook-id"] for m in receiver.messages}, {done["id"]}, "one id")
        equal(len({m["body"] for m in receiver.messages}), 1, "the same bytes each time")
        for message in receiver.messages:
            equal(message["headers"]["webhook-signature"], signature(webhook["secret"], message), "each attempt is signed")
        equal(receiver.messages[0]["json"]["data"]["job"]["id"], job)


def nothing_is_lost_by_a_kill():
    """The daemon dies between the job's move and the delivery."""
    free = threading.Event()
    with Receiver(lambda number, message: free.wait(60) and 200) as receiver, Daemon("--webhook-host", receiver.entry) as daemon:
        webhook = make(daemon, receiver.url)
        jobs = [cancelled_job(daemon) for _ in range(4)]
        receiver.wait(1)
        daemon.kill()
        free.set()
        daemon.start()
        for job in jobs:
            wait_delivery(daemon, webhook, job_id=job, status="delivered")
        equal({m["json"]["data"]["job"]["id"] for m in receiver.messages}, set(jobs))


def a_receiver_that_is_gone():
    with Receiver(lambda number, message: 410) as receiver, Daemon("--webhook-host", receiver.entry) as daemon:
        webhook = make(daemon, receiver.url)
        cancelled_job(daemon)
        wait_delivery(daemon, webhook, status="failed", response_status=410)
        shown = daemon.get("/v1/webhooks/" + webhook["id"])
        equal((shown["disabled"], shown["disabled_reason"]), (True, "the receiver answered 410"))
        cancelled_job(daemon)
        equal(len(deliveries(daemon, webhook)), 1, "deliveries")
        equal(metric(daemon, "failed"), 1, "failures that are counted")
        equal(daemon.request("PATCH", "/v1/webhooks/" + webhook["id"], json={"disabled": False}).json["disabled_reason"], None)


def answers_that_are_not_followed_or_read():
    """A redirect is a failure, and of a long answer no more than 64 KiB are read."""
    with Receiver() as target:
        sent = []

        def answer(number, message):
            if "long" in message["path"]:
                return 200, {}, b"x" * (64 << 20)
            return 302, {"Location": target.url}, b""

        with Receiver(answer) as receiver, Daemon("--webhook-host", receiver.entry, "--webhook-host", target.entry) as daemon:
            webhook = make(daemon, receiver.url + "/redirect", jobs="named")
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).status, 202)
            failed = wait_delivery(daemon, webhook, status="failed")
            equal((failed["attempts"], failed["response_status"], failed["error"]),
                  (1, 302, "the receiver answered 302; redirects are not followed"))
            equal(target.messages, [], "messages at the target of the redirect")
            before = daemon.memory("VmHWM")
            webhook = make(daemon, receiver.url + "/long", jobs="named")
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).status, 202)
            wait_delivery(daemon, webhook, status="delivered", response_status=200)
            true(daemon.memory("VmHWM") - before < 32 << 20, "memory")


def silence_holds_nobody_up():
    """Receivers that do not answer end after five seconds; one that does gets its messages meanwhile."""
    free = threading.Event()
    with Receiver(lambda number, message: free.wait(60) and 200) as silent, Receiver() as quick, \
            Daemon("--webhook-host", silent.entry, "--webhook-host", quick.entry) as daemon:
        waiting = [make(daemon, silent.url, name=str(n)) for n in range(3)]
        prompt = make(daemon, quick.url)
        jobs = [cancelled_job(daemon) for _ in range(3)]
        quick.wait(3, 4)
        for job in jobs:
            wait_delivery(daemon, prompt, job_id=job, status="delivered")
        equal([d["status"] for d in deliveries(daemon, waiting[0]) if d["status"] == "delivered"], [], "silent ones")
        late = wait_delivery(daemon, waiting[0], attempts=1)
        equal((late["response_status"], late["error"]), (None, "there was no answer within 5 seconds"))
        free.set()


def silence_of_many_holds_no_project_up():
    """Sixty receivers of one project do not answer: messages of another one arrive at once, and those of the same one soon."""
    free = threading.Event()
    body = {"model": {"uri": "file:tiny-llama"}, "method": "gptq", "calibration": {"stream": True}}
    with Receiver(lambda number, message: free.wait(120) and 200) as silent, Receiver() as quick, \
            Guarded("--webhook-host", silent.entry, "--webhook-host", quick.entry) as daemon:
        def told(key):
            answer = daemon.ask(key, "POST", JOBS, json=body)
            equal(answer.status, 201, repr(answer))
            count = len(quick.messages)
            equal(daemon.ask(key, "POST", "%s/%s/cancel" % (JOBS, answer.json["id"])).status, 202)
            return count
        own, other = daemon.keys["write"], daemon.other
        for number in range(60):
            equal(daemon.ask(own, "POST", "/v1/webhooks", json={"url": silent.url}).status, 201)
        equal(daemon.ask(other, "POST", "/v1/webhooks", json={"url": quick.url}).status, 201)
        for _ in range(3):
            told(own)
        for _ in range(3):
            quick.wait(told(other) + 1, 4)
        wait_until(lambda: len(silent.messages) >= 60, "each receiver had one message", 90)
        equal(daemon.ask(own, "POST", "/v1/webhooks", json={"url": quick.url}).status, 201)
        quick.wait(told(own) + 1, 12)
        free.set()


def hosts_that_are_not_allowed():
    with Daemon() as daemon:
        daemon.run([
            Call("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/x"}, status=422,
                 code="webhook_host_not_allowed", param="/url",
                 check=lambda a, s: true("--webhook-host" in a.json["detail"], "it says how: %r" % a)),
            Call("GET", "/v1/webhooks", check=lambda a, s: equal(a.json["data"], [])),
        ])
    refused = lambda url, status=422, **more: Call("POST", "/v1/webhooks", json=dict({"url": url}, **more), status=status,
                                                   code="webhook_host_not_allowed" if status == 422 else "invalid_parameter")
    with Daemon("--webhook-host", "hooks.example.com", "--webhook-host", "*.example.org:8443", "--webhook-host", "[::1]:9000") as daemon:
        daemon.run([Call("POST", "/v1/webhooks", json={"url": url}, status=201)
                    for url in ("https://hooks.example.com/x", "https://HOOKS.Example.com.:443", "https://a.b.example.org:8443/?a=b",
                                "http://[::1]:9000/x", "http://[0:0::1]:9000/x")])
        daemon.run([refused(url) for url in (
            "https://example.com/", "https://hooks.example.com:8443/", "https://example.org:8443/", "https://evilexample.org:8443/",
            "https://hooks.example.com.evil.com/", "https://127.0.0.1/", "http://127.1:9000/", "http://[::ffff:127.0.0.1]:9000/",
            "https://hooks.example.com\u3002evil.com/", "http://[::2]:9000/", "https://0x7f.1/", "https://2130706433/")
            if "\u3002" not in url])
        daemon.run([refused(url, 400) for url in (
            "http://hooks.example.com/", "http://hooks.example.com:443/", "ftp://hooks.example.com/", "file:///etc/passwd",
            "gopher://hooks.example.com/", "hooks.example.com", "", "https://", "https:///", "https://user@hooks.example.com/",
            "https://user:pw@hooks.example.com/", "https://hooks.example.com:0/", "https://hooks.example.com:99999/",
            "https://hooks.example.com/#fragment", "https://hooks.example.com/a b", "https://hooks.example.com/\n",
            "https://h\u00f6oks.example.com/", "https://hooks.example.com%00.evil.com/", "javascript:alert(1)",
            "http://[fe80::1%25eth0]:9000/", "https://hooks.example.com/" + "a" * 2048) if url != "http://hooks.example.com:443/"])
        daemon.run([
            Call("POST", "/v1/webhooks", json={}, status=400, code="missing_parameter", param="/url"),
            Call("POST", "/v1/webhooks", json={"url": 1}, status=400, param="/url"),
            Call("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/", "events": []}, status=400, param="/events"),
            Call("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/", "events": ["quantization.job.done"]}, status=400,
                 param="/events/0"),
            Call("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/", "jobs": "some"}, status=400, param="/jobs"),
            Call("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/", "secret": "mine"}, status=400, param="/secret",
                 code="unknown_parameter"),
        ])
        webhook = daemon.get("/v1/webhooks")["data"][0]
        daemon.run([
            Call("PATCH", "/v1/webhooks/" + webhook["id"], json={"url": "https://evil.com/"}, status=422,
                 code="webhook_host_not_allowed", param="/url"),
            Call("PATCH", "/v1/webhooks/" + webhook["id"], json={"url": None}, status=400, param="/url"),
            Call("GET", "/v1/webhooks/" + webhook["id"], check=lambda a, s: equal(a.json["url"], webhook["url"])),
        ])
    for entry in ("*", "http://example.com", "169.254.169.254"):  # the others: tests/unit/webhooks
        daemon = Daemon("--webhook-host", entry, start=False)
        done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=60)
        equal((done.returncode, "webhook-host" in done.stderr), (2, True), "--webhook-host %r: %s" % (entry, done.stderr))


def names_of_private_addresses():
    """localhost resolves to loopback: refused when the connection would be made, unless the operator allows it."""
    context, files = certificate()
    with files as folder, Receiver(tls=context) as receiver:
        ca, url = os.path.join(folder, "cert.pem"), "https://localhost:%d/hook" % receiver.port
        host = ("--webhook-host", "localhost:%d" % receiver.port, "--webhook-ca-file", ca)
        with Daemon(*host) as daemon:
            webhook = make(daemon, url)
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).status, 202)
            failed = wait_delivery(daemon, webhook, status="failed")
            true("private address" in failed["error"] and failed["response_status"] is None, "it says why: %r" % failed)
            equal(receiver.messages, [], "messages that arrived")
            daemon.stop()
            daemon.options.append("--webhook-allow-private")
            daemon.start()
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).status, 202)
            wait_delivery(daemon, webhook, status="delivered")
            equal(receiver.messages[0]["headers"]["webhook-signature"], signature(webhook["secret"], receiver.messages[0]), "over TLS")
            daemon.stop()
            del daemon.options[2:4]
            daemon.start()
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).status, 202)
            wait_delivery(daemon, webhook, status="failed", error="the host's certificate is not trusted")
            daemon.stop()
            del daemon.options[:]
            daemon.start()
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).json["code"], "webhook_host_not_allowed")


def certificate():
    """A server's TLS context with a certificate of its own for localhost, and the folder that has it."""
    files = tempfile.TemporaryDirectory(prefix="quantd-e2e-")
    cert, key = (os.path.join(files.name, name) for name in ("cert.pem", "key.pem"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, files


def proxies_are_not_asked():
    with Receiver() as proxy, Receiver() as receiver:
        environment = {name: proxy.url for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY")}
        with Daemon("--webhook-host", receiver.entry, env=environment) as daemon:
            webhook = make(daemon, receiver.url)
            equal(daemon.request("POST", "/v1/webhooks/%s/test" % webhook["id"]).status, 202)
            wait_delivery(daemon, webhook, status="delivered")
            equal(proxy.messages, [], "messages at the proxy")


main([a_job_is_told, who_is_told_of_what, secrets_are_replaced, failures_are_retried, nothing_is_lost_by_a_kill, a_receiver_that_is_gone,
      answers_that_are_not_followed_or_read, silence_holds_nobody_up, silence_of_many_holds_no_project_up, hosts_that_are_not_allowed, names_of_private_addresses,
      proxies_are_not_asked])
