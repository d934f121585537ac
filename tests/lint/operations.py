#!/usr/bin/env python3
"""docs/gpu.md holds the table of operations as gpu/ops.def has it. Usage: operations.py ROOT QUANTD_OPS [write]

"write" puts the table in.
"""

import pathlib
import subprocess
import sys

BEGIN, END = "<!-- operations: from gpu/ops.def -->\n", "<!-- end of operations -->\n"


def main():
    page = pathlib.Path(sys.argv[1]) / "docs" / "gpu.md"
    table = subprocess.run([sys.argv[2]], check=True, capture_output=True, text=True).stdout
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = before + BEGIN + "\n" + table + "\n" + END + after
    if table.count("\n") < 10 or not after:
        print("no operations, or docs/gpu.md has no place for them")
        return 1
    if sys.argv[3:] == ["write"]:
        page.write_text(text)
    elif text != page.read_text():
        print(f"docs/gpu.md is older than gpu/ops.def; run: python3 tests/lint/operations.py . {sys.argv[2]} write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
