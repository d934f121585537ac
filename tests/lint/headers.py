#!/usr/bin/env python3
"""Every header compiles alone and may be included twice. Usage: headers.py ROOT COMPILER..."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import tree

FLOORS = ("base", "gpu", "models", "quantizers", "storage", "jobs", "api", "daemon")
PACKAGES = ("jansson", "libcrypto", "libpcre2-8", "libutf8proc", "sqlite3", "libmicrohttpd", "libuv")
FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", '-DQUANTD_VERSION="0"', "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
         "-fsyntax-only", "-x", "c"]


def package_flags():
    flags = []
    for package in PACKAGES:
        done = subprocess.run(["pkg-config", "--cflags", package], capture_output=True, text=True, check=False)
        flags += done.stdout.split() if done.returncode == 0 else []
    return flags


def check(root, compiler, flags, name):
    """The compiler's words, empty when it has none."""
    with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
        source.write(f'#include "{name}"\n#include "{name}"\nextern int unit_is_not_empty;\n')
        source.flush()
        done = subprocess.run(compiler + FLAGS + flags + ["-I", root, source.name], capture_output=True, text=True,
                              check=False)
        return "" if done.returncode == 0 else done.stderr or "the compiler failed"


def main():
    root, compiler = sys.argv[1], sys.argv[2:]
    flags = package_flags()
    names = [n for n in tree.tracked(root) if n.endswith(".h") and n.split("/")[0] in FLOORS]
    failed = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, words in zip(names, pool.map(lambda n: check(root, compiler, flags, n), names)):
            if not tree.read(root, name).startswith("#pragma once"):
                print(f"{name}: does not begin with #pragma once")
                failed += 1
            if words:
                print(f"{name} does not compile alone:\n{words}")
                failed += 1
    print(f"{len(names)} headers, {failed} faults")
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main())
