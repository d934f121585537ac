"""Signatures of artifacts: made by the daemon, verified by it and by quantctl, and refused where anything was changed."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile

from harness import BINARY, DATA, JOBS, NDJSON, Call, Daemon, equal, ids_records, main, post, signing_key, succeed, true, wait_job
from quantctl import Client, LOCAL, MISMATCH, REFUSED, USAGE, Server, url_of

BODY = {"method": "rtn", "quantization": {"bits": 4, "group_size": 64}, "evaluation": {"hold_back": 0}}
FIXTURE = os.path.join(DATA, "model-signing")
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def openssl(*words, stdin=None):
    return subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True).stdout


class Keys:
    """A folder of keys: NAME.pem and NAME.pub."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="quantd-keys-")
        return self

    def __exit__(self, *error):
        shutil.rmtree(self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def make(self, name, curve="prime256v1"):
        """The private key's file."""
        signing_key(self.path(name + ".pem"), curve)
        openssl("pkey", "-in", self.path(name + ".pem"), "-pubout", "-out", self.path(name + ".pub"))
        return self.path(name + ".pem")

    def public(self, name):
        with open(self.path(name + ".pub")) as file:
            return file.read()


def make_artifact(daemon, **output):
    model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
    job = post(daemon, JOBS, json=dict(BODY, model=model, output=output))
    return daemon.get("/v1/artifacts/" + succeed(daemon, job)["result"]["artifact_id"])


def digests(artifact):
    return {file["path"]: file["sha256"] for file in artifact["files"] if file["path"] != "model.sig"}


def statement_of(bundle):
    return json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))


def verification(daemon, artifact):
    return daemon.request("POST", "/v1/artifacts/%s/verify" % artifact["id"]).json


def files_below(folder):
    return sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)


def a_signed_artifact():
    with Keys() as keys, Daemon("--signing-key", keys.make("a")) as daemon:
        hint = hashlib.sha256(keys.public("a").encode()).hexdigest()
        equal(daemon.get("/v1/system")["signing_key"],
              {"algorithm": "ecdsa-p256-sha256", "hint": hint, "public_key": keys.public("a")}, "the key in /v1/system")
        artifact = make_artifact(daemon)
        signature = artifact["signature"]
        equal((signature["path"], signature["key_hint"]), ("model.sig", hint), "the signature in the artifact")
        path = "/v1/artifacts/%s" % artifact["id"]
        answer = daemon.request("GET", path + "/signature")
        equal((answer.status, answer.headers["content-type"]), (200, BUNDLE))
        equal(answer.headers["repr-digest"], "sha-256=:%s:" % base64.b64encode(hashlib.sha256(answer.body).digest()).decode())
        caching = {part: daemon.request("GET", path + part).headers["cache-control"]
                   for part in ("/signature", "/files/model.sig", "/archive", "/oci", "/files/config.json")}
        equal(caching.pop("/files/config.json"), "private, immutable, max-age=31536000", "caching of what stays")
        equal(set(caching.values()), {"private, no-cache"}, "caching of what another signature changes")
        entry = next(file for file in artifact["files"] if file["path"] == "model.sig")
        equal((entry["bytes"], entry["sha256"]), (len(answer.body), hashlib.sha256(answer.body).hexdigest()), "its entry")
        equal(artifact["bytes"], sum(file["bytes"] for file in artifact["files"]), "bytes of the artifact")
        equal([file["path"] for file in artifact["files"]], sorted(file["path"] for file in artifact["files"]), "order of the files")
        bundle = answer.json
        equal(bundle["mediaType"], BUNDLE)
        equal(bundle["verificationMaterial"]["publicKey"]["hint"], hint)
        statement = statement_of(bundle)
        equal(statement["subject"][0]["name"], artifact["id"], "subject")
        equal({row["name"]: row["digest"] for row in statement["predicate"]["resources"]}, digests(artifact), "signed files")
        daemon.run([
            Call("GET", path + "/signature", headers={"If-None-Match": answer.headers["etag"]}, status=304),
            Call("GET", path + "/signature", headers={"Range": "bytes=0-9"}, status=206,
                 check=lambda part, saved: equal(part.body, answer.body[:10])),
            Call("GET", path + "/signature", headers={"If-Match": '"x"'}, status=412),
            Call("HEAD", path + "/signature"),
            Call("POST", path + "/signature", check=lambda again, saved: equal(again.json, artifact, "what is signed stays")),
            Call("GET", "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV/signature", status=404, code="not_found"),
            Call("POST", "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV/signature", status=404, code="not_found"),
        ])
        with tarfile.open(fileobj=io.BytesIO(daemon.request("GET", path + "/archive").body)) as tar:
            equal(tar.extractfile("model.sig").read(), answer.body, "the signature in the archive")
        checked = verification(daemon, artifact)
        equal((checked["intact"], checked["signature"]), (True, {"state": "valid", "key_hint": hint, "detail": None}))
        unsigned = make_artifact(daemon, sign=False)
        equal((unsigned["signature"], digests(unsigned)), (None, digests(artifact)), "an artifact that was not to be signed")
        with Client(url_of(daemon)) as client:
            use_of_quantctl(client, keys, artifact, unsigned, hint)
        config = next(file for file in artifact["files"] if file["path"] == "config.json")
        blob = os.path.join(daemon.data, "blobs", "sha256", config["sha256"][:2], config["sha256"])
        os.chmod(blob, 0o644)
        with open(blob, "ab") as file:
            file.write(b" ")
        checked = verification(daemon, artifact)
        equal((checked["intact"], checked["signature"]["state"]), (False, "invalid"))
        true("config.json is not the file that was signed" in checked["signature"]["detail"], "the reason: %r" % checked["signature"])
        blob = os.path.join(daemon.data, "blobs", "sha256", entry["sha256"][:2], entry["sha256"])
        os.unlink(blob)
        equal(verification(daemon, artifact)["signature"]["detail"], "the file of the signature is missing")
        daemon.run([Call("POST", path + "/signature"),  # makes it again
                    Call("GET", path + "/signature")])


def use_of_quantctl(client, keys, artifact, unsigned, hint):
    keys.make("b")
    good, bad = keys.path("a.pub"), keys.path("b.pub")
    true("signed by the key " + hint in client.run("artifacts", "show", artifact["id"]).out, "artifacts show")
    true(hint in client.run("system").out, "system")
    true("not signed" in client.run("pull", unsigned["id"], "-o", "unsigned", "-k", good, status=MISMATCH).err, "why")
    true("is of the key" in client.run("pull", artifact["id"], "-o", "other", "-k", bad, status=MISMATCH).err, "why")
    client.run("pull", artifact["id"], "-o", "other", "-k", keys.path("none"), status=LOCAL)
    client.run("pull", artifact["id"], "-o", "other", "-k", keys.path("a.pem"), status=USAGE)
    equal([name for name in ("unsigned", "other") if os.path.exists(client.path(name))], [], "folders of what was refused")
    true("signed by the key " + hint in client.run("pull", artifact["id"], "-o", "out", "-k", good).out, "pull says so")
    equal(files_below(client.path("out")), sorted(file["path"] for file in artifact["files"]), "files")
    equal(client.run("pull", artifact["id"], "-o", "out", "-k", good, "--json").json["signed_by"], hint, "signed_by")
    equal(client.run("verify", "out", "-k", good, "--json").json["files"], len(artifact["files"]) - 1, "files that were verified")
    client.run("verify", "out", "-k", bad, status=MISMATCH)
    client.run("verify", "out", status=USAGE)
    client.run("verify", "nowhere", "-k", good, status=LOCAL)

    def refused(words, change):
        shutil.rmtree(client.path("copy"), ignore_errors=True)
        shutil.copytree(client.path("out"), client.path("copy"))
        change(client.path("copy"))
        answer = client.run("verify", "copy", "-k", good, status=MISMATCH)
        true(words in answer.err, "%r is said: %r" % (words, answer))

    def append(path, data=b" "):
        with open(path, "ab") as file:
            file.write(data)

    def sign_again(folder):
        with open(folder + "/model.sig") as file:
            bundle = json.load(file)
        statement = statement_of(bundle)
        statement["predicate"]["resources"].pop()
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        with open(folder + "/model.sig", "w") as file:
            json.dump(bundle, file)

    refused("config.json is not the file that was signed", lambda folder: append(folder + "/config.json"))
    refused("tokenizer.json is signed and is missing", lambda folder: os.unlink(folder + "/tokenizer.json"))
    refused("evil.bin is there and was not signed", lambda folder: append(folder + "/evil.bin"))
    refused("sub/evil.bin is there", lambda folder: (os.mkdir(folder + "/sub"), append(folder + "/sub/evil.bin")))
    refused("config.json is a symbolic link", lambda folder: (os.rename(folder + "/config.json", folder + "/../config.json"),
                                                              os.symlink("../config.json", folder + "/config.json")))
    refused("neither a file nor a directory", lambda folder: os.mkfifo(folder + "/fifo"))
    refused("unfinished download", lambda folder: append(folder + "/config.json.quantctl-part"))
    refused("was not signed", lambda folder: append(folder + "/a\x1b[2Jb"))
    refused("not usable JSON", lambda folder: append(folder + "/model.sig", b"x"))
    refused("not one of the key", sign_again)
    refused("is not signed: it has no model.sig", lambda folder: os.unlink(folder + "/model.sig"))
    shutil.move(client.path("out", "model.sig"), client.path("elsewhere.sig"))
    client.run("verify", "out", "-k", good, "--signature", "elsewhere.sig")
    shutil.copy(client.path("elsewhere.sig"), client.path("out", "renamed.sig"))
    client.run("verify", "out", "-k", good, "--signature", "out/renamed.sig")
    client.run("verify", "out", "-k", good, "--signature", "elsewhere.sig", status=MISMATCH)
    answer = client.run("pull", artifact["id"], "-o", "out", "-k", good, status=MISMATCH)
    true("renamed.sig is in the directory and not in the artifact" in answer.err, "what is there already: %r" % answer)


def without_a_key():
    with Daemon() as daemon:
        equal(daemon.get("/v1/system")["signing_key"], None, "the key")
        artifact = make_artifact(daemon)
        equal(artifact["signature"], None, "the signature")
        path = "/v1/artifacts/%s/signature" % artifact["id"]
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        daemon.run([
            Call("GET", path, status=404, code="not_found", check=lambda answer, saved: true(
                "--signing-key" in answer.json["hint"], "what to do: %r" % answer)),
            Call("POST", path, status=422, code="no_signing_key"),
            Call("POST", JOBS, json=dict(BODY, model=model, output={"sign": True}), status=422, code="no_signing_key",
                 param="/output/sign"),
            Call("POST", JOBS, json=dict(BODY, model=model, output={"sign": "yes"}), status=400, param="/output/sign"),
        ])
        equal(verification(daemon, artifact)["signature"], None, "the verification")
        with Client(url_of(daemon)) as client:
            true("--signing-key" in client.run("artifacts", "sign", artifact["id"], status=REFUSED).err, "what to do")


def other_lives():
    """Signed later, by another key, and by none."""
    def again(daemon, *options):
        equal(daemon.stop(), 0, "exit status")
        daemon.options = list(options)
        daemon.start()

    with Keys() as keys, Daemon() as daemon:
        old, new = keys.make("old"), keys.make("new", "secp384r1")
        artifact = make_artifact(daemon)
        again(daemon, "--signing-key", old)
        with Client(url_of(daemon)) as client:
            signed = client.run("artifacts", "sign", artifact["id"], "--json").json
            equal(digests(signed), digests(artifact), "the other files")
            equal(signed["bytes"], sum(file["bytes"] for file in signed["files"]), "bytes")
            client.run("pull", artifact["id"], "-o", "old", "-k", keys.path("old.pub"))
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        jobs = [post(daemon, JOBS, json=dict(BODY, model=model, calibration={"stream": True, "num_samples": 8, "sequence_length": 32}, output=output))
                for output in ({"sign": True}, {})]
        again(daemon, "--signing-key", new)
        equal(verification(daemon, artifact)["signature"]["state"], "other_key", "with another key")
        signed = daemon.request("POST", "/v1/artifacts/%s/signature" % artifact["id"]).json
        equal(signed["signature"]["algorithm"], "ecdsa-p384-sha384", "signed by the other key")
        equal(len([file for file in signed["files"] if file["path"] == "model.sig"]), 1, "signatures")
        with Client(url_of(daemon)) as client:
            client.run("pull", artifact["id"], "-o", "new", "-k", keys.path("new.pub"))
            client.run("verify", "new", "-k", keys.path("new.pub"))
        again(daemon)
        equal(verification(daemon, artifact)["signature"]["state"], "other_key", "without a key")
        for job in jobs:
            equal(daemon.request("POST", "%s/%s/calibration?complete=1" % (JOBS, job), body=ids_records(12, 36, 2048),
                                 headers={"Content-Type": NDJSON}).status, 200)
        state = wait_job(daemon, jobs[0])
        equal((state["status"], state["error"]["code"], state["error"]["param"]), ("failed", "no_signing_key", "/output/sign"))
        equal(daemon.get("/v1/artifacts/" + succeed(daemon, jobs[1])["result"]["artifact_id"])["signature"], None, "by default")
        daemon.run([Call("POST", "%s/%s/retry" % (JOBS, jobs[0]), status=422, code="no_signing_key")])
        equal(daemon.request("POST", "%s/%s/retry" % (JOBS, jobs[0]), json={"output": {"sign": False}}).status, 202)
        succeed(daemon, jobs[0])
        daemon.run([Call("DELETE", "/v1/artifacts/" + artifact["id"], status=204),
                    Call("GET", "/v1/artifacts/%s/signature" % artifact["id"], status=404)])


def a_signature_of_the_source_is_left_behind():
    with Keys() as keys, tempfile.TemporaryDirectory() as root:
        shutil.copytree(os.path.join(DATA, "tiny-llama"), os.path.join(root, "tiny-llama"))
        shutil.copy(os.path.join(FIXTURE, "model", "model.sig"), os.path.join(root, "tiny-llama"))
        with Daemon(roots=[root]) as daemon:
            true("model.sig" not in [file["path"] for file in make_artifact(daemon)["files"]], "unsigned")
        with Daemon("--signing-key", keys.make("a"), roots=[root]) as daemon:
            equal(verification(daemon, make_artifact(daemon))["signature"]["state"], "valid", "signed")


def keys_that_cannot_sign():
    with Keys() as keys:
        keys.make("a")
        keys.make("k1", "secp256k1")
        openssl("genpkey", "-algorithm", "RSA", "-out", keys.path("rsa.pem"))
        openssl("genpkey", "-algorithm", "ED25519", "-out", keys.path("ed.pem"))
        openssl("pkey", "-in", keys.path("a.pem"), "-aes256", "-passout", "pass:x", "-out", keys.path("locked.pem"))
        for name, words in (("rsa.pem", "of the kind RSA"), ("ed.pem", "of the kind ED25519"), ("k1.pem", "secp256k1"),
                            ("locked.pem", "passphrase"), ("a.pub", "a private one is needed"), ("none.pem", "No such file")):
            data = keys.path("data")
            done = subprocess.run([BINARY, "--data-dir", data, "--signing-key", keys.path(name)], capture_output=True, text=True, timeout=60)
            equal(done.returncode, 2, "exit status with %s" % name)
            true(words in done.stderr and "--signing-key" in done.stderr, "%r is said: %r" % (words, done.stderr))
            true(not os.path.exists(data), "nothing was written with %s" % name)
        os.chmod(keys.path("a.pem"), 0o604)
        with Daemon("--signing-key", keys.path("a.pem")) as daemon:
            daemon.wait_line("other users of this host may read the signing key: chmod o-rwx")
            secret = openssl("pkey", "-in", keys.path("a.pem"), "-text", "-noout").decode().split("pub:")[0].split("priv:")[1]
            true("".join(secret.split()).replace(":", "") not in daemon.log_tail(1 << 20), "the key is not in the log")


class Published:
    """The signed model of the fixture on a server that lies; change: of what it serves."""

    def __init__(self, change):
        self.files = {}
        for path in files_below(os.path.join(FIXTURE, "model")):
            with open(os.path.join(FIXTURE, "model", path), "rb") as file:
                self.files[path] = file.read()
        self.signature = self.files["model.sig"]
        change(self)
        self.listed = [{"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in self.files.items()]

    def __call__(self, handler):
        if handler.path.endswith("/signature"):
            return handler.send(200, BUNDLE, self.signature)
        if "/files/" not in handler.path:
            return handler.send(200, "application/json", json.dumps({"id": "art_1", "files": self.listed}).encode())
        return handler.send(200, "application/octet-stream", self.files[handler.path.split("/files/")[1]])


def servers_that_lie():
    """Whatever the server does, nothing is downloaded that the key has not signed."""
    def other_signature(published):
        with open(os.path.join(FIXTURE, "p384.sig"), "rb") as file:
            published.signature = published.files["model.sig"] = file.read()

    changes = {
        "config.json is not the file that was signed": lambda it: it.files.update({"config.json": b"{}"}),
        "evil.py is there and was not signed": lambda it: it.files.update({"evil.py": b"x"}),
        ".git/config is there and was not signed": lambda it: it.files.update({".git/config": b"[core]"}),
        "sub.txt is signed and is missing": lambda it: it.files.pop("sub.txt"),
        "is not signed": lambda it: it.files.pop("model.sig"),
        "two signatures": lambda it: it.files.update({"model.sig": b"{}"}),
        "is of the key": other_signature,
    }
    for words, change in changes.items():
        with Server(Published(change)) as server, Client(server.url) as client:
            answer = client.run("pull", "art_1", "-o", "out", "-k", os.path.join(FIXTURE, "p256.pub"), status=MISMATCH)
            true(words in answer.err, "%r is said: %r" % (words, answer))
            true(not os.path.exists(client.path("out")), "nothing was written")
            equal([path for path, _ in server.seen if "/files/" in path], [], "files that were asked for")
    with Server(Published(lambda it: None)) as server, Client(server.url) as client:
        os.mkdir(client.path("out"))
        for name in ("config.json.quantctl-part", "config.json.quantctl-map"):  # an unfinished download is continued
            with open(client.path("out", name), "w"):
                pass
        client.run("pull", "art_1", "-o", "out", "-k", os.path.join(FIXTURE, "p256.pub"))
        client.run("verify", "out", "-k", os.path.join(FIXTURE, "p256.pub"))
        os.mkdir(client.path("out", ".git"))
        with open(client.path("out", ".git", "HEAD"), "w") as file:
            file.write("x")
        client.run("verify", "out", "-k", os.path.join(FIXTURE, "p256.pub"))  # the signer ignores it
        client.run("pull", "art_1", "-o", "out", "-k", os.path.join(FIXTURE, "p256.pub"))


main([a_signed_artifact, without_a_key, other_lives, a_signature_of_the_source_is_left_behind, keys_that_cannot_sign, servers_that_lie])
