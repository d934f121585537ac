"""Artifacts as OCI images, through programs that others wrote: skopeo, a registry (Debian's docker-registry), and the clients of
.venv-oci (requirements-oci.txt), of which one knows ModelPack and one knows files with titles."""

import hashlib
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request

import pytest

from daemon import Daemon

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-oci" / "bin" / "python"
QUANTCTL = pathlib.Path(os.environ["QUANTD_BUILD_DIR"], "cli", "quantctl")

pytestmark = [pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo: deploy/install-deps interop"),
              pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-oci: tests/interop/venv oci"),
              pytest.mark.skipif(not QUANTCTL.exists(), reason="no quantctl: it is built where libcurl and libyaml are")]

MODELPACK = """
import sys
from modelpack_client.client import ModelPackClient
ModelPackClient(insecure=True).pull(sys.argv[1], sys.argv[2])
"""
ORAS = """
import sys
import oras.client
oras.client.OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])
"""


def run(*command, **options):
    result = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def public_key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "signing.pub"
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path.with_suffix(".pem"))
    path.with_suffix(".pem").chmod(0o600)
    run("openssl", "pkey", "-in", path.with_suffix(".pem"), "-pubout", "-out", path)
    return path


@pytest.fixture(scope="module")
def quantd(public_key):
    with Daemon([ROOT / "tests" / "data"], "--signing-key", str(public_key.with_suffix(".pem"))) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def artifact(quantd):
    model = quantd.register("tiny-llama")
    job = quantd.run({"model": model, "method": "rtn", "name": "tiny", "quantization": {"bits": 4, "group_size": 64}})
    return quantd.json("GET", "/v1/artifacts/" + job["result"]["artifact_id"])


@pytest.fixture(scope="module")
def layout(quantd, artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    with tarfile.open(fileobj=io.BytesIO(quantd.request("GET", "/v1/artifacts/%s/oci" % artifact["id"]))) as tar:
        tar.extractall(folder)
    return folder


def registry_program(folder):
    """Where it is installed, or unpacked without the service that its package starts."""
    found = shutil.which("docker-registry")
    if found is None:
        for command in (["apt-get", "download", "-q", "docker-registry"], ["sh", "-c", "dpkg-deb -x docker-registry_*.deb ."]):
            if subprocess.run(command, cwd=folder, capture_output=True, timeout=120).returncode != 0:
                pytest.skip("no docker-registry, and its package cannot be fetched")
        found = folder / "usr" / "bin" / "docker-registry"
    return found


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    program = registry_program(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config.yml").write_text("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\n"
                                       "http: {addr: '127.0.0.1:%d'}\n" % (folder / "data", port))
    process = subprocess.Popen([str(program), "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:%d/v2/" % port, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)
    yield "localhost:%d" % port
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def pushed(quantd, artifact, registry, tmp_path_factory):
    """What quantctl says of the image that it has pushed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home")), "QUANTD_URL": "http://%s:%d" % quantd.address}
    command = (QUANTCTL, "push", artifact["id"], registry + "/models/tiny:w4", "--json")
    first, second = (json.loads(run(*command, env=env)) for _ in range(2))
    assert all(blob["uploaded"] for blob in first["blobs"]) and not any(blob["uploaded"] for blob in second["blobs"])
    assert first["digest"] == second["digest"]
    return first


def check_files(folder, artifact):
    for file in artifact["files"]:
        assert hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]


def test_skopeo_reads_the_layout(layout, artifact, tmp_path):
    manifest = run("skopeo", "inspect", "--raw", "oci:%s:latest" % layout)
    index = json.loads((layout / "index.json").read_text())
    assert "sha256:" + hashlib.sha256(manifest.encode()).hexdigest() == index["manifests"][0]["digest"]
    run("skopeo", "copy", "--policy", policy(tmp_path), "oci:%s:latest" % layout, "dir:%s" % (tmp_path / "out"))
    assert {file["sha256"] for file in artifact["files"]} <= set(os.listdir(tmp_path / "out"))


def policy(folder):
    path = folder / "policy.json"
    path.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return path


def test_skopeo_copies_to_a_registry(layout, registry, tmp_path):
    run("skopeo", "copy", "--policy", policy(tmp_path), "--dest-tls-verify=false", "oci:%s:latest" % layout, "docker://%s/copied/tiny:w4" % registry)
    there = run("skopeo", "inspect", "--raw", "--tls-verify=false", "docker://%s/copied/tiny:w4" % registry)
    assert there == run("skopeo", "inspect", "--raw", "oci:%s:latest" % layout)


def test_pushed_image_is_the_layout(layout, registry, pushed, tmp_path):
    there = run("skopeo", "inspect", "--raw", "--tls-verify=false", "docker://%s/models/tiny:w4" % registry)
    assert "sha256:" + hashlib.sha256(there.encode()).hexdigest() == pushed["digest"]
    run("skopeo", "copy", "--policy", policy(tmp_path), "--src-tls-verify=false", "docker://" + pushed["reference"], "oci:%s:w4" % (tmp_path / "back"))
    for blob in (layout / "blobs" / "sha256").iterdir():
        assert (tmp_path / "back" / "blobs" / "sha256" / blob.name).read_bytes() == blob.read_bytes(), blob.name


@pytest.mark.parametrize("client", [MODELPACK, ORAS], ids=["modelpack-client", "oras"])
def test_clients_pull_the_files(client, registry, pushed, artifact, public_key, tmp_path):
    """And the signature among them, which holds on the other side of the registry."""
    run(PYTHON, "-c", client, registry + "/models/tiny:w4", tmp_path)
    check_files(tmp_path, artifact)
    run(QUANTCTL, "verify", tmp_path, "--public-key", public_key)


def test_configuration_has_the_schema(layout):
    manifest = json.loads(run("skopeo", "inspect", "--raw", "oci:%s:latest" % layout))
    config = layout / "blobs" / "sha256" / manifest["config"]["digest"].replace("sha256:", "")
    run(PYTHON, "-c", "import json, sys, jsonschema, modelpack_client.schema as m\n"
                      "jsonschema.Draft202012Validator(m.CONFIG_SCHEMA).validate(json.load(open(sys.argv[1])))", config)
