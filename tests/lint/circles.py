#!/usr/bin/env python3
"""No include circle between files of different concerns. Usage: circles.py ROOT

A concern is a header with the sources that bear its name: export.h, export.c, export_plan.c; x_internal.h and x_parts.h belong to x. Where concern A
includes a header of B, and B, by whatever way, one of A, neither can be read or changed alone. Two lists say what is left out, and why;
an entry without which there would be no circle is an error.
"""

import collections
import re
import sys

import tree

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)

# Headers of types that a folder's files share: apart from the source of the same name, which uses these files.
SHARED = {
    "api/api.h": "the public header of the folder: limits and options that its files read",
    "api/request.h": "the request that every handler, route and reply takes; request.c sends it through them",
    "jobs/service.h": "the state of the service, which all its parts take; service.c opens and closes the parts",
    "jobs/supervisor.h": "the supervisor's part of that state",
    "jobs/sweep.h": "the sweep's part of that state",
    "jobs/deliveries.h": "the part of that state that delivers messages",
    "pipeline/pipeline.h": "the public header of the folder: what a run was given and whom it tells",
}
# (file, what it includes): an edge that closes a circle on purpose.
ALLOWED = {
    ("api/handlers_system.c", "api/openapi.h"): "one route shows the table of routes, which names the handlers",
    ("api/handlers_mcp.c", "api/mcp.h"): "the tools of one route are rows of the table of routes, which names the handlers",
    ("api/handlers_system.c", "api/counters.h"): "one route shows what is counted of every route of the table",
    ("api/relay.c", "api/server.h"): "two ends of one connection: each tells the other when it is over",
    ("models/block_load.c", "models/block_reader.h"): "a block that is loaded at once is one that is read and then taken",
    ("models/arch.c", "models/families/families.h"): "the registry names its rows, which are made of plans",
    ("storage/state_sqlite.c", "storage/sqlite.h"): "a row of the table of state.h, named after it; sqlite.h has its parts",
}


def concern_of(name, names, shared=frozenset(SHARED)):
    """The header that a file belongs to, without its suffix."""
    if name in shared:
        return name
    folder, _, base = name.rpartition("/")
    stem = base.split(".")[0]
    for suffix in ("_internal", "_parts"):  # shared by the sources of one concern
        stem = stem.removesuffix(suffix)
    parts = stem.split("_")
    for size in range(len(parts), 0, -1):
        header = f"{folder}/{'_'.join(parts[:size])}.h"
        if header in names:
            return header[:-2]
    return f"{folder}/{stem}"


def graph_of(files, allowed=frozenset(ALLOWED), shared=frozenset(SHARED)):
    """concern -> concern -> the includes that make the edge."""
    graph = collections.defaultdict(lambda: collections.defaultdict(list))
    for name, text in files.items():
        for target in INCLUDE.findall(text):
            if target not in files:
                continue
            if (name, target) in allowed:
                continue
            a, b = concern_of(name, files, shared), concern_of(target, files, shared)
            if a != b:
                graph[a][b].append(f"{name} includes {target}")
    return graph


def circle(graph):
    """The concerns of one circle in order, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node):]
        if node in done:
            return None
        path.append(node)
        for following in sorted(graph.get(node, {})):
            found = visit(following)
            if found:
                return found
        path.pop()
        done.add(node)
        return None

    for node in sorted(graph):
        found = visit(node)
        if found:
            return found
    return None


def unneeded(files, allowed, shared):
    """The entries of both lists without which there is no circle. For files that have none with them."""
    for entry in sorted(allowed):
        if circle(graph_of(files, set(allowed) - {entry}, set(shared))) is None:
            yield f"{entry[0]} may include {entry[1]}, which makes no circle: take it off the list of what is allowed"
    for name in sorted(shared):
        if circle(graph_of(files, set(allowed), set(shared) - {name})) is None:
            yield f"{name} makes no circle: take it off the list of shared headers"


def self_test():
    files = {"jobs/a.h": "", "jobs/a.c": '#include "jobs/b.h"', "jobs/b.h": "", "jobs/b_more.c": '#include "jobs/a.h"'}
    assert circle(graph_of(files)) == ["jobs/a", "jobs/b"]
    edge = ("jobs/a.c", "jobs/b.h")
    assert circle(graph_of(files, {edge})) is None and not list(unneeded(files, {edge}, ()))
    assert len(list(unneeded(files, {edge, ("jobs/a.c", "jobs/c.h")}, ()))) == 1
    assert circle(graph_of(files, (), {"jobs/a.h"})) is None and not list(unneeded(files, (), {"jobs/a.h"}))
    files["jobs/b_more.h"] = ""
    assert circle(graph_of(files)) is None
    assert len(list(unneeded(files, {edge}, {"jobs/a.h"}))) == 2
    assert concern_of("jobs/a_internal.h", files) == "jobs/a" and concern_of("jobs/b_more.c", files) == "jobs/b_more"


def main():
    self_test()
    root = sys.argv[1]
    sys.setrecursionlimit(10000)
    files = tree.sources(root)
    graph = graph_of(files)
    failed = 0
    while True:
        found = circle(graph)
        if found is None:
            break
        failed += 1
        print("a circle of includes:")
        for a, b in zip(found, found[1:] + found[:1]):
            print("    " + graph[a][b][0])
        del graph[found[-1]][found[0]]
    for fault in unneeded(files, ALLOWED, SHARED) if failed == 0 else ():
        print(fault)
        failed += 1
    print(f"{len(files)} files, {failed} faults")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
