"""Signatures and the package model-signing, from .venv-signing (requirements-signing.txt): each verifies what the other signed."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from daemon import Daemon

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-signing" / "bin" / "python"
QUANTCTL = pathlib.Path(os.environ.get("QUANTD_BUILD_DIR", ROOT / "build-release")).resolve() / "cli" / "quantctl"
CURVES = ["prime256v1", "secp384r1", "secp521r1"]

pytestmark = [pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-signing: tests/interop/venv signing"),
              pytest.mark.skipif(not QUANTCTL.exists(), reason="quantctl was not built: libcurl or libyaml is missing"),
              pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")]


def make_key(folder, curve):
    private, public = folder / f"{curve}.pem", folder / f"{curve}.pub"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", private], check=True)
    private.chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def package(*words):
    done = subprocess.run([PYTHON, "-m", "model_signing", *words], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def quantctl(*words):
    return subprocess.run([QUANTCTL, *words], capture_output=True, text=True, timeout=120)


def package_verifies(model, public):
    return package("verify", "key", model, "--signature", model / "model.sig", "--public_key", public)


@pytest.mark.parametrize("curve", CURVES)
def test_the_package_verifies_what_quantd_signed(tmp_path, curve):
    private, public = make_key(tmp_path, curve)
    other = make_key(tmp_path, CURVES[CURVES.index(curve) - 1])[1]
    with Daemon([ROOT / "tests" / "data"], "--signing-key", str(private)) as daemon:
        model = daemon.register("tiny-llama")
        job = daemon.run({"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 64}})
        pulled = quantctl("-s", "http://%s:%d" % daemon.address, "pull", job["id"], "-o", tmp_path / "pulled", "-k", public)
        assert pulled.returncode == 0, pulled.stderr
        plain = daemon.download(job, tmp_path / "plain")
    for folder in (tmp_path / "pulled", plain):
        status, text = package_verifies(folder, public)
        assert status == 0 and "Verification succeeded" in text, text
    assert package_verifies(plain, other)[0] != 0
    with open(plain / "config.json", "ab") as file:
        file.write(b" ")
    status, text = package_verifies(plain, public)
    assert status != 0 and "Hash mismatch for 'config.json'" in text, text
    folder = tmp_path / "pulled"
    (folder / "more.bin").write_bytes(b"x")
    status, text = package_verifies(folder, public)
    assert status != 0 and "more.bin" in text, text
    (folder / "more.bin").unlink()
    (folder / "config.json").unlink()
    status, text = package_verifies(folder, public)
    assert status != 0 and "Missing files" in text, text


@pytest.mark.parametrize("curve", CURVES)
def test_quantctl_verifies_what_the_package_signed(tmp_path, curve):
    private, public = make_key(tmp_path, curve)
    model = tmp_path / "model"
    (model / "deep" / "deeper").mkdir(parents=True)
    for name in ("config.json", "a.b", "a/b", "deep/deeper/x", "größe.bin", ".git/HEAD", "README.md"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    status, text = package("sign", "key", model, "--private_key", private, "--signature", model / "model.sig", "--ignore-paths", model / "README.md")
    assert status == 0, text
    done = quantctl("verify", model, "-k", public, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 5
    (model / "README.md").write_text("may change")
    assert quantctl("verify", model, "-k", public).returncode == 0
    (model / "a" / "b").write_text("changed")
    done = quantctl("verify", model, "-k", public)
    assert done.returncode == 7 and "a/b is not the file that was signed" in done.stderr, done.stderr
