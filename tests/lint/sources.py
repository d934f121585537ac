#!/usr/bin/env python3
"""Every C source is built: its name stands in the meson.build of its folder or of one above. Usage: sources.py ROOT

A list that meson asks the disk about (fs.exists) drops a misspelt name without a word, so none does; a file that no list names is
found here.
"""

import os
import re
import sys

import tree

BUILT = (".c", ".cu")
# What a list of tests or programs leaves out of a name, because it adds it.
PREFIXES = ("test_", "fuzz_", "quantd_", "")
# Of other packages, which may be absent.
MAY_ASK = {"gpu/cuda/meson.build": "cublasLt.h"}


def lists_of(root, names, folder):
    """Text of the meson.build files that may name a source of folder."""
    text = ""
    while True:
        name = os.path.join(folder, "meson.build")
        if name in names:
            text += tree.read(root, name)
        if not folder:
            return text
        folder = os.path.dirname(folder)


def is_named(stem, suffix, text):
    if re.search(rf"[/']{re.escape(stem + suffix)}'", text):
        return True
    return any(stem.startswith(prefix) and re.search(rf"'{re.escape(stem[len(prefix):])}'", text) for prefix in PREFIXES)


def self_test():
    text = "files('a.c', 'cpu/b.c')\nforeach name : ['err']"
    assert is_named("a", ".c", text) and is_named("b", ".c", text) and is_named("test_err", ".c", text)
    assert not is_named("c", ".c", text) and not is_named("rr", ".c", text) and not is_named("test_er", ".c", text)


def main():
    self_test()
    root = sys.argv[1]
    names = tree.tracked(root)
    count = failed = 0
    for name in names:
        if os.path.basename(name) == "meson.build":
            for number, line in enumerate(tree.read(root, name).splitlines(), 1):
                if "fs.exists" in line and MAY_ASK.get(name, "\n") not in line:
                    print(f"{name}:{number}: a list that asks the disk drops what is misspelt: name the files")
                    failed += 1
        stem, suffix = os.path.splitext(os.path.basename(name))
        if suffix in BUILT:
            count += 1
            if not is_named(stem, suffix, lists_of(root, names, os.path.dirname(name))):
                print(f"{name}: no meson.build names it")
                failed += 1
    print(f"{count} sources, {failed} faults")
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
