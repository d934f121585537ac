#!/usr/bin/env python3
"""Knowledge that has one place stays there. Usage: gates.py ROOT

Each row: a pattern, the paths that are looked at and those among them that may have it (by their beginnings), and why the others must
not. Patterns are written so that they do not match themselves.
"""

import re
import sys

import tree

TEXT = (".md", ".py", ".build", ".yml", ".json", ".txt")
FOLDERS = tuple(layer + "/" for layer in tree.LAYERS)
SHAPE = "the shape of a block is in its plan (models/plan.h), which models/families makes: ask the plan"
GATES = [
    (r"LINEAR[_](?:Q|K|V|O|GATE|UP|DOWN)|SITE[_]|NORM[_]Q", (), (), SHAPE),
    (r"gate[_]proj|q[_]proj", (), ("models/families/", "docs/", "tests/"), SHAPE),
    (r"model\.layers[.]", FOLDERS, ("models/families/",), SHAPE),
    (r"\b(?:nano|u)?sleep\(|\brig_sleep\(", ("tests/unit/api/",), ("tests/unit/api/rig.c", "tests/unit/api/fake_service.c"),
     "a fixed sleep is too long or too short: wait for the condition (RIG_WAIT, rig_wait_text, rig_wait_turn)"),
    (r"\bstore_(?:job_create|job_claim|artifact_publish)\(|json_object_set(?:_new)?\([^;]*\"status\"", ("jobs/", "api/", "daemon/", "pipeline/"),
     ("jobs/job.c",), "a job's status is written by jobs/job.c alone: job_move and its like"),
    (r"\bINSERT INTO jobs\b|\bUPDATE jobs SET status\b", FOLDERS, ("storage/sqlite_jobs.c",),
     "the column is written in storage/sqlite_jobs.c alone"),
    (r"\bstore_[a-z_]+\(", ("api/",), (),
     "the API asks the jobs service (jobs/jobs.h) on behalf of a principal: jobs/service_access.c is the one place that knows what it may see"),
]


def faults(name, text):
    for pattern, folders, allowed, why in GATES:
        if (folders and not name.startswith(folders)) or name.startswith(allowed):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line):
                yield number, why


def self_test():
    assert list(faults("formats/gguf.c", "    names[LINEAR" "_Q]")) and list(faults("README.md", "q" "_proj"))
    assert not list(faults("models/families/llama.c", '    "model.layers' '.", "q' '_proj"'))
    assert list(faults("tests/unit/api/test_a.c", "    rig_sleep(20);"))
    assert list(faults("api/a.c", "    rc = store_job_get(store, NULL, id, &job);"))
    assert list(faults("jobs/task.c", "    rc = store_job_claim(store, a, b, c, d);"))
    assert list(faults("jobs/task.c", '    json_object_set_new(patch, "status", json_string("queued"));'))
    assert not list(faults("jobs/task.c", "    rc = store_job_update(store, id, NULL, fence, patch, NULL, NULL, NULL);"))
    assert not list(faults("tests/unit/api/rig.c", "    (void)nanosleep(&time, NULL);"))


def main():
    self_test()
    root = sys.argv[1]
    count = failed = 0
    for name in tree.tracked(root):
        if name.endswith(tree.SOURCES + TEXT):
            count += 1
            for number, why in faults(name, tree.read(root, name)):
                print(f"{name}:{number}: {why}")
                failed += 1
    print(f"{count} files, {failed} faults")
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
