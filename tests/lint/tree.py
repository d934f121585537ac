"""The files that are looked at: what git tracks, or without git everything but build folders."""

import os
import subprocess

LAYERS = ("base", "gpu", "models", "quantizers", "formats", "pipeline", "storage", "webhooks", "jobs", "dashboard", "api", "daemon", "cli")
SOURCES = (".c", ".h", ".inc", ".cu", ".cuh", ".def")


def tracked(root):
    """Paths relative to root, sorted; files that are deleted in the work tree are left out."""
    try:
        done = subprocess.run(
            ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, capture_output=True)
        names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = []
        for folder, folders, files in os.walk(root):
            folders[:] = [f for f in folders if not f.startswith((".", "build"))]
            names += [os.path.relpath(os.path.join(folder, f), root) for f in files]
    return sorted({n for n in names if os.path.isfile(os.path.join(root, n)) and not os.path.islink(os.path.join(root, n))})


def sources(root):
    """{path: text} of the program's sources."""
    return {name: read(root, name) for name in tracked(root) if name.split("/")[0] in LAYERS and name.endswith(SOURCES)}


def read(root, name):
    with open(os.path.join(root, name), encoding="utf-8", errors="replace") as file:
        return file.read()
