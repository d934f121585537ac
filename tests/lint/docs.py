#!/usr/bin/env python3
"""Every route, error, method and format that a client can meet stands in docs/ by its name. Usage: docs.py ROOT"""

import pathlib
import re
import sys

# Codes that never leave the daemon: a job of that state says so in its status, a bad configuration on standard error.
INTERNAL = {"cancelled", "interrupted", "invalid_configuration"}


def names(root, folder, pattern):
    found = set()
    for path in sorted((root / folder).glob("*.c")):
        found.update(re.findall(pattern, path.read_text(), re.MULTILINE))
    return found


def main():
    root = pathlib.Path(sys.argv[1])
    routes = (root / "api" / "routes.c").read_text()
    wanted = {
        "api.md": set(re.findall(r'"(/(?:v1/)?[a-z][^" ]*)"', routes)) | set(
            re.findall(r'^ERR\(\w+, "(\w+)"', (root / "base" / "err.def").read_text(), re.MULTILINE)) - INTERNAL,
        "methods.md": names(root, "quantizers", r'^    \.name = "(\w+)"'),
        "formats.md": names(root, "formats", r'^    \.name = "([\w-]+)",\n    \.title'),
    }
    missing = 0
    for page, expected in wanted.items():
        text = (root / "docs" / page).read_text()
        if not expected:
            print(f"docs/{page}: nothing found to look for; has the table moved?")
            missing += 1
        for name in sorted(expected):
            if name.replace("*}", "}") not in text:
                print(f"docs/{page} does not name {name}")
                missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
