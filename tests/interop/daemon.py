"""Runs a quantd of its own and speaks to it over REST, with the standard library alone."""

import http.client
import json
import os
import pathlib
import re
import subprocess
import tempfile
import urllib.parse

ENDED = ("succeeded", "failed", "cancelled", "expired")


os.environ.setdefault("QUANTD_CPU_PRODUCTS", "float32")  # the same bytes on every machine


class Failure(Exception):
    """An answer that is not a 2xx, or a job that did not succeed."""


class Daemon:
    """A daemon on a free port with a data directory that dies with it. Use as a context manager. With scope it wants keys, and key is one
    of that scope, which request() sends."""

    def __init__(self, roots, *options, scope=None):
        self.roots, self.options, self.scope, self.key = roots, options, scope, None
        self.binary = pathlib.Path(os.environ["QUANTD_BUILD_DIR"], "daemon", "quantd")

    def __enter__(self):
        self.data = tempfile.TemporaryDirectory(prefix="quantd-")
        self.log = open(pathlib.Path(self.data.name, "log"), "w+b")
        folder = str(pathlib.Path(self.data.name, "data"))
        command = [str(self.binary), "--data-dir", folder, "--listen", "127.0.0.1:0", *self.options]
        if self.scope:
            os.mkdir(folder)
            made = subprocess.run([str(self.binary), "key", "create", "--data-dir", folder, "--scope", self.scope], check=True,
                                  stdout=subprocess.PIPE, text=True)
            self.key = made.stdout.strip()
            command += ["--auth", "keys"]
        for root in self.roots:
            command += ["--model-root", str(root)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        found = re.match(r"listening on http://([^:]+):(\d+)$", line.strip())
        if found is None:
            self.process.kill()
            raise Failure(f"the daemon said {line!r} and not where it listens:\n{self.tail()}")
        self.address = found.group(1), int(found.group(2))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
        self.data.cleanup()

    def tail(self):
        self.log.seek(0)
        return self.log.read()[-4000:].decode(errors="replace")

    def authorization(self):
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def request(self, method, path, body=None, content_type="application/json", headers=()):
        """Returns the raw bytes of a 2xx answer."""
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        connection = http.client.HTTPConnection(*self.address, timeout=600)
        try:
            connection.request(method, path, body, {**({"Content-Type": content_type} if body is not None else {}), **self.authorization(),
                                                    **dict(headers)})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status // 100 != 2:
            raise Failure(f"{method} {path}: {answer.status} {data[:2000].decode(errors='replace')}")
        return data

    def json(self, *arguments, **options):
        return json.loads(self.request(*arguments, **options))

    def register(self, uri, name=""):
        return self.json("POST", "/v1/models", {"uri": f"file:{uri}", "name": name or str(uri)})["id"]

    def upload(self, path, purpose):
        return self.json("POST", f"/v1/files?purpose={purpose}", pathlib.Path(path).read_bytes(), "application/x-ndjson")["id"]

    def run(self, body, calibration=None):
        """Creates a job, streams calibration bytes if it wants them, waits for its end; returns the job."""
        job = self.json("POST", "/v1/quantization/jobs", body)
        if calibration is not None:
            self.json("POST", f"/v1/quantization/jobs/{job['id']}/calibration?offset=0&complete=1", calibration, "application/x-ndjson")
        while job["status"] not in ENDED:
            job = self.json("GET", f"/v1/quantization/jobs/{job['id']}", headers={"Prefer": "wait=30"})
        if job["status"] != "succeeded":
            raise Failure(f"job {job['status']}: {json.dumps(job['error'])}\n{self.tail()}")
        return job

    def report(self, job):
        return self.json("GET", f"/v1/quantization/jobs/{job['id']}/report")

    def download(self, job, folder):
        """Fetches every file of a job's artifact into a folder; returns the folder."""
        artifact = job["result"]["artifact_id"]
        for file in self.json("GET", f"/v1/artifacts/{artifact}")["files"]:
            target = pathlib.Path(folder, file["path"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.request("GET", f"/v1/artifacts/{artifact}/files/{urllib.parse.quote(file['path'])}"))
            assert target.stat().st_size == file["bytes"]
        return pathlib.Path(folder)
