"""Artifacts out: the archive with its ranges, digests of files, and the verification of what is stored."""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile

from harness import JOBS, Call, Daemon, equal, main, post, succeed, true

BODY = {"method": "rtn", "quantization": {"bits": 4, "group_size": 64}, "evaluation": {"hold_back": 0}}


def make_artifact(daemon):
    model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
    return succeed(daemon, post(daemon, JOBS, json=dict(BODY, model=model)))["result"]["artifact_id"]


def fetch(daemon, path, status=200, **headers):
    answer = daemon.request("GET", path, headers=headers)
    equal(answer.status, status, "status of GET %s" % path)
    return answer


def archive():
    with Daemon() as daemon:
        first, second = make_artifact(daemon), make_artifact(daemon)
        path = "/v1/artifacts/%s/archive" % first
        manifest = daemon.get("/v1/artifacts/" + first)
        answer = fetch(daemon, path)
        data, tag = answer.body, answer.headers["etag"]
        equal(answer.headers["content-type"], "application/x-tar")
        equal(int(answer.headers["content-length"]), len(data))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = tar.getmembers()
            equal([member.name for member in members], sorted(file["path"] for file in manifest["files"]), "names")
            for member, file in zip(members, manifest["files"]):
                equal(hashlib.sha256(tar.extractfile(member).read()).hexdigest(), file["sha256"], member.name)
                equal((member.mtime, member.uid, member.gid, member.mode, member.uname), (0, 0, 0, 0o644, ""), member.name)
        other = fetch(daemon, "/v1/artifacts/%s/archive" % second)
        equal((other.body, other.headers["etag"]), (data, tag), "the same job's archive")
        with tempfile.TemporaryDirectory() as folder:  # as the host's tar reads it
            subprocess.run(["tar", "-x", "-C", folder], input=data, check=True)
            for file in manifest["files"]:
                with open(os.path.join(folder, file["path"]), "rb") as stream:
                    equal(hashlib.sha256(stream.read()).hexdigest(), file["sha256"], file["path"])
        size = len(data)
        for start, end in ((0, 0), (1, 600), (511, 512), (0, size - 1), (size // 3, size // 2), (size - 1024, size - 1), (size - 1, size)):
            part = fetch(daemon, path, 206, Range="bytes=%d-%d" % (start, end))
            equal(part.body, data[start:end + 1], "bytes %d-%d" % (start, end))
            equal(part.headers["content-range"], "bytes %d-%d/%d" % (start, min(end, size - 1), size))
        equal(fetch(daemon, path, 206, Range="bytes=-1024").body, bytes(1024), "the end")
        equal(fetch(daemon, path, 206, Range="bytes=0-9", **{"If-Range": tag}).body, data[:10], "If-Range")
        equal(fetch(daemon, path, 200, Range="bytes=0-9", **{"If-Range": '"other"'}).body, data, "If-Range of another tag")
        daemon.run([
            Call("HEAD", path, check=lambda answer, saved: equal(answer.headers["content-length"], str(size))),
            Call("GET", path, headers={"If-None-Match": tag}, status=304),
            Call("GET", path, headers={"If-Match": '"other"'}, status=412, code="precondition_failed"),
            Call("GET", path, headers={"Range": "bytes=%d-" % size}, status=416, code="range_not_satisfiable"),
            Call("GET", "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV/archive", status=404, code="not_found"),
        ])


def digests_and_provenance():
    with Daemon() as daemon:
        artifact = make_artifact(daemon)
        described = daemon.get("/v1/artifacts/" + artifact)
        for file in described["files"]:
            answer = fetch(daemon, "/v1/artifacts/%s/files/%s" % (artifact, file["path"]))
            digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
            equal(answer.headers["repr-digest"], "sha-256=:%s:" % digest, file["path"])
        manifest = json.loads(fetch(daemon, "/v1/artifacts/%s/files/quantd_manifest.json" % artifact).body)
        model = daemon.get("/v1/models/" + described["model_id"])
        equal(manifest["source"]["digest"], model["digest"], "digest of the source")
        equal(manifest["quantd_version"], daemon.get("/v1/system")["version"], "version")
        equal((manifest["parameters"]["bits"], manifest["parameters"]["group_size"]), (4, 64), "parameters")
        for member in ("calibration_digest", "seed", "device", "device_name", "libraries"):
            true(member in manifest["provenance"], "provenance has %s" % member)


def verification():
    with Daemon() as daemon:
        artifact = make_artifact(daemon)
        path = "/v1/artifacts/%s/verify" % artifact
        files = daemon.get("/v1/artifacts/" + artifact)["files"]
        answer = daemon.request("POST", path).json
        equal((answer["intact"], answer["bytes"]), (True, sum(file["bytes"] for file in files)))
        equal([file["state"] for file in answer["files"]], ["intact"] * len(files))

        def blob(file):
            return os.path.join(daemon.data, "blobs", "sha256", file["sha256"][:2], file["sha256"])

        weights = next(file for file in files if file["path"].endswith(".safetensors"))
        config = next(file for file in files if file["path"] == "config.json")
        os.chmod(blob(weights), 0o644)
        with open(blob(weights), "r+b") as stream:
            stream.seek(weights["bytes"] // 2)
            byte = stream.read(1)
            stream.seek(weights["bytes"] // 2)
            stream.write(bytes([byte[0] ^ 1]))
        os.unlink(blob(config))
        answer = daemon.request("POST", path).json
        states = {file["path"]: file["state"] for file in answer["files"]}
        equal(answer["intact"], False, "intact")
        equal((states.pop(weights["path"]), states.pop("config.json")), ("changed", "missing"))
        equal(set(states.values()), {"intact"}, "the other files")
        changed = next(file for file in answer["files"] if file["state"] == "changed")
        true(changed["actual_sha256"] != weights["sha256"], "the digest that was found")
        daemon.run([Call("POST", "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV/verify", status=404, code="not_found")])


main([archive, digests_and_provenance, verification])
