#!/usr/bin/env python3
"""Every error, method and format that a client can meet stands in docs/ by its name. Usage: docs.py ROOT"""

import re
import sys

import tree

# Codes that never leave the daemon: a job of that state says so in its status, a bad configuration on standard error.
INTERNAL = {"cancelled", "interrupted", "invalid_configuration"}


def names(sources, folder, pattern):
    return {found for name, text in sources.items() if name.startswith(folder) and name.endswith(".c")
            for found in re.findall(pattern, text, re.MULTILINE)}


def main():
    root = sys.argv[1]
    sources = tree.sources(root)
    wanted = {
        "api.md": set(re.findall(r'^ERR\(\w+, "(\w+)"', sources["base/err.def"], re.MULTILINE)) - INTERNAL,
        "methods.md": names(sources, "quantizers/", r'^    \.name = "(\w+)"'),
        "formats.md": names(sources, "formats/", r'^    \.name = "([\w-]+)",\n    \.title'),
    }
    missing = 0
    for page, expected in wanted.items():
        text = tree.read(root, f"docs/{page}")
        if not expected:
            print(f"docs/{page}: nothing found to look for; has the table moved?")
            missing += 1
        for name in sorted(expected):
            if name not in text:
                print(f"docs/{page} does not name {name}")
                missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
