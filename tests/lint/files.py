#!/usr/bin/env python3
"""Sizes of C sources, and what must not be written into the tree. Usage: files.py ROOT

Over 500 lines is a warning and over 800 an error. Paths of one machine and names of package registries are errors: the
project has to build anywhere, from wherever its builder takes packages. The patterns are put together from pieces, so
that this file does not match itself.
"""

import re
import sys

import tree

LINES_WARN, LINES_MAX = 500, 800
C_SOURCES = (".c", ".h", ".inc", ".cu", ".cuh")
SKIP = ("tests/data/",)

HOME_FOLDERS = ["/" + "work" + "/", "/" + "home" + "/", "/" + "root" + "/", "/" + "Users" + "/"]
SCRATCH = "/" + "tmp" + "/"
REGISTRIES = ["pypi" + ".org", "pythonhosted" + ".org", "registry" + ".npmjs", "crates" + ".io", "proxy" + ".golang",
              "deb" + ".debian.org", "archive" + ".ubuntu.com", "conda" + ".anaconda.org", "index" + "-url",
              "trusted" + "-host"]
WRONG = re.compile("|".join(r"(?<![\w.])" + re.escape(p) for p in HOME_FOLDERS + [SCRATCH])
                   + "|" + "|".join(re.escape(p) for p in REGISTRIES))


def faults(text):
    for number, line in enumerate(text.splitlines(), 1):
        match = WRONG.search(line)
        if match:
            yield number, match.group(0)


def self_test():
    for bad in ["cd " + HOME_FOLDERS[0] + "x", 'open("' + SCRATCH + 'x")', "https://" + REGISTRIES[0] + "/simple"]:
        assert list(faults(bad)), bad
    for good in ["network/", "data_dir/tmp/", "%s/tmp/%s", "the tmp/ folder", "/usr/bin/env"]:
        assert not list(faults(good)), good


def main():
    self_test()
    root = sys.argv[1]
    count = failed = warned = 0
    for name in tree.tracked(root):
        if name.startswith(SKIP):
            continue
        text = tree.read(root, name)
        count += 1
        if name.endswith(C_SOURCES):
            lines = text.count("\n")
            if lines > LINES_MAX:
                print(f"{name}: {lines} lines are more than {LINES_MAX}")
                failed += 1
            elif lines > LINES_WARN:
                print(f"warning: {name}: {lines} lines, rethink above {LINES_WARN}")
                warned += 1
        for number, what in faults(text):
            print(f"{name}:{number}: {what} must not stand here")
            failed += 1
    print(f"{count} files, {failed} faults, {warned} warnings")
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
