#!/usr/bin/env python3
"""Includes point to lower layers only. Usage: layers.py ROOT

base <- gpu <- models <- { quantizers | formats } <- pipeline <- jobs <- api <- daemon, and base <- { storage | webhooks } <- jobs, base <- cli, dashboard <- api:
quantizers, formats and storage never see each other, and pipeline sees no storage. Of jobs, api sees the public header
alone, and no header that api includes leads to storage. Inside gpu, cpu/ and cuda/ see the public header and not each
other.
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
BELOW["webhooks"] = ["base"]
BELOW["jobs"] = BELOW["pipeline"] + ["pipeline", "storage", "webhooks"]
BELOW["dashboard"] = []
BELOW["api"] = BELOW["pipeline"] + ["pipeline", "jobs", "dashboard"]
BELOW["daemon"] = BELOW["api"] + ["storage", "api"]
BELOW["cli"] = ["base"]

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)


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
        elif layer == "api" and to == "jobs" and target != "jobs/jobs.h":
            yield line, f'"{target}" is not the public header of jobs'
        elif name.startswith("gpu/cpu/") and target.startswith("gpu/cuda/"):
            yield line, f'"{target}" belongs to another backend'
        elif name.startswith("gpu/cuda/") and target.startswith("gpu/cpu/"):
            yield line, f'"{target}" belongs to another backend'


def leads(includes, name, layer, seen=()):
    """The path of headers by which a file of another layer sees one of `layer`, or None. includes: of each header."""
    for target in includes.get(name, []):
        if target.split("/")[0] == layer:
            return [name, target]
        path = None if target in seen else leads(includes, target, layer, (*seen, target))
        if path:
            return [name, *path]
    return None


def self_test():
    bad = {
        "base/a.c": ["gpu/gpu.h", "storage/storage.h"],
        "models/a.c": ["formats/format.h", "quantizers/quantizer.h"],
        "quantizers/a.c": ["formats/format.h", "jobs/jobs.h"],
        "pipeline/a.c": ["storage/storage.h", "jobs/jobs.h"],
        "storage/a.c": ["models/model.h", "formats/format.h", "../base/err.h", "store.h", "tests/unit/unit.h"],
        "api/a.c": ["daemon/config.h", "storage/storage.h", "jobs/job.h"],
        "cli/a.c": ["api/api.h", "jobs/jobs.h", "storage/storage.h"],
        "gpu/cpu/a.c": ["gpu/cuda/b.h"],
    }
    good = {"jobs/a.c": ["quantizers/quantizer.h", "storage/storage.h", "jobs/job.h"], "base/a.c": ["base/err.h"],
            "api/a.c": ["jobs/jobs.h"], "daemon/a.c": ["storage/storage.h"]}
    for name, targets in bad.items():
        for target in targets:
            assert list(faults(name, f'#include "{target}"\n')), (name, target)
    for name, targets in good.items():
        for target in targets:
            assert not list(faults(name, f'#include "{target}"\n')), (name, target)
    path = {"jobs/jobs.h": ["base/a.h", "jobs/b.h"], "jobs/b.h": ["jobs/jobs.h", "storage/storage.h"]}
    assert leads({"api/a.c": ["jobs/jobs.h"], **path}, "api/a.c", "storage")[-1] == "storage/storage.h"
    assert leads({"api/a.c": ["base/a.h"], **path}, "api/a.c", "storage") is None


def main():
    self_test()
    root = sys.argv[1]
    count = failed = 0
    includes = {}
    for name, text in tree.sources(root).items():
        count += 1
        includes[name] = INCLUDE.findall(text)
        for line, why in faults(name, text):
            print(f"{name}:{line}: {why}")
            failed += 1
    for name in includes:
        path = leads(includes, name, "storage") if name.startswith("api/") else None
        if path:
            print(f"{name}: sees storage by {' -> '.join(path[1:])}")
            failed += 1
    print(f"{count} files, {failed} includes that point the wrong way")
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
