"""Artifacts out: the archive and the OCI layout with their ranges, digests of files, and the verification of what is stored."""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time

from harness import JOBS, Call, Daemon, equal, main, post, succeed, true

NOWHERE = "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV"
BODY = {"method": "rtn", "quantization": {"bits": 4, "group_size": 64}, "evaluation": {"hold_back": 0}}


def make_artifact(daemon, **more):
    model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
    return succeed(daemon, post(daemon, JOBS, json=dict(BODY, model=model, **more)))["result"]["artifact_id"]


def fetch(daemon, path, status=200, **headers):
    answer = daemon.request("GET", path, headers=headers)
    equal(answer.status, status, "status of GET %s" % path)
    return answer


def check_ranges(daemon, path, data, tag):
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
    ])


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
        check_ranges(daemon, path, data, tag)
        daemon.run([Call("GET", NOWHERE + "/archive", status=404, code="not_found")])


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
        daemon.run([Call("POST", NOWHERE + "/verify", status=404, code="not_found")])


def oci_layout():
    """An OCI image layout of the CNCF ModelPack specification, whose layers are the files."""
    with Daemon() as daemon:
        artifact = make_artifact(daemon, name="Llama \u00e0 4 bits")
        base = "/v1/artifacts/" + artifact
        described = daemon.get(base)
        files = {file["path"]: file for file in described["files"]}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(described["created_at"]))
        answer = fetch(daemon, base + "/oci")
        data = answer.body
        equal(answer.headers["content-type"], "application/x-tar")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            stored = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
            equal(len(stored), len(tar.getmembers()), "no name is there twice")
        equal(json.loads(stored.pop("oci-layout")), {"imageLayoutVersion": "1.0.0"})
        index = json.loads(stored.pop("index.json"))
        blobs = {}
        for name, content in stored.items():
            equal(name, "blobs/sha256/" + hashlib.sha256(content).hexdigest(), "the name of a blob is its digest")
            blobs[name.replace("blobs/sha256/", "sha256:")] = content

        def blob(descriptor, kind):
            equal((descriptor["mediaType"], descriptor["size"]), (kind, len(blobs[descriptor["digest"]])))
            return blobs[descriptor["digest"]]

        entry, = index["manifests"]
        equal((index["schemaVersion"], entry["annotations"]), (2, {"org.opencontainers.image.ref.name": "latest"}))
        text = blob(entry, "application/vnd.oci.image.manifest.v1+json")
        manifest = json.loads(text)
        equal((manifest["schemaVersion"], manifest["mediaType"]), (2, entry["mediaType"]))
        equal((manifest["artifactType"], entry["artifactType"]), ("application/vnd.cncf.model.manifest.v1+json",) * 2)
        kinds = {}
        for layer in manifest["layers"]:
            path = layer["annotations"]["org.cncf.model.filepath"]
            kinds[path] = layer["mediaType"]
            equal(hashlib.sha256(blob(layer, layer["mediaType"])).hexdigest(), files[path]["sha256"], path)
            equal(layer["annotations"]["org.opencontainers.image.title"], path)
            equal(json.loads(layer["annotations"]["org.cncf.model.file.metadata+json"]),
                  {"name": os.path.basename(path), "mode": 0o644, "uid": 0, "gid": 0, "size": files[path]["bytes"], "mtime": created, "typeflag": 0})
        equal(sorted(kinds), sorted(files), "every file is a layer")
        equal((kinds["model.safetensors"], kinds["config.json"]), ("application/vnd.cncf.model.weight.v1.raw",
                                                                   "application/vnd.cncf.model.weight.config.v1.raw"))
        equal(set(blobs), {layer["digest"] for layer in manifest["layers"]} | {entry["digest"], manifest["config"]["digest"]}, "blobs")
        config = json.loads(blob(manifest["config"], "application/vnd.cncf.model.config.v1+json"))
        equal(config["modelfs"], {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]})
        equal(config["descriptor"], {"createdAt": created, "family": "llama", "name": described["name"]})
        equal({key: value for key, value in config["config"].items() if key != "capabilities"},
              {"architecture": "transformer", "format": "safetensors", "paramSize": "4.2M", "precision": "bfloat16", "quantization": "rtn"})
        for name, descriptor in (("manifest", entry), ("config", manifest["config"])):
            document = fetch(daemon, base + "/oci/" + name)
            equal((document.body, document.headers["content-type"]), (blobs[descriptor["digest"]], descriptor["mediaType"]), name)
            equal(fetch(daemon, base + "/oci/" + name, 304, **{"If-None-Match": document.headers["etag"]}).body, b"")
            fetch(daemon, NOWHERE + "/oci/" + name, 404)
        check_ranges(daemon, base + "/oci", data, answer.headers["etag"])
        daemon.run([Call("DELETE", "/v1/models/" + described["model_id"], status=204),
                    Call("GET", NOWHERE + "/oci", status=404, code="not_found"),
                    Call("GET", base + "/oci/index", status=404, code="not_found"),
                    Call("POST", base + "/oci", status=405, code="method_not_allowed")])
        daemon.stop()
        daemon.start()
        equal(fetch(daemon, base + "/oci").body, data, "the same bytes after a restart, and without the model")


main([archive, oci_layout, digests_and_provenance, verification])
