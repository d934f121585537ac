#!/usr/bin/env python3
"""What a header declares is used by the program, and not by its tests alone. Usage: unused.py ROOT

Functions, variables and macros of headers, and rows of base/err.def. A name that only its declaration and its definition have is dead,
whatever the tests do with it. ALLOWED lists exceptions; an entry that is no longer needed is an error.
"""

import collections
import re
import sys

import tree

# name: who uses it, and why the program does not.
ALLOWED = {
    "blob_list": "conformance runs over every row",
    "state_list": "conformance runs over every row",
    "chat_new": "tests render templates that no checkpoint has",
}
NOISE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.S)
FUNCTION = re.compile(r"^(?!static|typedef|#|\s|return|else)[\w \*]*?\b(\w+)\s*\([^;{}]*?\)[^;{}=]*;", re.M)
MACRO = re.compile(r"^#[ \t]*define[ \t]+(\w+)", re.M)
VARIABLE = re.compile(r"^extern[^;(]*?\b(\w+)(?:\[[^\]]*\])?;", re.M)
WORD = re.compile(r"\b[A-Za-z_]\w+\b")
ERROR = re.compile(r"^ERR\((\w+),", re.M)


def unused(files):
    """name -> header, of what has no use but its declaration and its definition."""
    clean = {name: NOISE.sub("", text) for name, text in files.items()}
    uses = collections.Counter(word for text in clean.values() for word in WORD.findall(text))
    found = {}
    for name, text in clean.items():
        if name.endswith(".h"):
            for pattern, own in ((FUNCTION, 2), (VARIABLE, 2), (MACRO, 1)):
                found.update((word, name) for word in pattern.findall(text) if uses[word] <= own)
        if name == "base/err.def":
            found.update(("ERR_" + word, name) for word in ERROR.findall(text) if uses["ERR_" + word] == 0)
    return found


def self_test():
    files = {"base/a.h": "int used(int);\nint dead(int);\n#define OPEN 1\n#define SHUT 2\n", "base/a.c": "int used(int x) { return OPEN; }\nint dead(int x) {}",
             "base/b.c": "int y = used(1);", "base/err.def": 'ERR(A, "a")\nERR(B, "b")\n', "base/c.c": "ERR_A"}
    assert unused(files) == {"dead": "base/a.h", "SHUT": "base/a.h", "ERR_B": "base/err.def"}, unused(files)


def main():
    self_test()
    root = sys.argv[1]
    files = tree.sources(root)
    found = unused(files)
    failed = 0
    for word, name in sorted(found.items()):
        if word not in ALLOWED:
            print(f"{name}: nothing but tests uses {word}")
            failed += 1
    for word in sorted(set(ALLOWED) - set(found)):
        print(f"{word} is used or gone: take it off the list of what is allowed")
        failed += 1
    print(f"{len(files)} files, {failed} faults")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
