#!/usr/bin/env python3
"""Every header compiles alone and may be included twice. Usage: headers.py ROOT COMPILER...

Those of gpu/cuda need CUDA's own headers; where there are none the last line says how many were left out.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import tree

PACKAGES = ("jansson", "libcrypto", "libpcre2-8", "libutf8proc", "sqlite3", "libmicrohttpd", "libuv", "libcurl", "yaml-0.1")
FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", '-DQUANTD_VERSION="0"', "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
         "-fsyntax-only", "-x", "c"]
CUDA = ["-isystem", "/usr/local/cuda/include"]


def package_flags():
    flags = []
    for package in PACKAGES:
        done = subprocess.run(["pkg-config", "--cflags", package], capture_output=True, text=True, check=False)
        flags += done.stdout.split() if done.returncode == 0 else []
    return flags


def check(root, compiler, flags, name):
    """The compiler's words, empty when it has none. name: "file" or <file>."""
    with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
        source.write(f'#include {name}\n#include {name}\nextern int unit_is_not_empty;\n')
        source.flush()
        done = subprocess.run(compiler + FLAGS + flags + ["-I", root, source.name], capture_output=True, text=True,
                              check=False)
        return "" if done.returncode == 0 else done.stderr or "the compiler failed"


def main():
    root, compiler = sys.argv[1], sys.argv[2:]
    flags = package_flags() + CUDA
    names = [n for n in tree.tracked(root) if n.endswith(".h") and n.split("/")[0] in tree.LAYERS]
    failed = left_out = 0
    if check(root, compiler, flags, "<cuda_runtime_api.h>"):
        left_out = len([n for n in names if n.startswith("gpu/cuda/")])
        names = [n for n in names if not n.startswith("gpu/cuda/")]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, words in zip(names, pool.map(lambda n: check(root, compiler, flags, f'"{n}"'), names)):
            if not tree.read(root, name).startswith("#pragma once"):
                print(f"{name}: does not begin with #pragma once")
                failed += 1
            if words:
                print(f"{name} does not compile alone:\n{words}")
                failed += 1
    print(f"{len(names)} headers, {failed} faults" + (f"; {left_out} left out, there are no CUDA headers" if left_out else ""))
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main())
