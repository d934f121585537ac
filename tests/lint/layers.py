#!/usr/bin/env python3
"""Includes point to lower layers only. Usage: layers.py ROOT

base <- gpu <- models <- { quantizers | formats } <- pipeline <- jobs <- api <- daemon, and base <- storage <- jobs:
quantizers, formats and storage never see each other, and pipeline sees no storage.
Inside gpu, cpu/ and cuda/ see the public header and not each other.
"""

import re
import sys

import tree

BELOW = {"base": []}
BELOW["gpu"] = ["base"]
BELOW["models"] = BELOW["gpu"] + ["gpu"]
BELOW["quantizers"] = BELOW["models"] + ["models"]
BELOW["formats"] = BELOW["models"] + ["models"]
BELOW["pipeline"] = BELOW["models"] + ["models", "quantizers", "formats"]
BELOW["storage"] = ["base"]
BELOW["jobs"] = BELOW["pipeline"] + ["pipeline", "storage"]
BELOW["api"] = BELOW["jobs"] + ["jobs"]
BELOW["daemon"] = BELOW["api"] + ["api"]

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)
SOURCES = (".c", ".h", ".inc", ".cu", ".cuh", ".def")


def faults(name, text):
    layer = name.split("/")[0]
    for match in INCLUDE.finditer(text):
        target = match.group(1)
        line = text.count("\n", 0, match.start()) + 1
        to = target.split("/")[0]
        if ".." in target.split("/"):
            yield line, f'"{target}" climbs out of its folder'
        elif "/" not in target:
            yield line, f'"{target}" does not name its layer'
        elif to != layer and to in BELOW and to not in BELOW[layer]:
            yield line, f'"{target}" is above {layer}'
        elif to != layer and to not in BELOW:
            yield line, f'"{target}" does not belong to a layer'
        elif name.startswith("gpu/cpu/") and target.startswith("gpu/cuda/"):
            yield line, f'"{target}" belongs to another backend'
        elif name.startswith("gpu/cuda/") and target.startswith("gpu/cpu/"):
            yield line, f'"{target}" belongs to another backend'


def self_test():
    bad = {
        "base/a.c": ["gpu/gpu.h", "storage/storage.h"],
        "models/a.c": ["formats/format.h", "quantizers/quantizer.h"],
        "quantizers/a.c": ["formats/format.h", "jobs/jobs.h"],
        "pipeline/a.c": ["storage/storage.h", "jobs/jobs.h"],
        "storage/a.c": ["models/model.h", "formats/format.h", "../base/err.h", "store.h", "tests/unit/unit.h"],
        "api/a.c": ["daemon/config.h"],
        "gpu/cpu/a.c": ["gpu/cuda/b.h"],
    }
    good = {"jobs/a.c": ["quantizers/quantizer.h", "storage/storage.h", "jobs/job.h"], "base/a.c": ["base/err.h"]}
    for name, targets in bad.items():
        for target in targets:
            assert list(faults(name, f'#include "{target}"\n')), (name, target)
    for name, targets in good.items():
        for target in targets:
            assert not list(faults(name, f'#include "{target}"\n')), (name, target)


def main():
    self_test()
    root = sys.argv[1]
    count = failed = 0
    for name in tree.tracked(root):
        if name.split("/")[0] in BELOW and name.endswith(SOURCES):
            count += 1
            for line, why in faults(name, tree.read(root, name)):
                print(f"{name}:{line}: {why}")
                failed += 1
    print(f"{count} files, {failed} includes that point the wrong way")
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
