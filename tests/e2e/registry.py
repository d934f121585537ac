"""A registry of the OCI distribution specification for the tests of quantctl push, with the faults that they want."""

import base64
import contextlib
import hashlib
import json
import re
import urllib.parse

from quantctl import Server


def basic(user, password):
    return "Basic " + base64.b64encode(("%s:%s" % (user, password)).encode()).decode()


class Registry(Server):
    """keep: the bytes of blobs, not their digests alone. auth: None, "basic" or "token" (of /token on the same server), for user and password; fault(handler): True when it has answered."""

    def __init__(self, keep=True, auth=None, user="ann", password="pässword", anonymous=False, uses=None, elsewhere=None, tls=None, fault=None):
        super().__init__(self.serve, tls)
        self.RequestHandlerClass.do_HEAD = self.RequestHandlerClass.do_PUT = self.RequestHandlerClass.do_GET
        self.keep = keep
        self.auth, self.secret, self.anonymous, self.uses, self.elsewhere, self.fault = auth, basic(user, password), anonymous, uses, elsewhere, fault
        self.blobs, self.manifests, self.tokens, self.puts, self.asked = {}, {}, {}, [], []

    @property
    def name(self):
        return "127.0.0.1:%d" % self.server_address[1]

    def body(self, handler):
        size = int(handler.headers.get("Content-Length") or 0)
        data = handler.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client hung up")
        return data

    def error(self, handler, status, code, **headers):
        body = json.dumps({"errors": [{"code": code, "message": "because\x1b[2J"}]}).encode()
        handler.send(status, "application/json", body if handler.command != "HEAD" else b"", **headers)

    def allowed(self, handler):
        given = handler.headers.get("Authorization")
        if self.auth is None:
            return True
        if self.auth == "basic":
            challenge = 'Basic realm="a, b"'
            good = given == self.secret
        else:
            challenge = 'Bearer realm="%s/token?a=b",service="the, registry",scope="x"' % self.url
            token = (given or "").replace("Bearer ", "")
            good = self.tokens.get(token, 0) > 0
            if good and self.uses is not None:
                self.tokens[token] -= 1
        if not good:
            self.body(handler)
            self.error(handler, 401, "UNAUTHORIZED", WWW_Authenticate=challenge)
        return good

    def token(self, handler):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)
        form = urllib.parse.parse_qs(self.body(handler).decode())
        self.asked.append((handler.command, query, form, handler.headers.get("Authorization")))
        if handler.headers.get("Authorization") != self.secret and not self.anonymous and form.get("refresh_token") != ["identity"]:
            return self.error(handler, 401, "UNAUTHORIZED")
        name = "t%d" % len(self.tokens)
        self.tokens[name] = self.uses if self.uses is not None else 1
        return handler.send(200, "application/json", json.dumps({"token" if not form else "access_token": name}).encode())

    def serve(self, handler):
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            if handler.path.startswith("/token"):
                return self.token(handler)
            if self.fault is not None and self.fault(handler):
                return None
            return self.allowed(handler) and self.route(handler)

    def route(self, handler):
        path = urllib.parse.urlsplit(handler.path)
        blob = re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", path.path)
        if blob and handler.command == "HEAD":
            data = self.blobs.get(blob.group(2))
            return handler.send(200 if data is not None else 404, "application/octet-stream", b"")
        if re.fullmatch(r"/v2/(.+)/blobs/uploads/", path.path) and handler.command == "POST":
            where = (self.elsewhere.url if self.elsewhere else "") + "/up/%d?state=a%%2Fb" % len(self.puts)
            return handler.send(202, "text/plain", b"", Location=where)
        if path.path.startswith("/up/") and handler.command == "PUT":
            return self.put_blob(handler, urllib.parse.parse_qs(path.query))
        tag = re.fullmatch(r"/v2/(.+)/manifests/(.+)", path.path)
        if tag and handler.command == "PUT":
            data = self.body(handler)
            self.manifests["%s:%s" % tag.groups()] = (handler.headers["Content-Type"], data)
            return handler.send(201, "text/plain", b"", Docker_Content_Digest="sha256:" + hashlib.sha256(data).hexdigest())
        self.body(handler)
        return self.error(handler, 404, "NAME_UNKNOWN")

    def put_blob(self, handler, query):
        left, parts, hashed = int(handler.headers["Content-Length"]), [], hashlib.sha256()
        while left > 0:
            part = handler.rfile.read(min(left, 1 << 20))
            if not part:
                raise ConnectionError("the client hung up")
            left -= len(part)
            hashed.update(part)
            parts += [part] if self.keep else []
        digest = "sha256:" + hashed.hexdigest()
        if query != {"state": ["a/b"], "digest": [digest]}:
            return self.error(handler, 400, "DIGEST_INVALID")
        self.puts.append(digest)
        self.blobs[digest] = b"".join(parts)
        return handler.send(201, "text/plain", b"", Docker_Content_Digest=digest, Location="/v2/x/blobs/" + digest)


class Source:
    """quantd's side of a push: an artifact of files, and its image."""

    def __init__(self, files, lie=None, manifest=None, config=None):
        self.files, self.lie = files, lie or {}
        self.listed = [{"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()]
        self.config = config or b'{"config":{}}'
        named = b'{"config":{}}'
        layers = [{"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": "sha256:" + file["sha256"], "size": file["bytes"],
                   "annotations": {"org.cncf.model.filepath": file["path"]}} for file in self.listed]
        self.manifest = manifest if manifest is not None else json.dumps({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
            "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "size": len(named),
                       "digest": "sha256:" + hashlib.sha256(named).hexdigest()}}).encode()
        self.broken = []  # answers that are to end early

    def __call__(self, handler):
        if handler.path == "/v1/artifacts/art_1":
            return handler.send(200, "application/json", json.dumps({"id": "art_1", "files": self.listed}).encode())
        if handler.path.endswith("/oci/manifest"):
            return handler.send(200, "application/vnd.oci.image.manifest.v1+json", self.manifest)
        if handler.path.endswith("/oci/config"):
            return handler.send(200, "application/vnd.cncf.model.config.v1+json", self.config)
        path = urllib.parse.unquote(handler.path.split("/files/")[1])
        data = self.lie.get(path, self.files[path])
        if self.broken:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.close_connection = True
            return handler.wfile.write(data[:self.broken.pop()])
        return handler.send(200, "application/octet-stream", data)
