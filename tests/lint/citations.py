#!/usr/bin/env python3
"""Every file that a comment or a page names is in the project. Usage: citations.py ROOT

A name counts as there when some path ends in it: "err.h", "base/err.h". Sections of pages (a name and a paragraph sign) are errors: pages
here have none, so such a citation is of a document that readers do not have. State the fact, or cite the paper and its equation.
"""

import re
import sys

import tree

# Files of other programs.
FOREIGN = {"ggml-common.h", "cublasLt.h", "stub.c"}
NAME = re.compile(r"(?<![\w/.{$<>*%@-])((?:[\w-]+/)*[\w-]+\.(?:c|h|cu|cuh|inc|def|md|py|build))(?![\w*(]|\.\w)")
SECTION = re.compile(r"[\w-]+\.md(?:'s)? §")
COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.S)
PYTHON = re.compile(r'"""(?!Usage).*?"""|(?m:^\s*#[^\n]*)', re.S)
SKIP = ("tests/data/", "tests/fuzz/corpus/", "tests/lint/")


def prose(name, text):
    """What of a file is written for readers; the rest is blank, so that lines keep their numbers."""
    if name.endswith(".md"):
        return text
    spans = COMMENT if name.endswith(tree.SOURCES) else PYTHON
    out, at = [], 0
    for match in spans.finditer(text):
        out.append("\n" * text.count("\n", at, match.start()))
        out.append("\n" * match.group(0).count("\n") if match.group(0).startswith('"') and spans is COMMENT else match.group(0))
        at = match.end()
    return "".join(out)


def faults(text, known):
    for number, line in enumerate(text.splitlines(), 1):
        match = SECTION.search(line)
        if match:
            yield number, f'"{match.group(0)}" is a section of a page without sections'
            continue
        for match in NAME.finditer(line):
            if match.group(1) not in known and match.group(1) not in FOREIGN:
                yield number, f"{match.group(1)} is not in the project"


def self_test():
    known = {"err.h", "base/err.h", "api.md"}
    for good in ["see err.h and base/err.h", "`<name>.c`", "%s.h", "x.c_str", "api.md", "`block_*.c`"]:
        assert not list(faults(good, known)), good
    for bad in ["see gone.c", "api.md §4", "other/err.h"]:
        assert list(faults(bad, known)), bad
    assert prose("a.c", 'f("x.c"); /* y.c */\n// z.c') == "/* y.c */\n// z.c", prose("a.c", 'f("x.c"); /* y.c */\n// z.c')


def main():
    self_test()
    root = sys.argv[1]
    names = tree.tracked(root)
    known = {"/".join(name.split("/")[i:]) for name in names for i in range(name.count("/") + 1)}
    count = failed = 0
    for name in names:
        if name.startswith(SKIP) or not name.endswith(tree.SOURCES + (".md", ".py", ".build")):
            continue
        count += 1
        for number, why in faults(prose(name, tree.read(root, name)), known):
            print(f"{name}:{number}: {why}")
            failed += 1
    print(f"{count} files, {failed} citations of what is not there")
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
