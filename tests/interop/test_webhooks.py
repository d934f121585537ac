"""Messages to webhooks are checked by the package of Standard Webhooks, in .venv-webhooks."""

import http.server
import json
import pathlib
import subprocess
import threading

import pytest

from daemon import Daemon

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-webhooks" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-webhooks: tests/interop/venv webhooks")

VERIFY = """
import json, sys
from standardwebhooks import Webhook, WebhookVerificationError

given = json.load(sys.stdin)
for secret in given["secrets"]:
    message = Webhook(secret).verify(given["body"], given["headers"])
    assert message["type"] == "webhook.test", message
for body, secret in ((given["body"] + " ", given["secrets"][0]), (given["body"], "whsec_" + "A" * 43 + "=")):
    try:
        Webhook(secret).verify(body, given["headers"])
    except WebhookVerificationError:
        continue
    raise SystemExit("a message that differs was accepted")
print("verified")
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.got = {"headers": {name.lower(): value for name, value in self.headers.items()}, "body": body}
        self.send_response(204)
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, *_):
        pass


def test_the_package_verifies_a_message():
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.arrived = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = "127.0.0.1:%d" % server.server_address[1]
    try:
        with Daemon([], "--webhook-host", host) as daemon:
            made = json.loads(daemon.request("POST", "/v1/webhooks", {"url": f"http://{host}/"}))
            path = "/v1/webhooks/" + made["id"]
            secrets = [made["secret"], json.loads(daemon.request("POST", path + "/secret"))["secret"]]
            daemon.request("POST", path + "/test")
            assert server.arrived.wait(20)
            done = subprocess.run([PYTHON, "-c", VERIFY], input=json.dumps(dict(server.got, secrets=secrets)), capture_output=True,
                                  text=True, timeout=60)
            assert done.stdout == "verified\n", done.stderr
    finally:
        server.shutdown()
        server.server_close()
