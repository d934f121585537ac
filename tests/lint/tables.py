#!/usr/bin/env python3
"""A page of docs/ holds a table as the rows of the source have it. Usage: tables.py ROOT NAME TOOL [write]

TOOL prints the table; "write" puts it into the page.
"""

import pathlib
import subprocess
import sys

# name: the page, and where the rows are
TABLES = {
    "families": ("families.md", "models/arch.c"),
    "operations": ("gpu.md", "gpu/ops.def"),
    "routes": ("api.md", "api/route_rows.def"),
}


def main():
    root, name, tool = sys.argv[1:4]
    page, rows = TABLES[name]
    begin, end = f"<!-- {name}: from {rows} -->\n", f"<!-- end of {name} -->\n"
    path = pathlib.Path(root) / "docs" / page
    table = subprocess.run([tool], check=True, capture_output=True, text=True).stdout
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    text = before + begin + "\n" + table + "\n" + end + after
    if table.count("\n") < 10 or not after:
        print(f"no {name}, or docs/{page} has no place for them")
        return 1
    if sys.argv[4:] == ["write"]:
        path.write_text(text)
    elif text != path.read_text():
        print(f"docs/{page} is behind {rows}; run: python3 tests/lint/tables.py . {name} {tool} write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
