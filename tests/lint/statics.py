#!/usr/bin/env python3
"""A static function's name tells which file it is in. Usage: statics.py ROOT

Lists static functions of one name in two or more source files: a debugger, a profile and a search for the name cannot
tell them apart. Such functions carry their file's prefix (awq_solve, gguf_encode), or become one function in a shared
file. CHECKED lists the folders in which there may be none.
"""

import re
import sys

import tree

CHECKED = ("base", "gpu", "models", "quantizers", "storage", "formats", "pipeline", "webhooks", "jobs", "api", "daemon", "cli")
# What each translation unit has by the convention of a library or of the language.
ALLOWED = {"main"}

# A definition or a declaration at the start of a line: static, anything but ; = { and parentheses of attributes, name(.
STATIC = re.compile(r"^(?:__attribute__\(\([^\n]*\)\)\s*)?static\s+(?:inline\s+)?(?:[\w*]+\s+)+\**(\w+)\(", re.M)


def names(text):
    return set(STATIC.findall(text))


def clashes(files):
    """{name: [file, ...]} of names that stand in more than one file."""
    where = {}
    for file, text in files:
        for name in names(text):
            where.setdefault(name, []).append(file)
    return {name: sorted(at) for name, at in where.items() if len(at) > 1 and name not in ALLOWED}


def self_test():
    a = ("base/a.c", "static int solve(int x)\n{\n}\nstatic const char *const names[] = {\"solve(\"};\n")
    b = ("base/b.c", "static struct a *solve(const char *x,\n    int y);\nstatic inline void once(void)\n{\n}\n")
    c = ("base/c.c", "int solve(void);\n/* static int solve(void) */ static int other;\n")
    assert clashes([a, b, c]) == {"solve": ["base/a.c", "base/b.c"]}, clashes([a, b, c])
    assert not clashes([a, c])


def main():
    self_test()
    root = sys.argv[1]
    everywhere = "--all" in sys.argv
    files = []
    for name in tree.tracked(root):
        folder = name.split("/")[0]
        if name.endswith(".c") and folder != "tests" and (everywhere or folder in CHECKED):
            files.append((name, tree.read(root, name)))
    found = clashes(files)
    for name, at in sorted(found.items()):
        print(f"{name}: static in {', '.join(at)}")
    print(f"{len(files)} files, {len(found)} names of static functions in more than one file")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
