#!/usr/bin/env python3
"""A page of docs/ holds a table as the rows of the source have it. Usage: tables.py ROOT NAME TOOL [write]

TOOL prints the table; "write" puts it into the page. That of families is followed by what tests check of each (checked.py).
"""

import pathlib
import subprocess
import sys

import checked

# name: the page, and where the rows are
TABLES = {
    "families": ("families.md", "models/arch.c"),
    "operations": ("gpu.md", "gpu/ops.def"),
    "routes": ("api.md", "api/route_rows.def"),
}
MODEL_FREE = "\n## Model-free\n"  # the next part of the page of families


def add_checked(root, table):
    checked.self_test()
    families, heading, rest = table.partition(MODEL_FREE)
    return families + CHECKED + checked.checked(root, families) + heading + rest


CHECKED = """
## Checked

What tests check of each architecture, read from the tests.

- forward pass: the logits of small random models are those of transformers, within 1e-4 (`tests/interop/test_forward.py`, `test_composites.py`)
- artifacts: a program that the artifact is for loads it, with the logits of the same weights in quantd (the other files of `tests/interop`);
  one of a composite as the complete model, whose other parts have the source's bits
- tokenizer: ids of the pipelines that its published checkpoints have are those of the `tokenizers` library
- digests: RTN, GPTQ, AWQ and SmoothQuant make the recorded bytes of a small model (`tests/golden`)

A language model that exists within composites alone (`Qwen2VLTextModel`) has what is checked of these. A composite is checked with one of the
language models that it may have.

"""


def main():
    root, name, tool = sys.argv[1:4]
    page, rows = TABLES[name]
    begin, end = f"<!-- {name}: from {rows} -->\n", f"<!-- end of {name} -->\n"
    path = pathlib.Path(root) / "docs" / page
    table = subprocess.run([tool], check=True, capture_output=True, text=True).stdout
    table = add_checked(root, table) if name == "families" else table
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
