"""Certificates for tests, made by the openssl command."""

import os
import shutil
import ssl
import subprocess

from harness import Skip


def openssl(*words):
    if shutil.which("openssl") is None:
        raise Skip("there is no openssl")
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


class Pair:
    """A certificate and its key, as files."""

    def __init__(self, certificate, key):
        self.certificate, self.key = certificate, key

    def options(self):
        return ["--tls-certificate", self.certificate, "--tls-key", self.key]


class Authority:
    """An authority in a folder, and what it issues."""

    def __init__(self, folder, name="authority"):
        self.folder, self.name = folder, name
        self.certificate, self.key = self.path(name + ".pem"), self.path(name + ".key")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key,
                "-out", self.certificate, "-days", "30", "-subj", "/CN=%s of quantd's tests" % name)

    def path(self, name):
        return os.path.join(self.folder, name)

    def issue(self, name, names="DNS:localhost,IP:127.0.0.1", days=90, kind=("ec", "-pkeyopt", "ec_paramgen_curve:P-256")):
        pair = Pair(self.path(name + ".pem"), self.path(name + ".key"))
        request = self.path(name + ".csr")
        openssl("req", "-newkey", *kind, "-nodes", "-keyout", pair.key, "-out", request, "-subj", "/CN=" + name,
                "-addext", "subjectAltName=" + names)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                "-days", str(days), "-copy_extensions", "copy", "-out", pair.certificate)
        return pair

    def context(self):
        """Of a client that trusts the authority alone."""
        return ssl.create_default_context(cafile=self.certificate)
