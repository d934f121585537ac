"""A daemon that needs keys."""

import os
import subprocess

from harness import BINARY, Daemon, equal


def key_command(data, *words):
    return subprocess.run([BINARY, "key", *words, "--data-dir", data], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)


def make_key(data, scope, project="default", *more):
    done = key_command(data, "create", "--scope", scope, "--project", project, *more)
    equal(done.returncode, 0, "exit status of key create: " + done.stderr)
    return done.stdout.strip()


class Guarded(Daemon):
    """A daemon that needs keys: one for each scope, and one of another project for each."""

    def __init__(self, *options, **more):
        super().__init__("--auth", "keys", *options, start=False, **more)
        os.makedirs(self.data, exist_ok=True)
        self.keys = {scope: make_key(self.data, scope) for scope in ("read", "write", "admin")}
        self.other = make_key(self.data, "write", "other")
        self.start()

    def ask(self, key, method, path, headers=None, **more):
        headers = dict(headers or {})
        if key is not None:
            headers["Authorization"] = "Bearer " + key
        return self.request(method, path, headers=headers, **more)
