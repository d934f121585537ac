"""quantctl push: into registries that ask who pushes, that are slow, that break off, and that lie; and from servers that do."""

import base64
import hashlib
import json
import os
import signal
import ssl
import subprocess
import threading

from harness import SANITIZED, equal, main, true
from quantctl import MISMATCH, OK, REFUSED, SECONDS, SERVER, UNREACHABLE, USAGE, Client, Server
from registry import Registry, Source, basic


def noise(size, seed):
    return hashlib.shake_128(b"%d" % seed).digest(size)


FILES = {"model.safetensors": noise(5 << 20, 1), "config.json": b"{}", "copy of config.json": b"{}", "empty": b"",
         "additional_chat_templates/ä tool.jinja": b"x" * 1000}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pushed(registry, source, name="models/tiny:w4"):
    """Everything is there, as it should be."""
    kind, text = registry.manifests[name]
    equal((kind, text), ("application/vnd.oci.image.manifest.v1+json", source.manifest), "the manifest")
    wanted = {digest(data): data for data in source.files.values()}
    wanted[digest(source.config)] = source.config
    true(registry.blobs == wanted, "the blobs: %r" % sorted(registry.blobs))


def pushes_what_is_missing():
    source = Source(FILES)
    with Server(source) as server, Registry() as registry, Client(server.url) as client:
        name = registry.name + "/models/tiny:w4"
        answer = client.run("push", "art_1", name)
        equal((answer.out, answer.err), ("%s/models/tiny@%s\n" % (registry.name, digest(source.manifest)), ""), "output")
        pushed(registry, source)
        equal(len(registry.puts), len(set(registry.puts)), "no blob is sent twice")
        registry.puts.clear()
        del registry.blobs[digest(b"{}")]
        answer = client.run("push", "art_1", name, "--json").json
        pushed(registry, source)
        equal(registry.puts, [digest(b"{}")], "only what is missing is sent")
        equal((answer["image"], answer["digest"]), (name, digest(source.manifest)))
        equal({blob["digest"] for blob in answer["blobs"] if blob["uploaded"]}, {digest(b"{}")})
        client.run("push", "art_1", registry.name + "/models/tiny")
        true("models/tiny:latest" in registry.manifests, "the tag is latest by default")


def memory_is_bounded():
    """A layer passes through: the peak of memory is that of libcurl and OpenSSL, however large it is."""
    source = Source({"model.safetensors": os.urandom(64 << 20)})
    peak = []

    def fault(handler):
        if "/manifests/" in handler.path:
            with open("/proc/%d/status" % process.pid) as status:
                peak.extend(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return False

    with Server(source) as server, Registry(fault=fault) as registry, Client(server.url) as client:
        process = client.start("push", "art_1", registry.name + "/models/tiny:w4")
        process.communicate(timeout=SECONDS)
        equal(process.returncode, OK, "exit status")
        pushed(registry, source)
        true(SANITIZED or peak[0] < 32 << 10, "at most 32 MiB: %d KiB" % peak[0])


def docker_login(client, registry, **entry):
    os.makedirs(client.path(".docker"), exist_ok=True)
    with open(client.path(".docker", "config.json"), "w") as file:
        json.dump({"auths": {"https://%s/v1/" % registry.name: entry, "other.example": {"auth": "eDp5"}}}, file)


def auth(user, password):
    return basic(user, password)[6:]


def passwords():
    source = Source(FILES)
    for kind in ("basic", "token"):
        with Server(source) as server, Registry(auth=kind) as registry, Client(server.url) as client:
            name = registry.name + "/models/tiny:w4"
            answer = client.run("push", "art_1", name, status=REFUSED)
            true("docker login" in answer.err, "says how to log in: %r" % answer)
            answer = client.run("push", "art_1", name, "--username", "ann", "--password-stdin", stdin=b"secret\n", status=REFUSED)
            true("does not accept" in answer.err and "secret" not in answer.err, "the reason: %r" % answer)
            equal(registry.blobs, {}, "nothing is stored")
            client.run("push", "art_1", name, "--username", "ann", "--password-stdin", stdin="pässword\n".encode())
            pushed(registry, source)
            registry.blobs.clear()
            docker_login(client, registry, auth=auth("ann", "pässword"))
            client.run("push", "art_1", name)
            pushed(registry, source)
            for damaged in ("x", "eHl6", "####"):
                docker_login(client, registry, auth=damaged)
                answer = client.run("push", "art_1", name, status=USAGE)
                true("config.json" in answer.err, "names the file: %r" % answer)
            docker_login(client, registry)
            with open(client.path(".docker", "config.json"), "w") as file:
                json.dump({"auths": {registry.name: {}}, "credsStore": "desktop"}, file)
            answer = client.run("push", "art_1", name, status=REFUSED)
            true("credential helper" in answer.err, "says where they are: %r" % answer)
            for path, headers in registry.seen:
                true(not path.startswith("/v2/") or kind == "basic" or not headers.get("Authorization", "").startswith("Basic"),
                     "a registry with a token server gets no password")


def tokens():
    source = Source(FILES)
    with Server(source) as server, Registry(auth="token", anonymous=True, uses=3) as registry, Client(server.url) as client:
        client.run("push", "art_1", registry.name + "/models/tiny:w4")  # each token is good for three requests
        pushed(registry, source)
        true(len(registry.tokens) > 3, "tokens that expired were replaced")
        method, query, _, given = registry.asked[0]
        equal((method, query["scope"], query["service"], query["a"], given),
              ("GET", ["repository:models/tiny:pull,push"], ["the, registry"], ["b"], None), "what a token is asked for")
    with Server(source) as server, Registry(auth="token") as registry, Client(server.url) as client:
        docker_login(client, registry, auth=auth("<token>", ""), identitytoken="identity")
        client.run("push", "art_1", registry.name + "/models/tiny:w4")
        pushed(registry, source)
        equal((registry.asked[0][0], registry.asked[0][2]["grant_type"]), ("POST", ["refresh_token"]), "an identity token")
    for body, status in ((b'{"token": "a\\r\\nX-Evil: b"}', SERVER), (b"{}", SERVER), (b"<html>", SERVER), (b'{"token": 7}', SERVER)):
        with Server(lambda handler: handler.send(200, "application/json", body)) as seller, Server(source) as server:
            def fault(handler):
                handler.send(401, "text/plain", b"", WWW_Authenticate='Bearer realm="%s/t"' % seller.url)
                return True
            with Registry(fault=fault) as registry, Client(server.url) as client:
                answer = client.run("push", "art_1", registry.name + "/a", status=status)
                true("token" in answer.err, "the reason: %r" % answer)
    challenges = ['Bearer realm="ftp://x/"', "Bearer realm=\"http://127.0.0.1:1", "Bearer service=x", "Digest realm=x", "Bearer realm=\"\"",
                  'Bearer realm="http://a.example/%s"' % ("x" * 5000)]
    for challenge in challenges:
        def refuse(handler):
            handler.send(401, "text/plain", b"", WWW_Authenticate=challenge)
            return True
        with Server(source) as server, Registry(fault=refuse) as registry, Client(server.url) as client:
            client.run("push", "art_1", registry.name + "/a", status=SERVER)


def secrets_stay_with_the_registry():
    """An upload that is sent to another host gets no credentials, and a token server without TLS no password."""
    source = Source(FILES)
    with Registry() as other, Server(source) as server, Registry(auth="basic", elsewhere=other) as registry, Client(server.url) as client:
        docker_login(client, registry, auth=auth("ann", "pässword"))
        client.run("push", "art_1", registry.name + "/models/tiny:w4")
        equal(set(other.blobs), {digest(data) for data in (*FILES.values(), source.config)}, "blobs of the other host")
        true(all("Authorization" not in headers for _, headers in other.seen), "no credentials there")
    with Server(source) as server, Client(server.url) as client:
        def fault(handler):
            handler.send(401, "text/plain", b"", WWW_Authenticate='Bearer realm="http://token.example/t"')
            return True
        with Registry(fault=fault) as registry:
            docker_login(client, registry, auth=auth("ann", "pässword"))
            answer = client.run("push", "art_1", registry.name + "/a", status=SERVER)
            true("not encrypted" in answer.err, "the reason: %r" % answer)
    with Client("http://127.0.0.1:1") as client:
        answer = client.run("push", "art_1", "registry.example/a", "--plain-http", "--username", "x", "--password-stdin", stdin=b"y", status=USAGE)
        true("unencrypted" in answer.err, "the reason: %r" % answer)


def survives_faults():
    """5xx, 429, connections that break in the middle of a blob on either side."""
    source = Source(FILES)
    faults = []

    def fault(handler):
        if handler.command != "PUT" or not handler.path.startswith("/up/") or len(faults) >= 3:
            return False
        faults.append(handler.path)
        if len(faults) == 1:
            handler.rfile.read(100000 if int(handler.headers["Content-Length"]) > 100000 else 0)
            handler.close_connection = True
        elif len(faults) == 2:
            registry.body(handler)
            registry.error(handler, 503, "UNAVAILABLE", Retry_After="1")
        else:
            registry.body(handler)
            registry.error(handler, 429, "TOOMANYREQUESTS", Retry_After="1")
        return True

    with Server(source) as server, Registry(fault=fault) as registry, Client(server.url) as client:
        answer = client.run("push", "art_1", registry.name + "/models/tiny:w4")
        pushed(registry, source)
        true("again in" in answer.err and "\x1b" not in answer.err, "says so: %r" % answer)
    with Server(source) as server, Registry() as registry, Client(server.url) as client:
        source.broken.append(3 << 20)
        client.run("push", "art_1", registry.name + "/models/tiny:w4")
        pushed(registry, source)


def lost_answers():
    """The blob was stored, and the answer lost: it is not sent again."""
    source = Source(FILES)
    lost = []

    def fault(handler):
        if handler.command != "PUT" or not handler.path.startswith("/up/") or lost:
            return False
        data = registry.body(handler)
        lost.append(digest(data))
        registry.blobs[digest(data)] = data
        handler.close_connection = True
        return True

    with Server(source) as server, Registry(fault=fault) as registry, Client(server.url) as client:
        client.run("push", "art_1", registry.name + "/models/tiny:w4")
        pushed(registry, source)
        true(lost[0] not in registry.puts, "it was not sent again")


def continues_after_a_kill():
    files = {"a.safetensors": noise(1 << 20, 3), "b.safetensors": noise(32 << 20, 4)}
    source, reached, gate = Source(files), threading.Event(), threading.Event()

    def fault(handler):
        if handler.command == "PUT" and int(handler.headers["Content-Length"]) > 8 << 20 and not gate.is_set():
            handler.rfile.read(1 << 20)
            reached.set()
            gate.wait(SECONDS)
            handler.close_connection = True
            return True
        return False

    with Server(source) as server, Registry(fault=fault) as registry, Client(server.url) as client:
        process = client.start("push", "art_1", registry.name + "/models/tiny:w4")
        true(reached.wait(SECONDS), "the second blob is on its way")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        gate.set()
        equal((registry.puts, registry.manifests), ([digest(files["a.safetensors"])], {}), "what is stored after the kill")
        client.run("push", "art_1", registry.name + "/models/tiny:w4")
        pushed(registry, source)
        equal(registry.puts.count(digest(files["a.safetensors"])), 1, "the first blob is not sent again")


def refusals():
    source = Source(FILES)

    def always(status, code, **headers):
        def fault(handler):
            registry = handler.server
            registry.body(handler)
            registry.error(handler, status, code, **headers)
            return True
        return fault

    def at_manifest(status, code):
        return lambda handler: handler.command == "PUT" and "/manifests/" in handler.path and always(status, code)(handler)

    def at_upload(status, code):
        return lambda handler: handler.command == "POST" and always(status, code)(handler)

    def lying(handler):
        if handler.command != "PUT" or not handler.path.startswith("/up/"):
            return False
        handler.server.body(handler)
        handler.send(201, "text/plain", b"", Docker_Content_Digest=digest(b"other"))
        return True

    def nowhere(handler):
        return handler.command == "POST" and (handler.send(202, "text/plain", b"") or True)

    def astray(location):
        return lambda handler: handler.command == "POST" and (handler.send(202, "text/plain", b"", Location=location) or True)

    cases = [
        ("403", at_upload(403, "DENIED"), REFUSED, "DENIED"),
        ("404", at_upload(404, "NAME_UNKNOWN"), REFUSED, "repository"),
        ("a limit", always(429, "TOOMANYREQUESTS", Retry_After="900"), REFUSED, "limits requests"),
        ("unknown types", at_manifest(400, "MANIFEST_INVALID"), REFUSED, "OCI artifacts"),
        ("another digest", lying, MISMATCH, "instead of"),
        ("no location", nowhere, SERVER, "where"),
        ("a location of no use", astray("gopher://x/"), SERVER, "URL"),
        ("a location that is too long", astray("/" + "x" * 8190), SERVER, ""),
    ]
    for name, fault, status, words in cases:
        with Server(source) as server, Registry(fault=fault) as registry, Client(server.url) as client:
            answer = client.run("push", "art_1", registry.name + "/models/tiny:w4", status=None)
            equal(answer.status, status, "exit status at %s (%r)" % (name, answer))
            true(words in answer.err and "\x1b" not in answer.err, "the reason at %s: %r" % (name, answer))
            equal(registry.manifests, {}, "no manifest at %s" % name)


def servers_that_lie():
    changed = bytearray(FILES["model.safetensors"])
    changed[-1] ^= 1
    other = json.loads(Source(FILES).manifest)
    other["layers"][0]["digest"] = digest(b"other")
    short = json.loads(Source(FILES).manifest)
    short["layers"][0]["size"] -= 1
    cases = [
        ("a changed byte", Source(FILES, lie={"model.safetensors": bytes(changed)}), MISMATCH),
        ("a byte too many", Source(FILES, lie={"model.safetensors": FILES["model.safetensors"] + b"x"}), SERVER),
        ("another layer", Source(FILES, manifest=json.dumps(other).encode()), MISMATCH),
        ("another size", Source(FILES, manifest=json.dumps(short).encode()), MISMATCH),
        ("another configuration", Source(FILES, config=b'{"config":7}'), MISMATCH),
        ("no manifest", Source(FILES, manifest=b"[]"), SERVER),
        ("not JSON", Source(FILES, manifest=b"{"), SERVER),
    ]
    for name, source, status in cases:
        with Server(source) as server, Registry() as registry, Client(server.url) as client:
            answer = client.run("push", "art_1", registry.name + "/models/tiny:w4", status=None)
            equal(answer.status, status, "exit status at %s (%r)" % (name, answer))
            equal(registry.manifests, {}, "no manifest at %s" % name)
            true(digest(bytes(changed)) not in registry.blobs, "the damaged file is not stored at %s" % name)


def usage():
    with Client("http://127.0.0.1:1") as client:
        for name in ("llama:w4", "models/llama:w4", "https://localhost:5000/x", "localhost:5000/UPPER", "localhost:5000/a:", "localhost:5000/",
                     "localhost:5000/a:b:c", "localhost:5000/a@sha256:" + "0" * 64, "localhost:5000/a//b", "user@host.example/x", "/x",
                     "host.example/../x", "localhost:port/x", "localhost:5000/" + "a" * 256, "localhost:5000/a:" + "t" * 129, "localhost:5000/a b"):
            answer = client.run("push", "art_1", name, status=USAGE)
            true(answer.err.startswith("quantctl: "), "one sentence: %r" % answer)
        for words in (("--username", "x"), ("--password-stdin",)):
            client.run("push", "art_1", "localhost:5000/x", *words, status=USAGE)
        client.run("push", "art_1", "localhost:5000/x", "--username", "x", "--password-stdin", status=USAGE)  # nothing on standard input
        client.run("push", "art_1", "localhost:5000/x", status=UNREACHABLE)
    with Server(Source(FILES)) as server, Client(server.url) as client:
        answer = client.run("push", "art_1", "127.0.0.1:1/x", "--timeout", "1", status=UNREACHABLE)
        true("127.0.0.1:1" in answer.err and "again" not in answer.err, "names the registry, at once: %r" % answer)


def encrypted():
    source = Source(FILES)
    with Client(None) as client:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
                        "/CN=r", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", client.path("key.pem"), "-out", client.path("ca.pem")],
                       check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(client.path("ca.pem"), client.path("key.pem"))
        with Server(source) as server, Registry(tls=context, auth="token") as registry:
            words = ("--server", server.url, "push", "art_1", registry.name + "/models/tiny:w4", "-q")
            docker_login(client, registry, auth=auth("ann", "pässword"))
            client.run(*words, "--registry-ca-file", client.path("ca.pem"))
            pushed(registry, source)
            client.run(*words, "--registry-ca-file", client.path("missing.pem"), status=USAGE)


main([pushes_what_is_missing, memory_is_bounded, passwords, tokens, secrets_stay_with_the_registry, survives_faults, lost_answers,
      continues_after_a_kill, refusals, servers_that_lie, usage, encrypted])
