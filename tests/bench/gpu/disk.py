#!/usr/bin/env python3
"""What a disk reads and writes: the roofs of loading and exporting. Prints rows for the table of bench_roofs.

    disk.py FOLDER [--bytes N] [--values FILE]

A file of FOLDER is written and read past the page cache (O_DIRECT, where the file system has it), by one thread and by four, then read
from the page cache. VALUES gets the best of each in GB/s, a line "name value" each, added to what bench_roofs wrote there.
"""

import argparse
import concurrent.futures
import mmap
import os
import pathlib
import tempfile
import time

PIECE = 16 << 20


def stretch(path, flags, first, last, call, buffer):
    """Calls on pieces of the file from first to last."""
    descriptor = os.open(path, flags)
    try:
        for offset in range(first, last, PIECE):
            if call(descriptor, [buffer], offset) != PIECE:
                raise OSError(f"a piece at {offset} was cut short")
        if flags & os.O_WRONLY:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rate(path, flags, size, threads, call, buffers):
    share = size // threads // PIECE * PIECE
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        parts = [pool.submit(stretch, path, flags, i * share, (i + 1) * share, call, buffers[i]) for i in range(threads)]
        for part in parts:
            part.result()
        return share * threads * 1e-9 / (time.perf_counter() - begun)


def aligned_buffers():
    """As O_DIRECT wants them; no zeros, which some disks do not store."""
    buffers = [mmap.mmap(-1, PIECE) for _ in range(4)]
    for buffer in buffers:
        buffer.write(os.urandom(PIECE))
    return buffers


def direct_flag(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        return os.O_DIRECT
    except OSError:
        return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=2 << 30)
    parser.add_argument("--values", type=pathlib.Path)
    args = parser.parse_args()
    size, values = max(args.bytes // (4 * PIECE), 1) * 4 * PIECE, {}
    buffers = aligned_buffers()
    with tempfile.NamedTemporaryFile(dir=args.folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        direct = direct_flag(file.name)
        way = "direct" if direct else "through the page cache, fsynced"
        tries = [("disk_write", f"disk write, {way}", os.O_WRONLY | direct, threads, os.pwritev) for threads in (1, 4)]
        tries += [("disk_read", f"disk read, {way}", os.O_RDONLY | direct, threads, os.preadv) for threads in (1, 4)]
        tries += [(None, "page cache, filled", os.O_RDONLY, 1, os.preadv)]
        tries += [("cache_read", "page cache, read", os.O_RDONLY, threads, os.preadv) for threads in (1, 4)]
        for name, words, flags, threads, call in tries:
            found = rate(file.name, flags, size, threads, call, buffers)
            if name:
                print(f"| {words} | {threads} | {size >> 20} MiB | {size * 1e-6 / found:.0f} | {found:.2f} GB/s | |", flush=True)
                values[name] = max(found, values.get(name, 0))
    if args.values:
        with open(args.values, "a", encoding="utf-8") as out:
            out.writelines(f"{name} {found:.6g}\n" for name, found in values.items())


if __name__ == "__main__":
    main()
